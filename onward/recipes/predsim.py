"""Prediction and similarity matching, layer by layer."""

from dataclasses import dataclass
from typing import Any, ClassVar

from onward.recipes.convolution_config import DEFAULTS, ConvolutionConfig
from onward.recipes.recipe import recipe
from onward.settings import Count, Share


@dataclass(frozen=True, kw_only=True)
class PredSimConfig(ConvolutionConfig):
    """Layers of convolutions, and what each learns."""

    grid: Count = 4
    """Places a side of the grid over which a head averages; where maps are smaller, every place."""

    similarity: Share = 0.99
    """Share of similarity matching in the loss; the rest is prediction."""

    local: ClassVar = ("grid", "similarity")


@recipe(
    source="Nøkland & Eidnes 2019, arXiv:1901.06656, section 2 (predsim); layers and optimizers "
    "are those of the recipe conv",
    defaults=DEFAULTS,
)
def predsim(config: PredSimConfig, data: Any) -> Any:
    """Convolutions, each layer with a linear classifier, and samples of a class made alike.

    Similarity matching compares the samples of a mini-batch with each other, so mini-batches are
    not cut into slices. The last classifier names the class.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.readouts import SumOfHeads
    from onward.recipes.convolutions import (
        CONVOLUTIONS,
        Maps,
        backpropagation,
        convolution_network,
        pooled_head,
    )
    from onward.recipes.similarity import PredictionAndSimilarity
    from onward.samplers import Plain

    if config.layers_per_block == "all":
        return backpropagation(config, data)

    def objective(maps: Maps) -> PredictionAndSimilarity:
        head = pooled_head(maps, data.num_classes, grid=config.grid)
        convolution = CONVOLUTIONS[len(maps.size) - 1](
            maps.channels, maps.channels, kernel_size=3, padding=1, bias=False
        )
        return PredictionAndSimilarity(head, convolution, similarity=config.similarity)

    return convolution_network(config, data, objective, Plain(), SumOfHeads("last"))
