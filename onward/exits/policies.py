"""Exit policies: when inference may stop, from the class scores so far and nothing else."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onward.errors import SettingError

History = Float[Tensor, "exits samples classes"]
"""Class scores of some samples at each exit so far; -inf for labels that were dropped."""


def margin(history: History) -> Float[Tensor, " samples"]:
    """Return the lead of the best class over the second.

    Example:
        >>> margin(torch.tensor([[[1.0, 4.0, 2.0]]]))
        tensor([2.])
    """
    best, second = history[-1].topk(2, dim=1).values.unbind(dim=1)
    return best - second


def max_score(history: History) -> Float[Tensor, " samples"]:
    """Return the score of the best class.

    In a goodness sweep this is the accumulated goodness of the best label.

    Source:
        Aminifar et al. 2024, arXiv:2404.05241, section 3 (their multi-pass criterion).
    """
    return history[-1].amax(dim=1)


def probability(history: History) -> Float[Tensor, " samples"]:
    """Return the probability of the best class, by a softmax of the scores."""
    return history[-1].softmax(dim=1).amax(dim=1)


def entropy(history: History) -> Float[Tensor, " samples"]:
    """Return the negative entropy of the classes' probabilities, in nats.

    Source:
        Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686.
    """
    log_p = history[-1].log_softmax(dim=1)
    return (log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(dim=1)


def patience(history: History) -> Float[Tensor, " samples"]:
    """Return how many exits in a row, up to this one, name the same class.

    Source:
        Zhou et al. 2020 (PABEE).
    """
    labels = history.argmax(dim=2)
    agree = (labels == labels[-1]).flip(0).cumprod(dim=0)
    return agree.sum(dim=0).to(history.dtype)


CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "margin": margin,
    "max-score": max_score,
    "probability": probability,
    "entropy": entropy,
    "patience": patience,
}
"""How sure a network is of some samples, by name; the larger, the surer."""


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """When inference stops, and which labels it goes on with.

    A pure function of the scores so far. An exit is a block after which there are class scores;
    at the last one every sample leaves.

    Example:
        >>> policy = ExitPolicy("margin", (1.5,))
        >>> policy.leaves(torch.tensor([[[1.0, 4.0, 2.0], [1.0, 2.0, 2.5]]]))
        tensor([ True, False])
    """

    confidence: str
    """One of `CONFIDENCES`."""

    thresholds: tuple[float, ...]
    """Confidence from which samples leave, for each exit but the last; infinity where none do."""

    drops: tuple[float, ...] = ()
    """For a sweep over labels: how far behind the best a label is dropped, for each exit but the
    last; infinity where none are. Empty: all labels stay."""

    def __post_init__(self) -> None:
        if self.confidence not in CONFIDENCES:
            raise SettingError(
                f"There is no confidence {self.confidence}. Known are {', '.join(CONFIDENCES)}."
            )
        if self.drops and len(self.drops) != len(self.thresholds):
            raise SettingError(
                f"A policy has as many drops as thresholds; got {len(self.drops)} and "
                f"{len(self.thresholds)}."
            )
        for name in ("thresholds", "drops"):
            if any(map(math.isnan, getattr(self, name))):
                raise SettingError(f"A policy has {name} that are numbers; got NaN.")

    def check(self, num_exits: int, *, is_sweep: bool) -> None:
        """Raise a `SettingError` where the policy is for other networks.

        Args:
            num_exits: Exits of the network.
            is_sweep: Whether it tries every label, so that some can be dropped on the way.
        """
        if self.drops and not is_sweep:
            raise SettingError(
                "The policy drops labels, and this network computes the scores of all labels at "
                "once: there is nothing to drop. Leave drops out."
            )
        if num_exits != len(self.thresholds) + 1:
            raise SettingError(
                f"The policy has {len(self.thresholds)} thresholds, and the network {num_exits} "
                f"exits: one fewer is needed."
            )

    def confidences(self, history: History) -> Float[Tensor, " samples"]:
        """Return how sure the network is of each sample, at the last exit of a history."""
        return CONFIDENCES[self.confidence](history)

    def leaves(self, history: History) -> Bool[Tensor, " samples"]:
        """Return which samples leave at the last exit of a history."""
        if len(history) > len(self.thresholds):
            return torch.ones(history.shape[1], dtype=torch.bool)
        # Of labels that are dropped but for one, the one is the answer.
        leaves = self.stays(history).sum(dim=1) == 1
        threshold = self.thresholds[len(history) - 1]
        return (
            leaves if threshold == math.inf else leaves | (self.confidences(history) >= threshold)
        )

    def stays(self, history: History) -> Bool[Tensor, "samples classes"]:
        """Return which labels a sweep goes on with after the last exit of a history."""
        scores = history[-1]
        if len(history) > len(self.thresholds):
            return scores > -math.inf
        drop = self.drops[len(history) - 1] if self.drops else math.inf
        return (scores >= scores.amax(dim=1, keepdim=True) - drop) & (scores > -math.inf)

    def to_json(self) -> dict[str, Any]:
        """Return the policy as JSON can hold it, which has no infinity: as "inf" and "-inf"."""
        found = asdict(self)
        for name in ("thresholds", "drops"):
            found[name] = [v if math.isfinite(v) else str(v) for v in found[name]]
        return found

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "ExitPolicy":
        """Return the policy that `to_json` has written.

        Raises:
            SettingError: It is not one.
        """
        if "neurons" in found and found["neurons"] != []:  # Older files have an empty list.
            raise SettingError(
                "Exit policies have no neurons any more: the confidence sigmoid was removed, and "
                "max-score decides the same."
            )
        try:
            thresholds, drops = (tuple(map(float, found[n])) for n in ("thresholds", "drops"))
            return ExitPolicy(str(found["confidence"]), thresholds, drops)
        except (LookupError, TypeError, ValueError) as error:
            raise SettingError(f"This is no exit policy: {json.dumps(found)[:200]}.") from error


def full_depth(num_exits: int) -> ExitPolicy:
    """Return the policy under which all samples go through the whole network."""
    return ExitPolicy("margin", (math.inf,) * (num_exits - 1))
