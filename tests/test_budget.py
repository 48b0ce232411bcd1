"""Outputs of frozen blocks: where they are held, within a budget, to the same bits."""

import errno
import os
from functools import cache

import pytest
import torch
from prepared import (
    CHAPTERS,
    SLICED,
    SMALL,
    assert_same_weights,
    digits,
    prepare,
    prepare_network,
    reference,
)
from weight_jobs import convolutions

import onward as ow
from onward.checkpoint import weights_sha256
from onward.config import RunConfig
from onward.costs import budget, memory
from onward.costs.budget import Held, Place, check, held_on_ranks, with_room
from onward.errors import FileError, SettingError
from onward.placement import Placement, place
from onward.runs.sharding import load_shards, split
from onward.runtime import holding, workers
from onward.runtime.chapters import ChapterWorker
from onward.runtime.holding import in_file, in_memory
from onward.transport.messages import SingleProcessTransport


@pytest.fixture
def files(monkeypatch):
    """The bytes of each file that holds activities."""
    sizes = []

    def noted(samples, like):
        sizes.append(sum(samples) * like[:1].nbytes)
        return in_file(samples, like)

    monkeypatch.setitem(holding.HOLDS, "file", noted)
    return sizes


# The law


@cache
def convolved(name, num_ranks, way, augmented, epochs=4, chapters=2):
    changes = {"data.shift": 1, "data.flip": "random"} if augmented else {}
    changes |= {"training.epochs": epochs, "plan.chapters": chapters, "training.batch_size": 150}
    config = RunConfig().with_settings(SMALL | changes)
    shards, summary = load_shards(config, split(config, digits()), SingleProcessTransport())
    network = convolutions().to(memory_format=torch.channels_last)
    prepared = prepare_network(network, config, shards, summary)
    first, *_ = prepared.run(name, num_ranks, way=way)
    return first.worker.network


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("way", "augmented"), [("file", False), ("file", True), ("again", True)])
@pytest.mark.parametrize(("name", "num_ranks"), [("sequential", 1), ("all-layers", 2)])
def test_convolutions_end_in_the_same_weights_wherever_activities_are(
    name, num_ranks, way, augmented
):
    expected = convolved("sequential", 1, "memory", augmented)

    assert_same_weights(convolved(name, num_ranks, way, augmented), expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("case", "way"),
    [
        ("adaptive, softmax", "file"),
        ("three chapters an epoch", "file"),
        ("shifted", "file"),
        ("shifted", "again"),
        ("shifted, two epochs a chapter", "again"),
        ("shifted, three chapters an epoch", "again"),
    ],
)
def test_runs_with_hints_end_in_the_same_weights_wherever_activities_are(case, way, files):
    prepared = prepare(*CHAPTERS[case])

    for name, num_ranks in [("sequential", 1), ("single-layer", 3)]:
        first, *_ = prepared.run(name, num_ranks, way=way)
        assert_same_weights(first.worker.network, reference("chapters", case))

    assert bool(files) is (way == "file")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("case", "way"),
    [
        ("samples, adaptive, softmax", "file"),
        ("samples, adaptive, softmax, shifted", "file"),
        ("samples, adaptive, softmax, shifted", "again"),
    ],
)
def test_teams_end_in_the_same_weights_wherever_activities_are(case, way):
    first, *_ = prepare(*SLICED[case]).run("all-layers", 4, 2, way=way)

    assert_same_weights(first.worker.network, reference("sliced", case))


@pytest.mark.usefixtures("unchecked")
def test_activities_are_laid_out_alike_wherever_they_are(monkeypatch):
    seen, prepared = set(), ChapterWorker._prepared

    def noted(worker, block, read):
        seen.update((block, view.tensor[:1].stride()[1:]) for view in read.values())
        return prepared(worker, block, read)

    monkeypatch.setattr(ChapterWorker, "_prepared", noted)
    found = {}
    for way in ("memory", "file", "again"):
        seen.clear()
        convolved.__wrapped__("sequential", 1, way, augmented=True, epochs=1, chapters=1)
        found[way] = set(seen)

    assert found["file"] == found["again"] == found["memory"]
    # Channels lie last: beside the one of the input, a step of one from each to the next.
    assert {strides[0] for block, strides in found["memory"] if block} == {1}


