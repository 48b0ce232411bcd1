"""Which exit policies keep to an allowed risk on new samples, and what each bound promises.

All of them go through policies from cautious to bold and end before the first that fails, so the
policies must be decided on without the samples that test them.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Int8
from torch import Tensor

Losses = Int8[Tensor, "policies samples"]
"""Losses of policies, from cautious to bold, on the same samples: 1 where the policy loses a right
answer; where gains count, -1 where it gains one; and 0. A network at full depth has none."""

BOUNDS = ("fixed-sequence", "ucb", "expectation")
"""Bounds, by name. The first two promise something of this calibration, with probability 1 - delta:
by a binomial test, which is exact, and by an upper confidence bound, which also takes losses of -1.
The last one promises something of the mean over calibrations."""


def num_kept(losses: Losses, allowed: float, bound: str | None, delta: float | None) -> int:
    """Return how many of the first policies keep to what is allowed, up to the first that fails.

    Args:
        losses: Of all policies, from cautious to bold, on samples in random order.
        allowed: The mean loss that is allowed.
        bound: One of `BOUNDS`. None: the mean loss of these samples is taken as it is, which
            promises nothing of others.
        delta: Probability with which the mean loss on new samples may be larger after all; None
            for a bound that has none.
    """
    if bound is None:
        keeps = losses.double().mean(dim=1) <= allowed
    elif bound == "expectation":
        keeps = keep_on_average(losses, allowed)
    else:
        assert delta is not None
        test = {"fixed-sequence": pass_binomial_test, "ucb": are_bounded}[bound]
        keeps = test(losses, allowed, delta)
    return int(keeps.int().cumprod(dim=0).sum())


def pass_binomial_test(losses: Losses, allowed: float, delta: float) -> Bool[Tensor, " policies"]:
    """Return whose losses, each 0 or 1, are so few that a larger risk than allowed is unlikely.

    The probability of so few losses is at most delta for any risk above `allowed`. Policies are
    tested one after the other, until one fails: to end at a policy whose risk is too large, the
    first such policy has to pass, and so all of them share one delta.

    Source:
        Angelopoulos et al. 2021, arXiv:2110.01052 (learn then test), fixed-sequence testing.
    """
    from scipy.stats import binom  # Takes half a second, and few processes need it.

    lost = losses.sum(dim=1, dtype=torch.int64).numpy()
    return torch.from_numpy(binom.cdf(lost, losses.shape[1], allowed) <= delta)


def are_bounded(losses: Losses, allowed: float, delta: float) -> Bool[Tensor, " policies"]:
    """Return whose upper confidence bound on the mean loss is at most what is allowed.

    Someone bets on each loss in turn to be below `allowed`, how much by the losses before: the
    capital is multiplied by 1 - bet * (loss - allowed). If the mean loss is `allowed` or more, the
    capital does not grow on average, and ever reaches 1 / delta with a probability of at most
    delta. The bound is the largest mean that has not been ruled out so.

    Losses may be anywhere in [-1, 1]: with bets from 0 to 1, the capital stays positive as long as
    no loss exceeds 1, which is all that the argument needs. Nothing is rescaled: mapped to [0, 1],
    the same bets would win half as much.

    The published bound takes a risk that grows from policy to policy. Where policies are tested one
    after the other until one fails, that is not needed, see `pass_binomial_test`.

    Source:
        Waudby-Smith & Ramdas 2024, arXiv:2010.09686, section 4 (betting; predictable plug-in bets);
        for early exit: Jazbec et al. 2024 (Fast yet Safe), arXiv:2405.20915.
    """
    found = losses.numpy().astype(np.float64)
    num_samples = found.shape[1]
    counts = np.arange(1, num_samples + 1)
    means = (0.5 + found.cumsum(axis=1)) / (counts + 1)
    variances = (0.25 + np.square(found - means).cumsum(axis=1)) / (counts + 1)
    # A bet knows the losses before its own.
    variances = np.concatenate([np.full((len(found), 1), 0.25), variances[:, :-1]], axis=1)
    bets = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (num_samples * variances)))
    with np.errstate(divide="ignore"):  # Where nothing is allowed, a loss may take all.
        capital = np.log1p(-bets * (found - allowed)).cumsum(axis=1)
    return torch.from_numpy(capital.max(axis=1) >= math.log(1 / delta))


def keep_on_average(losses: Losses, allowed: float) -> Bool[Tensor, " policies"]:
    """Return which policies keep to what is allowed on average over calibrations.

    This is conformal risk control. It promises an expectation over the calibration samples: were
    many calibrations made, each on samples drawn anew, the mean of their risks on new samples would
    be at most `allowed`. About any one of them it promises nothing, and many of them may have a
    larger risk. So it is judged by that mean, not by how often `allowed` is exceeded.

    It needs losses, each 1 at most, that no sample has less of under a bolder policy. So a sample
    counts as lost once a more cautious policy, too, has lost it. Losses of -1 have no place here:
    full depth, the most cautious of all, has a loss of 0, so none below would ever count.

    Source:
        Angelopoulos et al. 2022, arXiv:2208.02814, section 2; for early exit: Jazbec et al. 2024
        (Fast yet Safe), arXiv:2405.20915.
    """
    worst = losses.clamp_min(0).cummax(dim=0).values
    # The sample that is to come may be lost under any policy.
    return (worst.sum(dim=1, dtype=torch.float64) + 1) / (losses.shape[1] + 1) <= allowed


def samples_needed(allowed: float, bound: str, delta: float | None) -> int | None:
    """Return on about how many samples without a loss a policy passes; None where none are enough.

    Exactly so many for all bounds but "ucb", which needs somewhat more: 3 percent more where 1
    percent is allowed, and half as many again where 50 percent are.
    """
    if allowed == 0:
        return None
    if bound == "expectation":
        return max(math.ceil(1 / allowed) - 1, 1)
    assert delta is not None
    return math.ceil(math.log(delta) / math.log1p(-allowed))
