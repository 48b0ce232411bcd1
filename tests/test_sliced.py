"""Steps in slices: the same gradients up to rounding, the same bits however slices are dealt."""

import threading

import pytest
import torch
from small_blocks import close, dense, draw, linear, state_of, views_of
from torch import nn

import onward as ow
from onward.blocks import Block
from onward.errors import SettingError
from onward.networks import CHUNK_ROWS
from onward.objectives import CrossEntropy, Threshold
from onward.optimizers import SGD, Adam
from onward.runtime.chapters import in_chunks
from onward.sliced import RowsStep, make_sliced_step
from onward.steps import make_step
from onward.team import Alone
from onward.transport.messages import InMemoryTransport

UNITS, ROWS = 12, 6

RULES = {"adam": Adam(lr=0.01, weight_decay=0.1), "sgd": SGD(lr=0.1, weight_decay=0.1)}


def block_of(objective, rule="sgd", **settings):
    chosen = {
        "cross-entropy": lambda: CrossEntropy(linear(UNITS)),
        "threshold": lambda: Threshold(UNITS, threshold=0.8, slope=3.0),
    }
    return Block(dense(units=UNITS, **settings), chosen[objective](), RULES[rule])


def trained(block, step, objective, steps=3, dtype=torch.float32):
    told = None
    for seed in range(steps):
        _, report = step(views_of(objective, seed=seed, dtype=dtype), seed=seed, lr_scale=1.0)
        told = report if told is None else told.add(report)
    return block, step.finish(told)