@pytest.mark.usefixtures("unchecked")
def test_augmented_samples_are_never_all_in_memory_where_they_pass_again(monkeypatch):
    drawn, passed = set(), set()
    sampled, infer = workers.Worker.sampled, ow.Block.infer

    def noted(worker, batch, *given):
        drawn.add(len(batch))
        return sampled(worker, batch, *given)

    def noted_pass(block, batch):
        passed.add(len(batch))
        return infer(block, batch)

    changes = {"data.shift": 1, "training.batch_size": 40, "network.readout": "softmax"}
    prepared = prepare("pff", SMALL | changes | {"data.validation": 10})
    monkeypatch.setattr(workers.Worker, "sampled", noted)
    monkeypatch.setattr(ow.Block, "infer", noted_pass)

    (runtime,) = prepared.run("sequential", 1, way="again")

    assert runtime.worker.activities
    assert not any(each.known for each in runtime.worker.activities.values())
    # Of 650 samples twelve mini-batches, and what is left; chunks where they are scored.
    assert drawn == {40, 10}
    assert {480, 170} <= passed
    assert max(passed) <= 500


# Files


def test_tensors_in_a_file_are_apart_aligned_and_like_those_in_memory():
    like = torch.empty(2, 3, 5, dtype=torch.bfloat16)

    held = in_file([7, 2, 4], like)

    for tensor, usual in zip(held, in_memory([7, 2, 4], like), strict=True):
        assert tensor.shape == usual.shape
        assert tensor.stride() == usual.stride()
        assert tensor.dtype is torch.bfloat16
        assert tensor.data_ptr() % 64 == 0
    for number, tensor in enumerate(held):
        tensor.fill_(number)
    assert [set(tensor.flatten().tolist()) for tensor in held] == [{0.0}, {1.0}, {2.0}]


def test_nothing_takes_no_file():
    (held,) = in_file([0], torch.empty(1, 3))

    assert held.shape == (0, 3)


def test_a_file_has_no_name_that_a_crash_could_leave_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "folder", lambda: tmp_path)

    held = in_file([10], torch.empty(1, 3))

    assert list(tmp_path.iterdir()) == []
    held[0].fill_(1)
    del held


def test_a_disk_without_room_is_refused_with_the_numbers(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)

    with pytest.raises(FileError, match=r"take 1\.2 GB in a file in .*: No space left on device"):
        in_file([100_000_000], torch.empty(1, 3))


def test_files_are_in_no_folder_that_lies_in_memory(tmp_path, monkeypatch):
    kinds = {str(tmp_path): "tmpfs", "/": "ext4"}

    class Part:
        def __init__(self, mountpoint, fstype):
            self.mountpoint, self.fstype = mountpoint, fstype

    monkeypatch.setattr(
        holding.psutil, "disk_partitions", lambda all: [Part(*each) for each in kinds.items()]
    )
    monkeypatch.setattr(holding.tempfile, "gettempdir", lambda: str(tmp_path / "deep"))

    monkeypatch.delenv("TMPDIR", raising=False)
    assert str(holding.folder()) == "/var/tmp"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert holding.folder() == tmp_path / "deep"
    assert budget.place().disk == 0


def test_what_a_process_holds_is_no_room_in_the_limit_of_its_group(monkeypatch):
    kept = [100, 1000]
    known = {"x the memory of the machine": 1 << 60, "x control group": 1000}
    monkeypatch.setattr(memory, "limits", lambda: known)
    monkeypatch.setattr(memory, "resident", kept.pop)

    assert [budget.place().memory, budget.place().memory] == [0, 900]


# The choice


@pytest.mark.parametrize(
    ("memory", "disk", "ways", "expected"),
    [
        (10, 0, ("memory", "file"), "memory"),
        (9, 10, ("memory", "file"), "file"),
        (9, 9, ("memory", "file"), None),
        (9, 9, ("memory", "file", "again"), "again"),
        (9, 10, ("memory", "file", "again"), "file"),
        (10, 10, ("again",), "again"),
        (1, 10, ("memory", "file", "again"), None),
    ],
)
def test_the_first_way_with_room_is_chosen(memory, disk, ways, expected):
    assert Held(10, 2, ways, memory, disk).way == expected
    assert Held(0, 0, ways, memory, disk).way == "memory"


def test_ranks_share_what_their_machine_has_and_teams_hold_alike():
    places = [Place("a", 80, 60, "/tmp")] * 2 + [Place("b", 10, 100, "/tmp")]
    held = [Held(15, 1, ("memory", "file"))] * 3

    apart = with_room(held, places, Placement("all-layers", (1, 1, 1)))
    together = with_room(held, places, Placement("all-layers", (1, 2)))
    told = [place._replace(gigabytes=15e-9) for place in places]
    chosen = with_room(held, told, Placement("all-layers", (1, 1, 1)))

    assert [(each.memory, each.disk, each.way) for each in apart] == [
        (20, 30, "memory"),
        (20, 30, "memory"),
        (5, 100, "file"),
    ]
    assert [(each.memory, each.disk) for each in together] == [(20, 30), (5, 30), (5, 30)]
    assert [each.memory for each in chosen] == [15] * 3


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (
            Held(8_000_000_000, 10, ("memory", "file"), 2_000_000_000, 3_000_000_000),
            r"for the samples of a chapter take about 8\.0 GB on rank 1, which may hold 2\.0 GB "
            r"in memory and has 3\.0 GB for it on the disk of /tmp\. Raise placement\.memory",
        ),
        (
            Held(8_000_000_000, 50_000_000, ("memory", "file", "again"), 2_000_000),
            r"for a chunk of samples take about 0\.05 GB on rank 1, which may hold 0\.002 GB\. "
            r"Raise placement\.memory \(in GB\), or",
        ),
    ],
)
def test_a_rank_without_room_is_refused_with_the_numbers(held, message):
    with pytest.raises(SettingError, match=message):
        check([Held(0, 0, ("memory",)), held], [Place("a", 0, 0, "/tmp")] * 2)


