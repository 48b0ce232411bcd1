"""Preprocessing of a method's own, fitted from sums over the training samples."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
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


def total_sums(preprocessing: Preprocessing, several: Iterable[Tensor]) -> list[Tensor]:
    """Return the sums over samples, added up in order."""
    total: list[Tensor] = []
    for x in several:
        found = [part.to(torch.float64) for part in preprocessing.sums(x.to(torch.float64))]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total
