"""Finished tasks on a disk: what is written, found, removed, and who writes."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from plans import chapters_of_two_blocks
from states import LAYOUTS, MOMENTS, REPORT, TASK, WEIGHTS, content, found, opened, with_a_task

from onward.errors import FileError
from onward.plan.tasks import Product, ProductKind, TaskKind
from onward.runtime import store as store_module
from onward.runtime.store import Store, check_idle, file_name


@pytest.fixture
def kept(tmp_path):
    """A folder in which a task was kept."""
    return with_a_task(tmp_path)


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
