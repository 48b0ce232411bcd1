"""Readers of files end in their documented errors and nothing else, whatever a file holds."""

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import header_of
from test_bad_models import rewrite, with_changed

import onward as ow
from onward import checkpoint
from onward.config import RunConfig, read_run, read_settings
from onward.costs import times
from onward.data import arrays, cifar, idx
from onward.errors import DataError, FileError, OnwardError
from onward.plan.tasks import Product, ProductKind, Task, TaskKind
from onward.runs import folders
from onward.runtime.store import Store

WEIGHTS = Product(ProductKind.WEIGHTS, 1, 0)
LAYOUT = [torch.zeros(2, 3)]


def images():
    return bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 9, 8, 7, 6])


def npz(**members):
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


def model(folder):
    checkpoint.save(ow.mlp((4,), num_classes=3, widths=(5,)), folder / "model")
    return (folder / "model").read_bytes()


def state(folder):
    store = Store(folder, 0, "digest", every=1)
    store.keep(Task(TaskKind.TRAIN, 1, 0), {WEIGHTS: LAYOUT})
    store.close()
    (path,) = folder.glob("rank-0/*.safetensors")
    return path.read_bytes()


def look(path):
    """Read a state, which lies in the folder of a rank."""
    folder = path.parent / "rank-0"
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_bytes(path.read_bytes())
    store = Store(path.parent, 0, "digest", every=1)
    store.look(lambda product: LAYOUT if product == WEIGHTS else None)
    store.close()


READERS = {
    "idx": (lambda path: idx.read_idx(path, dimensions=3), "idx", lambda folder: images()),
    "npz": (
        lambda path: ow.load_data(str(path)),
        "own.npz",
        lambda folder: npz(x=np.zeros((4, 2)), y=np.arange(4), num_classes=4),
    ),
    "cifar": (cifar.read_batch, "batch.bin", lambda folder: bytes(cifar.ROW_BYTES)),
    "model": (checkpoint.load, "model.safetensors", model),
    "state": (look, "weights-1-0.safetensors", state),
    "toml": (
        lambda path: read_run(read_settings(path)).check(),
        "run.toml",
        lambda folder: RunConfig().to_toml().encode(),
    ),
    "result": (
        lambda path: folders.read_result(path.parent),
        "result.json",
        lambda folder: b'{"accuracy": {"test": 0.5}}',
    ),
    "costs": (times.read, "costs.json", lambda folder: b'{"train": [1.0], "samples": 5}'),
}
"""How each kind of file is read, its name, and a valid one."""


@st.composite
def changes(draw):
    """Draw a way to spoil a file: other bytes in it, bytes cut out, or all of them others."""
    kind = draw(st.sampled_from(["replace", "cut", "all"]))
    if kind == "all":
        noise = draw(st.binary(max_size=300))
        return lambda whole: noise
    where, length = draw(st.floats(0, 1)), draw(st.integers(0, 40))
    noise = draw(st.binary(max_size=40)) if kind == "replace" else b""

    def spoil(whole):
        first = int(where * len(whole))
        return whole[:first] + noise + whole[first + length :]

    return spoil


@pytest.mark.parametrize("name", READERS)
def test_anything_but_the_documented_errors_never_comes_out_of_a_file(name, tmp_path_factory):
    read, file, valid = READERS[name]
    whole = valid(tmp_path_factory.mktemp("valid"))

    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(changes())
    def check(spoil):
        path = tmp_path_factory.mktemp("file") / file
        path.write_bytes(spoil(whole))
        with contextlib.suppress(OnwardError):
            read(path)

    check()


# What fuzzing has found


def test_an_idx_file_of_no_samples_of_huge_size_is_refused(tmp_path):
    huge = b"\xff" * 4
    (tmp_path / "idx").write_bytes(bytes([0, 0, 8, 3]) + huge + bytes(4) + huge)

    with pytest.raises(DataError, match="and the file is too small for them"):
        idx.read_idx(tmp_path / "idx", dimensions=3)


# What would take more memory than there is


def member(shape):
    """Return a .npy file that announces a shape, and has eight bytes."""
    file = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(8)


@pytest.mark.parametrize("shape", [(10**12,), (10**6, 10**6, 10**6), (2,), ()])
def test_a_member_of_an_npz_file_is_as_large_as_it_says_or_refused(shape, tmp_path):
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member(shape))
        archive.writestr("y.npy", member((1,)))

    message = "header announces" if shape else "samples"
    with pytest.raises(DataError, match=message):
        ow.load_data(str(path))


def test_a_member_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)), y=np.zeros(1000))
    monkeypatch.setattr(arrays.psutil, "virtual_memory", lambda: type("M", (), {"total": 10**6}))

    with pytest.raises(DataError, match="it would unpack to 8000128 bytes, and there are 1000000"):
        ow.load_data(str(path))


@pytest.mark.parametrize("widths", [[10**6, 10**6], [10**18], [-5]])
def test_a_model_that_says_it_is_huge_is_not_believed(widths, tmp_path, monkeypatch):
    path = Path(tmp_path / "model.safetensors")
    checkpoint.save(ow.mlp((4,), num_classes=3, widths=(5,)), path)
    blueprint = header_of(path)["blueprint"]
    rewrite(path, blueprint=with_changed(blueprint, "settings", "widths", value=widths))

    with pytest.raises(FileError, match="describes no known network"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["toml", "result", "costs"])
def test_brackets_without_end_are_refused(name, tmp_path):
    read, file, _ = READERS[name]
    path = tmp_path / file
    path.write_text(("a = " if name == "toml" else "") + "[" * 100_000)

    with pytest.raises(OnwardError):
        read(path)
