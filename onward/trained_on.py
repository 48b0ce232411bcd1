"""Which rows a network was trained on, as digests of some of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onward import seeds
from onward.batch import Batch, parts
from onward.inputs import as_floats

SAMPLE = 1000
"""Rows whose digests are kept."""


@dataclass(frozen=True)
class TrainedOn:
    """Digests of rows that a network was trained on.

    Enough to notice, usually, that somebody calibrates on hundreds of training rows. Whoever has
    the model and a row can tell whether the row is among them.
    """

    digests: frozenset[str]
    """Of some rows, 64 bits each."""

    share: float
    """Part of all training rows that they are."""

    @staticmethod
    def of(batches: Sequence[Batch]) -> "TrainedOn":
        """Return the digests of a sample of training rows, which may lie in several batches."""
        tensors = [first_tensor(batch) for batch in batches]
        every = sum(map(len, tensors))
        order = torch.randperm(every, generator=seeds.generator(0, "trained on"))[:SAMPLE]
        firsts = torch.tensor([0, *map(len, tensors)]).cumsum(dim=0)
        places = torch.searchsorted(firsts, order, right=True) - 1
        drawn = [tensors[p][r - firsts[p]] for p, r in zip(places.tolist(), order, strict=True)]
        share = len(drawn) / every if every else 0.0
        return TrainedOn(frozenset(map(digest, drawn)), share)

    def wider(self, other: "TrainedOn") -> "TrainedOn":
        """Return this one or another, whichever is of more rows."""
        return self if self.rows >= other.rows else other

    @property
    def rows(self) -> int:
        """How many rows it was trained on."""
        return round(len(self.digests) / self.share) if self.share else 0

    def overlap(self, batch: Batch) -> float:
        """Return about which share of some rows were trained on; one equal row may be chance."""
        x = first_tensor(batch.counted)
        hits = sum(digest(row) in self.digests for row in x)
        return min(1.0, hits / (len(x) * self.share)) if hits > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"digests": sorted(self.digests), "share": self.share}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "TrainedOn":
        return TrainedOn(frozenset(map(str, found["digests"])), float(found["share"]))


def first_tensor(batch: Batch) -> Tensor:
    """Return the inputs of a batch, or the first of several."""
    return parts(batch.inputs)[0]


def digest(row: Tensor) -> str:
    """Return 64 bits of a digest of a row: the same for pixels and for their shares of 255."""
    values = as_floats(row.detach()).to(torch.float32).contiguous().numpy()
    return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
