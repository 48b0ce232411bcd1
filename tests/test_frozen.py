"""Frozen blocks, and stages that see no label."""

import pytest
import torch
from contract_cases import CASES, train
from contract_data import vectors
from prepared import assert_same_weights, prepare
from torch import nn

import onward as ow
from onward.errors import SettingError
from onward.plan.tasks import Task, TaskKind
from onward.samplers import Plain

SHORT = ow.TrainingConfig(epochs=2, batch_size=16, precision="fp32")


def kept(block):
    return {name: tensor.clone() for name, tensor in block.state_dict().items()}


@pytest.mark.parametrize("kind", ["chapters", "stream"])
def test_a_frozen_block_stays_as_it_is_and_the_others_learn(kind):
    networks = CASES["frozen"].build()
    before = [kept(block) for block in networks[0].all_blocks]

    train(CASES["frozen"], networks=networks, kind=kind)

    after = [kept(block) for block in networks[0].all_blocks]
    same = [all(b[n].equal(t) for n, t in a.items()) for a, b in zip(before, after, strict=True)]
    assert same == [False, True, False]


@pytest.mark.parametrize("kind", ["chapters", "stream"])
def test_a_frozen_block_is_one_whose_parameters_are_fixed_and_that_is_in_eval_mode(kind):
    """Without running statistics and dropout, which training mode would change."""

    def network(rule, *, learns):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            blocks = [
                ow.Block(
                    nn.Linear(12 if n == 0 else 8, 8),
                    ow.CrossEntropy(nn.Linear(8, 3)),
                    rule if n == 1 else ow.Adam(),
                )
                for n in range(3)
            ]
        blocks[1].requires_grad_(learns)
        return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=3)

    frozen, fixed = network(None, learns=True), network(ow.Adam(), learns=False)
    for each in frozen, fixed:
        ow.train(each, vectors(), training=SHORT, plan=ow.PlanConfig(kind=kind), validation=0)

    assert_same_weights(frozen, fixed)


def test_a_frozen_block_reports_no_figures_and_raises_no_doubts(recwarn):
    _, result = train(CASES["frozen"])

    reports = [p.figures for p in result.progress if p.block == 1]
    assert {figures["loss"] for figures in reports} == {None}
    assert {figures["dead_fraction"] for figures in reports} == {None}
    assert not any("block 1" in text for text in result.doubts)


def test_a_frozen_block_has_no_work_in_a_chapter_plan():
    plan = prepare("uff", {"network.widths": (8, 8), "training.epochs": 2}, stage=1).plan

    works = [plan.work(Task(TaskKind.TRAIN, 0, block)) for block in plan.trained]

    assert [work.learned > 0 for work in works] == [False, False, True]
    assert [work.passed > 0 for work in works] == [False, False, True]


def test_a_frozen_block_may_be_given_an_optimizer_later():
    block = CASES["frozen"].build()[0].all_blocks[1]

    assert block.is_frozen
    assert not [*block.trained()]
    block.optimizer = ow.Adam()
    assert not block.is_frozen
    assert block.optimizer_state.keys() == dict(block.named_parameters()).keys()


# Stages that see no label


class Seen(Plain):
    """Remembers which samples it has seen, and whether they had labels."""

    def __init__(self):
        self.ids, self.has_labels = set(), set()

    def views(self, batch, draw, hints):
        self.ids |= set(batch.ids.tolist())
        self.has_labels.add("label" in batch.targets)
        return super().views(batch, draw, hints)


class Rebuilding(ow.Objective):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(8, 12)

    def loss(self, inputs, outputs, draw):
        return (self.decoder(outputs["input"].tensor) - inputs["input"].tensor).square().mean()


def two_stages(*, sees_labels=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, samplers = nn.Linear(12, 8), (Seen(), Seen())
        cell = ow.Block(layer, Rebuilding(), ow.Adam())
        head = ow.Block(nn.Linear(8, 8), ow.CrossEntropy(nn.Linear(8, 3)), ow.Adam())
    frozen = ow.Block(layer, ow.CrossEntropy(nn.Linear(8, 3)), None)
    first = ow.Network([cell], samplers[0], None, num_classes=0)
    second = ow.Network([frozen, head], samplers[1], ow.SumOfHeads(), num_classes=3)
    return samplers, [
        ow.Stage(network=first, training=SHORT, sees_labels=sees_labels),
        ow.Stage(network=second, training=SHORT),
    ]


def test_a_stage_that_sees_no_label_has_samples_without_labels():
    (without, with_labels), stages = two_stages()

    ow.train(stages, vectors(), validation=0)

    assert (without.has_labels, with_labels.has_labels) == ({False}, {True})
    assert without.ids == with_labels.ids


def test_a_stage_that_sees_no_label_learns_the_same_from_other_labels():
    weights = []
    for step in 1, 2:
        _, stages = two_stages()
        samples = vectors()
        y = (samples.y + step) % 3
        changed = ow.dataset(samples.x, y, x_test=samples.x_test, y_test=samples.y_test)
        ow.train(stages, changed, validation=0)
        weights.append([t.clone() for t in stages[0].network.state_dict().values()])

    assert all(a.equal(b) for a, b in zip(*weights, strict=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("recipe", ["uff", "hinton-unsupervised"])
def test_samples_whose_labels_are_not_kept_are_learned_from_without_labels(recipe):
    config = ow.RunConfig(recipe=recipe).with_settings(
        {
            "network.widths": (32, 16),
            "training.epochs": 1,
            "training.batch_size": 50,
            "data.labelled": 0.1,
            "data.validation": 0,
        }
    )

    result = ow.run(config)

    (cells,) = result.earlier
    assert cells.facts["rows"]["training"] == len(ow.load_data("digits").x) == 1437
    assert result.facts["rows"]["training"] == 143
    assert cells.accuracy is None


def test_a_sampler_that_needs_labels_is_refused_where_there_are_none():
    _, stages = two_stages()
    stages[0].network.sampler = ow.LabelEmbedding(3, place="overwrite")

    with pytest.raises(
        SettingError, match=r"classes of samples are asked for .* and these have none"
    ):
        ow.train(stages, vectors(), validation=0)