def of_case(cases, case, name, num_ranks, replicas=1):
    prepared = prepare(*cases[case])
    placement = place(prepared.plan, name, num_ranks, prepared.costs(), replicas)
    training = prepared.shards[0].training
    return held_on_ranks(prepared.plan, placement, prepared.network, training, prepared.settings)


ROWS = 590


def test_what_is_put_out_follows_from_the_blocks():
    (usual,) = of_case(CHAPTERS, "one-pass", "sequential", 1)
    (longer,) = of_case(CHAPTERS, "shifted, two epochs a chapter", "sequential", 1)

    # Those of blocks 0 and 1, of 24 and 20 numbers, while samples pass on.
    each = 4 * (24 + 20)
    assert usual == Held(ROWS * each, 500 * each, ("memory", "file"))
    assert longer == Held(2 * ROWS * each, 500 * each, ("memory", "file", "again"))


def test_ranks_of_one_block_pass_augmented_samples_again_since_nobody_else_reads_them():
    alone = of_case(CHAPTERS, "shifted", "single-layer", 4)
    several = of_case(CHAPTERS, "shifted", "single-layer", 2)
    in_turn = of_case(CHAPTERS, "shifted", "all-layers", 2)
    usual = of_case(CHAPTERS, "adaptive, softmax", "single-layer", 4)
    team = of_case(SLICED, "samples, adaptive, softmax, shifted", "single-layer", 8, replicas=2)

    assert {each.ways for each in alone} == {("again",)}
    # The first of two ranks has one block, the most expensive one.
    assert {each.ways for each in (several[1], *in_turn, *team)} == {("memory", "file", "again")}
    assert {each.ways for each in usual} == {("memory", "file")}


def test_what_is_held_elsewhere_is_not_in_memory_but_for_a_chunk():
    prepared = prepare(*CHAPTERS["shifted, two epochs a chapter"])
    placement = place(prepared.plan, "sequential", 1, prepared.costs())
    training = prepared.shards[0].training

    given = prepared.plan, placement, prepared.network, training, prepared.settings
    sizes = memory.sizes_of(*given)
    usual, other = (memory.estimate(*given, ways=[way])[0] for way in ("memory", "file"))

    assert sizes.in_memory[2] - sizes.elsewhere[2] == (2 * ROWS - 500) * 4 * (24 + 20)
    assert usual > other


# A run


def trained(gigabytes=None, **more):
    training = ow.TrainingConfig(epochs=1, batch_size=200, precision="fp32")
    where = ow.PlacementConfig(memory=gigabytes)
    return ow.train(convolutions(), digits(), training=training, placement=where, **more)


class Notes(ow.Listener):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def test_a_run_keeps_to_its_budget_and_says_so(files):
    notes = Notes()

    usual = trained()
    # Blocks put out 4 and 6 channels of 64 numbers for 594 samples: 1.5 MB.
    small = trained(0.0014, listener=notes)

    assert (usual.facts["activities"], small.facts["activities"]) == (["memory"], ["file"])
    assert small.facts["weights_sha256"] == usual.facts["weights_sha256"]
    assert sorted(set(files)) == [594 * 4 * 64 * channels for channels in (4, 6)]
    (text,) = notes.texts
    assert text.startswith("The outputs of frozen blocks, about 1.52 MB, are held in a file in ")


def test_a_budget_below_a_chunk_is_refused():
    with pytest.raises(
        SettingError, match=r"about 0\.00128 GB on rank 0, which may hold 0\.0001 GB"
    ):
        trained(0.0001)


def test_two_budgets_train_the_same_network_on_augmented_samples(files):
    usual, small = (trained(room, augment=ow.Translate(1)) for room in (None, 0.0014))

    assert usual.facts["weights_sha256"] == small.facts["weights_sha256"]
    assert small.facts["activities"] == ["file"]
    assert weights_sha256(usual.network) != weights_sha256(trained().network)
    assert files
