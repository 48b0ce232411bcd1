"""Files of data: what is read, and what is refused."""

import gzip
import re
import struct

import numpy as np
import pytest
import torch
from data_files import assert_holds, cifar_bytes, idx_bytes, write_cifar10, write_mnist

from onward.data import (
    available,
    cifar,
    idx,
    load,
)
from onward.errors import DataError

pytestmark = pytest.mark.usefixtures("empty_cache")

# The idx format


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
def test_mnist_is_read_from_idx_files_plain_or_gzipped(tmp_path, zipped):
    arrays = write_mnist(tmp_path / "mnist", zipped=zipped)

    dataset = load("mnist", data_dir=tmp_path)

    assert_holds(dataset, arrays)
    assert dataset.input_shape == (1, 4, 3)
    assert (dataset.name, dataset.num_classes, dataset.is_image) == ("mnist", 10, True)


IMAGES = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
HUGE = struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            idx_bytes(IMAGES.flatten()),
            "begins with the bytes 00 00 08 01, but an idx file of unsigned bytes in 3 dimensions "
            "begins with 00 00 08 03. Give the right file this name.",
            id="labels for images",
        ),
        pytest.param(b"", "is damaged: it ends within its header.", id="empty"),
        pytest.param(
            b"\0\0\x0d\x03" + bytes(24), "begins with the bytes 00 00 0d 03", id="other type"
        ),
        pytest.param(
            idx_bytes(IMAGES)[:15], "is damaged: it ends within its header.", id="cut in the header"
        ),
        pytest.param(
            idx_bytes(IMAGES)[:-1],
            "is damaged: its header announces 3 x 2 x 2 values, but only 11 follow.",
            id="cut",
        ),
        pytest.param(
            idx_bytes(IMAGES) + b"\0",
            "is damaged: its header announces 3 x 2 x 2 values, but more follow.",
            id="too long",
        ),
        pytest.param(
            HUGE,
            "is damaged: its header announces 4294967295 x 4294967295 x 4294967295 values, and the "
            "file is too small for them.",
            id="impossible size",
        ),
    ],
)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
def test_an_idx_file_that_breaks_the_format_is_refused_by_name(tmp_path, content, message, zipped):
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if zipped else content)

    with pytest.raises(DataError, match=re.escape(f"{path} {message}")):
        idx.read_idx(path, dimensions=3)


def test_a_gzipped_idx_file_is_refused_wherever_it_is_cut(tmp_path):
    path, content = tmp_path / "images.gz", gzip.compress(idx_bytes(IMAGES))

    for length in range(2, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"images.gz is damaged: it does not unpack as gzip"):
            idx.read_idx(path, dimensions=3)


def test_a_gzipped_idx_file_is_refused_if_its_checksum_is_wrong_or_more_follows(tmp_path):
    path, content = tmp_path / "images.gz", gzip.compress(idx_bytes(IMAGES))

    for damaged in (content[:-8] + b"abcd" + content[-4:], content + b"more"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"images.gz is damaged: it does not unpack as gzip"):
            idx.read_idx(path, dimensions=3)


def test_an_idx_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"images cannot be read: No such file or directory"):
        idx.read_idx(tmp_path / "images", dimensions=3)


def test_a_label_above_9_in_mnist_is_refused(tmp_path):
    write_mnist(tmp_path / "mnist")
    labels = np.full(20, 12, dtype=np.uint8)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))

    with pytest.raises(DataError, match=r"mnist: y holds the label 12 in row 0. With 10 classes"):
        load("mnist", data_dir=tmp_path)


# CIFAR-10


