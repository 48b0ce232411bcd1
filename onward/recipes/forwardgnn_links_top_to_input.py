"""Forward learning of links, where layers read the layer above as well."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Section, Whole
from onward.values import Range


@dataclass(frozen=True, kw_only=True)
class LinksTopToInputConfig(Section):
    """Graph convolutions that read the layers below and above."""

    widths: Counts = (128, 128)
    """Units of each layer, which is a block."""

    convolution: Literal["gcn", "sage", "gat"] = "gcn"
    """Kind of the layers."""

    ticks: Annotated[int, Range(2)] = 10
    """How often all layers are updated, and learn, from one look at the graph."""

    counted: tuple[Whole, ...] | None = None
    """Ticks, from 0, at which classes are read off, and added up. None: all but the first two."""


@recipe(
    name="forwardgnn-links-top-to-input",
    source="Park et al. 2024, arXiv:2403.11004 (ForwardGNN), sections 3.3 and 3.4: "
    "CE-Top-To-Input. States start from zero at each epoch, which is ten ticks in training as in "
    "inference, as in forwardgnn-top-to-input; classes as in forwardgnn-links",
    defaults={
        "data.links": True,
        "training.epochs": 100,
        "training.precision": "fp32",
        "plan.kind": "stream",
        "plan.patience": 20,
        "plan.monitor": "roc-auc",
        "plan.keep_best": True,
    },
    twin="gnn-backprop",
    is_twin_alike=False,
)
def forwardgnn_links_top_to_input(
    config: LinksTopToInputConfig, data: Any, *, optimizer: OptimizerConfig
) -> Any:
    """ForwardGNN, link prediction, top to input: layers read those below and above them.

    As in forwardgnn-links, linked nodes become like each other. A layer also reads the layer above
    as it was a tick before. All layers learn together.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.networks import Network
    from onward.network.readouts import SumOfHeads
    from onward.recipes.feedback import counted_ticks, feedback_blocks
    from onward.recipes.pairs import Likeness, PairsOfNodes, check_pairs

    features = check_pairs(data, "forwardgnn-links-top-to-input")
    blocks = feedback_blocks(config.convolution, (features, *config.widths), 0, Likeness, optimizer)
    counted = counted_ticks(config.counted, config.ticks)
    return Network(
        blocks, PairsOfNodes(), SumOfHeads(ticks=counted), num_classes=2, ticks=config.ticks
    )
