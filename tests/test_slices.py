"""Steps in slices: the same gradients up to rounding, the same bits however slices are assigned."""

import threading

import pytest
import torch
from in_memory import InMemoryTransport
from small_blocks import close, dense, draw, linear, state_of, step_of, views_of
from torch import nn

import onward as ow
from onward.batch import CHUNK_SAMPLES, Batch
from onward.engine.slices import SampleSlicesStep
from onward.engine.team import Alone
from onward.errors import SettingError
from onward.network.blocks import Block
from onward.network.objectives import CrossEntropy, Threshold
from onward.network.optimizers import SGD, Adam
from onward.runtime.passing import in_chunks

UNITS, SAMPLES = 12, 6

RULES = {"adam": Adam(lr=0.01, weight_decay=0.1), "sgd": SGD(lr=0.1, weight_decay=0.1)}


def block_of(objective, rule="sgd", **settings):
    chosen = {
        "cross-entropy": lambda: CrossEntropy(linear(UNITS)),
        "threshold": lambda: Threshold(UNITS, threshold=0.8, slope=3.0),
    }
    return Block(dense(units=UNITS, **settings), chosen[objective](), RULES[rule])


def trained(block, step, objective, steps=3, dtype=torch.float32):
    total = None
    for seed in range(steps):
        _, report = step(views_of(objective, seed=seed, dtype=dtype), seed=seed, lr_scale=1.0)
        total = report.added_to(total)
    return block, step.finish(total)


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


each_cut = pytest.mark.parametrize("cut", ["samples", "units"])
each_objective = pytest.mark.parametrize("objective", ["cross-entropy", "threshold"])


@each_cut
@each_objective
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("slices", [2, 3])
def test_slices_learn_what_the_whole_learns_up_to_rounding(cut, objective, rule, slices):
    whole, sliced = (block_of(objective, rule).double() for _ in range(2))
    for block in (whole, sliced):
        block.reset_optimizer()
    expected, report = trained(
        whole, step_of(whole, closed_form=False), objective, dtype=torch.float64
    )
    step = step_of(sliced, slices=slices, cut=cut)

    found, total = trained(sliced, step, objective, dtype=torch.float64)

    for name, tensor in state_of(expected).items():
        close(state_of(found)[name], tensor, 1e-10)
    close(total.sums, report.sums, 1e-10)
    assert total.active.equal(report.active)


@each_cut
@each_objective
@pytest.mark.parametrize(("slices", "size"), [(2, 2), (4, 2), (4, 4), (3, 3)])
def test_a_team_ends_with_the_bits_of_one_rank(cut, objective, slices, size):
    def learn(team):
        block = block_of(objective, "adam", dropout=0.3)
        block.precision = torch.bfloat16
        step = step_of(block, slices=slices, cut=cut, team=team)
        return trained(block, step, objective)

    expected, report = learn(Alone())

    for found, total in in_team(size, learn):
        for name, tensor in state_of(expected).items():
            assert state_of(found)[name].equal(tensor), name
        assert total.active.equal(report.active)
        assert total.sums.equal(report.sums)


class Backwards(Alone):
    """Works on the slices from the last to the first, as a rank with the first ends elsewhere."""

    def own(self, slices):
        return list(reversed(range(slices)))

    def share(self, own):
        return list(reversed(own))


def test_a_rule_that_draws_does_not_depend_on_which_slices_were_a_ranks_own():
    def learn(team):
        noise = ow.optimizer(torch.optim.SGD, lr=0.1, project=lambda p: p.add_(torch.randn_like(p)))
        block = block_of("cross-entropy", "adam")
        block.optimizer = noise
        step = step_of(block, closed_form=False, slices=3, cut="samples", team=team)
        trained(block, step, "cross-entropy")
        return state_of(block)

    expected, found = learn(Alone()), learn(Backwards())

    for name, tensor in expected.items():
        assert found[name].equal(tensor), name


def test_samples_are_cut_for_modules_of_any_kind():
    def block():
        module = nn.Sequential(nn.Linear(5, UNITS), nn.Tanh())
        with torch.no_grad():
            module[0].weight.copy_(draw(UNITS, 5))
            module[0].bias.zero_()
        return Block(module, CrossEntropy(linear(UNITS)), SGD(lr=0.1)).double()

    whole, sliced = block(), block()
    for each in (whole, sliced):
        each.reset_optimizer()
    expected, _ = trained(whole, step_of(whole), "cross-entropy", dtype=torch.float64)
    step = step_of(sliced, slices=4, cut="samples")

    found, _ = trained(sliced, step, "cross-entropy", dtype=torch.float64)

    assert isinstance(step, SampleSlicesStep)
    for name, tensor in state_of(expected).items():
        close(state_of(found)[name], tensor, 1e-10)


def test_a_team_ends_with_the_bits_of_one_rank_for_channels_last_too():
    images = draw(SAMPLES, 2, 4, 4)

    def learn(team):
        module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten())
        with torch.no_grad():
            for number, parameter in enumerate(module.parameters()):
                parameter.copy_(draw(*parameter.shape, seed=number))
        block = Block(module, CrossEntropy(linear(12)), RULES["adam"])
        block.to(memory_format=torch.channels_last)
        block.reset_optimizer()
        step = step_of(block, closed_form=False, slices=2, cut="samples", team=team)
        views = {"input": Batch(images, {"label": torch.arange(SAMPLES) % 3})}
        for seed in range(3):
            step(views, seed=seed, lr_scale=1.0)
        return block

    expected = learn(Alone())
    assert not expected.module[0].weight.is_contiguous()

    for found in in_team(2, learn):
        for name, tensor in state_of(expected).items():
            assert state_of(found)[name].equal(tensor), name


