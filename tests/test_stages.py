"""Inference in stages: the same answers as the whole network, and nothing done twice."""

import copy
import math

import pytest
import torch
from torch import nn

import onward as ow
from onward.errors import SettingError
from onward.exits.answers import answer
from onward.exits.macs import StageCost, macs_spent, stage_costs
from onward.exits.outcomes import follow, look_at
from onward.exits.policies import ExitPolicy, full_depth
from onward.network.blocks import Block
from onward.network.networks import Forward
from onward.network.readouts import Fold, Readout

pytestmark = pytest.mark.usefixtures("unchecked_module")

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


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def history_of(network, x):
    """The class scores at each exit."""
    return torch.stack(list(Forward(network, ow.Batch(x))))


def middling(network, x):
    """A policy under which about half of the samples leave at each exit."""
    margin = ow.exits.CONFIDENCES["margin"]
    *early, _ = history_of(network, x)
    return ExitPolicy("margin", tuple(float(margin(scores[None]).median()) for scores in early))


# The same as the whole network


def test_at_full_depth_scores_are_those_of_the_network(network, digits):
    expected = network.scores(digits.x_test).network

    found = answer(network, digits.x_test, full_depth(network.num_exits))

    expected, scores = expected.log_softmax(dim=1), found.scores.log_softmax(dim=1)
    torch.testing.assert_close(scores, expected, rtol=2e-5, atol=2e-3)
    assert (found.exits == network.num_exits - 1).all()


def test_shared_products_of_the_first_block_are_those_of_a_pass_a_label(trained, digits):
    network = trained["sweep"]
    batch = ow.Batch(digits.x_test[:7])
    plain = network.line[0].infer(network.sampler.candidates(batch))

    forward = Forward(network, batch)
    forward.step()

    torch.testing.assert_close(forward.outputs.tensor, plain.tensor, rtol=1e-5, atol=1e-6)


def test_in_float64_shared_products_are_equal_to_all_digits(trained, digits):
    network = copy.deepcopy(trained["sweep"]).double()
    batch = ow.Batch(digits.x_test[:7].double())
    plain = network.line[0].infer(network.sampler.candidates(batch))

    forward = Forward(network, batch)
    forward.step()

    torch.testing.assert_close(forward.outputs.tensor, plain.tensor, rtol=1e-12, atol=1e-12)


# Early


@pytest.mark.parametrize("batch_size", [1, 17, 360])
def test_batches_of_any_size_give_the_same_answers(network, digits, batch_size):
    x = digits.x_test[:60]
    policy = middling(network, x)
    whole, found = (answer(network, x, policy, batch_size=n) for n in (60, batch_size))

    # Products of other sizes round otherwise: samples whose confidence lies within 1e-3 of a
    # threshold may leave elsewhere.
    near, history = torch.zeros(60, dtype=torch.bool), history_of(network, x)
    for number, threshold in enumerate(policy.thresholds):
        distance = policy.confidences(history[: number + 1]) - threshold
        near |= distance.abs() < 1e-3
    assert near.sum() <= 3
    assert found.exits[~near].equal(whole.exits[~near])
    assert found.labels[~near].equal(whole.labels[~near])


def test_samples_leave_at_every_exit_and_in_the_middle_of_a_batch(network, digits):
    policy = middling(network, digits.x_test)

    found = answer(network, digits.x_test, policy, batch_size=50)

    assert len(found.exits.unique()) == network.num_exits


def test_each_sample_passes_only_the_blocks_before_its_exit(network, digits, monkeypatch):
    x = digits.x_test
    policy, passed = middling(network, x), []
    infer = Block.infer

    def counted(block, batch):
        passed.append(len(batch))
        return infer(block, batch)

    monkeypatch.setattr(Block, "infer", counted)
    found = answer(network, x, policy, batch_size=len(x))

    # The first block of a sweep is passed without `infer`; its products are shared.
    later = [int(count) for count in found.passes.sum(dim=1) if count]
    assert passed[-len(later) + 1 :] == later[1:]


def test_an_answer_is_that_of_the_exit_it_left_at(network, digits):
    x = digits.x_test[:100]
    policy = middling(network, x)

    found = answer(network, x, policy, batch_size=100)

    expected = history_of(network, x)[found.exits, torch.arange(100)]
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


# What is refused


def test_a_policy_for_another_depth_is_refused(network, digits):
    with pytest.raises(SettingError, match=r"has 9 thresholds, and the network \d exits"):
        answer(network, digits.x_test, full_depth(10))


def test_a_policy_that_drops_labels_is_refused_where_none_are_tried_one_by_one(trained, digits):
    network = trained["heads"]
    policy = ow.ExitPolicy("margin", (1.0,) * (network.num_exits - 1), (0.5,) * 2)

    for ask in (
        lambda: answer(network, digits.x_test, policy),
        lambda: follow(policy, look_at(network, digits.test)),
        lambda: ow.export(network, "nowhere", policy),
    ):
        with pytest.raises(SettingError, match="there is nothing to drop"):
            ask()


def test_a_network_without_a_readout_has_no_exits(trained, digits):
    network = copy.copy(trained["heads"])
    network.readout = None

    assert network.num_exits == 0
    with pytest.raises(SettingError, match="has no readout, and so names no classes"):
        answer(network, digits.x_test, full_depth(3))


