"""Runs on several processes over gloo: the first law once more, and what ends a run."""

import os
import re
from functools import cache

import pytest
from prepared import prepare_network
from ranks import results
from weight_jobs import (
    EXIT_STATUS,
    RUNS,
    by_cost,
    config_of,
    private_config,
    told,
    train_convolutions,
    views_in_a_team,
)

from onward.checkpoint import weights_sha256
from onward.plan.streams import QUEUE
from onward.runs.preparation import make_stages
from onward.runs.sharding import agree, describe, load_data, load_shards, local_shards, split
from onward.runs.training import run
from onward.transport.messages import SingleProcessTransport

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("unchecked")]

PLACES = [(case, name, number) for case, (_, _, places) in RUNS.items() for name, number in places]


@pytest.fixture(scope="module")
def group():
    """What four processes told of each job."""
    return results()


@cache
def alone(case):
    """Return what the same run tells that this process does by itself."""
    return told(run(config_of(case, results()["folder"], "sequential")))


def errors(group, job):
    return [each["error"] for each in group[job]]


# The first law


@pytest.mark.parametrize(
    ("case", "name", "number"), PLACES, ids=["{}, {} on {}".format(*place) for place in PLACES]
)
def test_processes_end_in_the_weights_of_one_process(group, case, name, number):
    first, *_ = group[f"{case}, {name} on {number}"]

    assert first["placement"] == name
    assert first["weights"] == alone(case)["weights"]


@pytest.mark.parametrize(
    ("job", "case"),
    [
        ("through_a_directory", "one-pass"),
        ("through_a_directory_again", "one-pass"),
        ("hints_through_a_directory", "hints"),
    ],
)
def test_processes_that_share_a_folder_end_in_the_weights_of_one_process(group, job, case):
    first, *_ = group[job]

    assert first["weights"] == alone(case)["weights"]


def test_processes_that_hold_activities_in_files_end_in_the_weights_of_one_process(group):
    first, _ = group["held_in_files"]

    assert first["activities"] == ["file", "file"]
    assert alone("older moments")["activities"] == ["memory"]
    assert first["weights"] == alone("older moments")["weights"]


@pytest.mark.parametrize("cut", ["samples", "units"])
def test_processes_that_share_tasks_end_in_the_weights_of_one_process(group, cut):
    config = config_of("bf16", group["folder"], "sequential")
    expected = told(run(config.with_settings({"plan.slices": 4, "plan.cut": cut})))

    (one, _), (two, *_) = group[f"one team, {cut}"], group[f"two teams, {cut}"]

    assert one["weights"] == two["weights"] == expected["weights"]
    assert one["accuracy"] == two["accuracy"] == expected["accuracy"]


def test_views_that_a_team_passes_on_together_are_not_mistaken_for_each_other(group):
    # In version 0.2 before its release, their order was that of a set of names.
    first, *_ = group["two_views_in_a_team"]

    result = run(views_in_a_team(group["folder"], 1))

    assert first["weights"] == result.facts["weights_sha256"]


def test_teams_of_different_sizes_end_in_the_weights_of_one_rank(group):
    expected = told(run(by_cost(group["folder"], "sequential")))

    first, *_ = group["teams_by_cost"]

    assert first["placement"] == "single-layer"
    assert first["weights"] == expected["weights"]


def test_states_stay_in_the_folder_until_the_result_is_written_and_nothing_else_does(group):
    names = {f"rank-{rank}" for rank in range(4)}
    assert set(os.listdir(group["folder"] / "one-pass")) == names


def test_a_stream_does_not_go_through_a_directory(group):
    for error in errors(group, "a_stream_through_a_directory"):
        assert "placement.directory is for chapter plans" in error


def test_the_same_processes_may_train_one_network_after_the_other(group):
    (first, second, again), others = group["twice"]

    assert others == [None, None, None]
    assert (
        first["weights"] == again["weights"] == told(train_convolutions(group["folder"]))["weights"]
    )
    assert second["weights"] != first["weights"]


