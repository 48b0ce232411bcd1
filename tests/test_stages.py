"""Inference in stages: the same answers as the whole network, and nothing done twice."""

import copy
import inspect
import math

import pytest
import torch

import onward as ow
from onward.blocks import Block
from onward.errors import SettingError
from onward.exits.macs import StageCost, macs_spent, stage_costs
from onward.exits.policies import ExitPolicy, full_depth
from onward.exits.stages import answer, stages
from onward.readouts import Readout

READOUTS = {
    "heads": {},
    "last head": {"heads": "last"},
    "sweep": {"objective": "threshold", "negatives": "random", "readout": "goodness"},
    "sweep, first block too": {
        "objective": "threshold",
        "negatives": "random",
        "readout": "goodness",
        "skip_first": False,
    },
    "softmax": {"objective": "threshold", "negatives": "random", "readout": "softmax"},
}


@pytest.fixture(scope="module")
def digits():
    return ow.load_data("digits")


@pytest.fixture(scope="module")
def trained(digits):
    """A network for each readout, trained a little."""

    def train(settings):
        network = ow.mlp(
            digits.input_shape, num_classes=10, widths=(48, 40, 32), is_image=True, **settings
        )
        ow.train(network, digits, training=ow.TrainingConfig(epochs=8, precision="fp32"))
        return network

    return {name: train(settings) for name, settings in READOUTS.items()}


@pytest.fixture(params=READOUTS)
def network(request, trained):
    return trained[request.param]


def num_exits(network):
    return len(stage_costs(network))


def middling(network, x):
    """A policy under which about half of the rows leave at each exit."""
    history = []
    going = stages(network, x)
    thresholds = []
    while len(history) < num_exits(network) - 1:
        scores = going.step()
        if scores is not None:
            history.append(scores)
            confidence = ow.exits.CONFIDENCES["margin"](torch.stack(history))
            thresholds.append(float(confidence.median()))
    return ExitPolicy("margin", tuple(thresholds))


# The same as the whole network


def test_at_full_depth_scores_are_those_of_the_network(network, digits):
    expected = network.scores(digits.x_test).network

    found = answer(network, digits.x_test, full_depth(num_exits(network)))

    expected, scores = expected.log_softmax(dim=1), found.scores.log_softmax(dim=1)
    torch.testing.assert_close(scores, expected, rtol=2e-5, atol=2e-3)
    assert (found.exits == num_exits(network) - 1).all()


def test_shared_products_of_the_first_block_are_those_of_a_pass_a_label(trained, digits):
    network = trained["sweep"]
    x = digits.x_test[:7]
    labels = torch.arange(10)
    plain = network.line[0].infer(
        network.sampler.with_label(x.repeat_interleave(10, dim=0), labels.repeat(7))
    )

    going = stages(network, x)
    going.step()

    torch.testing.assert_close(going.activities, plain, rtol=1e-5, atol=1e-6)


def test_in_float64_shared_products_are_equal_to_all_digits(trained, digits):
    network = copy.deepcopy(trained["sweep"]).double()
    x = digits.x_test[:7].double()
    plain = network.line[0].infer(
        network.sampler.with_label(x.repeat_interleave(10, dim=0), torch.arange(10).repeat(7))
    )

    going = stages(network, x)
    first = going._first(network.line[0])

    torch.testing.assert_close(first, plain, rtol=1e-12, atol=1e-12)


# Early


@pytest.mark.parametrize("batch_size", [1, 17, 360])
def test_batches_of_any_size_give_the_same_answers(network, digits, batch_size):
    x = digits.x_test[:60]
    policy = middling(network, x)
    whole, found = (answer(network, x, policy, batch_size=n) for n in (60, batch_size))

    # Products of other sizes round otherwise: rows whose confidence lies within 1e-3 of a
    # threshold may leave elsewhere.
    near = torch.zeros(60, dtype=torch.bool)
    history = []
    going = stages(network, x)
    for _ in network.line:
        scores = going.step()
        if scores is not None and len(history) < len(policy.thresholds):
            history.append(scores)
            distance = (
                policy.confidences(torch.stack(history)) - policy.thresholds[len(history) - 1]
            )
            near |= distance.abs() < 1e-3
    assert near.sum() <= 3
    assert found.exits[~near].equal(whole.exits[~near])
    assert found.labels[~near].equal(whole.labels[~near])


def test_rows_leave_at_every_exit_and_in_the_middle_of_a_batch(network, digits):
    policy = middling(network, digits.x_test)

    found = answer(network, digits.x_test, policy, batch_size=50)

    assert len(found.exits.unique()) == num_exits(network)


