"""When each task of a plan would run. Times are in units of a task, unless said otherwise."""

import random
import time
from copy import deepcopy

import jaxtyping
import pytest
import torch
from contract_cases import CASES, PLACEMENTS, RUNS
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import run_in_memory
from plans import measured
from thinned import thinned

import onward as ow
from onward.checkpoint import PRECISIONS
from onward.config import RunConfig
from onward.costs.times import Timer, measure
from onward.errors import PlacementError
from onward.placement import place
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import Node, Product, ProductKind, Task, TaskKind, line
from onward.runs.preparation import make_plan, make_settings, make_stages
from onward.runs.sharding import load_shards, split
from onward.simulation import Costs, KnownCosts, Link, simulate
from onward.transport.messages import SingleProcessTransport

MEGABYTE = 10**6
MEGABYTES = 1e6


def chapters(number, blocks=4, head_reads=(), **changes):
    settings = {
        "nodes": line(blocks, head_reads),
        "epochs": number,
        "chapters": number,
        "batch_size": 1,
        "samples": (1,),
        "hint_age": None,
        "validate_every": None,
        "has_validation": False,
    }
    return ChapterPlan(**settings | changes)


def stream(number, blocks=4, head_reads=(), **changes):
    settings = {
        "nodes": line(blocks, head_reads),
        "epochs": 1,
        "chapters": 1,
        "batch_size": 1,
        "samples": (number,),
        "hint_age": None,
        "validate_every": None,
        "has_validation": False,
    }
    return StreamPlan(**settings | changes)


class Weighing(Costs):
    """A task takes one second to train, or as told, and weights are a megabyte."""

    def __init__(self, seconds=None, weight=MEGABYTE):
        self.table, self.weight = seconds or {}, weight

    def seconds(self, plan, task, passed, ranks):
        return self.table.get(task.block, 1.0) if task.kind is TaskKind.TRAIN else 0.0

    def num_bytes(self, plan, product):
        return self.weight if product.kind is ProductKind.WEIGHTS else 0


def placed(plan, name, num_ranks):
    return place(plan, name, num_ranks, [1] * plan.num_blocks)


def test_one_rank_takes_as_long_as_all_its_tasks():
    plan = chapters(6)

    found = simulate(plan, placed(plan, "sequential", 1), Weighing())

    assert found.seconds == found.busy[0] == 24
    assert found.waiting == [0]
    assert not found.bytes_by_link


@pytest.mark.parametrize(("number", "seconds"), [(4, 7), (8, 11), (100, 103)])
def test_all_layers_on_as_many_ranks_as_blocks_is_a_full_pipeline(number, seconds):
    # S + L - 1 tasks on the clock, where one rank takes S L.
    plan = chapters(number)

    found = simulate(plan, placed(plan, "all-layers", 4), Weighing())

    assert found.seconds == seconds


def test_the_dearest_block_sets_the_pace_where_blocks_stay():
    plan = stream(100)

    found = simulate(plan, placed(plan, "stream", 4), Weighing({2: 5.0}))

    assert found.seconds == 1 + 1 + 100 * 5 + 1


def test_a_rank_at_half_speed_takes_twice_as_long():
    plan = stream(100)

    found = simulate(plan, placed(plan, "stream", 4), Weighing(), speeds=[1.0, 1.0, 0.5, 1.0])

    assert found.seconds == 1 + 1 + 100 * 2 + 1
    assert found.busy == [100, 100, 200, 100]


def test_a_message_takes_its_bytes_over_the_bandwidth_and_the_latency():
    plan = chapters(2, blocks=1)
    link = Link(bytes_per_second=2 * MEGABYTES, latency=0.125)

    found = simulate(plan, placed(plan, "all-layers", 2), Weighing(), link)

    # Chapter 0 on rank 0, its weights to rank 1, chapter 1 there, and its weights back.
    assert found.seconds == 1 + 0.625 + 1 + 0.625
    assert found.bytes_by_link == {(0, 1): MEGABYTE, (1, 0): MEGABYTE}
    assert found.waiting == [1.625 + 0.625, 1.625]


