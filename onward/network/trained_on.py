"""Which samples a network was trained on, as digests of some of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onward import seeds
from onward.batch import Batch, parts
from onward.data.inputs import as_floats

SAMPLE = 1000
"""Samples whose digests are kept."""

MOST_EARLIER = 10
"""Trainings before the last one of which samples are known, where each had other samples."""


@dataclass(frozen=True)
class TrainedOn:
    """Digests of samples that a network was trained on.

    Enough to notice, usually, that somebody calibrates on hundreds of training samples. Whoever has
    the model and a sample can tell whether the sample is among them.
    """

    digests: frozenset[str]
    """Of some samples, 64 bits each."""

    share: float
    """Part of all training samples that they are."""

    earlier: tuple["TrainedOn", ...] = ()
    """Samples of trainings before, the last ones first."""

    @staticmethod
    def of(batches: Sequence[Batch]) -> "TrainedOn":
        """Return the digests of some training samples, which may lie in several batches."""
        tensors = [first_tensor(batch) for batch in batches]
        every = sum(map(len, tensors))
        order = torch.randperm(every, generator=seeds.generator(0, "trained on"))[:SAMPLE]
        firsts = torch.tensor([0, *map(len, tensors)]).cumsum(dim=0)
        places = torch.searchsorted(firsts, order, right=True) - 1
        drawn = [tensors[p][r - firsts[p]] for p, r in zip(places.tolist(), order, strict=True)]
        share = len(drawn) / every if every else 0.0
        return TrainedOn(frozenset(map(digest, drawn)), share)

    def after(self, before: "TrainedOn | None") -> "TrainedOn":
        """Return these samples beside those that a network was trained on before."""
        several = [] if before is None else [replace(before, earlier=()), *before.earlier]
        others = [each for each in several if each.digests != self.digests]
        return replace(self, earlier=tuple(others[:MOST_EARLIER]))

    def wider(self, other: "TrainedOn") -> "TrainedOn":
        """Return this one or another, whichever is of more samples."""
        return self if self.samples >= other.samples else other

    @property
    def samples(self) -> int:
        """How many samples it was trained on."""
        return round(len(self.digests) / self.share) if self.share else 0

    def overlap(self, batch: Batch) -> float:
        """Return about which share of samples were trained on; one equal sample may be chance."""
        own = [digest(row) for row in first_tensor(batch.counted)]
        return max(each._overlap(own) for each in (self, *self.earlier))

    def _overlap(self, samples: Sequence[str]) -> float:
        hits = sum(row in self.digests for row in samples)
        return min(1.0, hits / (len(samples) * self.share)) if hits > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        own, *earlier = (
            {"digests": sorted(each.digests), "share": each.share} for each in (self, *self.earlier)
        )
        return own | {"earlier": earlier}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "TrainedOn":
        own, *earlier = (
            TrainedOn(frozenset(map(str, each["digests"])), float(each["share"]))
            for each in (found, *found.get("earlier", ()))
        )
        return replace(own, earlier=tuple(earlier))


def first_tensor(batch: Batch) -> Tensor:
    """Return the inputs of a batch, or the first of several."""
    return parts(batch.inputs)[0]


def digest(row: Tensor) -> str:
    """Return 64 bits of a digest of a sample: the same for pixels and for their shares of 255."""
    values = as_floats(row.detach()).to(torch.float32).contiguous().numpy()
    return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
