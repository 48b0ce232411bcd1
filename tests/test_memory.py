"""What ranks are said to hold, and runs that they have no room for."""

import re

import pytest
import torch

import onward as ow
from onward.checkpoint import PRECISIONS
from onward.costs import memory
from onward.costs.memory import Room, check, estimate
from onward.data.inputs import InputTransformation
from onward.placement import place
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import QUEUE, StreamPlan
from onward.plan.tasks import Node, line
from onward.runs.preparation import nodes_of
from onward.runtime.store import MOST_UNWRITTEN
from onward.runtime.workers import Settings
from onward.transport.distributed import IN_FLIGHT, POSTED

WIDTH = 64

WEIGHTS = 4 * (WIDTH * WIDTH + WIDTH + 10 * WIDTH)
"""Bytes of a block of 64 units with 64 inputs, its bias and its head."""

MOMENTS = 2 * WEIGHTS

ROW = 4 * WIDTH


WAITING = QUEUE + POSTED + 2
"""Mini-batches that a rank of a stream has from another, at most."""


def needed(
    plan_type,
    name,
    num_ranks,
    *,
    precision="fp32",
    augments=False,
    recipe=None,
    closed_form=True,
    keeps=False,
    pixels=False,
    **settings,
):
    """Return what is said of a run of four blocks and eight chapters of an epoch.

    A chapter plan has one sample, and a stream 40 mini-batches of one. Blocks of a plan with other
    nodes do not stand in a line.
    """
    network = ow.mlp((WIDTH,), num_classes=10, widths=(WIDTH,) * 4, **(recipe or {}))
    network.set_precision(PRECISIONS[precision])
    samples = (40 if plan_type is StreamPlan else 1,)
    usual = {"epochs": 8, "chapters": 8, "samples": samples, "batch_size": 1}
    usual |= {
        "nodes": nodes_of(network),
        "hint_age": None,
        "validate_every": None,
        "has_validation": False,
    }
    if augments and plan_type is ChapterPlan:
        usual["is_augmented"] = True
    plan = plan_type(**{**usual, **settings})
    placement = place(plan, name, num_ranks, [1] * 4)
    batch = ow.Batch(torch.zeros(1, WIDTH))
    if pixels:
        batch = ow.Batch(torch.zeros(1, WIDTH, dtype=torch.uint8))
        network.inputs = InputTransformation("pixels", (WIDTH,), (0.0, 1.0))
    augment = (lambda batch, draw: batch,) * augments
    usual = Settings(seed=0, augment=augment, closed_form=closed_form)
    return estimate(plan, placement, network, batch, usual, keeps=keeps)


def about(expected):
    # Samples of 64 numbers are little beside weights.
    return pytest.approx(expected, rel=0.03)


def test_one_rank_holds_all_blocks_with_their_moments_and_the_gradients_of_one():
    (stream,) = needed(StreamPlan, "sequential", 1)
    (chapters,) = needed(ChapterPlan, "sequential", 1)

    assert stream == about(4 * (WEIGHTS + MOMENTS) + WEIGHTS)
    assert chapters == about(4 * (WEIGHTS + MOMENTS) + WEIGHTS)


def test_copies_of_weights_and_gradients_are_held_where_products_are_in_bf16():
    (fp32,), (bf16,) = (
        needed(StreamPlan, "sequential", 1, precision=precision) for precision in ("fp32", "bf16")
    )

    assert bf16 - fp32 == about(4 * 2 * WEIGHTS / 2)


def test_a_rank_of_a_stream_holds_its_own_block_and_rank_0_all_weights_in_the_end():
    first, *others = needed(StreamPlan, "stream", 4)

    own = WEIGHTS + MOMENTS + WEIGHTS
    assert first == about(own + 3 * WEIGHTS + IN_FLIGHT * ROW)
    assert others == about([own + (WAITING + IN_FLIGHT) * ROW] * 3)


def test_the_rank_that_validates_a_stream_holds_all_weights_too():
    without = needed(StreamPlan, "stream", 4)
    once = needed(StreamPlan, "stream", 4, has_validation=True)
    often = needed(StreamPlan, "stream", 4, has_validation=True, validate_every=1)

    more = [b - a for a, b in zip(without, once, strict=True)]
    assert more == about([0, 0, 0, 3 * WEIGHTS])
    # Copies on their way, while the block goes on; and those that come while others are in use.
    more = [b - a for a, b in zip(once, often, strict=True)]
    assert more == about([WEIGHTS, WEIGHTS, WEIGHTS, 3 * WEIGHTS])


