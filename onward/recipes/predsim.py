"""Prediction and similarity matching, layer by layer."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onward.recipes.convolution_config import DEFAULTS, ConvolutionConfig
from onward.recipes.recipe import ONE_BLOCK, recipe
from onward.settings import Count, OptimizerConfig, Share


@dataclass(frozen=True, kw_only=True)
class PredSimConfig(ConvolutionConfig):
    """Layers, and what each learns."""

    layers: Literal["convolutions", "dense"] = "convolutions"
    """Kind of the layers. dense: of as many units as there are channels, with batch normalization
    and GELU; samples are taken for vectors."""

    grid: Count = 4
    """Cells per side of the grid over which a head averages; in smaller maps, every position."""

    similarity: Share = 0.99
    """Share of similarity matching in the loss; the rest is prediction."""

    local: ClassVar = ("grid", "similarity")

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        found = super().without_effect()
        if self.layers == "dense":
            names = ("pooled", "whitening", "muon", "filter_lr", "filter_momentum", "grid")
            found |= dict.fromkeys(names, "layers are dense (network.layers)")
        return found


@recipe(
    source="Nøkland & Eidnes 2019, arXiv:1901.06656, section 2 (predsim); layers and optimizers "
    "are those of the recipe conv",
    defaults=DEFAULTS,
    twin=ONE_BLOCK,
)
def predsim(config: PredSimConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Each layer has a linear classifier, and makes samples of a class alike.

    Similarity matching compares the samples of a mini-batch with each other, so mini-batches are
    not cut into slices. The last classifier predicts the class.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.readouts import SumOfHeads
    from onward.recipes.convolutions import (
        Maps,
        backpropagation,
        convolution,
        convolution_network,
        pooled_head,
    )
    from onward.recipes.similarity import PredictionAndSimilarity

    if config.layers == "dense":
        return _dense(config, data, optimizer)
    if config.is_backpropagation:
        return backpropagation(config, data, optimizer)

    def objective(maps: Maps) -> PredictionAndSimilarity:
        head = pooled_head(maps, data.num_classes, grid=config.grid)
        beside = convolution(maps, maps.channels)
        return PredictionAndSimilarity(head, beside, similarity=config.similarity)

    return convolution_network(config, data, objective, SumOfHeads("last"), optimizer)


def _dense(config: PredSimConfig, data: Any, optimizer: OptimizerConfig) -> Any:
    """Return a network of dense layers."""
    from itertools import pairwise

    from torch import nn

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.objectives import CrossEntropy, Objective
    from onward.network.readouts import SumOfHeads
    from onward.network.samplers import Plain
    from onward.recipes.blocks import rules
    from onward.recipes.convolutions import in_blocks
    from onward.recipes.similarity import PredictionAndSimilarity

    def objective(units: int) -> Objective:
        head = nn.Linear(units, data.num_classes)
        if config.is_backpropagation:
            return CrossEntropy(head)
        compared = nn.Linear(units, units, bias=False)
        return PredictionAndSimilarity(head, compared, similarity=config.similarity)

    layers = [
        nn.Sequential(nn.Linear(*sizes, bias=False), nn.BatchNorm1d(sizes[1]), nn.GELU())
        for sizes in pairwise((data.num_inputs, *config.channels))
    ]
    layers[0].insert(0, nn.Flatten())
    several = zip(in_blocks(config, layers), in_blocks(config, config.channels), strict=True)
    rule, _ = rules(optimizer)
    blocks = [Block(nn.Sequential(*own), objective(units[-1]), rule) for own, units in several]
    return Network(blocks, Plain(), SumOfHeads("last"), num_classes=data.num_classes)
