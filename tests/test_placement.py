"""Placements: who does what, and what is refused."""

import itertools
import re
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placements import chapters, for_all_placements, plans, sent
from plans import chapter_plans, stream_of_two_blocks

from onward.errors import PlacementError
from onward.placement import (
    Placement,
    assign_by_cost,
    balance,
    check_placement,
    first_blocks,
    place,
)
from onward.plan.tasks import ProductKind, Task, TaskKind

# Who does what


@for_all_placements(plans)
def test_every_task_has_a_rank(plan, placement):
    assert all(placement.ranks(task)[0] in range(placement.num_ranks) for task in plan.tasks())


@for_all_placements(plans)
def test_every_rank_trains_something(plan, placement):
    if plan.chapters >= len(placement.teams):
        training = {
            rank for t in plan.tasks() if t.kind is TaskKind.TRAIN for rank in placement.ranks(t)
        }

        assert training == set(range(placement.num_ranks))


@for_all_placements(plans)
def test_the_network_is_gathered_on_rank_0(plan, placement):
    assert placement.ranks(plan.gather)[0] == 0


def test_sequential_does_everything_on_rank_0():
    plan = chapters(head_reads=(1, 2, 3), hint_age=4, has_validation=True)

    placement = place(plan, "sequential", 1, [1, 1, 1, 1])

    assert {placement.ranks(task)[0] for task in plan.tasks()} == {0}


def test_single_layer_keeps_a_block_on_its_rank():
    plan = chapters(num_blocks=3)

    placement = place(plan, "single-layer", 3, [1, 1, 1])

    trained = [t for t in plan.tasks() if t.kind is TaskKind.TRAIN]
    assert [placement.ranks(t)[0] for t in trained] == [t.block for t in trained]


def test_single_layer_trains_the_head_scores_and_validates_on_the_last_rank():
    plan = chapters(num_blocks=2, head_reads=(0, 1), hint_age=1, has_validation=True)

    placement = place(plan, "single-layer", 2, [1, 1])

    assert placement.ranks(Task(TaskKind.TRAIN, 3, plan.heads[-1]))[0] == 1
    assert placement.ranks(Task(TaskKind.SCORE, 3, 0))[0] == 1
    assert placement.ranks(Task(TaskKind.VALIDATE, 3, 0))[0] == 1


def test_all_layers_deals_whole_chapters_in_turn():
    plan = chapters(num_blocks=2, num_chapters=6, head_reads=(1,), hint_age=1, has_validation=True)

    placement = place(plan, "all-layers", 3, [1, 1])

    assert all(
        placement.ranks(task)[0] == task.time % 3
        for task in plan.tasks()
        if task.kind is not TaskKind.GATHER
    )


def test_federated_trains_and_validates_a_shard_on_its_owner_alone():
    plan = chapters(num_chapters=8, samples=(10, 10, 10, 10), has_validation=True)

    placement = place(plan, "federated", 2, [1] * 4)

    for task in plan.tasks():
        if task.kind is TaskKind.TRAIN:
            assert placement.ranks(task)[0] == plan.shard(task.time) % 2
        elif task.kind is TaskKind.VALIDATE:
            assert placement.ranks(task)[0] == task.block % 2


@for_all_placements(chapter_plans())
def test_hints_of_a_shard_never_leave_their_rank_in_a_federated_run(plan, placement):
    if placement.name == "federated":
        things = {p.kind for _, message in sent(plan, placement) for p in message.products}

        assert ProductKind.HINTS not in things


def test_stream_keeps_a_block_and_its_neutral_samples_on_its_rank():
    plan = stream_of_two_blocks()

    placement = place(plan, "stream", 2, [1, 1])

    for step in range(10):
        for kind in (TaskKind.PASS, TaskKind.TRAIN):
            assert [placement.ranks(Task(kind, step, block))[0] for block in (0, 1)] == [0, 1]
        assert placement.ranks(Task(TaskKind.TRAIN, step, plan.heads[-1]))[0] == 1


# Teams