# Networks of one's own


class EveryOther(Readout):
    """Adds the scores of every other block."""

    def fold(self, blocks, edges, ticks):
        exits = tuple(range(1, len(blocks), 2))
        return Fold(exits, (True,) * len(exits))


def head():
    return ow.CrossEntropy(nn.Linear(6, 3))


def test_a_readout_of_ones_own_has_the_exits_that_it_names():
    blocks = [ow.Block(nn.Linear(6, 6), head(), ow.Adam()) for _ in range(4)]
    network = ow.Network(blocks, ow.Plain(), EveryOther(), num_classes=3)
    x = draw(9, 6)

    found = answer(network, x, ExitPolicy("margin", (-math.inf,)))

    second = blocks[1].module(blocks[0].module(x))
    assert network.num_exits == 2
    torch.testing.assert_close(found.scores, blocks[1].objective.head(second).log_softmax(dim=1))
    assert [cost.block for cost in stage_costs(network, (6,))] == [1, 3]


class Both(nn.Module):
    """Adds up what a layer of its own makes of the input and of what itself put out."""

    def __init__(self):
        super().__init__()
        self.input, self.itself = nn.Linear(5, 6), nn.Linear(6, 6)

    def forward(self, inputs):
        return (self.input(inputs["input"]) + self.itself(inputs["itself"])).relu()


def recurrent(ticks):
    itself = ow.Edge(0, delay=1, name="itself", shape=(6,))
    blocks = [
        ow.Block(Both(), head(), ow.Adam(), reads=("input", itself)),
        ow.Block(nn.Linear(6, 6), head(), ow.Adam()),
    ]
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=3, ticks=ticks)


def test_a_recurrent_network_has_an_exit_after_every_visit():
    network = recurrent(ticks=3)

    costs = stage_costs(network, (5,))

    first, second = 5 * 6 + 6 * 6 + 6 * 3 + 3, 6 * 6 + 6 * 3 + 3
    assert network.num_exits == 6
    assert [(c.block, c.row) for c in costs] == [(0, first), (1, second)] * 3


def test_samples_that_stay_go_on_with_their_own_state():
    network, x = recurrent(ticks=3), draw(9, 5)
    some = torch.tensor([2, 3, 7])
    whole, left = (Forward(network, ow.Batch(x)) for _ in range(2))
    left.step()
    left.keep(some)

    expected = torch.stack(list(whole))[:, some]

    torch.testing.assert_close(torch.stack(list(left)), expected[1:])


class Mean(nn.Module):
    """Adds the mean of all samples to each."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, whole):
        assert len(x) == len(whole)
        return self.layer(x + x.mean(dim=0))


def test_samples_that_have_left_are_passed_along_where_others_need_them():
    blocks = [ow.Block(Mean(), head(), ow.Adam(), structure=("whole",)) for _ in range(3)]
    network = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=3)
    batch = ow.Batch(draw(9, 6), structure={"whole": torch.zeros(9)})
    history = torch.stack(list(Forward(network, batch)))
    leads = ow.exits.CONFIDENCES["margin"](history[:1])

    policy = ExitPolicy("margin", (float(leads.median()), math.inf))
    found = answer(network, batch, policy, batch_size=2)

    assert found.exits.equal(torch.where(leads >= leads.median(), 0, 2))
    torch.testing.assert_close(found.scores, history[found.exits, torch.arange(9)])
    assert found.passes.eq(1).all()
    # 36 for the layer, 18 for the head, 3 comparisons: of each of the nine.
    assert [cost.row for cost in stage_costs(network, batch)] == [57, 57, 57]


def test_a_sampler_makes_as_many_candidates_as_it_says(trained, digits):
    class Fewer(ow.LabelEmbedding):
        num_candidates = 9

    network = copy.copy(trained["sweep, first block too"])
    network.sampler = Fewer(10)

    with pytest.raises(
        SettingError, match="Fewer makes 20 candidates of 2 samples, and its num_can"
    ):
        network.scores(digits.x_test[:2])


def test_only_a_first_block_that_alone_reads_the_input_is_shared():
    network = ow.mlp(
        (5,), num_classes=3, widths=(6, 6), objective="threshold", negatives="random",
        readout="goodness",
    )  # fmt: skip
    skipping = copy.deepcopy(network)
    skipping.blocks[1].reads = ("input",)
    skipping.blocks[1].module = copy.deepcopy(network.blocks[0].module)
    other = ow.Network(skipping.all_blocks, network.sampler, network.readout, num_classes=3)
    batch = ow.Batch(draw(4, 5))

    assert Forward(network, batch).first is not None
    assert Forward(network, batch, shares=False).first is None
    assert Forward(other, batch).first is None


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


def test_a_sample_costs_what_it_passed(trained, digits):
    network = trained["sweep"]
    found = answer(network, digits.x_test, ExitPolicy("margin", (math.inf,) * 2, (5.0, 5.0)))
    costs = stage_costs(network)

    each = macs_spent(costs, found)

    sample = int(found.passes[2].argmin())
    expected = sum(c.row * (p > 0) + c.each * p for c, p in zip(costs, found.passes[:, sample]))  # noqa: B905
    assert float(each[sample]) == float(expected)
