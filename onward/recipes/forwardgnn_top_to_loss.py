"""Forward learning on graphs, where the losses of layers look at the layers above."""

from dataclasses import dataclass
from typing import Any, Literal

from onward.errors import SettingError
from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Positive, Section

CLIP = 1.0
"""Largest length of the gradient of a layer."""


@dataclass(frozen=True, kw_only=True)
class TopToLossConfig(Section):
    """Graph convolutions whose losses look upwards, and nodes that stand for the classes."""

    widths: Counts = (128, 128)
    """Units of each layer, which is a block."""

    convolution: Literal["gcn", "sage", "gat"] = "gcn"
    """Kind of the layers."""

    direction: Literal["to-classes", "both"] = "both"
    """Which way messages go between training nodes and the node of their class. `both` shows
    training nodes their own label, which test nodes do not have."""

    temperature: Positive = 1.0
    """What dot products with the nodes of the classes are divided by."""


@recipe(
    name="forwardgnn-top-to-loss",
    source="Park et al. 2024, arXiv:2403.11004 (ForwardGNN), section 3.3: SF-Top-To-Loss. Layers "
    "read the layer below as it is in this epoch, before its update. In the paper, layers read the "
    "layer below as it was one epoch earlier, except in evaluation. In the first epoch, the layers "
    "above are zero here; the paper initializes them with one bottom-up pass. "
    "Features of the nodes of classes are the same in every run",
    defaults={
        "training.epochs": 1000,
        "training.precision": "fp32",
        "plan.kind": "stream",
        "plan.validate_every": 2,
        "plan.patience": 100,
        "plan.keep_best": True,
        "optimizer.weight_decay": 5e-4,
    },
    twin="gnn-backprop",
)
def forwardgnn_top_to_loss(
    config: TopToLossConfig, data: Any, *, optimizer: OptimizerConfig
) -> Any:
    """ForwardGNN, top to loss: in the loss of a layer, the layers above are averaged in.

    As in forwardgnn-sf, nodes become like a node that stands for their class, in one pass. The loss
    of a layer is of the mean over its own vectors and those of all layers above, as these were an
    epoch before. All layers learn together.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.blocks import Block, Edge
    from onward.network.networks import Network
    from onward.network.readouts import SumOfHeads
    from onward.recipes.class_nodes import ClassNodes, NearestClassNodeFromAbove
    from onward.recipes.graph_layers import check_graph, layer, rule

    check_graph(data, "forwardgnn-top-to-loss")
    if len(set(config.widths)) > 1:
        raise SettingError(
            f"Layers are averaged, and so have the same number of units; got network.widths "
            f"{list(config.widths)}."
        )
    depth, units = len(config.widths), config.widths[0]
    blocks = []
    for number in range(depth):
        module, prepare = layer(config.convolution, units if number else data.num_inputs, units)
        above = [
            Edge(other, delay=1, to="objective", name=f"above {other}", shape=(units,))
            for other in range(number + 1, depth)
        ]
        blocks.append(
            Block(
                module,
                NearestClassNodeFromAbove(data.num_classes, config.temperature),
                rule(optimizer),
                reads=(number - 1 if number else "input", *above),
                structure=("edge_index",),
                prepare=prepare,
                clip=CLIP,
            )
        )
    sampler = ClassNodes(data.num_classes, config.direction)
    return Network(blocks, sampler, SumOfHeads(), num_classes=data.num_classes)
