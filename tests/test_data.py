import gzip
import hashlib
import os
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import cifar_bytes, idx_bytes, published, write_cifar10, write_mnist
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.data import (
    available,
    check_classes,
    cifar,
    download,
    from_arrays,
    idx,
    load,
    shards,
    split_validation,
)
from onward.errors import DataError

REAL_DATA = os.environ.get("ONWARD_DATA")

any_seed = st.integers(0, 2**40)
several = settings(max_examples=50, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    """Keep the user's own folders out of the tests."""
    monkeypatch.delenv("ONWARD_DATA", raising=False)
    monkeypatch.setattr(download, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def of_classes(y, **settings):
    """Make a data set of these labels whose only input is the number of the row."""
    y = np.asarray(y)
    return from_arrays(np.arange(len(y), dtype=np.float32)[:, None], y, **settings)


def without_test_rows(y, **settings):
    """Make a data set all of whose labels are training rows."""
    return of_classes(
        y, x_test=np.zeros((1, 1)), y_test=np.zeros(1), allow_one_class=True, **settings
    )


def assert_holds(dataset, arrays):
    """Check that a data set holds these bytes, scaled, and these labels."""
    for name in ("x", "x_test"):
        expected = arrays[name].astype(np.float32) / 255
        actual = getattr(dataset, name).numpy()
        np.testing.assert_array_equal(actual, expected.reshape(actual.shape))
    for name in ("y", "y_test"):
        assert getattr(dataset, name).tolist() == arrays[name].tolist()


# Arrays


@pytest.mark.parametrize(
    "kind", [bool, np.int8, np.uint32, np.int64, np.float16, np.float64, ">f4"]
)
def test_inputs_and_labels_of_any_real_type_become_float32_and_int64(kind):
    dataset = from_arrays(np.eye(10).astype(kind), (np.arange(10) % 2).astype(kind))

    assert (dataset.x.dtype, dataset.y.dtype) == (torch.float32, torch.int64)
    assert dataset.x.unique().tolist() == [0, 1]


def test_tensors_are_taken_as_well_as_arrays():
    x, y = torch.eye(10, dtype=torch.bfloat16, requires_grad=True), torch.arange(10) % 2

    dataset = from_arrays(x, y, x_test=x, y_test=y)

    assert dataset.x.equal(torch.eye(10))
    assert dataset.y.equal(y)


def test_bytes_are_scaled_from_0_to_1_and_other_types_keep_their_values():
    x, y = np.array([[0, 51], [102, 255]]), np.array([0, 1])

    as_bytes = from_arrays(x.astype(np.uint8), y, x_test=x.astype(np.uint8), y_test=y)
    as_numbers = from_arrays(x, y, x_test=x, y_test=y)

    torch.testing.assert_close(as_bytes.x, torch.tensor([[0, 0.2], [0.4, 1]]))
    assert as_bytes.x_test.equal(as_bytes.x)
    assert as_numbers.x.tolist() == x.tolist()


def test_a_data_set_does_not_change_with_the_array_it_was_made_of():
    x, y = np.zeros((4, 1), dtype=np.float32), np.array([0, 1, 0, 1])
    dataset = from_arrays(x, y, x_test=x, y_test=y)

    x[:] = 7
    y[:] = 7

    assert dataset.x.max() == 0
    assert dataset.y.max() == 1


@pytest.mark.parametrize(
    ("shape", "is_image"),
    [((1, 8, 8), True), ((3, 8, 8), True), ((2, 8, 8), False), ((8, 8), False), ((8,), False)],
)
def test_rows_of_one_or_three_channels_are_images_unless_told_otherwise(shape, is_image):
    x, y = np.zeros((10, *shape)), np.arange(10) % 2

    assert from_arrays(x, y).is_image is is_image
    assert from_arrays(x, y, is_image=not is_image).is_image is not is_image


def test_there_are_as_many_classes_as_the_largest_label_says_unless_told_otherwise():
    y, y_test = np.array([0, 1, 1]), np.array([0, 2])
    arrays = {"x_test": np.zeros((2, 1)), "y_test": y_test}

    assert from_arrays(np.zeros((3, 1)), y, **arrays).num_classes == 3
    assert from_arrays(np.zeros((3, 1)), y, **arrays, num_classes=10).num_classes == 10


def test_a_data_set_knows_its_number_of_training_rows_and_their_shape():
    dataset = from_arrays(np.zeros((10, 1, 4, 4)), np.arange(10) % 2, test=4)

    assert dataset.num_rows == 6
    assert dataset.input_shape == (1, 4, 4)


def test_test_rows_are_taken_from_the_training_rows_by_class():
    dataset = of_classes([0] * 30 + [1] * 10, test=0.2)

    assert dataset.y.bincount().tolist() == [24, 8]
    assert dataset.y_test.bincount().tolist() == [6, 2]
    assert sorted(torch.cat([dataset.x, dataset.x_test]).flatten().tolist()) == list(range(40))


def test_test_rows_are_decided_by_the_split_seed_alone():
    first, same, other = (of_classes([0, 1] * 50, split_seed=seed) for seed in (1, 1, 2))

    assert first.x_test.equal(same.x_test)
    assert not first.x_test.equal(other.x_test)


def test_test_rows_never_share_a_group_with_training_rows():
    groups = np.arange(40) // 4

    dataset = of_classes([0, 1] * 20, groups=groups)

    in_test = groups[dataset.x_test.flatten().long().numpy()]
    assert dataset.groups.tolist() == groups[dataset.x.flatten().long().numpy()].tolist()
    assert len(dataset.x_test) == 8
    assert not set(in_test) & set(dataset.groups.tolist())


ARRAYS = {"x": np.zeros((4, 2)), "y": np.array([0, 1, 0, 1])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"x": np.zeros((0, 2)), "y": np.zeros(0)},
            "arrays: x has the shape (0, 2). It needs one row or more",
            id="no rows",
        ),
        pytest.param({"x": np.zeros(4)}, "arrays: x has the shape (4,).", id="rows of no shape"),
        pytest.param(
            {"x": np.array([["a"]] * 4)},
            "arrays: x holds values of type <U1. It needs real numbers",
            id="words",
        ),
        pytest.param(
            {"x": np.zeros((4, 2), complex)},
            "arrays: x holds values of type complex128.",
            id="complex numbers",
        ),
        pytest.param(
            {"x": np.array([[0, 0], [0, 0], [np.nan, 0], [0, np.inf]])},
            "arrays: x holds 2 values that are NaN or infinite in float32, the first in row 2.",
            id="not a number",
        ),
        pytest.param(
            {"x": np.array([[0], [0], [0], [1e300]])},
            "arrays: x holds 1 values that are NaN or infinite in float32, the first in row 3.",
            id="beyond float32",
        ),
        pytest.param(
            {"x": np.array([[0], [0], [0], [1e20]])},
            "arrays: x holds values up to 1e+20, whose squares are too large for float32.",
            id="squares beyond float32",
        ),
        pytest.param(
            {"y": np.array([0, 1, 0])},
            "arrays: y has the shape (3,), but there are 4 rows and each needs one number: the "
            "shape must be (4,).",
            id="fewer labels than rows",
        ),
        pytest.param(
            {"y": np.eye(4)},
            "arrays: y has the shape (4, 4), but there are 4 rows",
            id="labels of two dimensions",
        ),
        pytest.param(
            {"y": np.array([0, 1, 0.5, 1])},
            "arrays: y holds 0.5 in row 2. It needs whole numbers.",
            id="half a label",
        ),
        pytest.param(
            {"y": np.array([0, np.nan, 0, 1])},
            "arrays: y holds nan in row 1.",
            id="label not a number",
        ),
        pytest.param(
            {"y": np.array([0, 1, 0, np.inf])}, "arrays: y holds inf in row 3.", id="infinite label"
        ),
        pytest.param(
            {"y": np.array([0, 1, -1, 1])},
            "arrays: y holds the label -1 in row 2. With 2 classes, labels run from 0 to 1.",
            id="negative label",
        ),
        pytest.param(
            {"y": np.array([0, 1, 2, 3]), "num_classes": 3},
            "arrays: y holds the label 3 in row 3. With 3 classes, labels run from 0 to 2.",
            id="label above num_classes",
        ),
        pytest.param(
            {"x_test": np.zeros((2, 2)), "y_test": np.array([0, 5]), "num_classes": 2},
            "arrays: y_test holds the label 5 in row 1. With 2 classes, labels run from 0 to 1.",
            id="test label above num_classes",
        ),
        pytest.param(
            {"y": np.array([0, 1, 0, 255])},
            "arrays: the largest label is 255, but there are only 4 rows. Labels number the "
            "classes from 0; pass num_classes",
            id="more classes than rows",
        ),
        pytest.param(
            {"groups": np.zeros(3)},
            "arrays: groups has the shape (3,), but there are 4 rows",
            id="fewer groups than rows",
        ),
        pytest.param(
            {"groups": np.zeros(4)},
            "All 4 rows belong to one group, which would have to be cut to hold rows out for test.",
            id="one group",
        ),
        pytest.param(
            {"x_test": np.zeros((2, 2))},
            "arrays: x_test is given without y_test. Give both",
            id="no test labels",
        ),
        pytest.param(
            {"y_test": np.zeros(2)},
            "arrays: y_test is given without x_test. Give both",
            id="no test inputs",
        ),
        pytest.param(
            {"x_test": np.zeros((2, 3)), "y_test": np.zeros(2)},
            "arrays: rows of x have the shape (2,) and rows of x_test (3,).",
            id="test rows of another shape",
        ),
        pytest.param(
            {"x_test": np.zeros((2, 2), np.uint8), "y_test": np.zeros(2)},
            "arrays: x is float64 and x_test is uint8, but only uint8 is scaled by 1/255.",
            id="test rows of another type",
        ),
        pytest.param(
            {"x_test": np.zeros((0, 2)), "y_test": np.zeros(0)},
            "arrays: x_test has the shape (0, 2).",
            id="no test rows",
        ),
        pytest.param(
            {"test": 1.0},
            "1.0 of 4 rows cannot be held out for test so that rows are left on both sides. Give "
            "a share between 0 and 1, or a number of rows below 4.",
            id="all rows for the test",
        ),
        pytest.param(
            {"y": np.array([1, 1, 1, 1])},
            "The classes of the 3 training rows are [1], and learning takes two at least.",
            id="one class",
        ),
    ],
)
def test_arrays_that_cannot_be_learned_from_are_refused(changes, message):
    with pytest.raises(DataError, match=re.escape(message)):
        from_arrays(**ARRAYS | changes)


