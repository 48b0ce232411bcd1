"""How long plans take under placements, at a tick a task, and when they wait for hints."""

from dataclasses import asdict

import pytest
from placements import chapters, for_all_placements, plans
from plans import stream_of_two_blocks

from onward.cli.drawing import clock_times
from onward.placement import (
    place,
    stall,
)
from onward.plan.chapters import ChapterPlan
from onward.plan.tasks import ProductKind, TaskKind


def makespan(plan, placement):
    """Return the ticks until the last task is done, gathering left out, one tick a task."""
    most = sum(1 for _ in plan.tasks())
    samples = clock_times(plan, placement, clocks=most)
    return max(
        tick
        for row in samples
        for tick, task in enumerate(row, start=1)
        if task is not None and task.kind is not TaskKind.GATHER
    )


# How long it takes, at a tick a task. Formulas: Aktemur et al. 2024 with L blocks, S chapters and
# N ranks; the ideal of section 4 is drawn in its figures 4 and 5.


@pytest.mark.parametrize(("num_blocks", "num_chapters"), [(2, 4), (3, 5), (4, 100)])
def test_sequential_takes_a_tick_for_each_block_and_chapter(num_blocks, num_chapters):
    plan = chapters(num_blocks=num_blocks, num_chapters=num_chapters)

    placement = place(plan, "sequential", 1, [1] * num_blocks)

    assert makespan(plan, placement) == num_blocks * num_chapters


@pytest.mark.parametrize(("num_blocks", "num_chapters"), [(2, 4), (3, 5), (4, 8), (4, 100)])
def test_single_layer_takes_a_tick_a_chapter_once_the_pipeline_is_full(num_blocks, num_chapters):
    plan = chapters(num_blocks=num_blocks, num_chapters=num_chapters)

    placement = place(plan, "single-layer", num_blocks, [1] * num_blocks)

    assert makespan(plan, placement) == num_chapters + num_blocks - 1


@pytest.mark.parametrize(
    ("num_blocks", "num_chapters", "num_ranks"),
    [(2, 4, 2), (3, 6, 2), (3, 6, 3), (4, 8, 2), (4, 8, 4), (4, 100, 2), (4, 100, 4)],
)
def test_all_layers_shares_the_ticks_once_the_pipeline_is_full(num_blocks, num_chapters, num_ranks):
    plan = chapters(num_blocks=num_blocks, num_chapters=num_chapters)

    placement = place(plan, "all-layers", num_ranks, [1] * num_blocks)

    assert makespan(plan, placement) == num_chapters * num_blocks // num_ranks + num_ranks - 1


@pytest.mark.parametrize(
    ("num_ranks", "speed_up"), [(1, 1.0), (2, 1.990), (4, 3.883), (5, 3.883), (10, 3.883)]
)
def test_more_ranks_than_blocks_do_not_speed_all_layers_up(num_ranks, speed_up):
    plan = chapters(num_blocks=4, num_chapters=100)

    placement = place(plan, "all-layers", num_ranks, [1] * 4)

    assert 400 / makespan(plan, placement) == pytest.approx(speed_up, abs=5e-4)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_stream_takes_a_tick_a_mini_batch_once_the_pipeline_is_full(num_ranks):
    plan = stream_of_two_blocks(num_blocks=num_ranks, head_reads=(), hint_age=None)

    placement = place(plan, "stream", num_ranks, [1] * num_ranks)

    assert makespan(plan, placement) == 10 + num_ranks - 1


@for_all_placements(plans)
def test_no_placement_takes_longer_than_one_rank(plan, placement):
    alone = place(plan, "sequential", 1, [1] * plan.num_blocks)

    assert makespan(plan, placement) <= makespan(plan, alone)


# Waiting for hints


def placed(plan, num_ranks):
    return place(plan, None, num_ranks, [1] * plan.num_blocks)


@pytest.mark.parametrize(
    ("plan", "num_ranks", "message"),
    [
        pytest.param(
            chapters(hint_age=2),
            4,
            "plan.hint_age is 2 chapters and there are 4 ranks: chapters wait for the hints of "
            "others. An age of 4 or more does not stall, but changes the weights.",
            id="chapters",
        ),
        pytest.param(
            stream_of_two_blocks(hint_age=0),
            2,
            "plan.hint_age is 0 mini-batches and there are 2 ranks: every mini-batch waits for "
            "the whole network (lock-step). An age of 2 or more does not stall, but changes the "
            "weights.",
            id="stream of age 0",
        ),
        pytest.param(
            stream_of_two_blocks(hint_age=1),
            2,
            "plan.hint_age is 1 mini-batch and there are 2 ranks: the first rank waits for "
            "hints from the last.",
            id="stream of an age below the number of ranks",
        ),
    ],
)
def test_hints_younger_than_there_are_ranks_are_said_to_stall(plan, num_ranks, message):
    assert message in stall(plan, placed(plan, num_ranks))


@pytest.mark.parametrize(
    ("plan", "num_ranks"),
    [
        pytest.param(chapters(hint_age=4), 4, id="as old as there are ranks"),
        pytest.param(chapters(hint_age=None), 4, id="no hints"),
        pytest.param(chapters(hint_age=1), 1, id="one rank"),
        pytest.param(stream_of_two_blocks(hint_age=2), 2, id="stream"),
    ],
)
def test_hints_old_enough_are_not_said_to_stall(plan, num_ranks):
    assert stall(plan, placed(plan, num_ranks)) is None


class WithoutWaitingForHints(ChapterPlan):
    def needs(self, task):
        return [product for product in super().needs(task) if product.kind is not ProductKind.HINTS]


@pytest.mark.parametrize("age", range(1, 6))
def test_all_layers_waits_for_hints_exactly_where_it_is_said_to_stall(age):
    plan = chapters(num_blocks=4, num_chapters=16, head_reads=(1, 2, 3), hint_age=age)
    placement = placed(plan, 4)

    without_waiting = makespan(WithoutWaitingForHints(**asdict(plan)), placement)

    waits = makespan(plan, placement) > without_waiting
    assert waits is (stall(plan, placement) is not None)