def test_where_chapters_go_round_a_rank_holds_all_weights_and_states_that_travel():
    found = needed(ChapterPlan, "all-layers", 4)

    # States that are asked for ahead, one that has come, and one that is sent.
    travelling = (POSTED + 1 + 1) * (WEIGHTS + MOMENTS)
    assert found[1] == about(4 * WEIGHTS + MOMENTS + WEIGHTS + travelling)


def test_where_blocks_stay_a_rank_holds_those_up_to_its_own():
    first, *_, last = needed(ChapterPlan, "single-layer", 4)

    assert first < last
    # Of each of three ranks below: two asked for, one that has come, three that wait, one in use.
    assert last == about(WEIGHTS + MOMENTS + WEIGHTS + 3 * (POSTED + 5) * WEIGHTS)
    # And of each above the last weights; copies of its own are on their way.
    assert first == about(WEIGHTS + MOMENTS + WEIGHTS + 3 * WEIGHTS + IN_FLIGHT * WEIGHTS)


def test_moments_are_kept_for_as_long_as_they_are_needed():
    travel, restart, aged = (
        needed(ChapterPlan, "sequential", 1, optimizer_state_age=age)[0] for age in (1, None, 4)
    )

    assert travel - restart == about(3 * MOMENTS)
    assert aged - travel == about(3 * 4 * MOMENTS)


def test_moments_that_come_back_to_their_rank_are_kept_there():
    found = needed(ChapterPlan, "all-layers", 4, optimizer_state_age=4)

    travelling = (POSTED + 1 + 1) * WEIGHTS
    assert found[1] == about(4 * WEIGHTS + 4 * MOMENTS + WEIGHTS + travelling)


def test_states_that_wait_to_be_written_are_copies():
    (without,), (kept,) = (
        needed(ChapterPlan, "sequential", 1, keeps=keeps) for keeps in (False, True)
    )

    assert kept - without == about((MOST_UNWRITTEN + 1) * (WEIGHTS + MOMENTS))


def test_automatic_differentiation_has_a_gradient_and_what_its_update_makes():
    (closed,), (automatic,) = (
        needed(ChapterPlan, "sequential", 1, closed_form=closed) for closed in (True, False)
    )

    assert automatic - closed == WEIGHTS


def test_slices_of_samples_have_a_gradient_each():
    whole, sliced = (
        needed(ChapterPlan, "sequential", 1, slices=slices, batch_size=4, samples=(4,))[0]
        for slices in (1, 4)
    )

    # And their sum, which without slices is the gradient.
    assert sliced - whole == 4 * WEIGHTS


def test_samples_that_are_passed_on_are_held_before_and_after_a_block():
    few, many = (
        needed(ChapterPlan, "sequential", 1, samples=(samples,))[0] for samples in (1_000, 11_000)
    )

    assert many - few == 10_000 * 2 * ROW


THRESHOLDS = {"objective": "threshold", "negatives": "random", "readout": "goodness"}


def test_pixels_are_held_as_floats_too_while_views_are_made_of_them():
    floats, pixels = (
        needed(ChapterPlan, "sequential", 1, samples=(1_000,), recipe=THRESHOLDS, pixels=pixels)[0]
        for pixels in (False, True)
    )

    assert pixels - floats == 1_000 * ROW


def test_what_is_put_out_is_held_for_every_epoch_of_a_chapter_where_samples_are_augmented():
    usual, augmented = (
        needed(
            ChapterPlan, "sequential", 1, samples=(1_000,), chapters=2, epochs=8, augments=augments
        )
        for augments in (False, True)
    )

    # Two blocks' outputs are held while samples are passed on, in four epochs of a chapter in place
    # of one; and of the samples themselves, a portion that is made, with its view.
    assert augmented[0] - usual[0] == 1_000 * 3 * 2 * ROW + 2 * 500 * 2 * ROW


def test_a_stream_makes_augmented_samples_mini_batch_by_mini_batch():
    usual, augmented = (
        needed(StreamPlan, "stream", 4, samples=(1_000,), augments=augments)
        for augments in (False, True)
    )

    assert [b - a for a, b in zip(usual, augmented, strict=True)] == [2 * 2 * ROW, 0, 0, 0]


def test_what_a_head_reads_is_held_twice_while_it_is_joined():
    threshold = {"objective": "threshold", "negatives": "random", "slope": 20.0}
    goodness, softmax = (
        needed(
            ChapterPlan,
            "sequential",
            1,
            samples=(10_000,),
            recipe={**threshold, "readout": readout},
        )[0]
        for readout in ("goodness", "softmax")
    )

    # Two views of the inputs, which hold the label, and of the first block; or two views of the
    # last block, and twice three activities that are read.
    inputs = ROW + 4 * 10
    assert softmax - goodness == pytest.approx(10_000 * (8 * ROW - 2 * (inputs + ROW)), rel=0.02)


