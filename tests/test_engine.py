"""The engine: it trains one block for a stretch of mini-batches, and goes on where it stopped."""

import pytest
import torch
from small_blocks import (
    RULES,
    UNITS,
    block_of,
    dense,
    linear,
    objectives,
    state_of,
    step_of,
    views_of,
)
from torch import nn

from onward.batch import Batch
from onward.engine.kernels.closed_form import ClosedFormStep
from onward.engine.steps import AutogradStep
from onward.engine.stretches import Position, Training, make_step, train_block
from onward.errors import DivergedError
from onward.network.blocks import Block
from onward.network.objectives import CrossEntropy
from onward.network.optimizers import SGD


def mini_batches(name, number):
    return [views_of(name, seed=seed) for seed in range(number)]


def assert_same_bits(actual, expected):
    """Check that weights, running statistics and the optimizer's state are the same."""
    theirs = state_of(expected)
    for name, tensor in state_of(actual).items():
        assert tensor.equal(theirs[name]), name


# Going on


@pytest.mark.parametrize("stop", [1, 3, 6])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"closed_form": False},
        {"schedule": "cooldown", "epochs": 3},
        {"schedule": "warmup", "epochs": 3},
        {"slices": 2},
    ],
    ids=lambda how: ", ".join(how) or "closed form",
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@objectives
def test_two_calls_end_in_the_bits_of_one(name, precision, how, stop):
    # Given a block whose steps draw dropout, and three epochs of three mini-batches.
    training, batches = Training(seed=3, **how), mini_batches(name, 9)
    whole, stopped = (
        block_of(name, RULES["adam"], dropout=0.4, precision=precision) for _ in range(2)
    )
    for block in (whole, stopped):
        block.objective.peer = 0.0

    train_block(whole, batches, training, number=2, batches=3)
    at, _ = train_block(stopped, batches[:stop], training, number=2, batches=3)
    at, _ = train_block(stopped, batches[stop:], training, number=2, start=at, batches=3)

    assert at == Position(3, 0)
    assert_same_bits(stopped, whole)


def test_two_calls_with_units_in_slices_end_in_the_bits_of_one():
    training, batches = Training(seed=3, slices=2, cut="units"), mini_batches("cross-entropy", 4)

    def block():
        return Block(dense(units=8, dropout=0.4), CrossEntropy(linear(8)), RULES["adam"])

    whole, stopped = block(), block()

    train_block(whole, batches, training, batches=2)
    at, _ = train_block(stopped, batches[:1], training, batches=2)
    train_block(stopped, batches[1:], training, start=at, batches=2)

    assert_same_bits(stopped, whole)


@pytest.mark.usefixtures("kept_generator")
def test_running_statistics_and_dropout_of_modules_go_on_too():
    def block():
        module = nn.Sequential(linear(5, UNITS), nn.BatchNorm1d(UNITS), nn.Dropout(0.5))
        return Block(module, CrossEntropy(linear()), RULES["adam"])

    training, batches = Training(seed=3), mini_batches("cross-entropy", 5)
    whole, stopped = block(), block()

    train_block(whole, batches, training, batches=2)
    at, _ = train_block(stopped, batches[:3], training, batches=2)
    # The generator may be in any state, and the block may have been asked in between.
    torch.manual_seed(7)
    stopped.infer(batches[0]["input"])
    train_block(stopped, batches[3:], training, start=at, batches=2)

    assert_same_bits(stopped, whole)


def test_a_block_goes_on_from_its_weights_and_its_optimizer_state_elsewhere():
    training, batches = Training(seed=3), mini_batches("threshold", 6)
    whole, stopped, other = (block_of("threshold", RULES["adam"]) for _ in range(3))

    train_block(whole, batches, training, batches=2)
    at, _ = train_block(stopped, batches[:3], training, batches=2)
    other.load_state_dict(stopped.state_dict())
    other.set_optimizer_tensors([tensor.clone() for tensor in stopped.optimizer_tensors()])
    train_block(other, batches[3:], training, start=at, batches=2)

    assert_same_bits(other, whole)


@pytest.mark.parametrize(
    "other",
    [{"number": 1}, {"start": Position(1, 0)}, {"seed": 4}],
    ids=lambda other: next(iter(other)),
)
def test_what_is_drawn_follows_from_seed_block_and_position(other):
    batches = mini_batches("cross-entropy", 2)
    blocks = []
    for seed, where in ((3, {}), (other.get("seed", 3), other)):
        block = block_of("cross-entropy", RULES["sgd"], dropout=0.5)
        where = {name: value for name, value in where.items() if name != "seed"}
        train_block(block, batches, Training(seed=seed), batches=2, **where)
        blocks.append(state_of(block))

    assert not blocks[0]["module.weight"].equal(blocks[1]["module.weight"])


# What a stretch reports


@objectives
def test_a_stretch_reports_the_figures_of_all_its_mini_batches(name):
    block, beside = (block_of(name, RULES["sgd"]) for _ in range(2))
    batches = [views_of(name, seed=0, samples=6), views_of(name, seed=1, samples=2)]

    at, report = train_block(block, batches, Training(seed=0), batches=2)

    first, second = (
        train_block(beside, [views], Training(seed=0), start=Position(0, n), batches=2)[1]
        for n, views in enumerate(batches)
    )
    samples = [sum(len(view) for view in views.values()) for views in batches]
    expected = (first.loss * samples[0] + second.loss * samples[1]) / sum(samples)
    assert at == Position(1, 0)
    assert report.loss == pytest.approx(expected)
    assert report.active.equal(first.active | second.active)


def test_no_mini_batch_at_all_is_refused():
    with pytest.raises(ValueError, match="cannot be trained for no mini-batch at all"):
        train_block(block_of("threshold", RULES["sgd"]), [], Training(seed=0), batches=1)


def test_a_loss_that_is_not_finite_is_reported_with_its_place():
    block, views = block_of("cross-entropy", RULES["sgd"]), views_of("cross-entropy", seed=0)
    torch.nn.init.constant_(block.module.bias, float("inf"))

    with pytest.raises(DivergedError, match=r"block 4 is .* in mini-batch 1 of epoch 2"):
        train_block(block, [views], Training(seed=0), number=4, start=Position(2, 1), batches=3)


# Which step


@pytest.mark.parametrize(
    "more",
    [
        {"weights": torch.ones(6)},
        {"index": torch.tensor([0, 1])},
        {"structure": {"edges": torch.zeros(2, 3)}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_closed_forms_are_for_samples_that_all_count_the_same(more):
    views = views_of("cross-entropy", seed=0)
    block = block_of("cross-entropy", RULES["sgd"])
    other = {name: view.replace(**more) for name, view in views.items()}

    assert isinstance(make_step(block, Training(seed=0), views), ClosedFormStep)
    assert isinstance(make_step(block, Training(seed=0), other), AutogradStep)


def test_a_block_that_prepares_its_inputs_has_no_closed_form():
    block = Block(dense(), CrossEntropy(linear()), SGD(), prepare=lambda x: x * 2)

    assert isinstance(step_of(block), AutogradStep)


def test_the_samples_that_do_not_count_teach_nothing():
    def learned(others):
        block = block_of("cross-entropy", RULES["sgd"])
        (view,) = views_of("cross-entropy", seed=0).values()
        x = torch.cat([view.inputs[:4], others])
        graph = Batch(x, view.targets, structure={"edges": others}, index=torch.arange(4))
        train_block(block, [{"input": graph}], Training(seed=0), batches=1)
        return block

    assert_same_bits(learned(torch.ones(2, 5)), learned(torch.zeros(2, 5)))