@pytest.mark.parametrize("layout", ["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_cifar10_is_read_from_its_binary_version_in_the_order_of_the_files(tmp_path, layout):
    arrays = write_cifar10(tmp_path / layout)

    dataset = load("cifar10", data_dir=tmp_path)

    assert_holds(dataset, arrays)
    assert dataset.input_shape == (3, 32, 32)
    assert (dataset.name, dataset.num_classes, dataset.is_image) == ("cifar10", 10, True)


def test_a_row_of_cifar10_is_a_label_then_red_green_and_blue(tmp_path):
    row = bytes([7]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1024
    (tmp_path / "batch.bin").write_bytes(row)

    images, labels = cifar.read_batch(tmp_path / "batch.bin")

    assert labels.tolist() == [7]
    assert images.reshape(3, -1).min(axis=1).tolist() == [1, 2, 3]
    assert images.reshape(3, -1).max(axis=1).tolist() == [1, 2, 3]


@pytest.mark.parametrize("size", [0, 3072, 2 * 3073 + 1])
def test_a_cifar10_file_that_is_no_whole_number_of_samples_is_refused(tmp_path, size):
    (tmp_path / "batch.bin").write_bytes(bytes(size))

    message = rf"batch.bin is damaged: its {size} bytes are not a whole number of samples of 3073"
    with pytest.raises(DataError, match=message):
        cifar.read_batch(tmp_path / "batch.bin")


def test_a_label_above_9_in_cifar10_is_refused_with_file_and_row(tmp_path):
    images = np.zeros((3, 3, 32, 32), np.uint8)
    (tmp_path / "batch.bin").write_bytes(cifar_bytes(images, np.array([0, 9, 10], np.uint8)))

    with pytest.raises(DataError, match=r"batch.bin is damaged: row 2 has the label 10, but"):
        cifar.read_batch(tmp_path / "batch.bin")


def test_a_cifar10_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"batch.bin cannot be read: No such file or directory"):
        cifar.read_batch(tmp_path / "batch.bin")


@pytest.mark.parametrize("layout", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py"])
def test_cifar10_as_pickles_is_refused_and_the_binary_version_asked_for(tmp_path, layout):
    (tmp_path / layout).mkdir(parents=True)

    message = r"made of pickles, .* never read. Get the binary version \(cifar-10-binary.tar.gz"
    with pytest.raises(DataError, match=message):
        load("cifar10", data_dir=tmp_path)
    assert "made of pickles" in {row.name: row for row in available(tmp_path)}["cifar10"].where


def test_pickles_do_not_matter_where_the_binary_version_is_in_the_cache(tmp_path, empty_cache):
    (tmp_path / "cifar-10-batches-py").mkdir()
    arrays = write_cifar10(empty_cache / "cifar10" / "cifar-10-batches-bin")

    assert_holds(load("cifar10", data_dir=tmp_path), arrays)


# Files of arrays


def test_arrays_of_ones_own_are_loaded_from_an_npz_file(tmp_path):
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2] * 2)
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x=x, y=y, x_test=x + 1, y_test=y, groups=y * 10)

    dataset = load(str(path))

    assert dataset.x.tolist() == x.tolist()
    assert dataset.x_test.tolist() == (x + 1).tolist()
    assert dataset.y.tolist() == dataset.y_test.tolist() == y.tolist()
    assert dataset.groups.tolist() == [0, 10, 20] * 2
    assert (dataset.name, dataset.num_classes, dataset.is_image) == ("own.npz", 3, False)


def test_an_npz_file_without_test_samples_has_some_split_off(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.eye(20), y=np.arange(20) % 2)

    dataset = load(str(tmp_path / "own.npz"), test=0.3, split_seed=1)

    assert (dataset.num_samples, len(dataset.x_test)) == (14, 6)


def test_an_npz_file_with_one_shard_of_many_may_have_one_class_and_say_how_many_there_are(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.eye(4), y=np.full(4, 1), num_classes=10)

    assert load(str(tmp_path / "own.npz"), allow_one_class=True).num_classes == 10
    with pytest.raises(
        DataError, match=re.escape("training samples are [1], and learning takes two")
    ):
        load(str(tmp_path / "own.npz"))