def test_what_a_rank_sends_goes_out_one_message_after_the_other():
    # Block 0 goes to three ranks; the last has it when three are out.
    plan = chapters(1)
    link = Link(bytes_per_second=MEGABYTES)

    found = simulate(
        plan, placed(plan, "single-layer", 4), Weighing({3: 10.0}), link, timeline=True
    )

    sends = [(s.start, s.end) for s in found.spans if (s.rank, s.what) == (0, "send")]
    assert sends == [(1, 2), (2, 3), (3, 4)]


def test_what_a_rank_receives_comes_in_one_message_after_the_other():
    # Ranks 0 and 1 have both finished a block for rank 2 at second 3.
    plan = chapters(1, blocks=3)
    costs = Weighing({0: 1.0, 1: 1.0, 2: 1.0})
    wide, narrow = Link(bytes_per_second=1e12), Link(bytes_per_second=MEGABYTES)

    found = simulate(plan, placed(plan, "single-layer", 3), costs, [wide, wide, narrow])

    # Block 0 comes in from 1 to 2 and block 1 from 2 to 3; then block 2 goes back to rank 0.
    assert found.seconds == pytest.approx(1 + 1 + 1 + 1 + 1, abs=1e-4)


def test_links_of_each_rank_count():
    plan = chapters(4)
    slow = [Link(), Link(), Link(latency=5.0), Link()]

    found = simulate(plan, placed(plan, "all-layers", 4), Weighing(), slow)

    # Rank 3 hears from rank 2 five seconds later.
    assert found.seconds == 7 + 5


def test_a_timeline_holds_all_that_ranks_did():
    plan = chapters(4, has_validation=True)

    found = simulate(plan, placed(plan, "all-layers", 4), Weighing(), timeline=True)

    trained = [span.label for span in found.spans if span.what == "train"]
    assert sorted(trained) == sorted(str(t) for t in plan.tasks() if t.kind is TaskKind.TRAIN)
    for rank in range(4):
        own = [s for s in found.spans if s.rank == rank and s.what in ("train", "wait")]
        assert own == sorted(own, key=lambda span: span.start)
        assert sum(s.end - s.start for s in own if s.what == "train") == found.busy[rank]


plans = st.one_of(
    st.fixed_dictionaries(
        {
            "make": st.just(chapters),
            "number": st.sampled_from([2, 4, 8]),
            "blocks": st.integers(1, 4),
            "hint_age": st.sampled_from([None, 1, 2, 4]),
            "has_validation": st.booleans(),
            "validate_every": st.sampled_from([None, 1, 2]),
            "optimizer_state_age": st.sampled_from([None, 1, 2]),
        }
    ),
    st.fixed_dictionaries(
        {
            "make": st.just(stream),
            "number": st.integers(1, 9),
            "blocks": st.integers(2, 4),
            "hint_age": st.sampled_from([None, 0, 1, 3]),
            "head_reads": st.just((1,)),
            "has_validation": st.booleans(),
        }
    ),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    chosen=plans,
    name=st.sampled_from(["sequential", "single-layer", "all-layers", "stream"]),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 2**20),
)
def test_without_links_every_task_starts_when_its_rank_and_its_needs_are_ready(
    chosen, name, ranks, seed
):
    plan = chosen["make"](**{name: value for name, value in chosen.items() if name != "make"})
    try:
        placement = placed(plan, name, ranks)
    except PlacementError:
        return
    draw = random.Random(seed)
    seconds = {task: draw.uniform(0.1, 2.0) for task in plan.tasks()}

    found = simulate(plan, placement, KnownCosts(seconds))

    free, ready = [0.0] * ranks, {}
    for task in plan.tasks():
        rank = placement.ranks(task)[0]
        start = max([free[rank], *(ready[need] for need in plan.needs(task))])
        free[rank] = start + seconds[task]
        ready |= dict.fromkeys(plan.makes(task), free[rank])
    assert found.seconds == pytest.approx(max(free))
    for rank in range(ranks):
        assert found.busy[rank] + found.waiting[rank] == pytest.approx(free[rank])


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    thinned(
        [
            ("one-pass", {}, "all-layers"),
            ("one-pass", {}, "single-layer"),
            ("one-pass", {"training.precision": "bf16", "plan.kind": "stream"}, "stream"),
            ("pff", {"plan.hint_age": 2}, "all-layers"),
            ("pff", {"plan.hint_age": 2, "network.readout": "softmax"}, "single-layer"),
            ("hinton", {"plan.hint_age": 3}, "stream"),
            ("hinton", {"plan.wire": "bf16", "training.precision": "fp32"}, "stream"),
            ("hinton", {"plan.hint_age": 0, "training.precision": "fp32"}, "stream"),
        ]
    ),
)
def test_bytes_are_those_of_a_run(recipe, changes, name):
    settings = {"network.widths": (24, 20, 16), "training.epochs": 4, "training.batch_size": 50}
    config = RunConfig(recipe=recipe).with_settings(settings | changes)
    whole = ow.load_data("digits")
    dataset = ow.dataset(whole.x[:330], whole.y[:330], x_test=whole.x_test, y_test=whole.y_test)
    shards, summary = load_shards(config, split(config, dataset), SingleProcessTransport())
    networks = [make_stages(config, dataset, summary)[0].network for _ in range(3)]
    plan, settings = make_plan(config, networks[0], summary), make_settings(config)
    placement = placed(plan, name, 3)
    costs = measure(networks[0], shards[0], plan.batch_size, settings, Timer(1))

    found = simulate(plan, placement, costs)

    ranks = run_in_memory(plan, placement, networks, shards, settings)
    assert [found.bytes_sent(rank) for rank in range(3)] == [r.transport.bytes_sent for r in ranks]


