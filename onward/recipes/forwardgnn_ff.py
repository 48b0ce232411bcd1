"""Forward-Forward on graphs: labels that are shown to nodes."""

from dataclasses import dataclass
from typing import Any, Literal

from onward.errors import SettingError
from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Positive, Section


@dataclass(frozen=True, kw_only=True)
class GraphForwardForwardConfig(Section):
    """Graph convolutions, and how labels are shown to nodes."""

    widths: Counts = (128, 128, 128, 128)
    """Units of each layer, which is a block."""

    convolution: Literal["gcn", "sage", "gat"] = "gcn"
    """Kind of the layers."""

    labels: Literal["features", "nodes"] = "features"
    """Where a label is shown: in features of the node (FF-LA), or by a link to a node that stands
    for the class (FF-VN)."""

    loss: Literal["threshold", "symba"] = "threshold"
    """Goodness above a threshold for true labels and below it for wrong ones; or more goodness for
    the true label than for each wrong one."""

    threshold: Positive = 2.0
    """Goodness, a sum of squares, at which a node is a coin toss."""

    slope: Positive = 4.0
    """How steeply symba counts a lead of the true label."""

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        idle = "slope" if self.loss == "threshold" else "threshold"
        return {idle: f"the loss is {self.loss} (network.loss)"}


@recipe(
    name="forwardgnn-ff",
    source="Park et al. 2024, arXiv:2403.11004 (ForwardGNN), section 3.1: FF-LA, and with "
    "labels=nodes FF-VN. In the paper, the negatives of FF-VN read the layer below's outputs for "
    "positives, labels of validation nodes are shown in the test, and layers are validated every "
    "two epochs; here they read its outputs for negatives, these labels are not shown, and layers "
    "are validated every ten epochs. Features of the nodes of classes are the same in every run. "
    "With loss=symba: Lee & Song 2023, arXiv:2303.08418",
    defaults={
        "training.epochs": 1000,
        "training.precision": "fp32",
        "plan.chapters": 1,
        "plan.block_patience": 20,
        "plan.block_validate_every": 10,
        "optimizer.weight_decay": 5e-4,
    },
    twin="gnn-backprop",
)
def forwardgnn_ff(
    config: GraphForwardForwardConfig, data: Any, *, optimizer: OptimizerConfig
) -> Any:
    """ForwardGNN, Forward-Forward: nodes that are shown a label, the true one or a wrong one.

    The graph comes once with the true labels of the training nodes, and once with each wrong label.
    A layer learns to give more goodness to nodes with their own label. Classes are predicted by
    trying each label, a pass of the whole graph for each.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.networks import Network
    from onward.network.readouts import GoodnessSweep
    from onward.recipes.graph_layers import check_graph, layer_blocks
    from onward.recipes.graph_worlds import ShownLabels, SumOfSquares

    check_graph(data, "forwardgnn-ff")
    if data.num_classes < 2:
        raise SettingError(f"A wrong label takes two classes; the data have {data.num_classes}.")
    shown = data.num_classes if config.labels == "features" else 0
    blocks = layer_blocks(
        config.convolution,
        (data.num_inputs + shown, *config.widths),
        lambda: SumOfSquares(config.loss, threshold=config.threshold, slope=config.slope),
        optimizer,
    )
    return Network(
        blocks,
        ShownLabels(data.num_classes, config.labels),
        GoodnessSweep(skip_first=False),
        num_classes=data.num_classes,
    )