GOOD = {"x": np.eye(4), "y": np.array([0, 1, 0, 1])}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        pytest.param(
            {"x": np.eye(4), "labels": GOOD["y"]},
            r"own.npz lacks y; it has x, labels. Needed: x",
            id="no y",
        ),
        pytest.param(
            {},
            r"own.npz lacks x and y; it has no members. Needed: x \(samples\), y \(labels\)",
            id="no members",
        ),
        pytest.param(
            GOOD | {"x": np.array([{}, 1, 2, 3], dtype=object)},
            r"own.npz: the member x cannot be read .* Python objects are never unpickled.",
            id="objects",
        ),
        pytest.param(
            GOOD | {"groups": np.array(["a", None, "b", "c"])},
            r"own.npz: the member groups cannot be read .* Python objects are never unpickled.",
            id="objects in an optional member",
        ),
        pytest.param(
            GOOD | {"num_classes": 2.5},
            r"own.npz: num_classes must be one whole number; it is float64 of shape \(\).",
            id="broken num_classes",
        ),
        pytest.param(
            GOOD | {"num_classes": [2, 3]},
            r"own.npz: num_classes must be one whole number; it is int64 of shape \(2,\).",
            id="two num_classes",
        ),
        pytest.param(
            GOOD | {"y": np.array([0, 1])},
            r"own.npz: y has the shape \(2,\), but there are 4 samples",
            id="labels that do not fit",
        ),
    ],
)
def test_an_npz_file_with_unusable_members_is_refused(tmp_path, members, message):
    np.savez(tmp_path / "own.npz", **members)

    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "own.npz"))


def test_an_npz_file_is_refused_wherever_it_is_cut(tmp_path):
    np.savez(tmp_path / "good.npz", **GOOD)
    content = (tmp_path / "good.npz").read_bytes()

    for length in range(0, len(content), 7):
        (tmp_path / "own.npz").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"own.npz is damaged, or another kind of file"):
            load(str(tmp_path / "own.npz"))


def test_an_npz_file_with_a_changed_byte_is_refused_or_read_but_never_fails_otherwise(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", **GOOD)
    content = bytearray((tmp_path / "good.npz").read_bytes())
    refused = 0

    for position in range(len(content)):
        changed = content.copy()
        changed[position] ^= 0xFF
        (tmp_path / "own.npz").write_bytes(changed)
        try:
            load(str(tmp_path / "own.npz"))
        except DataError:
            refused += 1

    assert refused > len(content) / 2


def test_one_array_with_the_name_of_an_npz_file_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.eye(4))
    (tmp_path / "one.npy").rename(tmp_path / "own.npz")

    with pytest.raises(DataError, match=r"own.npz is damaged, or another kind of file"):
        load(str(tmp_path / "own.npz"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "own.xls").write_text("")

    with pytest.raises(
        DataError, match=r"no data set .*own.xls.* paths that end in .npz, .npy, .cs"
    ):
        load(str(tmp_path / "own.xls"))


def test_an_npz_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"own.npz cannot be read: No such file or directory"):
        load(str(tmp_path / "own.npz"))


# Heart beats


def beats(**changes):
    """Members of a file of five beats: two of each split, one of a paced record."""
    raw = np.cumsum(np.arange(5 * 8, dtype=np.int16).reshape(5, 8) % 7, axis=1)
    return {
        "dX": np.diff(raw, axis=1, prepend=0).astype(np.int16),
        "y": np.array([0, 1, 4, 0, 2], dtype=np.uint8),
        "ds": np.array([1, 1, 0, 2, 2], dtype=np.uint8),
        "record": np.array([101, 106, 102, 100, 103], dtype=np.uint8),
    } | changes


def write_beats(folder, **changes):
    (folder / "mitbih").mkdir()
    np.savez(folder / "mitbih" / "mitbih_beats.npz", **beats(**changes))


def test_beats_are_split_by_patient_and_lie_around_zero(tmp_path):
    write_beats(tmp_path)

    dataset = load("mitbih", data_dir=tmp_path)

    raw = np.cumsum(beats()["dX"], axis=1) / 200
    np.testing.assert_allclose(dataset.x, (raw - raw.mean(axis=1, keepdims=True))[:2], atol=1e-6)
    assert dataset.y.tolist() == [0, 1]
    assert dataset.y_test.tolist() == [0, 2]
    assert dataset.groups.tolist() == [101, 106]
    assert (dataset.num_classes, dataset.input_shape) == (5, (8,))


def write_intervals(folder, before, after, **changes):
    """Write beats of two patients, in no order, with their intervals."""
    number = len(before)
    members = {
        "dX": np.ones((number, 8), dtype=np.int16),
        "y": np.arange(number, dtype=np.uint8) % 5,
        "ds": np.ones(number, dtype=np.uint8),
        "record": np.full(number, 101, dtype=np.uint8),
        "sample": np.arange(number, dtype=np.int32),
        "rr": np.stack([before, after], axis=1).astype(np.int32),
    }
    members["ds"][-1] = 2
    write_beats(folder, **(members | changes))


