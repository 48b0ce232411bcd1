"""Forward learning on graphs, where layers read the layer above as well."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Positive, Section, Whole
from onward.values import Range


@dataclass(frozen=True, kw_only=True)
class TopToInputConfig(Section):
    """Graph convolutions that read the layers below and above, and nodes for the classes."""

    widths: Counts = (128, 128)
    """Units of each layer, which is a block."""

    convolution: Literal["gcn", "sage", "gat"] = "gcn"
    """Kind of the layers."""

    direction: Literal["to-classes", "both"] = "both"
    """Which way messages go between training nodes and the node of their class. `both` shows
    training nodes their own label, which test nodes do not have."""

    temperature: Positive = 1.0
    """What dot products with the nodes of the classes are divided by."""

    ticks: Annotated[int, Range(2)] = 10
    """How often all layers are updated, and learn, from one look at the graph."""

    counted: tuple[Whole, ...] | None = None
    """Ticks, from 0, at which classes are read off, and added up. None: all but the first two."""


@recipe(
    name="forwardgnn-top-to-input",
    source="Park et al. 2024, arXiv:2403.11004 (ForwardGNN), section 3.3: SF-Top-To-Input. States "
    "start from zero at each epoch, which is ten ticks in training as in inference. In the "
    "paper, they start from one bottom-up pass, and in training carry over from epoch to epoch. "
    "Features of the nodes of classes are the same in every run",
    defaults={
        "training.epochs": 100,
        "training.precision": "fp32",
        "plan.kind": "stream",
        "plan.patience": 20,
        "plan.keep_best": True,
        "optimizer.weight_decay": 5e-4,
    },
    twin="gnn-backprop",
    is_twin_alike=False,
)
def forwardgnn_top_to_input(
    config: TopToInputConfig, data: Any, *, optimizer: OptimizerConfig
) -> Any:
    """ForwardGNN, top to input: layers read those below and above them, the top one the labels.

    As in forwardgnn-sf, nodes become like a node that stands for their class, in one pass. A layer
    also reads the layer above as it was a tick before, and the top layer the labels that are
    known. All layers learn together: the first, third and so on, then the second, fourth and so on.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.networks import Network
    from onward.network.readouts import SumOfHeads
    from onward.recipes.class_nodes import ClassNodesBelowLabels, NearestClassNode
    from onward.recipes.feedback import counted_ticks, feedback_blocks
    from onward.recipes.graph_layers import check_graph

    check_graph(data, "forwardgnn-top-to-input")
    blocks = feedback_blocks(
        config.convolution,
        (data.num_inputs, *config.widths),
        data.num_classes,
        lambda: NearestClassNode(data.num_classes, config.temperature),
        optimizer,
    )
    return Network(
        blocks,
        ClassNodesBelowLabels(data.num_classes, config.direction),
        SumOfHeads(ticks=counted_ticks(config.counted, config.ticks)),
        num_classes=data.num_classes,
        ticks=config.ticks,
    )
