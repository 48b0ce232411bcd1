"""A data set, made of arrays or of batches of any kind."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_files import of_classes

import onward as ow
from onward.batch import Batch
from onward.data import Dataset, check_classes, from_arrays, read_shared, write_shared
from onward.errors import DataError
from onward.runs.sharding import split

pytestmark = pytest.mark.usefixtures("empty_cache")


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


def test_bytes_stay_bytes_and_other_types_keep_their_values_as_floats():
    x, y = np.array([[0, 51], [102, 255]]), np.array([0, 1])

    as_bytes = from_arrays(x.astype(np.uint8), y, x_test=x.astype(np.uint8), y_test=y)
    as_numbers = from_arrays(x, y, x_test=x, y_test=y)

    assert as_bytes.x.dtype == as_bytes.x_test.dtype == torch.uint8
    assert as_numbers.x.dtype == torch.float32
    assert as_numbers.x.tolist() == as_bytes.x.tolist() == x.tolist()


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
def test_samples_of_one_or_three_channels_are_images_unless_told_otherwise(shape, is_image):
    x, y = np.zeros((10, *shape)), np.arange(10) % 2

    assert from_arrays(x, y).is_image is is_image
    assert from_arrays(x, y, is_image=not is_image).is_image is not is_image


def test_there_are_as_many_classes_as_the_largest_label_says_unless_told_otherwise():
    y, y_test = np.array([0, 1, 1]), np.array([0, 2])
    arrays = {"x_test": np.zeros((2, 1)), "y_test": y_test}

    assert from_arrays(np.zeros((3, 1)), y, **arrays).num_classes == 3
    assert from_arrays(np.zeros((3, 1)), y, **arrays, num_classes=10).num_classes == 10


def test_a_data_set_knows_its_number_of_training_samples_and_their_shape():
    dataset = from_arrays(np.zeros((10, 1, 4, 4)), np.arange(10) % 2, test=4)

    assert dataset.num_samples == 6
    assert dataset.input_shape == (1, 4, 4)


def test_test_samples_are_taken_from_the_training_samples_by_class():
    dataset = of_classes([0] * 30 + [1] * 10, test=0.2)

    assert dataset.y.bincount().tolist() == [24, 8]
    assert dataset.y_test.bincount().tolist() == [6, 2]
    assert sorted(torch.cat([dataset.x, dataset.x_test]).flatten().tolist()) == list(range(40))


def test_test_samples_are_decided_by_the_split_seed_alone():
    first, same, other = (of_classes([0, 1] * 50, split_seed=seed) for seed in (1, 1, 2))

    assert first.x_test.equal(same.x_test)
    assert not first.x_test.equal(other.x_test)


def test_test_samples_never_share_a_group_with_training_samples():
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
            "arrays: x has the shape (0, 2). It needs one sample or more",
            id="no samples",
        ),
        pytest.param({"x": np.zeros(4)}, "arrays: x has the shape (4,).", id="samples of no shape"),
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
            "arrays: y has the shape (3,), but there are 4 samples and each needs one number: the "
            "shape must be (4,).",
            id="fewer labels than samples",
        ),
        pytest.param(
            {"y": np.eye(4)},
            "arrays: y has the shape (4, 4), but there are 4 samples",
            id="labels of two dimensions",
        ),
        pytest.param(
            {"y": np.array([0, 1, 0.5, 1])},
            "arrays: y holds 0.5 in row 2. It needs classes, as whole numbers or names; numbers to "
            "predict (regression) are not supported.",
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
            "arrays: y holds the label -1 in row 2. Labels start at 0: number them anew, as "
            "numpy.unique(y, return_inverse=True)[1] does.",
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
            "arrays: labels number the classes from 0, and no sample has 2, 3, 4, ...; the largest "
            "is 255. Number them anew, as numpy.unique(y, return_inverse=True)[1] does, or give "
            "the number of classes as num_classes (in an .npz file, a member).",
            id="more classes than samples",
        ),
        pytest.param(
            {"y": np.array([1, 2, 1, 2])},
            "arrays: labels number the classes from 0, and no sample has 0; the largest is 2.",
            id="labels from 1",
        ),
        pytest.param(
            {"groups": np.zeros(3)},
            "arrays: groups has the shape (3,), but there are 4 samples",
            id="fewer groups than samples",
        ),
        pytest.param(
            {"groups": np.zeros(4)},
            "All 4 samples belong to one group, which would have to be cut to hold samples out for "
            "test.",
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
            "arrays: samples of x have the shape (2,) and samples of x_test (3,).",
            id="test samples of another shape",
        ),
        pytest.param(
            {"x_test": np.zeros((2, 2), np.uint8), "y_test": np.zeros(2)},
            "arrays: samples of x are of type float32 and samples of x_test of type uint8, but "
            "only uint8 is divided by 255.",
            id="test samples of another type",
        ),
        pytest.param(
            {"x_test": np.zeros((0, 2)), "y_test": np.zeros(0)},
            "arrays: x_test has the shape (0, 2).",
            id="no test samples",
        ),
        pytest.param(
            {"test": 1.0},
            "1.0 of 4 samples cannot be held out for test so that samples are left on both sides. "
            "Give more samples, or test samples of their own; a size is a share between 0 and 1",
            id="all samples for the test",
        ),
        pytest.param(
            {"y": np.array([1, 1, 1, 1])},
            "The classes of the 3 training samples are [1], and learning takes two at least.",
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

    with pytest.raises(DataError, match=re.escape("The classes of the 3 training samples are [1]")):
        check_classes([0, 3])


# Batches of any kind


def pairs(**changes):
    """Make a data set of two inputs, one of them token ids, which belong together in a graph."""
    whole = Batch(
        {"left": torch.eye(3), "tokens": torch.tensor([[7, 1], [0, 2], [5, 5]])},
        {"label": torch.tensor([0, 1, 1]), "age": torch.tensor([0.5, 2.0, 1.0])},
        weights=torch.tensor([1.0, 2.0, 1.0]),
        structure={"edge_index": torch.tensor([[0, 1], [2, 2]])},
        index=torch.tensor([0, 2]),
    ).replace(**changes)
    test = whole.replace(index=torch.tensor([1]))
    return Dataset(name="pairs", training=whole, test=test, num_classes=2)


def test_a_data_set_of_batches_keeps_them_as_they_are_and_numbers_the_samples():
    dataset = pairs()

    assert dataset.training.inputs["tokens"].dtype is torch.int64
    assert dataset.training.ids.tolist() == [0, 1, 2]
    assert pairs(ids=torch.tensor([4, 9, 2])).training.ids.tolist() == [4, 9, 2]
    assert dataset.num_samples == 3


def test_a_data_set_of_arrays_has_batches_as_well():
    dataset = from_arrays(np.eye(10), np.arange(10) % 2)

    assert dataset.training.tensor.equal(dataset.x)
    assert dataset.training.label.equal(dataset.y)
    assert dataset.test.tensor.equal(dataset.x_test)
    assert dataset.test.label.equal(dataset.y_test)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": {"left": torch.eye(3), "tokens": torch.zeros(3, 2, dtype=torch.int64)}},
        {"inputs": torch.eye(3)},
        {"targets": {"label": torch.tensor([0, 1, 1])}},
        {"weights": None},
        {"structure": {"edge_index": torch.tensor([[0, 1], [2, 1]])}},
        {"index": torch.tensor([0, 1])},
    ],
    ids=["other tokens", "one input", "a target fewer", "no weights", "an edge", "other samples"],
)
def test_all_that_is_known_of_the_training_samples_counts_in_the_digest(changes):
    assert pairs(**changes).sha256() != pairs().sha256()


def test_how_samples_are_numbered_and_what_is_tested_on_does_not_count_in_the_digest():
    numbered = pairs(ids=torch.tensor([4, 9, 2]))
    other = Dataset(training=pairs().training, test=pairs().training)

    assert numbered.sha256() == other.sha256() == pairs().sha256()


def test_test_samples_and_validation_samples_of_one_s_own_have_a_digest(tmp_path):
    own = replace(pairs(), validation=pairs().training)
    numbered = replace(own, test=own.test.replace(ids=torch.tensor([4, 9, 2])))
    write_shared(split(ow.RunConfig(), own), tmp_path / "data.safetensors")

    assert own.held_out_sha256() == numbered.held_out_sha256()
    assert read_shared(tmp_path / "data.safetensors").held_out_sha256() == own.held_out_sha256()
    digests = {own.held_out_sha256(), pairs().held_out_sha256()}
    digests.add(replace(pairs(), test=pairs(weights=None).training).held_out_sha256())
    assert len(digests) == 3


def test_validation_samples_that_are_held_out_do_not_count_beside_those_they_are_taken_from():
    dataset = ow.dataset(np.eye(20), np.arange(20) % 2)
    held_out = split(ow.RunConfig(), dataset)

    assert len(held_out.validation)
    assert held_out.held_out_sha256() == dataset.held_out_sha256()


def assert_same_batch(actual, expected):
    expected = expected.tensors()
    found = actual.tensors()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype is expected[name].dtype
        assert tensor.equal(expected[name]), name


def test_a_data_set_is_handed_to_other_processes_whole(tmp_path):
    dataset = replace(pairs(), validation=pairs().training.replace(index=torch.tensor([1])))

    write_shared(dataset, tmp_path / "data.safetensors")
    found = read_shared(tmp_path / "data.safetensors")

    for part in ("training", "validation", "test"):
        assert_same_batch(getattr(found, part), getattr(dataset, part))
    for fact in ("name", "num_classes", "is_image"):
        assert getattr(found, fact) == getattr(dataset, fact)
    assert found.sha256() == dataset.sha256()
