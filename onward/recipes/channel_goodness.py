"""Channels of convolutions that compete, each group for a class of its own."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onward.errors import SettingError
from onward.recipes.convolution_config import DEFAULTS, ConvolutionConfig
from onward.recipes.recipe import ONE_BLOCK, recipe
from onward.settings import Counts, OptimizerConfig, Positive
from onward.values import written


@dataclass(frozen=True, kw_only=True)
class ChannelGoodnessConfig(ConvolutionConfig):
    """Layers of convolutions whose channels are divided among the classes."""

    channels: Counts = (60, 120, 120, 180, 180, 180)
    """Filters of each layer, with kernels of size 3; as many for each class."""

    goodness: Literal["square", "mean"] = "square"
    """What counts for a class: the mean square of its channels, or their mean."""

    slope: Positive | None = None
    """What goodness is multiplied by, to be a logit. None: 3 for mean squares, 10 for means. The
    papers have 1, with which maps that are normalized learn much less."""

    heads: Literal["all", "last"] = "last"
    """Whose goodness counts."""

    local: ClassVar = ("goodness", "slope", "heads")

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        found = super().without_effect()
        if not self.is_backpropagation and self.muon:
            reason = "filters, all there is to decay, are updated by Muon (network.muon)"
            found["optimizer.weight_decay"] = reason
        return found


@recipe(
    name="channel-goodness",
    source="Papachristodoulou et al. 2024, arXiv:2312.12668 (CwC): groups of channels, mean square "
    "as logits; Sun et al. 2025, ICLR (DeeperForward): mean in place of mean square; layers "
    "and optimizers are those of the recipe conv, and the slope is ours",
    defaults=DEFAULTS,
    twin=ONE_BLOCK,
)
def channel_goodness(
    config: ChannelGoodnessConfig, data: Any, *, optimizer: OptimizerConfig
) -> Any:
    """Convolutions whose channels compete, each group for a class: no classifiers, no negatives.

    The goodness of a class is the mean square of its channels, and cross-entropy takes it, times a
    slope, for a logit.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.objectives import CrossEntropy
    from onward.network.readouts import SumOfHeads
    from onward.recipes.convolutions import Maps, backpropagation, convolution_network
    from onward.recipes.goodness import ClassGoodness

    if config.is_backpropagation:
        return backpropagation(config, data, optimizer)
    _check_channels(config.channels, data.num_classes)
    slope = config.slope or {"square": 3.0, "mean": 10.0}[config.goodness]

    def objective(maps: Maps) -> CrossEntropy:
        return CrossEntropy(ClassGoodness(data.num_classes, config.goodness, slope=slope))

    return convolution_network(config, data, objective, SumOfHeads(config.heads), optimizer)


def _check_channels(channels: tuple[int, ...], classes: int) -> None:
    """Refuse channels that cannot be divided among the classes."""
    odd = [width for width in channels if width % classes]
    if odd:
        fitting = tuple(-(-width // classes) * classes for width in channels)
        raise SettingError(
            f"network.channels is {written(channels)}, and {odd[0]} channels cannot be divided "
            f"among {classes} classes: each has as many. Give a multiple of {classes} for each "
            f"layer, such as --set network.channels={written(fitting)}."
        )