def test_one_shard_of_many_may_have_one_class():
    dataset = of_classes([1] * 10, allow_one_class=True, num_classes=3)

    assert dataset.y.unique().tolist() == [1]


def test_classes_are_checked_over_all_shards_by_their_counts():
    check_classes([0, 3, 0, 1])

    with pytest.raises(DataError, match=re.escape("The classes of the 3 training rows are [1]")):
        check_classes([0, 3])


# Splits


@several
@given(
    y=st.lists(st.integers(0, 3), min_size=2, max_size=60),
    size=st.floats(0.01, 0.99) | st.integers(1, 59),
    seed=any_seed,
)
def test_training_and_validation_rows_are_disjoint_and_cover_all_rows(y, size, seed):
    dataset = without_test_rows(y, num_classes=4)
    held = size if isinstance(size, int) else int(np.ceil(size * len(y)))
    if held >= len(y):
        with pytest.raises(DataError, match=f"{size} of {len(y)} rows cannot be held out"):
            split_validation(dataset, size, seed=seed)
        return

    training, validation = split_validation(dataset, size, seed=seed)

    assert sorted(training.tolist() + validation.tolist()) == list(range(len(y)))
    assert len(validation) == held
    assert training.equal(training.sort().values)
    assert validation.equal(validation.sort().values)


