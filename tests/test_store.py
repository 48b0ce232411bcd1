"""Finished tasks on a disk, and what can happen to them there."""

import errno
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import chapters_of_two_blocks
from safetensors.torch import save_file

from onward.errors import FileError
from onward.plan.tasks import Product, ProductKind, Task, TaskKind
from onward.runtime import store as store_module
from onward.runtime.store import Store, check_idle, file_name, product_of

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
    products = set(store.look(LAYOUTS.get))
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


def test_what_others_keep_is_found_when_a_rank_looks_again(kept):
    store, later = opened(kept), Product(ProductKind.REPORT, 4, 1)
    other = opened(kept, rank=1)
    layouts = {**LAYOUTS, later: LAYOUTS[REPORT]}
    assert set(store.look(layouts.get)) == set(LAYOUTS)

    other.keep(TASK, {later: content()[REPORT]})
    other.close()

    assert store.look(layouts.get) == [later]
    assert store.look(layouts.get) == []
    store.close()


def test_what_a_rank_has_kept_itself_is_no_news_to_it(tmp_path):
    store = opened(tmp_path)

    store.keep(TASK, content())
    store.close()

    assert len(list(store.own.glob("*.safetensors"))) == 3
    assert store.look(LAYOUTS.get) == []


def test_what_the_plan_does_not_know_is_passed_over(kept):
    store = opened(kept)

    assert store.look({REPORT: LAYOUTS[REPORT]}.get) == [REPORT]
    assert store.damaged == set()
    store.close()


def test_what_a_killed_process_had_not_written_whole_is_removed(kept):
    left = [kept / "rank-0" / name for name in ("weights-4-1.safetensors.partial", ".tmpQ2hJx9")]
    for path in left:
        path.touch()

    _, products = found(kept)

    assert products == set(LAYOUTS)
    assert not any(path.exists() for path in left)


def test_tensors_may_change_as_soon_as_they_are_kept(tmp_path):
    store, tensors = opened(tmp_path), content()

    store.keep(TASK, tensors)
    tensors[WEIGHTS][0].zero_()
    store.close()

    store, _ = found(tmp_path)
    assert store.read(WEIGHTS, LAYOUTS[WEIGHTS])[0].equal(content()[WEIGHTS][0])


def test_what_is_read_stays_when_the_file_changes_or_goes(kept):
    store, _ = found(kept)
    weights, _ = store.read(WEIGHTS, LAYOUTS[WEIGHTS])

    path = kept / "rank-0" / file_name(WEIGHTS)
    with path.open("rb+") as file:
        file.write(bytes(path.stat().st_size))
    shutil.rmtree(kept)

    assert weights.equal(content()[WEIGHTS][0])


def test_a_task_is_committed_once_it_is_written(tmp_path):
    store = opened(tmp_path)
    assert store.committed == -1

    store.keep(TASK, content())
    store.commit(3)
    store.close()

    assert store.committed == 3


def test_after_a_failure_nothing_more_is_written_or_committed(tmp_path, monkeypatch):
    store, fails = opened(tmp_path), threading.Event()

    def save_file(tensors, path, metadata):
        fails.wait()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(store_module, "save_file", save_file)
    store.keep(TASK, content())
    store.commit(3)
    fails.set()

    with pytest.raises(FileError, match=r"What 1T3 made cannot be written to .*: Input/output"):
        store.close()
    assert store.committed == -1


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_task_is_done_again_where_a_kill_has_left_no_report_of_it(written, tmp_path, monkeypatch):
    """Ranks that share a folder go on meanwhile, and would wait for the report in vain."""
    store, save_file, calls = opened(tmp_path), store_module.save_file, itertools.count()

    def save_some(tensors, path, metadata):
        if next(calls) == written:
            raise OSError(errno.EIO, "killed")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(store_module, "save_file", save_some)
    store.keep(TASK, content())
    with pytest.raises(FileError, match="killed"):
        store.close()

    _, products = found(tmp_path)

    assert len(products) == written
    left = replace(chapters_of_two_blocks(), held=frozenset(products))
    assert REPORT in products or TASK in left.rest


# What goes


