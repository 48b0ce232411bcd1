"""Forward learning of which nodes of a graph are linked."""

from dataclasses import dataclass
from typing import Any, Literal

from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Positive, Section


@dataclass(frozen=True, kw_only=True)
class LinksConfig(Section):
    """Graph convolutions, and what they learn of pairs of nodes."""

    widths: Counts = (128, 128, 128, 128)
    """Units of each layer, which is a block."""

    convolution: Literal["gcn", "sage", "gat"] = "gcn"
    """Kind of the layers."""

    loss: Literal["cross-entropy", "goodness"] = "cross-entropy"
    """Of the dot product of two nodes; or a goodness, the sum of squares of the products of their
    elements, above a threshold for linked nodes and below it for others."""

    threshold: Positive = 2.0
    """Goodness at which a pair is a coin toss."""

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        if self.loss == "goodness":
            return {}
        return {"threshold": f"the loss is {self.loss} (network.loss)"}


@recipe(
    name="forwardgnn-links",
    source="Park et al. 2024, arXiv:2403.11004 (ForwardGNN), section 3.4. Layers learn for "
    "1,000 epochs and keep their best weights. In the paper, they stop after 100 validations "
    "without better ones, which for goodness is soon after an early peak",
    defaults={
        "data.links": True,
        "training.epochs": 1000,
        "training.precision": "fp32",
        "plan.chapters": 1,
        "plan.block_patience": 500,
        "plan.monitor": "roc-auc",
        "plan.block_validate_every": 2,
        "optimizer.weight_decay": 5e-4,
    },
    twin="gnn-backprop",
)
def forwardgnn_links(config: LinksConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """ForwardGNN, link prediction: linked nodes become like each other, others unlike.

    Pairs with an edge are the positives, and as many without the negatives. They are of the same
    graph, so that one pass serves them all. Layers learn one after the other.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.networks import Network
    from onward.network.readouts import SumOfHeads
    from onward.recipes.graph_layers import layer_blocks
    from onward.recipes.pairs import Likeness, PairsOfNodes, check_pairs

    features = check_pairs(data, "forwardgnn-links")
    blocks = layer_blocks(
        config.convolution,
        (features, *config.widths),
        lambda: Likeness(config.loss, threshold=config.threshold),
        optimizer,
    )
    return Network(blocks, PairsOfNodes(), SumOfHeads(), num_classes=2)