def test_a_team_is_neighbouring_ranks_that_share_what_one_would_do():
    plan = chapters(num_blocks=2, num_chapters=4, slices=2, cut="units", hint_age=2)

    placement = place(plan, "all-layers", 4, [1, 1], replicas=2)

    assert placement.teams == (2, 2)
    for chapter in range(4):
        team = range(0, 2) if chapter % 2 == 0 else range(2, 4)
        assert placement.ranks(Task(TaskKind.TRAIN, chapter, 1)) == team
        assert placement.ranks(Task(TaskKind.SCORE, chapter, 0)) == team
        assert placement.ranks(Task(TaskKind.VALIDATE, chapter, 0)) == team[:1]
    assert placement.ranks(plan.gather) == range(1)


def test_each_rank_of_a_team_sends_to_the_one_with_its_place_in_the_next():
    plan = chapters(
        num_blocks=2, num_chapters=4, slices=4, cut="samples", batch_size=4, samples=(4,)
    )

    placement = place(plan, "all-layers", 8, [1, 1], replicas=4)

    ways = {
        (source, message.dest)
        for source, message in sent(plan, placement)
        if message.products[0].time == 0 and message.products[0].kind is ProductKind.WEIGHTS
    }
    assert ways == {(rank, rank + 4) for rank in range(4)}


@pytest.mark.parametrize(("ranks", "replicas"), [(3, 2), (6, 4), (4, 3)])
def test_replicas_that_do_not_divide_ranks_and_slices_are_refused(ranks, replicas):
    plan = chapters(slices=4, cut="samples", batch_size=4, samples=(4,))

    with pytest.raises(PlacementError, match=f"placement.replicas is {replicas}, with {ranks} r"):
        place(plan, "all-layers", ranks, [1] * 4, replicas)


@given(
    costs=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    extra=st.integers(0, 6),
    slices=st.sampled_from([2, 3, 4, 6]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_ranks_dealt_by_cost_leave_the_slowest_block_as_fast_as_can_be(costs, extra, slices):
    ranks = len(costs) + extra
    sizes = [size for size in range(1, slices + 1) if slices % size == 0]
    ways = [way for way in itertools.product(sizes, repeat=len(costs)) if sum(way) == ranks]

    def slowest(way):
        return max(
            (2 * cost + sum(costs[:block])) / size
            for block, (cost, size) in enumerate(zip(costs, way, strict=True))
        )

    if not ways:
        with pytest.raises(PlacementError, match=f"{ranks} ranks cannot be assigned"):
            assign_by_cost(costs, ranks, slices)
        return
    assert slowest(assign_by_cost(costs, ranks, slices)) == min(map(slowest, ways))


def test_with_more_ranks_than_blocks_that_stay_dearer_blocks_get_more():
    plan = chapters(slices=4, cut="samples", batch_size=4, samples=(4,))

    placement = place(plan, "single-layer", 8, [1, 1, 1, 9])

    assert placement.teams == (1, 1, 2, 4)
    assert placement.ranks(Task(TaskKind.TRAIN, 3, 0)) == range(0, 1)
    assert placement.ranks(Task(TaskKind.TRAIN, 3, 3)) == range(4, 8)
    assert [placement.team_of(rank) for rank in range(8)] == [0, 1, 2, 2, 3, 3, 3, 3]


# Blocks that share a rank


@pytest.mark.parametrize("passing", [False, True])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=7), drawn=st.integers(1, 7))
def test_the_most_expensive_run_of_blocks_is_as_cheap_as_any_cut_can_make_it(costs, drawn, passing):
    num_ranks = min(drawn, len(costs))

    def highest(ends):
        first, worst = 0, 0
        for last in ends:
            trains = 2 * sum(costs[first:last])
            passes = sum(costs[: last - 1]) if passing else 0
            first, worst = last, max(worst, trains + passes)
        return worst

    owners = balance(costs, num_ranks, passing=passing)

    cuts = [(*cut, len(costs)) for cut in combinations(range(1, len(costs)), num_ranks - 1)]
    found = tuple(owners.index(rank) for rank in range(1, num_ranks))
    assert highest((*found, len(costs))) == min(map(highest, cuts))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=7), drawn=st.integers(1, 7))