@pytest.mark.parametrize(("every", "times"), [(1, (2, 3)), (2, (1, 2, 3)), (4, (0, 1, 2, 3))])
def test_what_nobody_goes_back_to_is_removed_and_nothing_else(every, times, tmp_path):
    plan = chapters_of_two_blocks()
    store = Store(tmp_path, 0, "of these settings", every)
    for task in [t for t in plan.tasks() if t.kind is TaskKind.TRAIN]:
        kept = [p for p in plan.makes(task) if p.kind is not ProductKind.REPORT]
        store.keep(task, {product: [torch.zeros(2)] for product in kept})
    store.close()

    store.prune(plan, floor=2)

    left = {
        Product(kind, time, block)
        for kind in (ProductKind.WEIGHTS, ProductKind.OPTIMIZER_STATE)
        for time in times
        for block in (0, 1)
    }
    assert {path.name for path in store.own.glob("*.safetensors")} == set(map(file_name, left))
    assert store.known == left


def test_files_of_others_are_never_removed(kept):
    store, _ = found(kept, rank=1)
    store.seen = {0, 1}

    store.prune(chapters_of_two_blocks(), floor=3)

    assert len(list(kept.glob("rank-0/*.safetensors"))) == 3


@pytest.mark.parametrize(
    ("floor", "left"), [(2, {WEIGHTS, MOMENTS, REPORT}), (3, {WEIGHTS, REPORT})]
)
def test_files_of_ranks_that_a_run_goes_on_without_are_removed_as_ones_own(kept, floor, left):
    shutil.copytree(kept / "rank-0", kept / "rank-2")
    store, _ = found(kept)
    store.seen = {0, 1}

    store.prune(chapters_of_two_blocks(), floor)

    for rank in (0, 2):
        names = {path.name for path in kept.glob(f"rank-{rank}/*.safetensors")}
        assert names == {file_name(product) for product in left}


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
    with pytest.raises(FileError, match=r"Another process writes into .*rank-0: the run goes on"):
        check_idle(tmp_path)
    opened(tmp_path, rank=1)


def test_a_process_that_ends_is_waited_for(tmp_path, other):
    other.kill()

    check_idle(tmp_path)
    opened(tmp_path)


def test_a_folder_of_states_that_nobody_writes_is_idle(kept, tmp_path):
    check_idle(kept)
    check_idle(tmp_path / "nowhere")

    opened(kept).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks_is_written_to_all_the_same(number, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def without(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)

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
        (reason,) = store.damaged
        assert str(path) in reason


def hostile(folder, tensors=None, **header):
    """Write a file as a store does, but for some words of its header."""
    opened(folder).close()
    usual = {"format": "2", "run": "of these settings", "product": file_name(WEIGHTS), "sha256": ""}
    tensors = tensors or {"0": torch.zeros(4, 3), "1": torch.zeros(4)}
    path = folder / "rank-0" / file_name(WEIGHTS)
    save_file(tensors, path, metadata={**usual, **header})
    return path


@pytest.mark.parametrize(
    ("header", "wrong"),
    [
        ({}, "sha256"),
        ({"format": "1"}, "format, sha256"),
        ({"run": "another"}, "run, sha256"),
        ({"product": file_name(MOMENTS)}, "product, sha256"),
        ({"format": "", "run": "", "product": ""}, "format, run, product, sha256"),
    ],
)
def test_a_hostile_header_is_named_and_not_used(header, wrong, tmp_path):
    path = hostile(tmp_path, **header)

    store, products = found(tmp_path)

    assert products == set()
    assert store.damaged == {
        f"{path} is damaged, or of another run: its {wrong} is not as expected."
    }
    with pytest.raises(FileError, match=re.escape(str(path))):
        store.read(WEIGHTS, LAYOUTS[WEIGHTS])


@pytest.mark.parametrize("product", [MOMENTS, Product(ProductKind.WEIGHTS, 4, 1)])
def test_a_whole_file_under_the_name_of_another_is_not_used(product, kept):
    (kept / "rank-0" / file_name(WEIGHTS)).rename(kept / "rank-0" / file_name(product))

    store = opened(kept)
    products = store.look({product: LAYOUTS[WEIGHTS]}.get)
    store.close()

    assert products == []
    assert "its product" in store.damaged.pop()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0": torch.zeros(4, 3)}, "File does not contain tensor 1"),
        ({"0": torch.zeros(4, 3), "2": torch.zeros(4)}, "File does not contain tensor 1"),
        ({"0": torch.zeros(3, 4), "1": torch.zeros(4)}, "holds [((3, 4), torch.float32), ((4,),"),
        ({"0": torch.zeros(4, 3).half(), "1": torch.zeros(4)}, "holds [((4, 3), torch.float16)"),
    ],
)
def test_other_tensors_than_the_plan_knows_are_named_and_not_used(tensors, message, tmp_path):
    hostile(tmp_path, tensors)

    store, products = found(tmp_path)

    assert products == set()
    assert message in store.damaged.pop()


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a file of holes may take room")