@several
@given(
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=5),
    share=st.floats(0.2, 0.8),
    seed=any_seed,
)
def test_validation_rows_have_the_classes_of_all_rows(counts, share, seed):
    dataset = without_test_rows(np.repeat(np.arange(len(counts)), counts))
    held = int(np.ceil(share * sum(counts)))
    if len(counts) > min(held, sum(counts) - held):
        return  # Too few rows on one side for every class to have one.

    _, validation = split_validation(dataset, share, seed=seed)

    expected = torch.tensor(counts) * held / sum(counts)
    of_each_class = dataset.y[validation].bincount(minlength=len(counts))
    assert ((of_each_class - expected).abs() <= 1).all()


def test_rows_are_held_out_by_chance_where_a_class_has_a_single_row():
    dataset = without_test_rows([0] * 9 + [1])

    validations = [split_validation(dataset, 4, seed=seed)[1] for seed in range(20)]

    assert {len(validation) for validation in validations} == {4}
    assert {9 in validation for validation in validations} == {True, False}


@several
@given(
    groups=st.lists(st.integers(-3, 6), min_size=4, max_size=60).filter(lambda g: len(set(g)) > 1),
    share=st.floats(0.05, 0.9),
    seed=any_seed,
)
def test_no_group_has_both_training_and_validation_rows(groups, share, seed):
    dataset = without_test_rows(np.zeros(len(groups)), groups=np.array(groups))
    if np.ceil(share * len(groups)) == len(groups):
        return  # No rows would be left; the first property says what happens then.

    training, validation = split_validation(dataset, share, seed=seed)

    assert sorted(training.tolist() + validation.tolist()) == list(range(len(groups)))
    assert len(training)
    assert len(validation)
    assert not set(dataset.groups[training].tolist()) & set(dataset.groups[validation].tolist())