def test_each_rank_gets_a_run_of_neighbouring_blocks(costs, drawn):
    num_ranks = min(drawn, len(costs))

    owners = balance(costs, num_ranks, passing=True)

    assert len(owners) == len(costs)
    assert (owners[0], owners[-1]) == (0, num_ranks - 1)
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(owners))


def test_a_rank_that_passes_samples_through_the_blocks_below_gets_fewer_of_its_own():
    assert balance([1] * 8, 2, passing=False) == (0, 0, 0, 0, 1, 1, 1, 1)
    assert balance([1] * 8, 2, passing=True) == (0, 0, 0, 0, 0, 1, 1, 1)


# Choosing and refusing


@pytest.mark.parametrize(
    ("plan", "num_ranks", "name"),
    [
        pytest.param(chapters(), 1, "sequential", id="chapters on one rank"),
        pytest.param(chapters(), 3, "all-layers", id="chapters on several ranks"),
        pytest.param(chapters(samples=(9, 9, 9)), 1, "sequential", id="shards on one rank"),
        pytest.param(chapters(samples=(9, 9, 9)), 3, "federated", id="shards on several ranks"),
        pytest.param(stream_of_two_blocks(), 1, "sequential", id="stream on one rank"),
        pytest.param(stream_of_two_blocks(), 2, "stream", id="stream on several ranks"),
    ],
)
def test_a_placement_is_chosen_where_none_is_named(plan, num_ranks, name):
    assert place(plan, None, num_ranks, [1] * plan.num_blocks).name == name


@pytest.mark.parametrize(
    ("plan", "name", "num_ranks", "message"),
    [
        pytest.param(
            stream_of_two_blocks(),
            "all-layers",
            2,
            "The placement all-layers cannot run a stream plan. Choose sequential or stream, or "
            "another --plan.",
            id="all-layers for a stream",
        ),
        pytest.param(
            stream_of_two_blocks(),
            "single-layer",
            2,
            "The placement single-layer cannot run a stream plan.",
            id="single-layer for a stream",
        ),
        pytest.param(
            stream_of_two_blocks(),
            "federated",
            2,
            "The placement federated cannot run a stream plan.",
            id="federated for a stream",
        ),
        pytest.param(
            chapters(),
            "stream",
            2,
            "The placement stream cannot run a chapter plan. Choose sequential, single-layer, "
            "all-layers or federated, or another --plan.",
            id="stream for chapters",
        ),
        pytest.param(
            chapters(),
            "sequential",
            2,
            "The placement sequential has work for 1 rank at most (it does everything on rank "
            "0), but there are 2. Start fewer, or choose another placement.",
            id="sequential on several ranks",
        ),
        pytest.param(
            chapters(num_blocks=4),
            "single-layer",
            5,
            "The placement single-layer has work for 4 ranks at most (one a block), but there "
            "are 5.",
            id="more ranks than blocks",
        ),
        pytest.param(
            stream_of_two_blocks(),
            "stream",
            3,
            "The placement stream has work for 2 ranks at most (one a block), but there are 3.",
            id="more ranks than blocks of a stream",
        ),
        pytest.param(
            chapters(num_chapters=2),
            "all-layers",
            3,
            "The placement all-layers has work for 2 ranks at most (one a chapter), but there "
            "are 3.",
            id="more ranks than chapters",
        ),
        pytest.param(
            chapters(samples=(9, 9)),
            "federated",
            3,
            "The placement federated has work for 2 ranks at most (one a shard), but there are 3.",
            id="more ranks than shards",
        ),
        pytest.param(
            chapters(samples=(9, 9, 9)),
            "federated",
            2,
            "A federated run deals 3 shards to 2 ranks. Set plan.shards to 2, or to a multiple "
            "of it.",
            id="shards that do not divide among ranks",
        ),
        pytest.param(
            chapters(),
            "federated",
            1,
            "A federated run deals 1 shard to 1 rank. Set plan.shards to 2 or more.",
            id="federated without shards",
        ),
    ],
)
def test_a_placement_that_cannot_run_a_plan_is_refused(plan, name, num_ranks, message):
    with pytest.raises(PlacementError, match=re.escape(message)):
        place(plan, name, num_ranks, [1] * plan.num_blocks)


