"""Convolutions, each layer or few with a classifier of its own."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onward.recipes.convolution_config import DEFAULTS, ConvolutionConfig
from onward.recipes.recipe import ONE_BLOCK, recipe
from onward.settings import Count, OptimizerConfig, Share, Whole


@dataclass(frozen=True, kw_only=True)
class ConvConfig(ConvolutionConfig):
    """Layers of convolutions, and their classifiers."""

    grid: Count = 4
    """Cells per side of the grid over which a head averages; in smaller maps, every position."""

    head_units: Whole = 128
    """Hidden units of a head, with batch normalization and GELU; 0: heads are linear."""

    label_smoothing: Share = 0.1
    """Share of each sample that counts for all classes alike."""

    heads: Literal["all", "last"] = "last"
    """Whose heads count."""

    local: ClassVar = ("heads",)

    @property
    def is_backpropagation(self) -> bool:
        """Whether all layers learn together, however that is said."""
        return self.layers_per_block == "all" or self.layers_per_block >= len(self.channels)


@recipe(
    source="strictly local cross-entropy as in Nøkland & Eidnes 2019, arXiv:1901.06656, and "
    "Belilovsky et al. 2019, arXiv:1812.11446; whitening, GELU, alternating flips and Muon on "
    "filters as in Jordan 2024, arXiv:2404.00498; label smoothing: Szegedy et al. 2016",
    defaults=DEFAULTS,
    twin=ONE_BLOCK,
)
def conv(config: ConvConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Convolutions, each layer with a small classifier of its own on averaged maps.

    Images are whitened by frozen filters. A layer is a convolution, max pooling in some,
    batch normalization and GELU.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.objectives import CrossEntropy
    from onward.network.readouts import SumOfHeads
    from onward.recipes.convolutions import Maps, convolution_network, pooled_head

    def objective(maps: Maps) -> CrossEntropy:
        head = pooled_head(maps, data.num_classes, grid=config.grid, units=config.head_units)
        return CrossEntropy(head, label_smoothing=config.label_smoothing)

    return convolution_network(config, data, objective, SumOfHeads(config.heads), optimizer)