@pytest.mark.parametrize("cut", ["samples", "units"])
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("one-pass", {}),
        pytest.param("one-pass", {"training.precision": "bf16"}, marks=pytest.mark.slow),
        ("pff", {"network.negatives": "random"}),
    ],
)
def test_bytes_of_teams_are_those_of_a_run(recipe, changes, cut):
    # Whole mini-batches and chunks, so that all ranks of a team give as much.
    settings = {
        "network.widths": (24, 20, 16),
        "training.epochs": 4,
        "training.batch_size": 100,
        "training.precision": "fp32",
        "plan.slices": 4,
        "plan.cut": cut,
        "data.validation": 0,
    }
    config = RunConfig(recipe=recipe).with_settings(settings | changes)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(1000, 1, 8, 8, generator=draw), torch.arange(1000) % 10
    dataset = ow.dataset(x, y, x_test=x[:10], y_test=y[:10])
    shards, summary = load_shards(config, split(config, dataset), SingleProcessTransport())
    networks = [make_stages(config, dataset, summary)[0].network for _ in range(4)]
    for network in networks:
        network.set_precision(PRECISIONS[config.training.precision])
    plan, settings = make_plan(config, networks[0], summary), make_settings(config)
    placement = place(plan, "all-layers", 4, [1] * 3, replicas=2)
    costs = measure(networks[0], shards[0], plan.batch_size, settings, Timer(1))

    found = simulate(plan, placement, costs)

    ranks = run_in_memory(plan, placement, networks, shards, settings)
    for rank in range(4):
        expected = ranks[rank].transport.bytes_sent
        assert found.bytes_sent(rank) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("case", "kind"), thinned([run for run in RUNS if run[0] != "stages"]))
def test_bytes_of_blocks_of_any_kind_are_those_of_a_run(case, kind):
    (network,), data = CASES[case].build(), CASES[case].data()
    settings = {
        "training.epochs": 2,
        "training.batch_size": CASES[case].batch_size,
        "training.precision": "fp32",
        "plan.kind": kind,
        "data.validation": 0,
    }
    config = ow.RunConfig().with_settings(settings)
    shards, summary = load_shards(config, split(config, data), SingleProcessTransport())
    plan, settings = make_plan(config, network, summary), make_settings(config)
    placement = placed(plan, PLACEMENTS[kind], 2)
    costs = measure(network, shards[0], plan.batch_size, settings, Timer(1))

    found = simulate(plan, placement, costs)

    ranks = run_in_memory(plan, placement, [network, deepcopy(network)], shards, settings)
    assert [found.bytes_sent(rank) for rank in range(2)] == [r.transport.bytes_sent for r in ranks]


