"""Thresholds of exit policies, from samples that the network was not trained on."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onward import seeds
from onward.batch import Batch
from onward.data.numbers import Numbers
from onward.errors import DataError, SettingError
from onward.evaluation import checked_labels
from onward.exits.bounds import BOUNDS, num_kept, samples_needed
from onward.exits.outcomes import RISKS, HeldOut, dropped, follow, look_at
from onward.exits.policies import ExitPolicy, max_score
from onward.network.networks import Network

PRICES = tuple(np.geomspace(1e4, 1e-3, 57).tolist())
"""What a newly wrong sample counts, in full passes: the policies to choose from, safest first."""

LOST_LABELS = (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008)
"""Shares of the samples whose answer may be dropped among the hopeless labels of a sweep, tried."""

NO_DROPS = -1.0
"""Stands for a sweep in which no label is dropped."""

MOST_OVERLAP = 0.05
"""Share of samples that may be equal to training samples, as some are in most data."""

SWEEPS = 3
"""Times that all thresholds of a policy are chosen, each given the others."""

CAUTION = (4.0, 2.0, 1.0, 0.5, 0.25)
"""Standard deviations of the confidence by which the most cautious policies lie above the first
one that has a price: that one is fitted to the few wrong samples among those it was made on."""


OLDER = {"rows": "samples", "on_training_rows": "on_training_samples"}
"""What older files call their figures, and what they are called now."""


@dataclass(frozen=True)
class Calibrated:
    """A policy, and what is known of it from the samples it was chosen on."""

    policy: ExitPolicy
    """The policy."""

    samples: int
    """Samples it was chosen on."""

    newly_wrong: int
    """Samples that the whole network gets right and the policy wrong."""

    error_increase: float
    """Change of the error rate: the fraction of all samples that become wrong under the policy,
    less the fraction that become right."""

    mean_macs: float
    """Mean cost of a sample."""

    full_macs: float
    """Cost of a sample that goes through the whole network."""

    max_error_increase: float | None
    """The limit that was given, or None."""

    target_macs: float | None
    """The mean cost that was given, or None."""

    delta: float | None
    """Probability with which the error on new samples may rise by more after all; None where no
    such thing is guaranteed."""

    on_training_samples: bool
    """Whether samples were taken that the network was trained on, which makes the calibration
    meaningless."""

    bound: str | None = None
    """What is guaranteed, one of `ow.exits.BOUNDS`; None for nothing."""

    risk: str = "lost"
    """What `max_error_increase` is compared with, one of `ow.exits.RISKS`."""

    @property
    def newly_right(self) -> int:
        """Samples that the whole network gets wrong and the policy right."""
        return self.newly_wrong - round(self.error_increase * self.samples)

    @property
    def plausible_increase(self) -> float:
        """Upper end of a one-sided 95 % confidence interval for the risk on new samples.

        It is that of the binomial, or, where gains count, of the
        normal approximation with one more sample lost. The thresholds were chosen on these samples,
        so it is a scale and no guarantee.
        """
        if self.risk == "net":
            lost, gained = self.newly_wrong + 1, self.newly_right
            return (lost - gained + 1.645 * math.sqrt(lost + gained)) / self.samples
        from scipy.stats import beta  # Takes half a second, and few processes need it.

        return float(beta.ppf(0.95, self.newly_wrong + 1, self.samples - self.newly_wrong))

    @property
    def failure(self) -> str | None:
        """Why no sample exits early, where a bound was asked for and no policy keeps to it."""
        if self.bound is None or self.mean_macs < self.full_macs:
            return None
        assert self.max_error_increase is not None
        needed = samples_needed(self.max_error_increase, self.bound, self.delta)
        number = "infinitely many" if needed is None else f"{needed:,}"
        about = "about " if self.bound == "ucb" and needed is not None else ""
        return (
            f"No policy passed the test on its half of the samples, so every sample goes through "
            f"the whole network. If none becomes wrong, that half needs {about}{number} samples, "
            f"otherwise more: hold out more samples, or allow a larger increase."
        )

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return asdict(self) | {"policy": self.policy.to_json()}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Calibrated":
        """Return what `to_json` has written.

        Raises:
            SettingError: It is something else.
        """
        # Older files have one bound and one risk, and name neither.
        bound = None if found.get("delta") is None else "fixed-sequence"
        found = {"bound": bound, "risk": "lost"} | {OLDER.get(n, n): v for n, v in found.items()}
        try:
            rest = {field.name: found[field.name] for field in fields(Calibrated)}
            return Calibrated(**rest | {"policy": ExitPolicy.from_json(found["policy"])})
        except (LookupError, TypeError) as error:
            raise SettingError(f"This is no calibration of exits: {error!r}.") from error


def held_out(
    network: Network,
    x: Numbers | Batch,
    y: Numbers | None = None,
    *,
    force: bool = False,
) -> HeldOut:
    """Pass samples through a network that it was not trained on, see `onward.calibrate`.

    Raises:
        DataError: The network was trained on them, or samples or classes are invalid.
        SettingError: The network has no readout, or the samples have a structure.
    """
    network.fold()
    batch = network.checked(x)
    if batch.structure:
        raise SettingError(
            f"These samples belong together ({', '.join(batch.structure)}): those that leave are "
            f"still passed along for the others, so there is nothing to save. Answer with an "
            f"ow.ExitPolicy of your own."
        )
    classes = batch.targets.get("label") if y is None else y
    if classes is None:
        raise DataError(
            "These samples have no classes. Give them as y, or as the target label of the batch."
        )
    labels = checked_labels(network, classes, len(batch))
    batch = batch.with_targets(label=labels).counted
    overlap = network.trained_on.overlap(batch) if network.trained_on else 0.0
    if overlap > MOST_OVERLAP and not force:
        raise DataError(
            f"About {overlap:.0%} of these {len(batch):,} samples were trained on, and a network "
            f"is far too sure of those. Take held-out samples, such as validation samples."
        )
    return replace(look_at(network, batch), was_trained_on=overlap > MOST_OVERLAP)


def choose(
    seen: HeldOut,
    *,
    confidence: str = "margin",
    max_error_increase: float | None = None,
    target_macs: float | None = None,
    delta: float | None = None,
    bound: str | None = None,
    risk: str = "lost",
    seed: int = 0,
) -> Calibrated:
    """Choose thresholds from what a network has said, see `onward.calibrate`."""
    if delta is not None and bound is None:
        bound = "fixed-sequence"
    _check_asked(max_error_increase, target_macs, delta, bound, risk)
    if bound is not None and seen.was_trained_on:
        raise SettingError(
            "Samples that the network was trained on guarantee nothing: leave out bound and delta."
        )
    if len(seen.costs) == 1:
        raise SettingError("This network has one exit, its end: there is no early exit.")
    if len(seen.labels) < 2:
        raise DataError(
            f"There are {len(seen.labels)} samples to calibrate on, and two are needed."
        )
    made = tested = seen
    if bound is not None:
        draw = seeds.generator(seed, "calibration")
        order = torch.randperm(len(seen.labels), generator=draw)
        made, tested = (seen.part(half) for half in order.chunk(2))
    chosen = full = ExitPolicy(confidence, (math.inf,) * (len(seen.costs) - 1))
    policies = candidates(made, confidence, risk)
    if max_error_increase is not None:
        tried = list(policies)
        answers = torch.stack([follow(policy, tested).answers for policy in tried])
        kept = num_kept(tested.losses(answers, risk), max_error_increase, bound, delta)
        chosen = [full, *tried][kept]
    else:
        for policy in policies:
            chosen = policy
            if float(follow(policy, seen).macs.mean()) <= (target_macs or 0):
                break
    outcome = follow(chosen, seen)
    full_wrong = (seen.full != seen.labels).double().mean()
    if target_macs is not None and float(outcome.macs.mean()) > target_macs:
        raise SettingError(
            f"No policy comes to {target_macs:,.0f} MACs a sample: the first exit costs "
            f"{float(outcome.macs.min()):,.0f}."
        )
    return Calibrated(
        chosen,
        len(seen.labels),
        int(outcome.is_newly_wrong.sum()),
        float(outcome.is_wrong.double().mean() - full_wrong),
        float(outcome.macs.mean()),
        float(follow(full, seen).macs.mean()),
        max_error_increase,
        target_macs,
        delta,
        seen.was_trained_on,
        bound,
        risk,
    )


def _check_asked(
    max_error_increase: float | None,
    target_macs: float | None,
    delta: float | None,
    bound: str | None,
    risk: str,
) -> None:
    """Raise a `SettingError` where what is asked for does not go together."""
    if (max_error_increase is None) is (target_macs is None):
        raise SettingError("Give either max_error_increase or target_macs.")
    if bound is not None and bound not in BOUNDS:
        raise SettingError(f"There is no bound {bound}. Known are {', '.join(BOUNDS)}.")
    if risk not in RISKS:
        raise SettingError(f"There is no risk {risk}. Known are {', '.join(RISKS)}.")
    if bound is not None and max_error_increase is None:
        raise SettingError("delta and bound need max_error_increase; target_macs takes neither.")
    if max_error_increase is not None and not 0 <= max_error_increase < 1:
        raise SettingError(
            f"max_error_increase is a fraction of the samples, from 0 to below 1; got "
            f"{max_error_increase}."
        )
    if delta is not None and not 0 < delta < 1:
        raise SettingError(f"delta is a probability, above 0 and below 1; got {delta}.")
    if target_macs is not None and not target_macs > 0:
        raise SettingError(f"target_macs is a number of operations above 0; got {target_macs}.")
    if bound == "expectation" and delta is not None:
        raise SettingError(
            "The bound expectation promises a mean over calibrations, which has no delta: leave "
            "delta out, or take the bound ucb or fixed-sequence."
        )
    if bound in ("ucb", "fixed-sequence") and delta is None:
        raise SettingError(
            f"The bound {bound} holds with probability 1 - delta: give delta, such as 0.05."
        )
    if bound is not None and bound != "ucb" and risk == "net":
        raise SettingError(
            f"The bound {bound} holds for lost samples alone, and the risk net also counts those "
            f"that are gained: take the bound ucb, or the risk lost."
        )


def candidates(seen: HeldOut, confidence: str, risk: str = "lost") -> Iterator[ExitPolicy]:
    """Yield policies from cautious to bold, each the cheapest for some price of an error."""
    never = (math.inf,) * (len(seen.costs) - 1)
    shares = (NO_DROPS, *LOST_LABELS) if seen.is_sweep else (NO_DROPS,)
    starts = [
        _Start(seen, ExitPolicy(confidence, never, _drops(seen, lost)), risk) for lost in shares
    ]
    before = None
    for price in PRICES:
        policy = min((start.cheapest(price) for start in starts), key=lambda found: found[0])[1]
        if before is None:
            yield from (_more_cautious(policy, seen, deviations) for deviations in CAUTION)
        if policy != before:
            yield policy
        before = policy


def _more_cautious(policy: ExitPolicy, seen: HeldOut, deviations: float) -> ExitPolicy:
    """Return a policy under which a sample must be surer, and a dropped label further behind."""
    history, _ = dropped(policy, seen)
    thresholds = []
    for number, threshold in enumerate(policy.thresholds, start=1):
        sure = policy.confidences(history[:number]).double()
        # Where all samples left, those that are least sure are the bound.
        lowest = max(threshold, float(sure.min()))
        # A sample with one label left is infinitely sure, and leaves anyway.
        several = sure[sure.isfinite()]
        spread = float(several.std(correction=0)) if len(several) else 0.0
        thresholds.append(lowest + deviations * spread)
    drops = tuple(drop * (1 + deviations) for drop in policy.drops)
    return replace(policy, thresholds=tuple(thresholds), drops=drops)


class _Start:
    """What is known of samples for a policy, but for its thresholds.

    Args:
        seen: The samples.
        policy: The policy; under it samples leave only where one label is left.
        risk: What counts as an error, one of `RISKS`.
    """

    def __init__(self, seen: HeldOut, policy: ExitPolicy, risk: str) -> None:
        self.policy = policy
        history, macs = dropped(policy, seen)
        before_last = range(1, len(history))
        labels = seen.history.shape[2] if seen.is_sweep else 1
        self.costs = macs / sum(cost.row + cost.each * labels for cost in seen.costs)
        """In full passes, up to each exit."""
        self.losses = seen.losses(history.argmax(dim=2), risk)
        self.sure = torch.stack([policy.confidences(history[:n]).double() for n in before_last])
        self.must = torch.stack([policy.leaves(history[:n]) for n in before_last])

    def cheapest(self, price: float) -> tuple[float, ExitPolicy]:
        """Choose the thresholds that cost least, wrong samples included, one after the other.

        Args:
            price: What a wrong sample counts, in full passes.

        Returns:
            The mean cost, and the policy.
        """
        value = self.costs + price * self.losses
        thresholds = [math.inf] * len(self.sure)
        after = value[-1]
        for _ in range(SWEEPS):
            # From the last exit back: what comes after an exit says what it costs to go on there.
            after = value[-1]
            for number in reversed(range(len(thresholds))):
                free = ~self.must[number]
                for earlier in range(number):
                    free &= (self.sure[earlier] < thresholds[earlier]) & ~self.must[earlier]
                gain = (value[number] - after)[free]
                thresholds[number] = _threshold(self.sure[number, free], gain)
                leaves = (self.sure[number] >= thresholds[number]) | self.must[number]
                after = torch.where(leaves, value[number], after)
        return float(after.mean()), replace(self.policy, thresholds=tuple(thresholds))


def _threshold(sure: Tensor, gain: Tensor) -> float:
    """Return the threshold from which the sum of what leaving costs, less going on, is least."""
    if not len(sure):
        return math.inf
    values, order = sure.sort(descending=True)
    sums = gain[order].cumsum(dim=0)
    # Samples that are equally sure leave together.
    is_last = torch.ones(len(values), dtype=torch.bool)
    is_last[:-1] = values[:-1] != values[1:]
    sums[~is_last] = math.inf
    best = int(sums.argmin())
    if float(sums[best]) >= 0:
        return math.inf
    if best + 1 == len(values):
        return -math.inf
    return float((values[best] + values[best + 1]) / 2)


def _drops(seen: HeldOut, lost: float) -> tuple[float, ...]:
    """Return how far behind a label may be so that few samples lose their answer."""
    if lost == NO_DROPS:
        return ()
    drops = []
    for scores in seen.history[:-1]:
        behind = scores.amax(dim=1) - scores.gather(1, seen.full[:, None]).squeeze(1)
        # Only answers that are right can be lost.
        right = behind[seen.full == seen.labels]
        kept = torch.quantile(right, 1 - lost) if len(right) else torch.tensor(math.inf)
        drops.append(float(kept) * (1 + 1e-6))
    return tuple(drops)


def mean_minus_std(seen: HeldOut, factor: float = 1.0) -> ExitPolicy:
    """Return the policy of Aminifar et al.: leave where the best score is not unusually low.

    Thresholds are the mean less `factor` standard deviations of the best score of held-out samples,
    at each exit. Kept to reproduce; a calibrated margin is better.

    Source:
        Aminifar et al. 2024, arXiv:2404.05241, section 3. (Their published code compares the score
        of the true label instead, which is unknown at inference.)
    """
    best = [max_score(seen.history[: number + 1]) for number in range(len(seen.costs) - 1)]
    return ExitPolicy("max-score", tuple(float(b.mean() - factor * b.std()) for b in best))
