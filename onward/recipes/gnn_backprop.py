"""Backpropagation through graph convolutions, to compare with."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onward.errors import SettingError
from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Section


@dataclass(frozen=True, kw_only=True)
class GraphBackpropConfig(Section):
    """Graph convolutions in one block."""

    is_backpropagation: ClassVar = True

    widths: Counts = (128, 128, 128, 128)
    """Units of each layer; where nodes have classes, the last layer has a unit for each in their
    place."""

    convolution: Literal["gcn", "sage", "gat"] = "gcn"
    """Kind of the layers."""

    unit_length: bool = True
    """Whether each layer reads vectors of length 1, as those of ForwardGNN do."""

    neighbors: Counts | None = None
    """Neighbors drawn for each node of a mini-batch, then for each of these, a number for each
    layer: for graphs that are too large for one mini-batch (training.batch_size). None: the graph
    is one. Not
    for links."""


@recipe(
    name="gnn-backprop",
    source="Kipf & Welling 2017, arXiv:1609.02907, as the baseline of Park et al. 2024, "
    "arXiv:2403.11004 (ForwardGNN), whose layers do not read vectors of length 1",
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
def gnn_backprop(config: GraphBackpropConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Backpropagation through all graph convolutions: the twin of the methods for graphs.

    The layers are theirs, but for the last, which has a unit for each class. One block with the
    cross-entropy of the last layer; or, where data are links, of dot products of pairs of nodes.
    """
    # Lists of recipes and the help of the command do without torch.
    from torch import nn

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.objectives import CrossEntropy, Objective
    from onward.network.readouts import SumOfHeads
    from onward.network.samplers import Plain, Sampler
    from onward.recipes.graph_layers import GraphLayers, check_graph, check_hops, rule
    from onward.recipes.neighborhoods import Neighborhoods
    from onward.recipes.pairs import Likeness, PairsOfNodes, check_pairs

    check_graph(data, "gnn-backprop")
    check_hops(config.neighbors, len(config.widths))
    objective: Objective
    sampler: Sampler
    if "x" in data.structure:
        widths = (check_pairs(data, "gnn-backprop"), *config.widths)
        objective, sampler = Likeness(), PairsOfNodes()
        if config.neighbors is not None:
            raise SettingError("Links are learned from all edges at once. Leave out neighbors.")
    else:
        widths = (data.num_inputs, *config.widths[:-1], data.num_classes)
        objective = CrossEntropy(nn.Identity())
        sampler = Plain() if config.neighbors is None else Neighborhoods(config.neighbors)
    module = GraphLayers(config.convolution, widths, is_unit_length=config.unit_length)
    block = Block(module, objective, rule(optimizer), structure=("edge_index",))
    return Network([block], sampler, SumOfHeads(), num_classes=data.num_classes)
