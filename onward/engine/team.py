"""Ranks that work on one task together."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class Team(ABC):
    """Some ranks, of which this is one, that share a task.

    Args:
        index: Place of this rank among them, from 0.
        size: How many they are.
    """

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, size
        # Spent in exchanges, most of it waiting for the others.
        self.seconds = 0.0

    def all_gather(
        self, own: Sequence[Tensor], layouts: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor]]:
        """Give tensors to all other ranks of the team, and get theirs.

        Args:
            own: What this rank gives; it must not change before the call returns.
            layouts: For each rank, tensors of the shapes and types that it gives.

        Returns:
            The tensors of each rank, in order.
        """
        start = time.perf_counter()
        every = self._all_gather(own, layouts)
        self.seconds += time.perf_counter() - start
        return every

    @abstractmethod
    def _all_gather(
        self, own: Sequence[Tensor], layouts: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor]]: ...

    def own(self, slices: int) -> range:
        """Return the slices that are this rank's, of a multiple of the size of the team."""
        each = slices // self.size
        return range(self.index * each, (self.index + 1) * each)

    def share(self, own: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
        """Return the tensors of all slices, in order, given those of one's own.

        Args:
            own: For each own slice its tensors; those of all slices have equal shapes and types.
        """
        flat = [tensor for tensors in own for tensor in tensors]
        length = len(own[0])
        every = self.all_gather(flat, [flat] * self.size)
        return [
            given[first : first + length]
            for given in every
            for first in range(0, len(given), length)
        ]


class Alone(Team):
    """One rank, which has all the slices."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def _all_gather(
        self, own: Sequence[Tensor], layouts: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor]]:
        return [own]


def in_order(parts: Sequence[Tensor]) -> Tensor:
    """Add tensors in their order, which rounding depends on."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
