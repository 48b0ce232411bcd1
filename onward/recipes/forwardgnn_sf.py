"""Forward learning on graphs, in a single forward pass."""

from dataclasses import dataclass
from typing import Any, Literal

from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Positive, Section


@dataclass(frozen=True, kw_only=True)
class SingleForwardConfig(Section):
    """Graph convolutions, and nodes that stand for the classes."""

    widths: Counts = (128, 128, 128, 128)
    """Units of each layer, which is a block."""

    convolution: Literal["gcn", "sage", "gat"] = "gcn"
    """Kind of the layers."""

    direction: Literal["to-classes", "both"] = "to-classes"
    """Which way messages go between training nodes and the node of their class. `both`, the default
    of the paper, shows training nodes their own label, which test nodes do not have."""

    temperature: Positive = 1.0
    """What dot products with the nodes of the classes are divided by."""

    neighbors: Counts | None = None
    """Neighbors drawn for each node of a mini-batch, then for each of these, a number for each
    layer: for graphs that are too large for one mini-batch (training.batch_size). None: the graph
    is one."""


@recipe(
    name="forwardgnn-sf",
    source="Park et al. 2024, arXiv:2403.11004 (ForwardGNN), section 3.2. Messages to the classes "
    "only, where the paper's default is both ways; features of the nodes of classes are the same "
    "in every run",
    defaults={
        "training.epochs": 1000,
        "training.precision": "fp32",
        "plan.chapters": 1,
        "plan.block_patience": 100,
        "plan.block_validate_every": 2,
        "optimizer.weight_decay": 5e-4,
    },
    twin="gnn-backprop",
)
def forwardgnn_sf(config: SingleForwardConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """ForwardGNN, single forward: nodes become like a node that stands for their class.

    A node for each class is linked to the training nodes of the class. A layer learns that the
    vector of a node points towards that of its class node; it predicts the class by the nearest,
    in one pass, without negatives. Layers learn one after the other, each from the whole graph.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.networks import Network
    from onward.network.readouts import SumOfHeads
    from onward.recipes.class_nodes import ClassNodes, NearestClassNode
    from onward.recipes.graph_layers import check_graph, check_hops, layer_blocks

    check_graph(data, "forwardgnn-sf")
    check_hops(config.neighbors, len(config.widths))
    blocks = layer_blocks(
        config.convolution,
        (data.num_inputs, *config.widths),
        lambda: NearestClassNode(data.num_classes, config.temperature),
        optimizer,
    )
    sampler = ClassNodes(data.num_classes, config.direction, config.neighbors)
    return Network(blocks, sampler, SumOfHeads(), num_classes=data.num_classes)