def test_validation_rows_are_decided_by_the_seed_alone():
    dataset = without_test_rows([0, 1] * 50)

    first, same, other = (split_validation(dataset, 0.1, seed=seed)[1] for seed in (1, 1, 2))

    assert first.equal(same)
    assert not first.equal(other)


@pytest.mark.parametrize("none", [0, 0.0])
def test_validation_of_0_keeps_all_rows_for_training(none):
    training, validation = split_validation(without_test_rows([0, 1, 1]), none, seed=0)

    assert training.tolist() == [0, 1, 2]
    assert validation.tolist() == []


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 1.5, float("nan"), float("inf"), -1, 4, 100])
def test_validation_that_leaves_no_rows_on_one_side_is_refused(wrong):
    message = re.escape(f"{wrong} of 4 rows cannot be held out for validation")

    with pytest.raises(DataError, match=message):
        split_validation(without_test_rows([0, 1, 1, 0]), wrong, seed=0)


def test_validation_of_a_single_group_is_refused():
    dataset = without_test_rows([0, 1, 1, 0], groups=np.full(4, 7))

    with pytest.raises(DataError, match="All 4 rows belong to one group"):
        split_validation(dataset, 0.5, seed=0)


@several
@given(
    y=st.lists(st.integers(0, 9), min_size=1, max_size=80),
    number=st.integers(1, 80),
    by=st.sampled_from(["iid", "class"]),
    seed=any_seed,
)
def test_shards_are_disjoint_cover_all_rows_and_are_of_near_equal_size(y, number, by, seed):
    if number > len(y):
        message = f"{len(y)} rows cannot be dealt out to {number} shards"
        with pytest.raises(DataError, match=message):
            shards(torch.tensor(y), number, by, seed=seed)
        return

    parts = shards(torch.tensor(y), number, by, seed=seed)

    sizes = [len(part) for part in parts]
    assert len(parts) == number
    assert torch.cat(parts).sort().values.tolist() == list(range(len(y)))
    assert max(sizes) - min(sizes) <= 1


def test_shards_by_class_have_two_classes_at_most_where_random_ones_have_many():
    y = torch.arange(1000) % 10

    by_class = [len(y[part].unique()) for part in shards(y, 10, "class", seed=0)]
    at_random = [len(y[part].unique()) for part in shards(y, 10, "iid", seed=0)]

    assert max(by_class) == 2
    assert min(at_random) == 10


@pytest.mark.parametrize("by", ["iid", "class"])
def test_shards_are_decided_by_the_seed_alone(by):
    y = torch.arange(100) % 10

    first, same, other = (torch.cat(shards(y, 4, by, seed=seed)) for seed in (1, 1, 2))

    assert first.equal(same)
    assert not first.equal(other)


def test_shards_by_another_word_are_refused():
    with pytest.raises(DataError, match='dealt out by "iid" or by "class"; got "label"'):
        shards(torch.arange(4), 2, "label", seed=0)


@pytest.mark.parametrize("number", [0, -1])
def test_less_than_one_shard_is_refused(number):
    with pytest.raises(DataError, match=f"4 rows cannot be dealt out to {number} shards"):
        shards(torch.arange(4), number, "iid", seed=0)


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
def test_a_cifar10_file_that_is_no_whole_number_of_rows_is_refused(tmp_path, size):
    (tmp_path / "batch.bin").write_bytes(bytes(size))

    message = rf"batch.bin is damaged: its {size} bytes are not a whole number of rows of 3073"
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
    assert "made of pickles" in available(tmp_path)[-1].where


def test_pickles_do_not_matter_where_the_binary_version_is_in_the_cache(tmp_path, empty_cache):
    (tmp_path / "cifar-10-batches-py").mkdir()
    arrays = write_cifar10(empty_cache / "cifar10" / "cifar-10-batches-bin")

    assert_holds(load("cifar10", data_dir=tmp_path), arrays)


# Files of arrays