# Placements of one's own


@for_all_placements(plans)
def test_a_placement_by_name_would_do_as_one_of_ones_own(plan, placement):
    check_placement(plan, placement, placement.num_ranks)


def test_blocks_can_be_given_to_any_ranks():
    plan, placement = chapters(num_blocks=3), Placement(teams=(1, 1), owners=(1, 0, 1))

    check_placement(plan, placement, 2)

    assert [placement.ranks(Task(TaskKind.TRAIN, 5, block))[0] for block in range(3)] == [1, 0, 1]
    assert placement.ranks(plan.gather)[0] == 0


@pytest.mark.parametrize(
    ("plan", "placement", "message"),
    [
        pytest.param(
            chapters(),
            Placement(teams=(1, 1, 1)),
            "The placement has 3 ranks, in teams of (1, 1, 1), and there are 2.",
            id="another number of ranks",
        ),
        pytest.param(
            chapters(),
            Placement(teams=(2,)),
            "The placement has teams of (2,) ranks, which must divide plan.slices; it is 1.",
            id="teams without slices",
        ),
        pytest.param(
            chapters(),
            Placement(teams=(2, 0)),
            "The placement has teams of (2, 0) ranks, which must divide plan.slices; it is 1.",
            id="a team of nobody",
        ),
        pytest.param(
            chapters(num_blocks=2, head_reads=(1,)),
            Placement(teams=(1, 1), owners=(0, 1)),
            "The placement gives the blocks to the teams (0, 1). There are 3 blocks, heads "
            "included, and teams from 0 to 1.",
            id="no team for a head",
        ),
        pytest.param(
            chapters(num_blocks=2),
            Placement(teams=(1, 1), owners=(1, 2)),
            "The placement gives the blocks to the teams (1, 2). There are 2 blocks, heads "
            "included, and teams from 0 to 1.",
            id="a team that is not there",
        ),
        pytest.param(
            stream_of_two_blocks(),
            Placement(teams=(1, 1)),
            "In a stream plan blocks stay where they are: owners names the team of each.",
            id="a stream that goes round",
        ),
    ],
)
def test_a_placement_of_ones_own_that_does_not_fit_is_refused(plan, placement, message):
    with pytest.raises(PlacementError, match=re.escape(message)):
        check_placement(plan, placement, 2)


@for_all_placements(plans)
def test_a_network_that_all_ranks_gather_comes_to_each_of_them(plan, placement):
    everywhere = replace(placement, is_gathered_everywhere=True)
    last = {p for p in plan.needs(plan.gather) if p.kind is ProductKind.WEIGHTS}

    coming = {rank: set() for rank in range(placement.num_ranks)}
    for _, message in sent(plan, everywhere):
        coming[message.dest].update(message.products)

    assert everywhere.ranks(plan.gather) == range(placement.num_ranks)
    for rank, products in coming.items():
        made_here = {p for p in last if rank in everywhere.ranks(plan.maker(p))}
        assert last <= products | made_here


def test_a_placement_is_a_plain_value():
    first, same = (place(chapters(), "single-layer", 2, [3, 1, 1, 1]) for _ in range(2))

    assert first == same == Placement("single-layer", (1, 1), (0, 1, 1, 1))


def test_a_rank_begins_no_block_that_was_trained_before():
    plan = chapters(num_blocks=2, num_chapters=4)
    done = [product for task in list(plan.all_tasks())[:1] for product in plan.makes(task)]

    later = replace(plan, held=frozenset(done))

    assert first_blocks(plan, place(plan, "sequential", 1, [1, 1]), 0) == [0, 1]
    assert first_blocks(later, place(later, "sequential", 1, [1, 1]), 0) == [1]
