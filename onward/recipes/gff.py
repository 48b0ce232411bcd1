"""Forward-Forward that classifies whole graphs."""

from dataclasses import dataclass
from typing import Any, Literal

from onward.errors import SettingError
from onward.recipes.recipe import ONE_BLOCK, recipe
from onward.settings import Counts, Negatives, NotNegative, OptimizerConfig, Positive, Section


@dataclass(frozen=True, kw_only=True)
class GFFConfig(Section):
    """Graph convolutions, and how they tell true labels from wrong ones."""

    widths: Counts = (128, 128, 128)
    """Units of each layer."""

    layers_per_block: Literal[1, "all"] = 1
    """Layers that learn together. all: one block, trained by backpropagation with the cross-entropy
    of the mean over nodes, to compare with."""

    negatives: Negatives = "random"
    """How the wrong label of a negative is chosen."""

    threshold: NotNegative = 1.0
    """Goodness, the mean square over the nodes of a graph, at which it is a coin toss."""

    slope: Positive | None = None
    """Steepness of the threshold. None: the units of the layer."""

    @property
    def is_backpropagation(self) -> bool:
        """Whether all layers learn together."""
        return self.layers_per_block == "all"

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        if not self.is_backpropagation:
            return {}
        reason = "one block of all layers needs no negatives (network.layers_per_block)"
        return dict.fromkeys(("negatives", "threshold", "slope"), reason)


@recipe(
    source="Paliotta et al. 2023, arXiv:2302.05282 (GFF), of which only the idea was available to "
    "us: Forward-Forward on graphs that are classified as a whole, with the label in the features. "
    "Layers, goodness and settings are inferred",
    defaults={
        "training.epochs": 100,
        "training.batch_size": 20,
        "training.schedule": "cooldown",
        "optimizer.lr": 1e-2,
    },
    twin=ONE_BLOCK,
)
def gff(config: GFFConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Forward-Forward on whole graphs: a label at every node, the true one or a wrong one.

    A graph with its own label is to have more goodness, the mean square over its nodes, than with
    another. Classes are named by trying each label. Samples are tables, see `onward.graphs`.
    """
    # Lists of recipes and the help of the command do without torch.
    from itertools import pairwise

    from torch import nn

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.objectives import CrossEntropy
    from onward.network.readouts import GoodnessSweep, SumOfHeads
    from onward.network.samplers import Plain
    from onward.recipes.blocks import rules
    from onward.recipes.table_layers import (
        Aggregated,
        GraphThreshold,
        LabelAtNodes,
        MeanOfNodes,
        TableGCN,
        aggregated,
    )

    shape, classes = data.input_shape, data.num_classes
    if len(shape) != 2 or shape[1] <= shape[0]:
        raise SettingError(
            f"gff learns from graphs as tables, of shape (nodes, features + nodes), and these "
            f"samples have the shape {shape}. Make the data set with ow.graphs."
        )
    features, (rule, _) = shape[1] - shape[0], rules(optimizer)
    if config.is_backpropagation:
        layers = [Aggregated(TableGCN(*pair)) for pair in pairwise((features, *config.widths))]
        head = CrossEntropy(MeanOfNodes(config.widths[-1], classes))
        block = Block(nn.Sequential(*layers), head, rule)
        return Network([block], Plain(), SumOfHeads(), num_classes=classes)
    blocks = [
        Block(
            TableGCN(inputs, units),
            GraphThreshold(units, threshold=config.threshold, slope=config.slope or float(units)),
            rule,
            prepare=aggregated,
        )
        for inputs, units in pairwise((features + classes, *config.widths))
    ]
    sampler = LabelAtNodes(classes, negatives=config.negatives)
    return Network(blocks, sampler, GoodnessSweep(skip_first=False), num_classes=classes)