def test_arrays_of_ones_own_are_loaded_from_an_npz_file(tmp_path):
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2] * 2)
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x=x, y=y, x_test=x + 1, y_test=y, groups=y * 10, extra=x)

    dataset = load(str(path))

    assert dataset.x.tolist() == x.tolist()
    assert dataset.x_test.tolist() == (x + 1).tolist()
    assert dataset.y.tolist() == dataset.y_test.tolist() == y.tolist()
    assert dataset.groups.tolist() == [0, 10, 20] * 2
    assert (dataset.name, dataset.num_classes, dataset.is_image) == ("own.npz", 3, False)


def test_an_npz_file_without_test_rows_has_some_split_off(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.eye(20), y=np.arange(20) % 2)

    dataset = load(str(tmp_path / "own.npz"), test=0.3, split_seed=1)

    assert (dataset.num_rows, len(dataset.x_test)) == (14, 6)


def test_an_npz_file_with_one_shard_of_many_may_have_one_class_and_say_how_many_there_are(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.eye(4), y=np.full(4, 1), num_classes=10)

    assert load(str(tmp_path / "own.npz"), allow_one_class=True).num_classes == 10
    with pytest.raises(DataError, match=re.escape("training rows are [1], and learning takes two")):
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
            r"own.npz lacks x and y; it has no members. Needed: x \(rows\), y \(labels\)",
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
            r"own.npz: y has the shape \(2,\), but there are 4 rows",
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


def test_a_file_that_does_not_end_in_npz_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"own.csv does not end in .npz, .* numpy.savez\('data.npz'"
    ):
        load(str(tmp_path / "own.csv"))


def test_an_npz_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"own.npz cannot be read: No such file or directory"):
        load(str(tmp_path / "own.npz"))


# Names and folders


def test_digits_come_with_360_test_rows_by_class_and_values_from_0_to_1():
    digits = load("digits")

    assert digits.x.shape == (1437, 1, 8, 8)
    assert digits.x_test.shape == (360, 1, 8, 8)
    assert (digits.x.min(), digits.x.max()) == (0, 1)
    assert set(digits.y_test.bincount().tolist()) <= {35, 36, 37}
    assert (digits.num_classes, digits.is_image) == (10, True)


def test_digits_are_split_by_the_split_seed():
    assert load("digits").x_test.equal(load("digits", split_seed=0).x_test)
    assert not load("digits").x_test.equal(load("digits", split_seed=1).x_test)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_found_as_plain_folders_and_as_torchvision_lays_them_out(
    tmp_path, name, layout
):
    arrays = write_mnist(tmp_path / layout, zipped=True)

    dataset = load(name, data_dir=str(tmp_path))

    assert dataset.name == name
    assert_holds(dataset, arrays)


def test_folders_are_searched_in_order_data_dir_then_environment_then_cache(
    tmp_path, monkeypatch, empty_cache
):
    named, environment = tmp_path / "named", tmp_path / "environment"
    named.mkdir()
    monkeypatch.setenv("ONWARD_DATA", str(environment))
    found = []

    for folder, rows in ((empty_cache, 12), (environment, 14), (named, 16)):
        environment.mkdir(exist_ok=True)
        write_mnist(folder / "mnist", rows=rows)
        found.append(load("mnist", data_dir=named).num_rows)

    assert found == [12, 14, 16]


def test_a_folder_that_lacks_a_file_is_passed_over(tmp_path, empty_cache):
    write_mnist(tmp_path / "mnist", rows=12)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    write_mnist(empty_cache / "mnist", rows=14)

    assert load("mnist", data_dir=tmp_path).num_rows == 14


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"typo, named by data_dir, does not exist"):
        load("mnist", data_dir=tmp_path / "typo")

    monkeypatch.setenv("ONWARD_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match=r"typo, named by ONWARD_DATA, does not exist"):
        available()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("minst", " Did you mean mnist?"), ("MNIST", " Did you mean mnist?"), ("iris", " Known are")],
)
def test_an_unknown_name_is_refused_and_the_nearest_suggested(name, hint):
    with pytest.raises(DataError, match=re.escape(f'There is no data set "{name}".{hint}')):
        load(name)


