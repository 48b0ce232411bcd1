"""Which rows a network was trained on, as digests of some of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from onward import seeds

SAMPLE = 1000
"""Rows whose digests are kept."""


@dataclass(frozen=True)
class TrainedOn:
    """Digests of rows that a network was trained on.

    Enough to notice that somebody calibrates on training rows; too few to rebuild a row.
    """

    digests: frozenset[str]
    """Of some rows, 64 bits each."""

    share: float
    """Part of all training rows that they are."""

    @staticmethod
    def of(parts: Sequence[Tensor]) -> "TrainedOn":
        """Return the digests of a sample of training rows, which may lie in several tensors."""
        every = [(part, number) for part in parts for number in range(len(part))]
        order = torch.randperm(len(every), generator=seeds.generator(0, "trained on"))[:SAMPLE]
        drawn = [every[place] for place in order.tolist()]
        share = len(drawn) / len(every) if every else 0.0
        return TrainedOn(frozenset(digest(part[number]) for part, number in drawn), share)

    def overlap(self, x: Float[Tensor, "rows ..."]) -> float:
        """Return about which share of some rows were trained on."""
        if not len(x) or not self.share:
            return 0.0
        hits = sum(digest(row) in self.digests for row in x)
        return min(1.0, hits / (len(x) * self.share))

    def to_json(self) -> dict[str, Any]:
        return {"digests": sorted(self.digests), "share": self.share}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "TrainedOn":
        return TrainedOn(frozenset(map(str, found["digests"])), float(found["share"]))


def digest(row: Tensor) -> str:
    """Return 64 bits of a digest of the values of a row."""
    values = row.detach().to(torch.float32).contiguous().numpy()
    return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