def test_processes_end_in_the_weights_of_one_process_with_blocks_of_any_kind(group):
    expected = told(train_convolutions(group["folder"]))

    first, *_ = group["convolutions_on_three"]

    assert first["weights"] == expected["weights"]


def test_ranks_with_files_of_their_own_end_in_the_weights_of_one_process_that_has_them_all(group):
    config = private_config(group["folder"]).with_settings({"plan.shards": 4})
    files = [split(config, load_data(config, rank)) for rank in range(4)]
    shards = {}
    for rank, file in enumerate(files):
        shards |= local_shards(config, file, rank)
    notes = [
        describe(config, local_shards(config, file, rank), file) for rank, file in enumerate(files)
    ]
    summary = agree(config, notes)
    network = make_stages(config, files[0], summary)[0].network
    (expected,) = prepare_network(network, config, shards, summary).run("sequential", 1)

    first, *_ = group["private_files"]

    assert first["weights"] == weights_sha256(expected.worker.network)


def test_ranks_that_were_started_by_hand_end_in_the_weights_of_one_process(group):
    first, second = group["started_by_hand"]

    assert first["weights"] == alone("one-pass")["weights"]
    assert second is None


def test_a_rank_far_behind_ends_in_the_same_weights_and_keeps_few_mini_batches_waiting(group):
    (first, _), (_, most_waiting) = group["far_behind"]

    assert first["weights"] == alone("stream")["weights"]
    # There are 36; the others wait where they were made.
    assert 1 < most_waiting <= QUEUE


# What is told


@pytest.mark.parametrize("case", RUNS)
def test_rank_0_alone_has_the_result(group, case):
    for name, number in RUNS[case][2]:
        first, *others = group[f"{case}, {name} on {number}"]

        assert first["accuracy"] == alone(case)["accuracy"]
        assert others == [None] * (number - 1)


@pytest.mark.parametrize("case", RUNS)
def test_rank_0_hears_of_all_that_other_ranks_have_finished(group, case):
    for name, number in RUNS[case][2]:
        first, *_ = group[f"{case}, {name} on {number}"]

        assert first["reports"] == alone(case)["reports"]


@pytest.mark.parametrize(
    ("case", "name", "number"),
    [
        ("one-pass", "single-layer", 4),
        ("hints", "all-layers", 4),
        ("federated", "federated", 2),
        ("stream with hints of age 5", "stream", 4),
    ],
)
def test_a_run_says_how_many_bytes_each_rank_has_sent(group, case, name, number):
    config = config_of(case, group["folder"])
    dataset = split(config, load_data(config, 0))
    shards, summary = load_shards(config, dataset, SingleProcessTransport())
    network = make_stages(config, dataset, summary)[0].network
    in_memory = prepare_network(network, config, shards, summary).run(name, number)

    first, *_ = group[f"{case}, {name} on {number}"]

    assert first["bytes_sent"] == [runtime.transport.bytes_sent for runtime in in_memory]


# What is refused, on all ranks alike


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (
            "different_weights",
            "SettingError: The ranks start from different weights. Seed torch before the network "
            "is built, the same on all ranks.",
        ),
        (
            "different_data",
            "DataError: The ranks have different data. Give all of them the same files.",
        ),
        (
            "private_files_not_federated",
            "PlacementError: Each rank has a shard of its own, and the placement all-layers needs "
            "all samples everywhere. Use --placement federated, on two ranks or more.",
        ),
    ],
)
def test_ranks_that_do_not_fit_together_are_told_so(group, job, message):
    assert errors(group, job) == [message] * 2


# What happens when a rank dies


def test_ranks_that_wait_for_one_that_died_say_so_and_end(group):
    found = errors(group, "deserted")

    for error, rank in zip(found, [0, 1, 3], strict=True):
        assert re.fullmatch(
            rf"PeerLostError: Rank {rank} (waited for the weights of block \d, time \d, and )?lost "
            r"the connection to (another rank|where the ranks meet). The log of the rank that "
            r"ended first says why.",
            error,
        )


def test_the_group_ends_with_the_status_of_the_rank_that_died(group):
    assert group["status"] == EXIT_STATUS