def test_each_row_passes_only_the_blocks_before_its_exit(network, digits, monkeypatch):
    x = digits.x_test
    policy, passed = middling(network, x), []
    infer = Block.infer

    def counted(block, x):
        passed.append(len(x))
        return infer(block, x)

    monkeypatch.setattr(Block, "infer", counted)
    found = answer(network, x, policy, batch_size=len(x))

    # The first block of a sweep is passed without `infer`; its products are shared.
    later = [int(count) for count in found.passes.sum(dim=1) if count]
    assert passed[-len(later) + 1 :] == later[1:]


def test_an_answer_is_that_of_the_exit_it_left_at(network, digits):
    x = digits.x_test[:100]
    going, history = stages(network, x), []
    for _ in network.line:
        scores = going.step()
        history += [scores] if scores is not None else []
    policy = middling(network, x)

    found = answer(network, x, policy, batch_size=100)

    expected = torch.stack(history)[found.exits, torch.arange(100)]
    torch.testing.assert_close(found.scores, expected, rtol=1e-4, atol=1e-3)


def test_labels_that_fall_behind_are_passed_no_further(trained, digits):
    network = trained["sweep"]
    drops = (5.0, 5.0)
    policy = ExitPolicy("margin", (math.inf, math.inf), drops)

    found = answer(network, digits.x_test, policy)

    full = answer(network, digits.x_test, full_depth(3))
    left = (found.scores > -math.inf).sum(dim=1)
    assert (found.passes[0] == 10).all()
    assert 0 < float((found.passes[2] < found.passes[1]).float().mean()) < 1
    assert (left <= found.passes.where(found.passes > 0, 99).amin(dim=0)).all()
    # Scores of the labels that stay are those of the whole sweep.
    stays = (found.scores > -math.inf) & (found.exits == 2)[:, None]
    torch.testing.assert_close(found.scores[stays], full.scores[stays], rtol=1e-4, atol=1e-3)


def test_inference_has_no_place_for_a_label():
    assert set(inspect.signature(answer).parameters) == {"network", "x", "policy", "batch_size"}


# What is refused


def test_a_policy_for_another_depth_is_refused(network, digits):
    with pytest.raises(SettingError, match=r"has 9 thresholds, and the network \d exits"):
        answer(network, digits.x_test, full_depth(10))


def test_a_readout_of_ones_own_has_no_exits(trained, digits):
    class Own(Readout):
        def scores(self, blocks, sampler, x):
            raise NotImplementedError

    network = copy.copy(trained["heads"])
    network.readout = Own()

    with pytest.raises(SettingError, match="and not Own"):
        stages(network, digits.x_test)


# What it costs

WIDTHS = (2000, 2000, 2000, 2000)


def mnist_like(**settings):
    return ow.mlp((1, 28, 28), num_classes=10, widths=WIDTHS, is_image=True, **settings)


def millions(costs, labels):
    total, each = 0, []
    for cost in costs:
        total += cost.row + cost.each * labels
        each.append(total / 1e6)
    return each


def test_macs_of_one_pass_are_those_of_the_matrices_with_every_head():
    costs = stage_costs(mnist_like())

    # 784 x 2000 and 2000 x 2000, heads of 2000 x 10, and ten comparisons.
    assert [cost.row for cost in costs] == [1_588_010, 4_020_010, 4_020_010, 4_020_010]
    assert costs[0].weight_bytes == 4 * (784 * 2000 + 2000 + 2000 * 10)


def test_macs_of_a_sweep_have_the_factor_of_the_labels():
    network = mnist_like(**READOUTS["sweep"])

    plain, shared = (stage_costs(network, shared=is_shared) for is_shared in (False, True))

    squares = [0.02 * (n + 1) for n in range(4)]
    assert millions(plain, 10) == pytest.approx(
        [m + s for m, s in zip([15.68, 55.68, 95.68, 135.68], squares, strict=True)], abs=1e-4
    )
    # 774 inputs shared, and a column of 2000 a label.
    assert shared[0] == StageCost(774 * 2000 + 10, 4000, 4 * (784 * 2000 + 2000), 0)


def test_a_row_costs_what_it_passed(trained, digits):
    network = trained["sweep"]
    found = answer(network, digits.x_test, ExitPolicy("margin", (math.inf,) * 2, (5.0, 5.0)))
    costs = stage_costs(network)

    each = macs_spent(costs, found)

    row = int(found.passes[2].argmin())
    expected = sum(c.row * (p > 0) + c.each * p for c, p in zip(costs, found.passes[:, row]))  # noqa: B905
    assert float(each[row]) == float(expected)