def test_intervals_are_beside_the_beat_relative_to_those_of_the_patient(tmp_path):
    write_intervals(tmp_path, before=[0, 100, 50, 100, 100, 200], after=[100, 50, 100, 100, 0, 0])

    dataset = load("mitbih-intervals", data_dir=tmp_path)

    beat, _, before, after, recent = dataset.x.unbind(dim=1)
    torch.testing.assert_close(beat, load("mitbih", data_dir=tmp_path).x)
    assert (before == before[:, :1]).all()
    np.testing.assert_allclose(before[:, 0], [0, 0, np.log(0.5), 0, 0], atol=1e-6)
    np.testing.assert_allclose(after[:, 0], [0, np.log(0.5), 0, 0, 0], atol=1e-6)
    # Of the ten beats before, one was early; those before the first are taken to be as usual.
    late = -np.log(0.95)
    np.testing.assert_allclose(recent[:, 0], [0, 0, np.log(0.5), late, late], atol=1e-6)


def test_beats_stand_beside_the_median_beat_of_their_patient(tmp_path):
    changes = np.random.default_rng(0).integers(-9, 9, (6, 8)).astype(np.int16)
    record = np.array([101, 106, 101, 106, 101, 106], dtype=np.uint8)
    write_intervals(tmp_path, [0] * 6, [0] * 6, dX=changes, record=record)

    dataset = load("mitbih-intervals", data_dir=tmp_path)

    beats = torch.cat([dataset.x[:, 0], dataset.x_test[:, 0]])
    differences = torch.cat([dataset.x[:, 1], dataset.x_test[:, 1]])
    for one in (101, 106):
        own = torch.from_numpy(record == one)
        usual = beats[own].median(dim=0).values  # Of three beats.
        torch.testing.assert_close(differences[own], beats[own] - usual)


def test_intervals_do_not_depend_on_the_order_of_the_file_or_on_classes(tmp_path):
    before = np.array([100, 90, 40, 110, 100, 200])
    after, sample = np.array([90, 40, 110, 100, 200, 0]), np.arange(6)
    order, found = np.array([3, 0, 4, 2, 1, 5]), []
    for way in (np.arange(6), order):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        write_intervals(folder, before[way], after[way], sample=sample[way])
        found.append(load("mitbih-intervals", data_dir=folder).x)

    torch.testing.assert_close(found[1], found[0][order[:5]])


def test_intervals_are_relative_to_their_own_patient(tmp_path):
    record = np.array([101, 101, 101, 106, 106, 106], dtype=np.uint8)
    before = np.array([100, 100, 50, 200, 200, 100])
    write_intervals(tmp_path, before, before, record=record, ds=np.array([1, 1, 1, 2, 2, 2]))

    dataset = load("mitbih-intervals", data_dir=tmp_path)

    torch.testing.assert_close(dataset.x_test[:, 1:], dataset.x[:, 1:])
    assert dataset.x[2, 2, 0] == pytest.approx(np.log(0.5))


def test_beats_without_intervals_are_refused_where_these_are_wanted(tmp_path):
    write_beats(tmp_path)

    with pytest.raises(DataError, match="lacks sample and rr"):
        load("mitbih-intervals", data_dir=tmp_path)


def test_intervals_that_are_not_two_a_beat_are_refused(tmp_path):
    write_intervals(tmp_path, [100, 100], [100, 100], rr=np.zeros(2, dtype=np.int32))

    with pytest.raises(DataError, match="is damaged: its members have the shapes"):
        load("mitbih-intervals", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros(4, dtype=np.uint8)}, "is damaged: its members have the shapes"),
        ({"dX": np.zeros(5, dtype=np.int16)}, "is damaged: its members have the shapes"),
        ({"ds": np.array([object()])}, "Python objects are never unpickled"),
    ],
    ids=["fewer labels", "no windows", "pickled"],
)
def test_beats_that_do_not_fit_are_refused(tmp_path, changes, message):
    write_beats(tmp_path, **changes)

    with pytest.raises(DataError, match=message):
        load("mitbih", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mitbih", "mitbih-intervals"])
def test_beats_that_are_nowhere_are_not_looked_for_on_the_network(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name} is nowhere to be found.*DIR/mitbih/mitbih_b"):
        load(name, data_dir=tmp_path)
