"""Thresholds from held-out samples: what is allowed is kept to, and no exit depends on a label."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom

from onward.errors import SettingError
from onward.exits.calibration import CAUTION, Calibrated, candidates, choose, mean_minus_std
from onward.exits.macs import StageCost
from onward.exits.outcomes import HeldOut, dropped, fixed_depths, follow, oracle, shuffled
from onward.exits.policies import CONFIDENCES, ExitPolicy, full_depth

COSTS = (StageCost(100, 0, 1, 0), StageCost(300, 0, 1, 1), StageCost(600, 0, 1, 2))


def made_up(samples=1500, seed=0, *, is_sweep=False):
    """Samples of which deeper exits get more right, and are surer of those that they get right."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (samples,), generator=draw)
    hard = torch.rand(samples, generator=draw)
    history = []
    for noise in (1.6, 0.9, 0.6):
        scores = torch.randn(samples, 4, generator=draw) * noise * (0.2 + hard[:, None])
        scores[torch.arange(samples), labels] += 2.0
        history.append(scores)
    costs = COSTS
    if is_sweep:
        costs = tuple(replace(cost, row=cost.row // 10, each=cost.row) for cost in COSTS)
    return HeldOut(torch.stack(history), labels, costs, is_sweep)


def mean(values):
    return float(values.double().mean())


# What is asked for


@pytest.mark.parametrize("allowed", [0.0, pytest.param(0.001, marks=pytest.mark.slow), 0.01])
@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("is_sweep", [False, True])
def test_no_more_samples_become_wrong_than_allowed(allowed, confidence, is_sweep):
    seen = made_up(is_sweep=is_sweep)

    found = choose(seen, confidence=confidence, max_error_increase=allowed)

    assert mean(follow(found.policy, seen).is_newly_wrong) <= allowed
    assert found.error_increase <= allowed
    assert found.mean_macs <= found.full_macs


def test_from_fewer_samples_more_is_plausible():
    few, many = (choose(made_up(samples=n), max_error_increase=0.01) for n in (300, 3000))

    assert few.newly_wrong <= 3
    assert few.plausible_increase > many.plausible_increase > many.newly_wrong / 3000
    # None of n samples: a rate of 3 / n is the end of the interval.
    none = replace(few, newly_wrong=0)
    assert none.plausible_increase == pytest.approx(3 / 300, rel=0.01)


def test_the_more_is_allowed_the_less_it_costs():
    seen = made_up()

    costs = [choose(seen, max_error_increase=e).mean_macs for e in (0.0, 0.002, 0.01, 0.05)]

    assert costs == sorted(costs, reverse=True)
    assert costs[0] < 1000
    assert costs[-1] < 350


@pytest.mark.slow
def test_a_margin_comes_close_to_the_best_thresholds_of_all():
    seen = made_up(samples=600)
    found = choose(seen, max_error_increase=0.01)
    margins = [CONFIDENCES["margin"](seen.history[: n + 1]) for n in (0, 1)]
    grids = [[math.inf, *margin.quantile(torch.linspace(0, 1, 60)).tolist()] for margin in margins]

    best = math.inf
    for first in grids[0]:
        for second in grids[1]:
            outcome = follow(ExitPolicy("margin", (first, second)), seen)
            if mean(outcome.is_newly_wrong) <= 0.01:
                best = min(best, float(outcome.macs.mean()))

    assert found.mean_macs <= 1.05 * best


def test_a_cost_may_be_asked_for_instead():
    seen = made_up()

    found = choose(seen, target_macs=300.0)

    assert 200 < found.mean_macs <= 300
    assert found.max_error_increase is None


def test_a_cost_that_cannot_be_reached_is_refused():
    with pytest.raises(
        SettingError, match="No policy comes to 50 MACs a sample: the first exit costs"
    ):
        choose(made_up(), target_macs=50.0)


def test_labels_that_are_hopeless_are_dropped_where_that_pays():
    seen = made_up(is_sweep=True)

    found = choose(seen, max_error_increase=0.01)

    never = replace(found.policy, drops=())
    assert found.policy.drops
    assert float(follow(found.policy, seen).macs.mean()) < float(follow(never, seen).macs.mean())


# The guarantee


@pytest.fixture(scope="module")
def population():
    """Samples to draw from, which stand for all there are."""
    return made_up(samples=200_000, seed=99)


def risks_of_calibrations(population, number=40, **asked):
    """The risks that so many calibrations have on the population, and the mean MACs of each."""
    draw = torch.Generator().manual_seed(0)
    risks, macs = [], []
    for _ in range(number):
        samples = torch.randperm(len(population.labels), generator=draw)[:2000]
        found = choose(population.part(samples), **asked)
        outcome = follow(found.policy, population)
        risks.append(mean(population.losses(outcome.answers, found.risk)))
        macs.append(found.mean_macs)
    return torch.tensor(risks), torch.tensor(macs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bound", "risk"),
    [
        ("fixed-sequence", "lost"),
        ("ucb", "net"),
        pytest.param("ucb", "lost", marks=pytest.mark.slow),
    ],
)
def test_a_guarantee_is_kept_on_as_many_new_samples_as_promised(population, bound, risk):
    allowed, delta = 0.01, 0.1
    asked = {"max_error_increase": allowed, "delta": delta, "bound": bound, "risk": risk}

    risks, macs = risks_of_calibrations(population, **asked)

    # Of 40 draws, so few as this would happen once in a thousand times if the promise held barely.
    assert int((risks <= allowed).sum()) >= binom.ppf(0.001, 40, 1 - delta)
    assert macs.mean() < 800


@pytest.mark.slow
def test_an_expectation_is_kept_on_average_over_calibrations(population):
    risks, macs = risks_of_calibrations(population, max_error_increase=0.01, bound="expectation")

    assert 0.005 < risks.mean() <= 0.01
    assert risks.max() > 0.01
    assert macs.mean() < 800


def test_a_guarantee_costs_more_than_none():
    seen = made_up()

    without = choose(seen, max_error_increase=0.01)
    guaranteed = choose(seen, max_error_increase=0.01, delta=0.05)

    assert without.mean_macs < guaranteed.mean_macs < guaranteed.full_macs
    assert (guaranteed.bound, guaranteed.delta) == ("fixed-sequence", 0.05)


def test_an_expectation_costs_less_than_a_guarantee_of_each_calibration():
    seen = made_up()

    expected = choose(seen, max_error_increase=0.01, bound="expectation")

    assert expected.delta is None
    for bound in ("ucb", "fixed-sequence"):
        guaranteed = choose(seen, max_error_increase=0.01, delta=0.05, bound=bound)
        assert expected.mean_macs < guaranteed.mean_macs


# What counts


def test_samples_that_are_gained_are_credited_where_that_is_asked_for():
    seen = made_up()

    lost, net = (choose(seen, max_error_increase=0.005, risk=risk) for risk in ("lost", "net"))

    outcome = follow(net.policy, seen)
    assert mean(seen.losses(outcome.answers, "net")) == pytest.approx(net.error_increase)
    assert net.error_increase <= 0.005 < net.newly_wrong / net.samples
    assert net.newly_right == int((seen.losses(outcome.answers, "net") < 0).sum()) > 0
    assert net.mean_macs < lost.mean_macs
    # One-sided 95 % of the difference of two counts.
    scale = (net.newly_wrong + 1 - net.newly_right) / net.samples
    assert scale < net.plausible_increase < scale + 2 * math.sqrt(net.newly_wrong * 2) / net.samples


def test_gains_are_credited_with_a_guarantee_too():
    seen = made_up(samples=4000)
    asked = {"max_error_increase": 0.01, "bound": "ucb", "delta": 0.1}

    lost, net = (choose(seen, risk=risk, **asked) for risk in ("lost", "net"))

    assert net.mean_macs < lost.mean_macs < lost.full_macs


def test_losses_say_what_was_lost_and_what_was_gained():
    seen = HeldOut(torch.eye(3)[None, [0, 0, 1, 1]], torch.tensor([0, 0, 0, 0]), COSTS[:1], False)
    answers = torch.tensor([0, 1, 0, 2])

    assert seen.losses(answers, "net").tolist() == [0, 1, -1, 0]
    assert seen.losses(answers, "lost").tolist() == [0, 1, 0, 0]


def test_the_first_candidates_are_the_more_cautious_the_earlier_they_come():
    for seen in (made_up(), made_up(is_sweep=True)):
        *cautious, first = list(candidates(seen, "margin"))[: len(CAUTION) + 1]

        costs = [float(follow(p, seen).macs.mean()) for p in (*cautious, first)]
        assert costs == sorted(costs, reverse=True)
        assert costs[0] > 1.1 * costs[-1]
        for policy in cautious:
            assert all(more >= less for more, less in zip(policy.thresholds, first.thresholds))  # noqa: B905


def test_candidates_are_numbers_also_where_samples_have_one_label_left_whose_margin_is_infinite():
    seen = made_up(is_sweep=True)
    far = seen.labels == 0
    # At the second exit all other labels of these samples are dropped.
    history = seen.history.clone()
    history[0, far, 1:] -= 1000.0
    seen = replace(seen, history=history)

    policies = list(candidates(seen, "margin"))

    lone = [dropped(p, seen)[0][1].isfinite().sum(dim=1).min() == 1 for p in policies]
    assert any(lone[: len(CAUTION)])
    for policy in policies:
        assert not any(map(math.isnan, (*policy.thresholds, *policy.drops)))
        assert ExitPolicy.from_json(policy.to_json()) == policy


def test_a_guarantee_of_little_is_given_where_that_of_much_is_not():
    """Without cautious candidates, most draws of these would end at full depth."""
    population = made_up(samples=200_000, seed=99)
    draw = torch.Generator().manual_seed(0)
    some = 0
    for _ in range(12):
        samples = torch.randperm(200_000, generator=draw)[:5000]
        found = choose(population.part(samples), max_error_increase=0.001, delta=0.1)
        some += found.mean_macs < found.full_macs

    assert some >= 8


def test_samples_of_the_training_guarantee_nothing():
    seen = replace(made_up(), was_trained_on=True)

    with pytest.raises(SettingError, match="was trained on guarantee nothing"):
        choose(seen, max_error_increase=0.01, delta=0.05)


def test_too_few_samples_guarantee_nothing_and_all_go_the_whole_way():
    seen = made_up(samples=40)

    assert choose(seen, max_error_increase=0.001, delta=0.05).mean_macs == 1000


# What becomes of samples


def test_no_exit_and_no_answer_depends_on_a_label():
    seen = made_up()
    policies = [choose(seen, confidence=c, max_error_increase=0.01).policy for c in CONFIDENCES]
    order = torch.randperm(len(seen.labels), generator=torch.Generator().manual_seed(1))
    permuted = replace(seen, labels=seen.labels[order])

    for policy in (*policies, mean_minus_std(seen), *fixed_depths(seen)):
        before, after = follow(policy, seen), follow(policy, permuted)
        assert before.exits.equal(after.exits)
        assert before.answers.equal(after.answers)
        assert not before.is_wrong.equal(after.is_wrong)


def test_fixed_depths_cost_what_their_stages_cost():
    seen = made_up(samples=50)

    assert [float(follow(p, seen).macs.mean()) for p in fixed_depths(seen)] == [100, 400, 1000]
    assert follow(full_depth(3), seen).is_newly_wrong.sum() == 0


def test_the_oracle_is_below_every_policy_that_drops_no_labels():
    seen = made_up()
    error, cost = oracle(seen)

    assert error < min(mean(follow(p, seen).is_wrong) for p in candidates(seen, "margin"))
    assert cost < 300


def test_samples_that_leave_at_random_are_wrong_more_often():
    seen = made_up()
    outcome = follow(choose(seen, max_error_increase=0.005).policy, seen)

    error, cost = shuffled(outcome, seen)

    assert error > mean(outcome.is_wrong) + 0.02
    assert cost == pytest.approx(float(outcome.macs.mean()))


def test_mean_minus_std_is_that_of_the_best_scores():
    seen = made_up()
    best = seen.history[0].amax(dim=1)

    policy = mean_minus_std(seen, 2.0)

    assert policy.thresholds[0] == pytest.approx(float(best.mean() - 2 * best.std()))


# As JSON


def test_a_calibration_is_the_same_after_a_way_through_json():
    found = choose(made_up(), max_error_increase=0.01, delta=0.1)

    assert Calibrated.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(("delta", "bound"), [(None, None), (0.1, "fixed-sequence")])
def test_a_calibration_of_before_there_were_several_bounds_is_read(delta, bound):
    found = choose(made_up(), max_error_increase=0.01, delta=delta)
    older = {n: v for n, v in found.to_json().items() if n not in ("bound", "risk")}

    assert Calibrated.from_json(older) == found
    assert (found.bound, found.risk) == (bound, "lost")


def test_what_is_no_calibration_is_refused():
    with pytest.raises(SettingError, match="no calibration of exits"):
        Calibrated.from_json({"samples": 3})