@pytest.mark.parametrize(
    "holds",
    [0, pytest.param(10**10, marks=on_linux), pytest.param(10**13, marks=on_linux)],
)
def test_a_file_that_says_it_is_huge_is_not_believed(holds, tmp_path):
    path, size = hostile(tmp_path), holds or 10**12
    shape = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"0": shape, "1": {**shape, "shape": [0], "data_offsets": [size] * 2}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    os.truncate(path, 8 + len(header) + holds)

    started = time.monotonic()
    store, products = found(tmp_path)
    path.unlink()

    assert products == set()
    assert "is damaged" in store.damaged.pop()
    assert time.monotonic() - started < 5


def test_files_without_our_header_and_of_no_kind_at_all_are_not_used(tmp_path):
    path = hostile(tmp_path)
    save_file({"0": torch.zeros(4, 3), "1": torch.zeros(4)}, path)
    path.with_name(file_name(MOMENTS)).write_bytes(b"")
    path.with_name(file_name(REPORT)).mkdir()

    store, products = found(tmp_path)

    assert products == set()
    assert len(store.damaged) == 3


@given(
    st.sampled_from(ProductKind),
    st.integers(0, 10**12) | st.text("0123456789-_ ", max_size=4),
    st.integers(0, 10**12) | st.text("0123456789-_ ", max_size=4),
)
def test_a_file_has_one_name_and_any_other_names_no_product(kind, time, block):
    name = file_name(Product(kind, time, block))

    product = product_of(name)

    if isinstance(time, int) and isinstance(block, int):
        assert product == (kind, time, block)
    else:
        assert product is None or (str(product.time), str(product.block)) == (str(time), str(block))


@given(st.text(max_size=30))
def test_anything_may_lie_in_a_folder(name):
    product = product_of(name)

    assert product is None or file_name(product) == name


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


def test_a_damaged_state_is_read_once_it_is_whole(kept):
    store, layout = opened(kept, rank=1), LAYOUTS[WEIGHTS]
    path = kept / "rank-0" / file_name(WEIGHTS)
    whole = path.read_bytes()

    path.write_bytes(whole[:-1])
    with pytest.raises(FileError, match="is damaged"):
        store.read(WEIGHTS, layout)
    path.write_bytes(whole)

    assert store.read(WEIGHTS, layout)[0].equal(content()[WEIGHTS][0])
    store.close()


def test_a_whole_copy_is_read_where_another_is_damaged(kept):
    shutil.copytree(kept / "rank-0", kept / "rank-1")
    path = kept / "rank-0" / file_name(WEIGHTS)
    path.write_bytes(path.read_bytes()[:-1])

    store, products = found(kept, rank=2)

    assert products == set(LAYOUTS)
    assert len(store.damaged) == 1
    assert store.read(WEIGHTS, LAYOUTS[WEIGHTS])[0].equal(content()[WEIGHTS][0])


def test_what_nobody_has_kept_is_named(kept):
    store, _ = found(kept)
    (kept / "rank-0" / file_name(WEIGHTS)).unlink()

    with pytest.raises(FileError, match=r"does not hold weights-3-1\.safetensors"):
        store.read(WEIGHTS, LAYOUTS[WEIGHTS])


def test_reports_of_a_run_with_other_settings_are_not_taken(kept):
    _, products = found(kept, digest="of others")

    assert products == set()
