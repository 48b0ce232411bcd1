"""Preprocessing of a method's own, fitted from sums over the training samples."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Preprocessing(nn.Module, ABC):
    """What a network does to samples after its input transformation, fitted from sums over them.

    What is fitted are buffers, which are saved and exported with the network. They have their
    shapes from the beginning, since `forward` is also called before `fit`, for shapes and costs.
    Sums travel where each rank has samples of its own; samples do not.

    Example:
        >>> class Centered(Preprocessing):
        ...     def __init__(self, features):
        ...         super().__init__()
        ...         self.register_buffer("mean", torch.zeros(features))
        ...     def sums(self, x):
        ...         return [torch.tensor([len(x)]), x.sum(dim=0)]
        ...     def fit(self, sums):
        ...         count, total = sums
        ...         self.mean.copy_(total / count)
        ...     def forward(self, x):
        ...         return x - self.mean
        >>> centered = Centered(2)
        >>> centered.fit(total_sums(centered, [torch.eye(2), torch.eye(2)]))
        >>> centered.mean
        tensor([0.5000, 0.5000])
    """

    is_fitted = False
    """Whether it has been; a network that is trained further keeps what was fitted."""

    def get_extra_state(self) -> Tensor:
        """Return whether it has been fitted, for a `state_dict`."""
        return torch.tensor(self.is_fitted)

    def set_extra_state(self, state: Tensor) -> None:
        """Become as fitted as that."""
        self.is_fitted = bool(state)

    @abstractmethod
    def sums(self, x: Tensor) -> list[Tensor]:
        """Return what is added up over samples, the same shapes for any number of them.

        Args:
            x: Samples in float64, as the input transformation returns them.
        """

    @abstractmethod
    def fit(self, sums: list[Tensor]) -> None:
        """Set the buffers from the sums over all training samples, in float64."""


class Whitening(Preprocessing):
    """Convolves images or signals with frozen filters that decorrelate patches, then GELU.

    The filters are the principal directions of the patches of all training samples, each scaled
    to a mean square of 1, and their negatives. Samples of C channels become 2 C size^d channels, d
    the number of axes, and lose `size` - 1 pixels along each.

    Args:
        channels: Channels of a sample.
        axes: 1 for signals, 2 for images, 3 for volumes.
        size: Pixels of a patch along each axis.
        eps: Added to the mean square of each direction, in units of the mean over all, so that the
            scale of samples does not matter.

    Source:
        Jordan 2024, arXiv:2404.00498, section 3.2; here the bias is left out, and nothing is
        trained.

    Example:
        >>> Whitening(3, 2)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 24, 31, 31])
    """

    filters: Tensor

    def __init__(self, channels: int, axes: int, *, size: int = 2, eps: float = 5e-4) -> None:
        super().__init__()
        self.axes, self.size, self.eps = axes, size, eps
        shape = (channels, *[size] * axes)
        self.register_buffer("filters", torch.zeros(2 * math.prod(shape), *shape))

    def sums(self, x: Tensor) -> list[Tensor]:
        """Return the number of patches that do not overlap, and their second moments."""
        for axis in range(2, 2 + self.axes):
            x = x.unfold(axis, self.size, self.size)
        # Channels beside the pixels of a patch, which unfolding has put last.
        patches = x.movedim(1, 1 + self.axes).flatten(1 + self.axes).flatten(0, self.axes)
        return [torch.tensor([len(patches)]), patches.T @ patches]

    def fit(self, sums: list[Tensor]) -> None:
        count, moments = sums
        variances, directions = torch.linalg.eigh(moments / count)
        room = self.eps * variances.mean().clamp(min=torch.finfo(torch.float32).tiny)
        scaled = directions / (variances.clamp(min=0) + room).sqrt()
        filters = scaled.T.reshape(-1, *self.filters.shape[1:])
        self.filters.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.axes - 1]
        return F.gelu(convolve(x, self.filters))


def total_sums(preprocessing: Preprocessing, several: Iterable[Tensor]) -> list[Tensor]:
    """Return the sums over samples, added up in order."""
    total: list[Tensor] = []
    for x in several:
        found = [part.to(torch.float64) for part in preprocessing.sums(x.to(torch.float64))]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total
