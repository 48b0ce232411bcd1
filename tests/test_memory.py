"""What ranks are said to hold, and runs that they have no room for."""

import re

import pytest

import onward as ow
from onward import memory
from onward.checkpoint import PRECISIONS
from onward.memory import Room, check, estimate
from onward.placement import place
from onward.plan import ChapterPlan, StreamPlan

WEIGHTS = 4 * (64 * 64 + 64 + 10 * 64)
"""Bytes of a block of 64 units with 64 inputs, its bias and its head."""


def needed(plan_type, name, num_ranks, *, precision="fp32", **settings):
    network = ow.mlp((64,), num_classes=10, widths=(64,) * 4)
    network.set_precision(PRECISIONS[precision])
    usual = {"epochs": 8, "chapters": 8, "rows": (1,), "has_validation": False}
    plan = plan_type(
        num_blocks=4,
        head_reads=(),
        batch_size=1,
        hint_age=None,
        validate_every=None,
        **{**usual, **settings},
    )
    placement = place(plan, name, num_ranks, [1] * 4)
    return estimate(plan, placement, network, (64,), closed_form=True)


def test_one_rank_holds_all_blocks_with_their_moments():
    (found,) = needed(StreamPlan, "sequential", 1)

    # A row of 64 numbers is nothing beside weights.
    assert found == pytest.approx(4 * 3 * WEIGHTS + WEIGHTS, rel=0.02)


def test_a_copy_of_the_weights_is_held_where_products_are_in_bf16():
    (fp32,), (bf16,) = (
        needed(StreamPlan, "sequential", 1, precision=precision) for precision in ("fp32", "bf16")
    )

    assert bf16 - fp32 == pytest.approx(4 * WEIGHTS / 2, rel=0.02)


def test_a_rank_of_a_stream_holds_its_own_block_and_rank_0_all_weights_in_the_end():
    first, *others = needed(StreamPlan, "stream", 4)

    # Weights, moments and gradients of a block, and activities of 24 mini-batches of one row.
    activities = 24 * 4 * 64
    assert first == pytest.approx(4 * WEIGHTS + 3 * WEIGHTS, rel=0.05)
    assert others == pytest.approx([4 * WEIGHTS + activities] * 3, rel=0.05)


def test_where_chapters_go_round_a_rank_holds_all_weights_and_states_that_travel():
    found = needed(ChapterPlan, "all-layers", 4)

    own = 4 * WEIGHTS + 2 * WEIGHTS + WEIGHTS
    # Four states of weights and moments that are asked for ahead, and one that is sent.
    assert found[1] == pytest.approx(own + (4 + 1) * 3 * WEIGHTS, rel=0.05)


def test_a_federated_rank_sends_its_counts_of_validation_rows_too():
    found = needed(
        ChapterPlan, "federated", 6, rows=(1,) * 6, chapters=12, epochs=12, has_validation=True
    )

    assert len(found) == 6


def test_without_moments_that_travel_messages_are_a_third_as_large():
    travel = needed(ChapterPlan, "all-layers", 4)[1]
    restart = needed(ChapterPlan, "all-layers", 4, moments_age=None)[1]

    assert travel - restart == pytest.approx((4 + 1) * 2 * WEIGHTS, rel=0.05)


def test_a_run_with_room_is_let_through():
    check([Room(100, 200, "a")] * 2 + [Room(200, 200, "b")])


@pytest.mark.parametrize(
    ("rooms", "message"),
    [
        ([Room(300_000_000, 200_000_000, "a")], "The run would hold about 300 MB, and may hold"),
        (
            [Room(10, 20, "a"), Room(300_000_000, 200_000_000, "b")],
            "Rank 1 would hold about 300 MB, and may hold 200 MB.",
        ),
        (
            [Room(150_000_000, 200_000_000, "a")] * 2,
            "The 2 ranks of a machine would hold about 300 MB, and may hold 200 MB.",
        ),
    ],
)
def test_a_run_without_room_is_refused(rooms, message):
    with pytest.raises(ow.SettingError, match=re.escape(message)):
        check(rooms)


def test_training_is_refused_before_it_starts_where_there_is_no_room(monkeypatch):
    monkeypatch.setattr(memory, "allowed", lambda: 1_000_000)

    with pytest.raises(ow.SettingError, match="may hold 1 MB"):
        ow.train(ow.mlp((1, 8, 8), num_classes=10, widths=(16,)), ow.load_data("digits"))


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("4:memory:/jobs/mine", "memory/jobs/{}/memory.limit_in_bytes"),
        ("0::/jobs/mine", "jobs/{}/memory.max"),
    ],
)
def test_limits_of_a_group_and_of_those_around_it_count(tmp_path, line, file):
    (tmp_path / "cgroup").write_text(f"7:cpu:/elsewhere\n{line}\n")
    for folder, limit in (("mine", "max"), (".", "4096")):
        path = tmp_path / "mounted" / file.format(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")

    found = memory._limits(tmp_path / "cgroup", tmp_path / "mounted")

    assert list(found.values()) == [4096]


def test_a_system_without_control_groups_has_no_limits(tmp_path):
    assert memory._limits(tmp_path / "nowhere") == {}
