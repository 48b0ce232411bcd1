"""Samples that stay in their file are those that a copy in memory would be."""

import copy
import pickle

import numpy as np
import pytest
import torch
from prepared import assert_same_weights

import onward as ow
from onward.data import mapped
from onward.data.mapped import MappedSamples
from onward.digests import tensors_sha256
from onward.errors import DataError

pytestmark = pytest.mark.usefixtures("unchecked_module")


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch):
    monkeypatch.setattr(mapped, "LEFT_BYTES", 2000)


@pytest.fixture
def pair(tmp_path):
    """Return samples in memory, and the same in their file."""
    values = np.random.default_rng(0).integers(0, 256, (90, 3, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "x.npy", values)
    found = mapped.mapped(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert isinstance(found, MappedSamples)
    rows = torch.randperm(90, generator=torch.Generator().manual_seed(1))[:70]
    return torch.from_numpy(values)[rows], found[rows]


CHOICES = {
    "a sample": lambda x: x[3],
    "the last sample": lambda x: x[-1],
    "a sample by a tensor": lambda x: x[torch.tensor(3)],
    "a range": lambda x: x[2:9],
    "a range to the end": lambda x: x[60:],
    "every third": lambda x: x[1:60:3],
    "all": lambda x: x[:],
    "numbers": lambda x: x[torch.tensor([5, 0, 5, -1])],
    "a list": lambda x: x[[4, 2]],
    "a mask": lambda x: x[torch.arange(70) % 3 == 0],
    "numbers of numbers": lambda x: x[torch.arange(50)][torch.tensor([7, 3])],
    "a range of numbers": lambda x: x[torch.arange(50)][10:40][5:7],
    "a channel": lambda x: x[:, 1],
    "a channel of some": lambda x: x[3:5, 1],
    "pixels of some": lambda x: x[torch.tensor([1, 2]), 0, torch.tensor([3, 4])],
    "a new axis": lambda x: x[None],
    "a row of pixels": lambda x: x[..., 2, :],
    "parts": lambda x: torch.cat(x.split(13)),
    "parts of sizes": lambda x: torch.cat(x.split([30, 40])),
    "parts of an axis": lambda x: torch.cat(x.split(2, dim=1), dim=1),
    "one after the other": lambda x: torch.stack(list(x)),
    "selected": lambda x: x.index_select(0, torch.tensor([2, 2])),
    "arithmetic": lambda x: x.float() / 255 + 1,
    "sum": lambda x: x.double().sum(),
    "flat": lambda x: x.flatten(1),
    "copied": lambda x: x.clone(),
    "as an array": lambda x: torch.from_numpy(x.numpy()),
    "beside another": lambda x: torch.cat([torch.zeros_like(x[:2]), x]),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_done_with_it_is_done_with_its_samples(choice, pair):
    plain, left = pair

    found = CHOICES[choice](left)

    assert torch.equal(mapped.whole(found), CHOICES[choice](plain))


def test_many_chosen_samples_are_not_read_and_few_are(pair):
    _, left = pair

    assert isinstance(left[torch.arange(60)], MappedSamples)
    assert isinstance(left[:40], MappedSamples)
    assert all(isinstance(part, MappedSamples) for part in left.split(5))
    assert type(left[:5]) is type(left[torch.arange(5)]) is torch.Tensor


def test_its_digest_is_that_of_its_samples(pair):
    plain, left = pair

    assert tensors_sha256({"x": left}) == tensors_sha256({"x": plain})


def test_what_is_written_never_comes_to_the_file(pair, tmp_path):
    plain, left = pair
    before = (tmp_path / "x.npy").read_bytes()

    left.whole().zero_()
    left[3].zero_()

    assert (tmp_path / "x.npy").read_bytes() == before
    assert torch.equal(left.whole(), plain)


def test_it_says_what_it_is_in_a_line(pair):
    assert repr(pair[1]) == "<MappedSamples: torch.uint8 of shape (70, 3, 8, 8)>"


@pytest.mark.parametrize("mode", ["r+", None])
def test_what_others_may_write_to_is_copied(mode, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((90, 192), np.uint8))
    array = np.load(tmp_path / "x.npy", mmap_mode=mode)

    dataset = ow.dataset(array, np.arange(90) % 2)
    array[:] = 1

    assert not isinstance(dataset.x, MappedSamples)
    assert dataset.x.max() == 0


# Training


def write(folder, dtype, samples=400):
    draw = np.random.default_rng(0)
    y = np.arange(samples) % 4
    x = draw.integers(0, 99, (samples, 3, 8, 8)) + 30 * y[:, None, None, None]
    x = x.astype(np.uint8) if dtype == "uint8" else (x / 50 - 1).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return x, y


def config_of(folder, kind, **more):
    given = {
        "data.name": str(folder / "x.npy"),
        "data.label": str(folder / "y.npy"),
        "network.channels": (4, 4),
        "network.pooled": (1, 2),
        "training.epochs": 2,
        "training.batch_size": 50,
        "training.precision": "fp32",
        "plan.kind": kind,
    }
    return ow.RunConfig(recipe="conv").with_settings(given | more)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("kind", ["stream", "chapters"])
def test_a_run_from_the_file_is_that_from_memory(dtype, kind, tmp_path, monkeypatch):
    x, y = write(tmp_path, dtype)
    mapped_too = ow.dataset(np.load(tmp_path / "x.npy", mmap_mode="r"), y, name="x.npy")
    left = ow.load_data(str(tmp_path / "x.npy"), label=str(tmp_path / "y.npy"))

    found = ow.run(config_of(tmp_path, kind))
    expected = ow.run(config_of(tmp_path, kind), dataset=ow.dataset(x, y, name="x.npy"))

    assert isinstance(left.x, MappedSamples)
    assert isinstance(mapped_too.x, MappedSamples)
    assert left.sha256() == mapped_too.sha256() == ow.dataset(x, y).sha256()
    assert_same_weights(found.network, expected.network)
    assert found.to_json()["accuracy"] == expected.to_json()["accuracy"]
    assert found.facts["data_sha256"] == expected.facts["data_sha256"]
    assert found.network.trained_on == expected.network.trained_on


def test_a_stream_never_reads_all_samples_together(tmp_path, monkeypatch):
    write(tmp_path, "uint8", samples=6000)
    most = 0
    read = mapped.MappedFile.read

    def watched(self, rows):
        nonlocal most
        most = max(most, len(rows))
        return read(self, rows)

    monkeypatch.setattr(mapped.MappedFile, "read", watched)

    result = ow.run(config_of(tmp_path, "stream", **{"data.shift": 1}))

    assert result.accuracy > 0.5
    assert 0 < most <= 1000


def test_several_processes_end_in_the_same_weights(tmp_path, monkeypatch):
    from commands import onward

    write(tmp_path, "uint8")
    file = tmp_path / "run.toml"
    file.write_text(config_of(tmp_path, "stream").to_toml())

    onward("train", file, f"--out={tmp_path / 'one'}")
    onward("train", file, f"--out={tmp_path / 'two'}", "--processes=2")

    found = [ow.load(tmp_path / name) for name in ("one", "two")]
    assert_same_weights(*found)


def test_odd_values_are_found_and_their_row_is_named(tmp_path):
    x, _ = write(tmp_path, "float32")
    x[321, 1, 2, 3] = np.nan
    np.save(tmp_path / "x.npy", x)

    with pytest.raises(DataError, match=r"holds 1 values that are NaN .* first in row 321"):
        ow.load_data(str(tmp_path / "x.npy"), label=str(tmp_path / "y.npy"))


def test_what_is_changed_in_memory_alone_is_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((90, 192), np.uint8))
    array = np.load(tmp_path / "x.npy", mmap_mode="c")
    array[:] = 7

    dataset = ow.dataset(array, np.arange(90) % 2)

    assert not isinstance(dataset.x, MappedSamples)
    assert dataset.x.min() == 7


def test_a_file_that_is_replaced_or_removed_later_is_still_read(tmp_path):
    np.save(tmp_path / "x.npy", np.full((90, 192), 7, np.uint8))
    np.save(tmp_path / "other.npy", np.zeros((90, 192), np.uint8))
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    (tmp_path / "other.npy").replace(tmp_path / "x.npy")

    dataset = ow.dataset(array, np.arange(90) % 2)
    (tmp_path / "x.npy").unlink()

    assert isinstance(dataset.x, MappedSamples)
    assert dataset.x.whole().min() == dataset.x_test.min() == 7


WRITES = {
    "zero_": lambda x: x.zero_(),
    "a sample": lambda x: x.__setitem__(0, 7),
    "out": lambda x: torch.add(x, 1, out=x),
    "copy_": lambda x: x.copy_(torch.zeros_like(x)),
    "shared memory": lambda x: x.share_memory_(),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_would_write_to_it_is_refused(name, pair):
    plain, left = pair

    with pytest.raises(TypeError, match="stay in their file"):
        WRITES[name](left)

    assert torch.equal(left.whole(), plain)


def test_it_is_copied_pickled_and_listed(pair):
    plain, left = pair

    assert torch.equal(mapped.whole(copy.deepcopy(left)), plain)
    assert torch.equal(pickle.loads(pickle.dumps(left)), plain)
    assert left.tolist() == plain.tolist()
    assert isinstance(copy.deepcopy(ow.Batch(left)).inputs, MappedSamples)