def in_team(size, work):
    """Do the work on each rank of a team, a thread each, and return what each came to."""
    found = [None] * size
    ranks = InMemoryTransport.group(size)

    def do(rank):
        found[rank] = work(ranks[rank].team([range(size)]))

    threads = [threading.Thread(target=do, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert None not in found
    return found


each_cut = pytest.mark.parametrize("cut", ["rows", "units"])
each_objective = pytest.mark.parametrize("objective", ["cross-entropy", "threshold"])


@each_cut
@each_objective
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("slices", [2, 3])
def test_slices_learn_what_the_whole_learns_up_to_rounding(cut, objective, rule, slices):
    whole, sliced = (block_of(objective, rule).double() for _ in range(2))
    for block in (whole, sliced):
        block.forget()
    expected, report = trained(
        whole, make_step(whole, closed_form=False), objective, dtype=torch.float64
    )
    step = make_sliced_step(sliced, closed_form=True, slices=slices, cut=cut, team=Alone())

    found, told = trained(sliced, step, objective, dtype=torch.float64)

    for name, tensor in state_of(expected).items():
        close(state_of(found)[name], tensor, 1e-10)
    assert told.rows == report.rows
    # Shares of rows are counted in float32.
    close(told.sums, report.sums, 1e-6)
    assert told.active.equal(report.active)


@each_cut
@each_objective
@pytest.mark.parametrize(("slices", "size"), [(2, 2), (4, 2), (4, 4), (3, 3)])
def test_a_team_ends_with_the_bits_of_one_rank(cut, objective, slices, size):
    def learn(team):
        block = block_of(objective, "adam", dropout=0.3)
        block.precision = torch.bfloat16
        step = make_sliced_step(block, closed_form=True, slices=slices, cut=cut, team=team)
        return trained(block, step, objective)

    expected, report = learn(Alone())

    for found, told in in_team(size, learn):
        for name, tensor in state_of(expected).items():
            assert state_of(found)[name].equal(tensor), name
        assert told.active.equal(report.active)
        torch.testing.assert_close(told.sums, report.sums, rtol=0, atol=0, equal_nan=True)


def test_rows_are_cut_for_modules_of_any_kind():
    def block():
        module = nn.Sequential(nn.Linear(5, UNITS), nn.Tanh())
        with torch.no_grad():
            module[0].weight.copy_(draw(UNITS, 5))
            module[0].bias.zero_()
        return Block(module, CrossEntropy(linear(UNITS)), SGD(lr=0.1)).double()

    whole, sliced = block(), block()
    for each in (whole, sliced):
        each.forget()
    expected, _ = trained(
        whole, make_step(whole, closed_form=True), "cross-entropy", dtype=torch.float64
    )
    step = make_sliced_step(sliced, closed_form=True, slices=4, cut="rows", team=Alone())

    found, _ = trained(sliced, step, "cross-entropy", dtype=torch.float64)

    assert isinstance(step, RowsStep)
    for name, tensor in state_of(expected).items():
        close(state_of(found)[name], tensor, 1e-10)


def test_a_team_ends_with_the_bits_of_one_rank_for_channels_last_too():
    images = draw(ROWS, 2, 4, 4)

    def learn(team):
        module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten())
        with torch.no_grad():
            for number, parameter in enumerate(module.parameters()):
                parameter.copy_(draw(*parameter.shape, seed=number))
        block = Block(module, CrossEntropy(linear(12)), RULES["adam"])
        block.to(memory_format=torch.channels_last)
        block.forget()
        step = make_sliced_step(block, closed_form=False, slices=2, cut="rows", team=team)
        views = {"input": ow.View(images, torch.arange(ROWS) % 3)}
        for seed in range(3):
            step(views, seed=seed, lr_scale=1.0)
        return block

    expected = learn(Alone())
    assert not expected.module[0].weight.is_contiguous()

    for found in in_team(2, learn):
        for name, tensor in state_of(expected).items():
            assert state_of(found)[name].equal(tensor), name


def test_only_sums_over_units_travel_where_units_are_cut():
    # Given a block of 12 units on 6 rows of three classes, in two slices.
    def sent(cut):
        ranks = InMemoryTransport.group(2)

        def learn(rank):
            block = block_of("cross-entropy")
            step = make_sliced_step(
                block, closed_form=True, slices=2, cut=cut, team=ranks[rank].team([range(2)])
            )
            step(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)

        threads = [threading.Thread(target=learn, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        return ranks[0].bytes_sent

    assert sent("units") == 4 * 6 * 3
    # Gradients: 12 x 5 weights, 12 biases, 12 x 3 of the head; three sums and 12 flags.
    assert sent("rows") == 4 * (60 + 12 + 36) + 8 * 3 + 12


@pytest.mark.parametrize("rows", [1, 7, CHUNK_ROWS, CHUNK_ROWS + 1, 5 * CHUNK_ROWS + 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_chunks_are_the_same_whoever_does_them(rows, size):
    x = torch.arange(rows, dtype=torch.float32)[:, None]
    seen = []

    def work(part):
        seen.append((part.start, part.stop))
        return x[part].expand(-1, 3) * 2

    for found in in_team(size, lambda team: in_chunks(rows, work, team)):
        assert found.equal(x.expand(-1, 3) * 2)
    chunks = {(first, min(first + CHUNK_ROWS, rows)) for first in range(0, rows, CHUNK_ROWS)}
    assert chunks <= set(seen) <= chunks | {(0, 1)}


def test_units_that_cannot_be_cut_equally_are_refused():
    block = block_of("cross-entropy")

    with pytest.raises(SettingError, match="12 units, which cannot be cut into 5 equal slices"):
        make_sliced_step(block, closed_form=True, slices=5, cut="units", team=Alone())


def test_batch_normalisation_is_refused():
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

    with pytest.raises(SettingError, match="Batch normalisation looks at all rows"):
        make_sliced_step(
            Block(module, CrossEntropy(linear(4)), SGD()),
            closed_form=True,
            slices=2,
            cut="rows",
            team=Alone(),
        )


def test_units_of_other_modules_than_dense_ones_are_refused():
    block = Block(nn.Linear(5, 4), CrossEntropy(linear(4)), SGD())

    with pytest.raises(SettingError, match=r'plan\.cut = "units" needs dense blocks'):
        make_sliced_step(block, closed_form=True, slices=2, cut="units", team=Alone())


@each_cut
def test_peer_normalisation_is_refused(cut):
    block = Block(dense(units=4), ow.Threshold(4, threshold=1.0, slope=4.0, peer=0.03), SGD())

    with pytest.raises(SettingError, match=r"plan\.slices must be 1 with it, or network\.peer 0"):
        make_sliced_step(block, closed_form=True, slices=2, cut=cut, team=Alone())
