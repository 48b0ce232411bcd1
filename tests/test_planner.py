"""Which of the ways to run a plan is the fastest, and what a person is told of it."""

import pytest
from rich.console import Console
from test_simulation import Weighing, chapters, stream

from onward.cli.drawing import advice, choices_table, forecast_table
from onward.cli.planner import alone, choices, read_links
from onward.errors import SettingError
from onward.placement import place
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.simulation import FREE, KnownCosts, Link


class Shared(Weighing):
    """Ranks that share a task take their part of the second."""

    def seconds(self, plan, task, passed, ranks):
        return super().seconds(plan, task, passed, ranks) / ranks


def ways(plan, num_ranks, costs, links=FREE, speeds=None):
    name = "stream" if isinstance(plan, StreamPlan) else "all-layers"
    placement = place(plan, name, num_ranks, [1] * plan.num_blocks)
    return choices(plan, placement, [1] * plan.num_blocks, costs, links, speeds)


def text(table, width=120):
    console = Console(width=width, file=None, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_fastest_comes_first():
    found = ways(chapters(8), 4, Weighing())

    seconds = [choice.simulation.seconds for choice in found]
    assert seconds == sorted(seconds)


def test_every_placement_that_can_run_is_among_them_and_one_rank_is():
    plan = chapters(8)

    same = {c.placement.name for c in ways(plan, 4, Weighing()) if c.plan == plan}

    assert same == {"sequential", "all-layers", "single-layer"}
    assert {c.placement.name for c in ways(stream(9), 4, Weighing())} == {"sequential", "stream"}


def test_where_links_are_slow_one_rank_is_the_fastest():
    plan, slow = chapters(8), Link(bytes_per_second=1e3)

    found = ways(plan, 4, Weighing(), slow)

    assert found[0].placement.name == "sequential"
    assert advice(plan, found).startswith("One rank is the fastest")


def test_more_ranks_than_blocks_are_best_used_in_teams():
    plan = chapters(8, samples=(8,), batch_size=8)

    best, *_ = found = ways(plan, 8, Shared())

    assert isinstance(best.plan, ChapterPlan)
    assert best.plan.slices > 1
    assert set(best.placement.teams) == {best.plan.slices}
    assert f"--slices {best.plan.slices}" in advice(plan, found)
    assert "(changes the weights)." in advice(plan, found)


def test_a_slow_rank_speaks_for_a_placement_that_gives_it_less():
    plan = chapters(4)

    even = ways(plan, 4, Weighing(), speeds=[1.0] * 4)
    uneven = ways(plan, 4, Weighing(), speeds=[1.0, 1.0, 1.0, 0.1])

    def seconds(found):
        return {c.placement.name: c.simulation.seconds for c in found if c.plan == plan}

    assert seconds(uneven)["sequential"] == seconds(even)["sequential"]
    assert seconds(uneven)["all-layers"] > 3 * seconds(even)["all-layers"]


@pytest.mark.parametrize(("slices", "replicas"), [(1, 1), (2, 2), (4, 2), (8, 8), (3, 1)])
def test_what_was_asked_for_is_among_the_ways_and_one_rank_is(slices, replicas):
    plan = chapters(8, samples=(8,), batch_size=8, slices=slices, cut="units")
    placement = place(plan, None, 8, [1] * 4, replicas)

    found = choices(plan, placement, [1] * 4, Shared())

    ways = [(choice.plan, choice.placement) for choice in found]
    assert (plan, placement) in ways
    assert all(ways.count(way) == 1 for way in ways)
    assert alone(plan, found).placement.num_ranks == 1
    assert "asked for" in text(choices_table(plan, placement, found))
    assert advice(plan, found)


def test_ways_that_blocks_or_data_do_not_allow_are_left_out():
    plan = chapters(8, samples=(8,), batch_size=8)
    placement = place(plan, "all-layers", 8, [1] * 4)

    found = choices(
        plan, placement, [1] * 4, Shared(), can_run=lambda plan, placement: plan.slices == 1
    )

    assert {choice.plan.slices for choice in found} == {1}


def test_the_table_fits_into_80_columns():
    plan = chapters(64, samples=(8,), batch_size=8)
    placement = place(plan, "all-layers", 16, [1] * 4)
    found = choices(plan, placement, [1] * 4, Shared({b: 1e4 for b in range(4)}, weight=10**9))

    drawn = text(choices_table(plan, placement, found), width=80)

    assert "…" not in drawn


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_the_table_marks_what_was_asked_for(num_ranks):
    plan = chapters(8)
    placement = place(plan, "all-layers", num_ranks, [1] * 4)

    lines = text(choices_table(plan, placement, ways(plan, num_ranks, Weighing()))).splitlines()

    (asked,) = (line for line in lines if "asked for" in line)
    assert "all-layers" in asked
    assert any("sequential" in line and "1.00" in line for line in lines)


def test_a_forecast_says_what_each_rank_does():
    plan = chapters(2, blocks=1)
    costs = KnownCosts({task: 90.0 for task in plan.tasks()})

    found = ways(plan, 2, costs)
    (pipeline,) = (c for c in found if c.placement.name == "all-layers" and c.plan == plan)
    table = text(forecast_table(pipeline.simulation))

    assert "The run would take about 4 min 30 s" in table
    assert "180.0" in table
    assert "90.0" in table


def test_a_link_is_that_of_all_ranks_or_each_has_its_own():
    fast, slow = Link(125e6), Link(1.25e6)

    assert read_links([], 2) == FREE
    assert read_links(["1gbit"], 2) == fast
    assert read_links(["1gbit", "10mbit"], 2) == [fast, slow]
    with pytest.raises(SettingError, match="given 2 times, and there are 3 ranks"):
        read_links(["1gbit", "10mbit"], 3)


def test_a_rank_with_a_slow_link_makes_the_others_wait():
    plan, fast, slow = chapters(8), Link(1e9), Link(1e7)
    costs = Weighing()

    even, uneven = (
        next(c for c in ways(plan, 4, costs, links) if c.placement.name == "all-layers")
        for links in ([fast] * 4, [fast, fast, slow, fast])
    )

    assert uneven.simulation.seconds > even.simulation.seconds
    assert sum(uneven.simulation.waiting) > sum(even.simulation.waiting)
