"""Finished tasks on a disk that lost bits, is full or is gone."""

import json
import os
import re
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
from states import LAYOUTS, MOMENTS, REPORT, TASK, WEIGHTS, content, found, opened, with_a_task

from onward.errors import FileError
from onward.plan.tasks import Product, ProductKind, Task, TaskKind
from onward.runtime.store import file_name, product_of


@pytest.fixture
def kept(tmp_path):
    """A folder in which a task was kept."""
    return with_a_task(tmp_path)


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
