"""What bounds promise is kept: over many calibrations, each on samples drawn anew."""

import math

import pytest
import torch

from onward.exits.bounds import (
    are_bounded,
    keep_on_average,
    num_kept,
    pass_binomial_test,
    samples_needed,
)

DRAWS = 1000
"""Calibrations of each simulation."""

ALLOWED, DELTA, SAMPLES = 0.02, 0.1, 2000

SIGMA = math.sqrt(DELTA * (1 - DELTA) / DRAWS)

RISKS = (0.004, 0.01, 0.0201, 0.03)
"""Of the policies; the third one is hardly too bold, so a bound that is too lax lets it pass."""

GAINED = 0.03
"""Share of samples that are gained, where gains count; as many more are lost."""


def drawn(draw, risks, samples, gained=0.0):
    """Losses of policies on new samples: what a bolder policy loses includes what others lose."""
    chance = torch.rand(samples, generator=draw)
    lost = chance < torch.tensor(risks)[:, None] + gained
    return lost.to(torch.int8) - (chance > 1 - gained).to(torch.int8)


def risks_of_the_chosen(bound, delta, allowed, risks, samples, gained=0.0):
    """The true risk of what is chosen, in each of many calibrations."""
    draw = torch.Generator().manual_seed(0)
    kept = [
        num_kept(drawn(draw, risks, samples, gained), allowed, bound, delta) for _ in range(DRAWS)
    ]
    return torch.tensor([0.0, *risks], dtype=torch.float64)[kept]


def share_too_large(bound, delta, gained=0.0):
    found = risks_of_the_chosen(bound, delta, ALLOWED, RISKS, SAMPLES, gained)
    return float((found > ALLOWED).double().mean())


@pytest.mark.parametrize(
    ("bound", "gained"), [("fixed-sequence", 0.0), ("ucb", 0.0), ("ucb", GAINED)]
)
def test_the_risk_is_larger_than_allowed_no_more_often_than_promised(bound, gained):
    assert share_too_large(bound, DELTA, gained) <= DELTA + 3 * SIGMA


@pytest.mark.parametrize(
    ("bound", "delta", "gained"),
    [
        (None, None, 0.0),
        ("expectation", None, 0.0),
        ("fixed-sequence", 2 * DELTA, 0.0),
        ("ucb", 4 * DELTA, 0.0),
        (None, None, GAINED),
        ("ucb", 4 * DELTA, GAINED),
    ],
)
def test_the_simulation_tells_a_bound_that_is_too_lax(bound, delta, gained):
    assert share_too_large(bound, delta, gained) > DELTA + 3 * SIGMA


FINE = tuple(k / 1000 for k in range(1, 200))
"""Risks of policies that differ little, so that the mean risk comes close to what is allowed."""


def test_an_expectation_is_kept_by_the_mean_over_calibrations_and_not_by_each():
    found = risks_of_the_chosen("expectation", None, 0.05, FINE, samples=100)

    error = float(found.std()) / math.sqrt(DRAWS)
    assert 0.04 < float(found.mean()) <= 0.05 + 3 * error
    # About half of the calibrations have a larger risk, which is no violation of that promise.
    assert 0.3 < float((found > 0.05).double().mean()) < 0.6


def test_without_the_sample_to_come_the_mean_over_calibrations_is_too_large():
    found = risks_of_the_chosen(None, None, 0.05, FINE, samples=100)

    assert float(found.mean()) > 0.05 + 3 * float(found.std()) / math.sqrt(DRAWS)


# What each of them does


def counts(lost, gained=0, samples=1000):
    """Losses of one policy, in random order."""
    losses = torch.zeros(samples, dtype=torch.int8)
    losses[:lost], losses[samples - gained :] = 1, -1
    return losses[torch.randperm(samples, generator=torch.Generator().manual_seed(0))][None]


def test_policies_are_kept_up_to_the_first_that_fails():
    losses = torch.cat([counts(lost) for lost in (0, 2, 30, 1)])

    for bound, delta in (
        (None, None),
        ("fixed-sequence", 0.1),
        ("ucb", 0.1),
        ("expectation", None),
    ):
        assert num_kept(losses, 0.01, bound, delta) == 2


def test_an_upper_bound_passes_fewer_good_policies_than_the_exact_test_and_not_many_fewer():
    draw = torch.Generator().manual_seed(0)
    good = torch.rand(200, 2000, generator=draw) < 0.014

    exact, bounded = (
        float(test(good.to(torch.int8), ALLOWED, DELTA).double().mean())
        for test in (pass_binomial_test, are_bounded)
    )

    assert exact - 0.25 < bounded < exact


def test_gains_are_credited_by_the_upper_bound():
    assert not are_bounded(counts(60), 0.05, 0.1)
    assert are_bounded(counts(60, gained=40), 0.05, 0.1)


def test_a_bound_that_was_reached_once_is_reached():
    """A last sample that is lost takes back what was won, and not that it was."""
    losses = torch.zeros(1, 100, dtype=torch.int8)
    before = are_bounded(losses[:, :99], 0.05, 0.1)
    losses[0, 99] = 1

    assert before
    assert are_bounded(losses, 0.05, 0.1)


def test_on_average_a_sample_stays_lost_under_bolder_policies():
    first, second = torch.zeros(2, 99, dtype=torch.int8)
    first[0] = second[1] = 1

    # With the sample to come, 2 of 100 and 3 of 100.
    both = torch.stack([first, second])
    assert keep_on_average(both, 0.02).tolist() == [True, False]
    assert keep_on_average(both, 0.03).tolist() == [True, True]


@pytest.mark.parametrize("allowed", [0.3, 0.1, 0.001])
@pytest.mark.parametrize(("bound", "delta"), [("fixed-sequence", 0.1), ("expectation", None)])
def test_the_samples_needed_are_those_on_which_nothing_lost_is_just_enough(bound, delta, allowed):
    needed = samples_needed(allowed, bound, delta)

    few, enough = (torch.zeros(1, number, dtype=torch.int8) for number in (needed - 1, needed))
    assert [num_kept(losses, allowed, bound, delta) for losses in (few, enough)] == [0, 1]


def test_the_samples_that_an_upper_bound_needs_are_known_within_a_few_percent():
    needed = samples_needed(0.01, "ucb", 0.05)

    few, enough = (
        torch.zeros(1, round(share * needed), dtype=torch.int8) for share in (0.94, 1.06)
    )
    assert [num_kept(losses, 0.01, "ucb", 0.05) for losses in (few, enough)] == [0, 1]


def test_samples_needed_are_known_at_once_and_none_are_enough_where_nothing_is_allowed():
    assert samples_needed(1e-12, "ucb", 0.1) == pytest.approx(math.log(10) * 1e12)
    assert samples_needed(0.0, "ucb", 0.1) is None