def test_ranks_that_share_a_task_begin_and_end_it_together():
    plan = chapters(4, slices=2, samples=(2,), batch_size=2)
    placement = place(plan, "all-layers", 8, [1] * 4, replicas=2)

    found = simulate(plan, placement, Weighing(), timeline=True)

    assert found.seconds == 7
    spans = {(s.rank, s.label): (s.start, s.end) for s in found.spans if s.what == "train"}
    assert len(spans) == 4 * 4 * 2
    for (rank, label), times in spans.items():
        assert spans[rank ^ 1, label] == times


def test_costs_are_measured_on_a_copy():
    network, whole = ow.mlp((1, 8, 8), num_classes=10, widths=(24, 20)), ow.load_data("digits")
    config = RunConfig(recipe="one-pass")
    shards, _ = load_shards(config, split(config, whole), SingleProcessTransport())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    found = measure(network, shards[0], 50, make_settings(config), Timer(1))

    assert min(found.train + found.forward + found.neutral) > 0
    for name, tensor in network.state_dict().items():
        assert tensor.equal(before[name])


def test_a_chapter_counts_each_pass_of_its_samples_once():
    # Given blocks that take 1 second a mini-batch to train and 10, 20, 30, 40 to pass samples
    # through.
    found = measured()
    plan = chapters(2, blocks=3, epochs=4, samples=(8,), batch_size=2)
    task = Task(TaskKind.TRAIN, 1, 2)

    # Two epochs of four mini-batches, and one pass of the samples through what is below.
    assert found.seconds(plan, task, known=set(), ranks=1) == 2 * 4 * 1.0 + 4 * (10.0 + 20.0)
    assert found.seconds(plan, task, known={0}, ranks=1) == 2 * 4 * 1.0 + 4 * 20.0
    assert found.seconds(plan, task, known={0, 1}, ranks=1) == 2 * 4 * 1.0


def test_a_block_that_is_gone_around_is_passed_once_another_reads_it():
    # Block 2 reads block 0, and block 3 reads block 1.
    nodes = (*line(2), Node(((0, 0),)), Node(((1, 0),)))
    plan = chapters(1, nodes=nodes)

    found = simulate(plan, placed(plan, "sequential", 1), measured())

    # Each block learns from a mini-batch, which passes blocks 0 and 1 once.
    assert found.seconds == 4 * 1.0 + 10.0 + 20.0


def test_ranks_that_share_samples_each_follow_all_gradients():
    found, task = measured(), Task(TaskKind.TRAIN, 1, 0)
    settings = {"blocks": 3, "samples": (8,), "batch_size": 2, "slices": 2}
    samples, units = (chapters(2, **settings, cut=cut) for cut in ("samples", "units"))

    # Four mini-batches of a second; half a second of it is spent on gradients of both slices.
    assert found.seconds(samples, task, known=set(), ranks=1) == 4 * (1.0 + 0.5)
    assert found.seconds(samples, task, known=set(), ranks=2) == 4 * (0.5 + 0.5)
    assert found.seconds(units, task, known=set(), ranks=2) == 4 * 0.5


def test_activities_of_a_smaller_last_mini_batch_weigh_less():
    plan = stream(5, blocks=3, batch_size=2)

    def weigh(step):
        return measured().num_bytes(plan, Product(ProductKind.ACTIVITIES, step, 0))

    assert [weigh(step) for step in range(3)] == [128, 128, 64]


def test_thousands_of_ranks_take_seconds(monkeypatch):
    # Without the checks of types, which users do not have either.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    plan = chapters(4096)
    start = time.perf_counter()

    found = simulate(plan, placed(plan, "all-layers", 4096), Weighing(), Link(1e9, 1e-3))

    assert time.perf_counter() - start < 10
    assert len(found.busy) == 4096