def test_the_data_sets_known_by_name_are_listed_with_where_they_are(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")

    listed = {row.name: row for row in available(tmp_path)}

    assert {name: row.where for name, row in listed.items()} == {
        "digits": "comes with scikit-learn",
        "mnist": str(tmp_path / "MNIST" / "raw"),
        "fashion-mnist": "will be downloaded (31 MB)",
        "cifar10": "will be downloaded (170 MB)",
    }
    assert listed["cifar10"].shape == (3, 32, 32)
    assert (listed["cifar10"].num_rows, listed["cifar10"].num_test_rows) == (50_000, 10_000)


# Downloads


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Return a function that publishes a folder of files under the name of a data set."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "published").mkdir()
    with published(tmp_path / "published") as url:

        def publish(name):
            files = sorted((tmp_path / "published").iterdir())
            md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}
            layouts = download.REMOTES[name].layouts
            monkeypatch.setitem(
                download.REMOTES, name, download.Remote(url, md5, num_bytes=0, layouts=layouts)
            )
            return tmp_path / "published"

        yield publish


def test_what_is_not_found_is_downloaded_into_the_cache_once(tmp_path, publish, empty_cache):
    arrays = write_mnist(tmp_path / "published", zipped=True)
    folder = publish("mnist")

    assert_holds(load("mnist"), arrays)

    for file in folder.iterdir():
        file.unlink()
    assert_holds(load("mnist"), arrays)
    assert available()[1].where == str(empty_cache / "mnist")


def test_a_download_that_was_interrupted_fetches_only_what_is_missing(
    tmp_path, publish, empty_cache
):
    arrays = write_mnist(tmp_path / "published", zipped=True)
    folder = publish("mnist")
    first = min(folder.iterdir())
    (empty_cache / "mnist").mkdir(parents=True)
    first.rename(empty_cache / "mnist" / first.name)

    assert_holds(load("mnist"), arrays)


def test_the_archive_of_cifar10_is_unpacked_into_the_cache(tmp_path, publish, empty_cache):
    arrays = write_cifar10(tmp_path / "cifar-10-batches-bin")
    with tarfile.open(tmp_path / "published" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    publish("cifar10")

    assert_holds(load("cifar10"), arrays)

    unpacked = empty_cache / "cifar10" / "cifar-10-batches-bin"
    assert available()[-1].where == str(unpacked)


def test_a_failed_download_says_from_where_and_how_to_do_without(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    remote = download.Remote("http://127.0.0.1:9/", {"one.gz": "0"}, 0, ("mnist", "MNIST/raw"))
    monkeypatch.setitem(download.REMOTES, "mnist", remote)

    message = (
        "http://127.0.0.1:9/one.gz could not be fetched (ConnectionError). If you have the files "
        "of mnist already, or can copy them to this machine, put them into DIR/mnist or "
        "DIR/MNIST/raw and name that folder by --data-dir DIR or the environment variable "
        "ONWARD_DATA=DIR."
    )
    with pytest.raises(DataError, match=re.escape(message)):
        load("mnist")


def test_a_file_that_is_no_longer_published_is_a_failed_download(tmp_path, publish):
    write_mnist(tmp_path / "published", zipped=True)
    for file in publish("mnist").iterdir():
        file.unlink()

    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz could not be fetched \(HTTPEr"):
        load("mnist")


def test_a_download_that_is_not_the_published_file_is_refused(tmp_path, publish, empty_cache):
    write_mnist(tmp_path / "published", zipped=True)
    for file in publish("mnist").iterdir():
        file.write_bytes(b"something else")

    with pytest.raises(DataError, match="was fetched, but its MD5 is not the published"):
        load("mnist")
    assert list((empty_cache / "mnist").iterdir()) == []


# Real data


def real(name):
    """Load a published data set from ONWARD_DATA, or skip the test that asks for it."""
    where = {row.name: row.where for row in available(REAL_DATA)}[name] if REAL_DATA else ""
    if not Path(where).is_dir() or not where:
        pytest.skip(f"Set ONWARD_DATA to a folder that holds {name} to run this test.")
    return load(name, data_dir=REAL_DATA)


def test_mnist_as_published_has_its_known_numbers():
    mnist = real("mnist")

    assert mnist.x.shape == (60_000, 1, 28, 28)
    assert mnist.x_test.shape == (10_000, 1, 28, 28)
    assert mnist.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.y_test.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert mnist.x.double().mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert mnist.x.double().std().item() == pytest.approx(0.3081, abs=5e-5)


def test_cifar10_as_published_has_its_known_numbers():
    cifar10 = real("cifar10")

    assert cifar10.x.shape == (50_000, 3, 32, 32)
    assert cifar10.y.bincount().tolist() == [5_000] * 10
    assert cifar10.y_test.bincount().tolist() == [1_000] * 10
    channels = cifar10.x.mean(dim=(0, 2, 3), dtype=torch.float64).tolist()
    assert channels == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
