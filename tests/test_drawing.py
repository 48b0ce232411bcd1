from textwrap import dedent

import pytest
from placements import for_all_placements, plans
from plans import chapters_of_two_blocks, stream_of_two_blocks

from onward.cli.drawing import STYLES, clock_times, legend, passed_on, plan_table, staircase
from onward.costs.budget import Held
from onward.placement import place


def drawn(plan, name, num_ranks, *, clocks=40, width=200):
    placement = place(plan, name, num_ranks, [1] * plan.num_blocks)
    return str(staircase(plan, placement, clocks=clocks, width=width))


def picture(text):
    return dedent(text).strip("\n")


def three_blocks():
    return chapters_of_two_blocks(num_blocks=3)


def test_in_all_layers_each_chapter_starts_a_block_behind_the_one_before():
    assert drawn(three_blocks(), "all-layers", 4) == picture("""
        rank 0  0T0 1T0 2T0              G
        rank 1      0T1 1T1 2T1
        rank 2          0T2 1T2 2T2
        rank 3              0T3 1T3 2T3
    """)


def test_in_all_layers_a_rank_goes_on_with_its_next_chapter():
    assert drawn(three_blocks(), "all-layers", 2) == picture("""
        rank 0  0T0 1T0 2T0 0T2 1T2 2T2      G
        rank 1      0T1 1T1 2T1 0T3 1T3 2T3
    """)


def test_in_single_layer_each_block_starts_a_chapter_behind_the_one_below():
    assert drawn(three_blocks(), "single-layer", 3) == picture("""
        rank 0  0T0 0T1 0T2 0T3          G
        rank 1      1T0 1T1 1T2 1T3
        rank 2          2T0 2T1 2T2 2T3
    """)


def test_in_a_stream_with_hints_of_age_0_ranks_take_turns():
    plan = stream_of_two_blocks(epochs=1, chapters=1, batch_size=4)

    assert drawn(plan, "stream", 2) == picture("""
        rank 0  0P0         0T0 0P1         0T1 0P2         0T2      G
        rank 1      1P0 HT0     1T0 1P1 HT1     1T1 1P2 HT2     1T2
    """)


def test_in_a_stream_with_older_hints_no_rank_waits():
    plan = stream_of_two_blocks(epochs=1, chapters=1, batch_size=4, hint_age=2)

    assert drawn(plan, "stream", 2) == picture("""
        rank 0  0P0 0T0 0P1 0T1 0P2 0T2                  G
        rank 1      1P0 HT0 1T0 1P1 HT1 1T1 1P2 HT2 1T2
    """)


def test_scoring_and_validating_are_drawn_too():
    plan = chapters_of_two_blocks(
        epochs=2, chapters=2, head_reads=(1,), hint_age=1, has_validation=True
    )

    assert drawn(plan, "sequential", 1) == "rank 0  0T0 1T0 HT0  S0 0T1 1T1 HT1  V1  G"


def test_as_many_ticks_are_drawn_as_asked_for():
    assert drawn(three_blocks(), "all-layers", 2, clocks=4) == picture("""
        rank 0  0T0 1T0 2T0 0T2
        rank 1      0T1 1T1 2T1
    """)


@pytest.mark.parametrize("width", [20, 30, 40])
def test_no_line_is_wider_than_the_terminal(width):
    lines = drawn(three_blocks(), "all-layers", 2, width=width).splitlines()

    assert [line[:15] for line in lines] == ["rank 0  0T0 1T0", "rank 1      0T1"]
    assert max(map(len, lines)) <= width


def test_a_chapter_has_one_colour_on_all_ranks():
    plan = chapters_of_two_blocks(num_blocks=3)
    placement = place(plan, "single-layer", 3, [1, 1, 1])

    text = staircase(plan, placement, clocks=40, width=200)

    coloured = {(str(text)[span.start : span.end].strip(), span.style) for span in text.spans}
    assert {name: style for name, style in coloured if name in ("0T1", "1T1", "2T1")} == {
        "0T1": STYLES[1],
        "1T1": STYLES[1],
        "2T1": STYLES[1],
    }


@for_all_placements(plans)
def test_with_time_enough_each_rank_does_its_tasks_once_and_in_order(plan, placement):
    samples = clock_times(plan, placement, clocks=sum(1 for _ in plan.tasks()))

    for rank, row in enumerate(samples):
        done = [task for task in row if task is not None]
        assert done == [task for task in plan.tasks() if rank in placement.ranks(task)]


@for_all_placements(plans)
def test_no_task_begins_before_what_it_needs_is_made(plan, placement):
    samples = clock_times(plan, placement, clocks=sum(1 for _ in plan.tasks()))
    tick = {task: tick for row in samples for tick, task in enumerate(row) if task is not None}

    for task in plan.tasks():
        assert all(tick[plan.maker(product)] < tick[task] for product in plan.needs(task))


def test_the_table_counts_the_tasks_and_messages_of_each_rank():
    plan = chapters_of_two_blocks(
        epochs=3, chapters=3, head_reads=(1,), hint_age=2, has_validation=True
    )
    placement = place(plan, "all-layers", 2, [1, 1])

    columns = {
        str(c.header): list(c.cells)
        for c in plan_table(plan, placement, [1_000_000, 2_000_000]).columns
    }

    assert columns == {
        "rank": ["0", "1"],
        "blocks": ["0, 1, head", "0, 1, head"],
        "train": ["6", "3"],
        "pass": ["0", "0"],
        "score": ["1", "0"],
        "validate": ["1", "0"],
        "messages": ["3", "3"],
        "to ranks": ["1", "0"],
        "holds, MB": ["1", "2"],
    }


def test_what_is_passed_on_is_said_with_where_it_is_held():
    ways, room = ("memory", "file"), 1_500_000_000
    held = [Held(size, 0, ways, 10, room) for size in (0, room, 2_000_000_000, room)]

    assert passed_on(held) == [
        "Outputs of frozen blocks, about 1.5 GB on each of the ranks 1, 3: held in a file.",
        "Outputs of frozen blocks, about 2.0 GB on rank 2: no room for them.",
    ]


def test_the_legend_names_the_unit_of_time():
    assert "2T7 is block 2, train, chapter 7." in legend(chapters_of_two_blocks())
    assert "2T7 is block 2, train, mini-batch 7." in legend(stream_of_two_blocks())
    recurrent = stream_of_two_blocks(head_reads=(), ticks=3)
    assert "2T7 is block 2, train, tick 7." in legend(recurrent)