def line_but(block, *reads):
    """Return four blocks in a line, of which one reads more than the block before it."""
    nodes = list(line(4))
    nodes[block] = Node((*nodes[block].reads, *reads))
    return tuple(nodes)


STEP = 3 * ROW
"""What a step makes of a sample that a block reads."""


def test_outputs_that_wait_for_a_block_further_up_are_held():
    in_line, around = (
        needed(ChapterPlan, "sequential", 1, samples=(10_000,), **nodes)[0]
        for nodes in ({}, {"nodes": line_but(3, (0, 0))})
    )

    # Those of block 0, while those of block 2 are made from those of block 1.
    assert around - in_line == 10_000 * ROW + STEP


def test_what_a_block_of_a_stream_reads_of_the_tick_before_waits_too():
    in_line, recurrent = (
        needed(StreamPlan, "stream", 4, ticks=2, **nodes)
        for nodes in ({}, {"nodes": line_but(1, (3, 1))})
    )

    # Nobody else reads the last block, which now sends too.
    expected = [0, WAITING * ROW + STEP, 0, IN_FLIGHT * ROW]
    assert [b - a for a, b in zip(in_line, recurrent, strict=True)] == expected


def test_every_federated_rank_gets_the_weights_to_validate_its_shard_in_the_end():
    without, validated = (
        needed(ChapterPlan, "federated", 6, samples=(1,) * 6, chapters=12, epochs=12, **more)
        for more in ({}, {"has_validation": True})
    )

    # From the last to the others; to rank 0 they go anyway, and to the next one.
    assert [b > a for a, b in zip(without, validated, strict=True)] == [False, *[True] * 4, False]


def test_a_run_with_room_is_let_through():
    check([Room(100, 50, {"a": 150})] * 2 + [Room(200, 0, {"b": 200})])


@pytest.mark.parametrize(
    ("rooms", "message"),
    [
        (
            [Room(300_000_000, 0, {"x group a": 200_000_000})],
            "The run would hold about 300 MB, and may hold 200 MB (group a).",
        ),
        (
            [Room(10, 0, {"x a": 20}), Room(300_000_000, 0, {"x b": 200_000_000})],
            "Rank 1 would hold about 300 MB, and may hold 200 MB",
        ),
        (
            [Room(150_000_000, 50_000_000, {"x a": 200_000_000})] * 2,
            "2 ranks together would hold about 250 MB, and may hold 200 MB",
        ),
        (
            # Each in a group of its own, and all on one machine.
            [Room(150_000_000, 0, {f"x {n}": 160_000_000, "x all": 200_000_000}) for n in "ab"],
            "2 ranks together would hold about 300 MB, and may hold 200 MB (all).",
        ),
    ],
)
def test_a_run_without_room_is_refused(rooms, message):
    with pytest.raises(ow.SettingError, match=re.escape(message)):
        check(rooms)


def test_training_is_refused_before_it_starts_where_there_is_no_room(monkeypatch):
    monkeypatch.setattr(memory, "limits", lambda: {"x the memory of the machine": 1_000_000})

    with pytest.raises(
        ow.SettingError, match=re.escape("may hold 1 MB (the memory of the machine)")
    ):
        ow.train(ow.mlp((1, 8, 8), num_classes=10, widths=(16,)), ow.load_data("digits"))


@pytest.mark.parametrize(
    ("line", "file", "unlimited"),
    [
        ("4:memory:/jobs/mine", "memory/jobs/{}/memory.limit_in_bytes", "9223372036854771712"),
        ("0::/jobs/mine", "jobs/{}/memory.max", "max"),
    ],
)
def test_limits_of_a_group_and_of_those_around_it_count(tmp_path, line, file, unlimited):
    (tmp_path / "cgroup").write_text(f"7:cpu:/elsewhere\n{line}\n")
    for folder, limit in (("mine", unlimited), (".", "4096")):
        path = tmp_path / "mounted" / file.format(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")

    found = memory._group_limits(tmp_path / "cgroup", tmp_path / "mounted")

    assert list(found.values()) == [4096]


def test_a_system_without_control_groups_has_no_limits(tmp_path):
    assert memory._group_limits(tmp_path / "nowhere") == {}


def test_the_memory_of_this_machine_is_a_limit():
    assert any(name.endswith("the memory of the machine") for name in memory.limits())
    assert 0 < memory.resident() < min(memory.limits().values())
