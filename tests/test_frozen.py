"""Frozen blocks: they stay as they are, cost little, and stand in no way."""

from dataclasses import replace

import pytest
import torch
from contract_cases import CASES, train
from contract_data import vectors
from plans import measured
from prepared import assert_same_weights, prepare
from torch import nn

import onward as ow
from onward.costs import flops
from onward.costs.memory import sizes_of
from onward.placement import Placement
from onward.plan.chapters import ChapterPlan
from onward.plan.tasks import Node, Task, TaskKind
from onward.runs.preparation import make_plan, make_settings
from onward.runs.sharding import load_shards, split
from onward.transport.messages import SingleProcessTransport

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


# What frozen blocks cost, and what is asked of them


def frozen_network(**norm):
    def block(rule):
        module = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU())
        return ow.Block(module, ow.CrossEntropy(nn.Linear(12, 3)), rule)

    last = ow.Block(nn.Linear(12, 8), ow.CrossEntropy(nn.Linear(8, 3)), ow.Adam())
    blocks = [block(None), block(None), last]
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads("last"), num_classes=3)


@pytest.mark.parametrize(
    ("training", "plan"),
    [({}, {"slices": 2}), ({"batch_size": len(vectors().x) - 1}, {})],
    ids=["slices", "a last mini-batch of one"],
)
def test_running_statistics_of_frozen_blocks_are_no_obstacle(training, plan):
    settings = ow.TrainingConfig(**{"epochs": 1, "batch_size": 16, "precision": "fp32"} | training)

    ow.train(
        frozen_network(),
        vectors(),
        training=settings,
        plan=ow.PlanConfig(**plan),
        validation=0,
        class_weights="balanced",
    )


def test_passes_through_frozen_blocks_are_counted():
    plan = ChapterPlan(
        nodes=tuple(Node(((b - 1, 0),), is_frozen=b < 3) for b in range(4)),
        epochs=2,
        chapters=2,
        batch_size=10,
        samples=(10,),
        hint_age=None,
        validate_every=None,
        has_validation=False,
        optimizer_state_age=1,
    )
    costs = replace(measured(), train=(300.0,) * 4, forward=(100.0,) * 4, neutral=(100.0,) * 4)

    assert flops.of_training(plan, costs) == 2 * (3 * 100 + 300)


def test_a_frozen_block_needs_no_room_for_gradients():
    def making(rule):
        network = frozen_network()
        network.all_blocks[1].optimizer = rule
        changes = {"training.precision": "fp32", "training.batch_size": 16}
        config = ow.RunConfig().with_settings(changes)
        shards, summary = load_shards(config, split(config, vectors()), SingleProcessTransport())
        plan = make_plan(config, network, summary)
        sizes = sizes_of(plan, Placement(), network, shards[0].training, make_settings(config))
        return sizes.making[1]

    assert making(None) < making(ow.Adam()) / 2
