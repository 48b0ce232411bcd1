"""Finished tasks on a disk, and what can happen to them there."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_plan import chapters_of_two_blocks

from onward.errors import FileError
from onward.plan.tasks import Product, ProductKind, Task, TaskKind
from onward.runtime import store as store_module
from onward.runtime.store import Store, as_product, journal_line, read_journal

TASK = Task(TaskKind.TRAIN, 3, 1)
WEIGHTS, MOMENTS = (
    Product(thing, 3, 1) for thing in (ProductKind.WEIGHTS, ProductKind.OPTIMIZER_STATE)
)
REPORT = Product(ProductKind.REPORT, 3, 1)
LAYOUTS = {
    WEIGHTS: [torch.empty(4, 3), torch.empty(4)],
    MOMENTS: [torch.empty(4, 3), torch.empty((), dtype=torch.int64)],
    REPORT: [torch.empty(2, dtype=torch.float64)],
}


def opened(folder, rank=0, digest="of these settings"):
    return Store(folder, rank, digest, every=1)


def content(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        WEIGHTS: [torch.rand(4, 3, generator=draw), torch.rand(4, generator=draw)],
        MOMENTS: [torch.rand(4, 3, generator=draw), torch.tensor(7)],
        REPORT: [torch.tensor([0.1, float("nan")], dtype=torch.float64)],
    }


@pytest.fixture
def kept(tmp_path):
    """A folder in which a task was kept."""
    store = opened(tmp_path)
    store.keep(TASK, content())
    store.close()
    return tmp_path


def found(folder, **changes):
    store = opened(folder, **changes)
    products = store.look(LAYOUTS.get)
    store.close()
    return store, products


# What is written is read


def test_what_a_task_has_made_is_found_again_bit_for_bit(kept):
    store, products = found(kept)

    assert products == set(LAYOUTS)
    for product, tensors in content().items():
        for read, written in zip(store.read(product, LAYOUTS[product]), tensors, strict=True):
            torch.testing.assert_close(read, written, rtol=0, atol=0, equal_nan=True)
            assert read.dtype == written.dtype


def test_ranks_on_one_disk_read_what_others_have_kept(kept):
    store, products = found(kept, rank=5)

    assert products == set(LAYOUTS)
    assert store.read(WEIGHTS, LAYOUTS[WEIGHTS])[1].equal(content()[WEIGHTS][1])


def test_tensors_may_change_as_soon_as_they_are_kept(tmp_path):
    store, tensors = opened(tmp_path), content()

    store.keep(TASK, tensors)
    tensors[WEIGHTS][0].zero_()
    store.close()

    store, _ = found(tmp_path)
    assert store.read(WEIGHTS, LAYOUTS[WEIGHTS])[0].equal(content()[WEIGHTS][0])


def test_what_is_read_stays_when_the_file_goes(kept):
    store, _ = found(kept)
    weights, _ = store.read(WEIGHTS, LAYOUTS[WEIGHTS])

    shutil.rmtree(kept)

    assert weights.equal(content()[WEIGHTS][0])


def test_a_task_is_committed_once_it_is_written(tmp_path):
    store = opened(tmp_path)
    assert store.committed == -1

    store.keep(TASK, content())
    store.commit(3)
    store.close()

    assert store.committed == 3


# What goes


def test_what_nobody_goes_back_to_is_removed_and_nothing_else(tmp_path):
    plan = chapters_of_two_blocks()
    store = opened(tmp_path)
    for task in [t for t in plan.tasks() if t.kind is TaskKind.TRAIN]:
        kept = [p for p in plan.makes(task) if p.kind is not ProductKind.REPORT]
        store.keep(task, {product: [torch.zeros(2)] for product in kept})
    store.close()

    store.prune(plan, floor=2)

    names = sorted(path.stem for path in store.own.glob("*.safetensors"))
    assert names == sorted(
        f"{block}T{time}-{thing}"
        for block in (0, 1)
        for time in (2, 3)
        for thing in ("weights", "optimizer-state")
    )


def test_files_of_others_are_never_removed(kept):
    store, _ = found(kept, rank=1)
    store.seen = {0, 1}

    store.prune(chapters_of_two_blocks(), floor=3)

    assert len(list(kept.glob("rank-0/*.safetensors"))) == 2


@pytest.mark.parametrize(("floor", "left"), [(2, {"weights", "optimizer-state"}), (3, {"weights"})])
def test_files_of_ranks_that_a_run_goes_on_without_are_removed_as_ones_own(kept, floor, left):
    shutil.copytree(kept / "rank-0", kept / "rank-2")
    store, _ = found(kept)
    store.seen = {0, 1}

    store.prune(chapters_of_two_blocks(), floor)

    for rank in (0, 2):
        names = [path.stem for path in kept.glob(f"rank-{rank}/*.safetensors")]
        assert {name.partition("-")[2] for name in names} == left


# Who writes


WRITING = """
import sys, time
from pathlib import Path
from onward.runtime.store import Store
Store(Path(sys.argv[1]), 0, "digest", every=1)
print("writes", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that writes into the folder of rank 0."""
    command = [sys.executable, "-c", WRITING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_a_folder_into_which_another_process_writes_is_refused(tmp_path, other, monkeypatch):
    monkeypatch.setattr(store_module, "LOCKED_SECONDS", 0.1)

    with pytest.raises(FileError, match=r"Another process writes into .*rank-0: the run goes on"):
        opened(tmp_path)
    opened(tmp_path, rank=1)


def test_a_process_that_ends_is_waited_for(tmp_path, other):
    other.kill()

    opened(tmp_path)


def test_a_disk_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def without(file, *, blocking):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store_module, "lock_descriptor", without)

    store = opened(tmp_path)
    store.keep(TASK, content())
    store.close()

    assert found(tmp_path)[1] == set(LAYOUTS)


# Bad bytes


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_file_of_which_any_bit_has_changed_or_that_is_cut_is_not_used(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    store = opened(folder)
    store.keep(TASK, {WEIGHTS: content()[WEIGHTS]})
    store.close()
    (path,) = folder.glob("rank-0/*.safetensors")
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        bit = data.draw(st.integers(0, 8 * len(whole) - 1))
        damaged = whole[:]
        damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)

    store, products = found(folder)

    # A bit of the header may mean nothing, such as a space; then the product is whole.
    if products:
        (weights, bias), (expected, other) = (
            store.read(WEIGHTS, LAYOUTS[WEIGHTS]),
            content()[WEIGHTS],
        )
        assert weights.equal(expected)
        assert bias.equal(other)
    else:
        assert len(store.damaged) == 1
        assert str(path) in store.damaged[0]


def hostile(path, tensors=None, **header):
    """Write a file as a store does, but for some words of its header."""
    usual = {"format": 1, "run": "of these settings", "product": list(WEIGHTS), "sha256": "0"}
    metadata = {"onward": json.dumps({**usual, **header})}
    save_file(tensors or {"0": torch.zeros(4, 3), "1": torch.zeros(4)}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "is damaged: its content does not have its checksum."),
        ({"format": 2}, "was not written by this version of onward."),
        ({"format": None}, "was not written by this version of onward."),
        ({"run": "another"}, "is of a run with other settings."),
        ({"product": ["weights", 3, 9]}, "which the plan does not know."),
        ({"product": ["weights", -1, 0]}, "its header names no product."),
        ({"product": ["../../x", 3, 1]}, "its header names no product."),
        ({"product": {"weights": 1}}, "its header names no product."),
        ({"product": None}, "its header names no product."),
        ({"sha256": None}, "does not have its checksum."),
    ],
)
def test_a_hostile_header_is_named_and_not_used(header, message, tmp_path):
    opened(tmp_path).close()
    hostile(tmp_path / "rank-0" / "x.safetensors", **header)

    store, products = found(tmp_path)

    assert products == set()
    assert message in store.damaged[0]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0": torch.zeros(4, 3)}, "holds 1 tensors, and the plan says 2."),
        ({"0": torch.zeros(4, 3), "2": torch.zeros(4)}, "holds 2 tensors"),
        ({"0": torch.zeros(3, 4), "1": torch.zeros(4)}, "a tensor of shape (3, 4)"),
        ({"0": torch.zeros(4, 3).half(), "1": torch.zeros(4)}, "type F16"),
    ],
)
def test_other_tensors_than_the_plan_knows_are_named_and_not_used(tensors, message, tmp_path):
    opened(tmp_path).close()
    hostile(tmp_path / "rank-0" / "x.safetensors", tensors)

    store, products = found(tmp_path)

    assert products == set()
    assert message in store.damaged[0]


def test_a_file_that_says_it_is_huge_is_not_believed(tmp_path):
    opened(tmp_path).close()
    shape = {"dtype": "F32", "shape": [10**9, 10**3], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps({"0": shape}).encode()
    path = tmp_path / "rank-0" / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)

    store, products = found(tmp_path)

    assert products == set()
    assert "is damaged" in store.damaged[0]


def test_files_without_our_header_and_of_no_kind_at_all_are_not_used(tmp_path):
    opened(tmp_path).close()
    save_file({"0": torch.zeros(2)}, tmp_path / "rank-0" / "a.safetensors")
    (tmp_path / "rank-0" / "b.safetensors").write_bytes(b"")
    (tmp_path / "rank-0" / "c.safetensors").mkdir()

    store, products = found(tmp_path)

    assert products == set()
    assert len(store.damaged) == 3


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=6))
def test_anything_may_stand_where_a_product_is_named(entry):
    product = as_product(entry)

    assert product is None or list(product) == entry


# The journal


def test_a_journal_is_read_up_to_the_line_in_which_a_process_died(tmp_path):
    path, lines = (
        tmp_path / "journal.jsonl",
        [journal_line(REPORT, [n, 0.5], "run") for n in (0.0, 1.0, 2.0)],
    )

    path.write_text(lines[0] + lines[1][:20] + lines[2])

    assert list(read_journal(path, "run")) == [(REPORT, [0, 0.5]), (REPORT, [2, 0.5])]


@given(st.binary(max_size=200))
def test_a_journal_may_hold_anything(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    path.write_bytes(noise + journal_line(REPORT, [1.0, 2.0], "run").encode())

    *_, last = read_journal(path, "run")

    assert last == (REPORT, [1.0, 2.0])


# Bad disks

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root only")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)])
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@needs_root
def test_a_full_disk_is_named_and_what_was_written_before_is_whole(small_disk):
    store = opened(small_disk)
    store.keep(TASK, content())
    later = Task(TaskKind.TRAIN, 4, 1)
    store.keep(later, {Product(ProductKind.WEIGHTS, 4, 1): [torch.zeros(10**6)]})

    with pytest.raises(FileError, match="No space left on device"):
        store.close()

    assert found(small_disk)[1] == set(LAYOUTS)


def test_a_folder_that_vanishes_is_named(tmp_path):
    store = opened(tmp_path / "state")
    shutil.rmtree(tmp_path / "state")

    store.keep(TASK, content())

    with pytest.raises(FileError, match=r"cannot be written to .*No such file or directory"):
        store.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "state").write_text("in the way")

    with pytest.raises(FileError, match=r"state/rank-0 cannot be written to: Not a directory"):
        opened(tmp_path / "state")


def test_after_a_failure_the_next_task_hears_of_it(tmp_path):
    store = opened(tmp_path / "state")
    shutil.rmtree(tmp_path / "state")

    store.keep(TASK, content())
    while store.failure is None:
        time.sleep(0.01)

    with pytest.raises(FileError, match="cannot be written"):
        store.keep(TASK, content())
    with pytest.raises(FileError):
        store.close()


def test_a_damaged_state_is_passed_over_while_it_is_waited_for(kept):
    store, layout = opened(kept, rank=1), LAYOUTS[WEIGHTS]
    (path,) = kept.glob("rank-0/*-weights.safetensors")
    whole = path.read_bytes()

    path.write_bytes(whole[:-1])
    assert store.find(WEIGHTS, str(TASK), layout) is None
    path.write_bytes(whole)
    found = store.find(WEIGHTS, str(TASK), layout)

    assert found[0].equal(content()[WEIGHTS][0])
    store.close()


def test_reports_of_a_run_with_other_settings_are_not_taken(kept):
    _, products = found(kept, digest="of others")

    assert products == set()