def test_only_sums_over_units_travel_where_units_are_cut():
    # Given a block of 12 units on 6 samples of three classes, in two slices.
    def sent(cut):
        ranks = InMemoryTransport.group(2)

        def learn(rank):
            block = block_of("cross-entropy")
            step = step_of(block, slices=2, cut=cut, team=ranks[rank].team([range(2)]))
            step(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)

        threads = [threading.Thread(target=learn, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        return ranks[0].bytes_sent

    assert sent("units") == 4 * 6 * 3
    # Gradients: 12 x 5 weights, 12 biases, 12 x 3 of the head; loss and accuracy, a sum and a
    # count each; 12 flags.
    assert sent("samples") == 4 * (60 + 12 + 36) + 8 * 4 + 12


@pytest.mark.parametrize("samples", [1, 7, CHUNK_SAMPLES, CHUNK_SAMPLES + 1, 5 * CHUNK_SAMPLES + 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_chunks_are_the_same_whoever_does_them(samples, size):
    x = torch.arange(samples, dtype=torch.float32)[:, None]
    seen = []

    def work(part):
        seen.append((part.start, part.stop))
        return x[part].expand(-1, 3) * 2

    for found in in_team(size, lambda team: in_chunks(samples, work, team)):
        assert found.equal(x.expand(-1, 3) * 2)
    firsts = range(0, samples, CHUNK_SAMPLES)
    chunks = {(first, min(first + CHUNK_SAMPLES, samples)) for first in firsts}
    assert chunks <= set(seen) <= chunks | {(0, 1)}


def test_units_that_cannot_be_cut_equally_are_refused():
    block = block_of("cross-entropy")

    with pytest.raises(SettingError, match="12 units, which cannot be cut into 5 equal slices"):
        step_of(block, slices=5, cut="units")


def test_batch_normalisation_is_refused():
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

    with pytest.raises(SettingError, match="Batch normalisation looks at all samples"):
        step_of(Block(module, CrossEntropy(linear(4)), SGD()), slices=2)


def test_units_of_other_modules_than_dense_ones_are_refused():
    block = Block(nn.Linear(5, 4), CrossEntropy(linear(4)), SGD())

    with pytest.raises(SettingError, match=r'plan\.cut = "units" needs dense blocks'):
        step_of(block, slices=2, cut="units")


@each_cut
def test_peer_normalisation_is_refused(cut):
    block = Block(dense(units=4), ow.Threshold(4, threshold=1.0, slope=4.0, peer=0.03), SGD())

    with pytest.raises(SettingError, match=r"plan\.slices must be 1 with it, or network\.peer 0"):
        step_of(block, slices=2, cut=cut)


class Contrast(CrossEntropy):
    """A loss that compares the samples of a mini-batch with each other."""

    is_mean = False


def test_a_loss_that_compares_samples_with_each_other_is_refused():
    block = Block(dense(units=4), Contrast(linear(4)), SGD())

    with pytest.raises(SettingError, match=r"The loss of Contrast is not a mean over samples"):
        step_of(block, slices=2)


def test_slices_learn_from_the_samples_that_count():
    # Given a graph of six nodes, of which four are known.
    class Neighbours(nn.Module):
        """Adds to each node what the others have."""

        def __init__(self):
            super().__init__()
            self.layer = linear(5, UNITS)

        def forward(self, x, *, links):
            return self.layer(x + links @ x).relu()

    def block():
        made = Block(Neighbours(), CrossEntropy(linear(UNITS)), SGD(lr=0.1), structure=("links",))
        made.double().reset_optimizer()
        return made

    graph = Batch(
        draw(SAMPLES, 5).double(),
        {"label": torch.tensor([0, 1, 2, 0, 1, 2])},
        weights=torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 9.0]).double(),
        structure={"links": draw(SAMPLES, SAMPLES, seed=1).double()},
        index=torch.tensor([0, 1, 3, 4]),
    )
    whole, sliced = block(), block()

    _, expected = step_of(whole)({"input": graph}, seed=0, lr_scale=1.0)
    _, found = step_of(sliced, slices=3)({"input": graph}, seed=0, lr_scale=1.0)

    close(state_of(sliced), state_of(whole), 1e-12)
    close(found.sums, expected.sums, 1e-12)


class Counting(CrossEntropy):
    """Counts its steps in a buffer."""

    def __init__(self, head):
        super().__init__(head)
        self.register_buffer("steps", torch.zeros(()))

    def loss(self, inputs, outputs, draw):
        self.steps += 1
        return super().loss(inputs, outputs, draw)


def test_running_state_that_each_slice_would_change_is_refused():
    block = Block(nn.Linear(5, 7), Counting(linear()), Adam())
    step = step_of(block, slices=2)

    with pytest.raises(SettingError, match=r"changes running state .a buffer. when it learns"):
        step(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)
