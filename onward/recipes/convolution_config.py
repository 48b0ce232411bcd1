"""Settings that all recipes of convolutions have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from onward.settings import Count, Counts, Positive, Section, Share, Whole

DEFAULTS = {
    "data.shift": "auto",
    "data.shift_fill": "reflect",
    "data.flip": "auto",
    "training.epochs": 10,
    "training.batch_size": 128,
    "training.schedule": "warmup",
    "plan.kind": "stream",
    "optimizer.lr": 3e-3,
    "optimizer.head_lr": 3e-3,
}
"""What differs from the defaults of a run, for all of them."""


@dataclass(frozen=True, kw_only=True)
class ConvolutionConfig(Section):
    """Layers of convolutions, how they are grouped into blocks, and what updates filters."""

    channels: Counts = (48, 96, 96, 192, 192, 192)
    """Filters of each layer, with kernels of size 3."""

    pooled: tuple[Whole, ...] | None = None
    """Layers, counted from 1, that halve each axis by max pooling; 0 for none. None: 1, 3 and 5, as
    far as there are so many layers and axes are longer than 1."""

    layers_per_block: Count | Literal["all"] = 1
    """Layers that learn together by backpropagation, from one objective at their end. all: one
    block with a classifier, which is ordinary backpropagation of cross-entropy, to compare with."""

    whitening: bool = True
    """Whether frozen filters first whiten samples, in patches of 2 pixels along each axis."""

    muon: bool = True
    """Whether Muon updates filters; everything else follows the settings of `optimizer`."""

    filter_lr: Positive = 0.05
    """Learning rate of filters with Muon, which keep a mean length of 1."""

    filter_momentum: Share = 0.6
    """Momentum of filters with Muon."""

    layer_sizes: ClassVar = ("channels",)

    local: ClassVar[tuple[str, ...]] = ()
    """Settings that one block of all layers leaves without effect."""

    @property
    def is_backpropagation(self) -> bool:
        """Whether all layers learn together, with a classifier."""
        return self.layers_per_block == "all"

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        found: dict[str, str] = {}
        if not self.muon:
            reason = "filters are not updated by Muon (network.muon)"
            found |= dict.fromkeys(("filter_lr", "filter_momentum"), reason)
        if self.is_backpropagation:
            reason = "one block learns with one classifier (network.layers_per_block)"
            found |= dict.fromkeys(self.local, reason)
        return found

    def pools(self, layer: int, sizes: Sequence[int]) -> bool:
        """Return whether a layer, counted from 1, halves axes of these sizes."""
        if self.pooled is None:
            return layer in (1, 3, 5) and min(sizes) > 1
        return layer in self.pooled
