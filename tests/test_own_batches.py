"""A data set made of batches is checked before anything is learned from it."""

import re
from dataclasses import replace

import jaxtyping
import pytest
import torch

import onward as ow
from onward.errors import DataError

X, Y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2


@pytest.fixture(autouse=True)
def without_types(monkeypatch):
    """Let batches through that a test with types would refuse, as in a user's script."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def own(x=X, y=Y, x_test=X[:10], y_test=Y[:10], validation=None, **more):
    training, test = ow.Batch(x, {"label": y}, **more), ow.Batch(x_test, {"label": y_test})
    return ow.Dataset(training=training, validation=validation, test=test, num_classes=2)


def with_nan(x, row):
    return x.index_fill(0, torch.tensor([row]), torch.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": with_nan(X, 3)[:10]}, "test.inputs holds 4 values that are NaN or infinite"),
        ({"x": with_nan(X, 3)}, "training.inputs holds 4 values that are NaN or infinite"),
        (
            {"validation": ow.Batch(with_nan(X, 3), {"label": Y})},
            "validation.inputs holds 4 values that are NaN or infinite",
        ),
        (
            {"x_test": X[:10].byte()},
            "training.inputs are of type float32 and samples of test.inputs of type uint8, but "
            "only uint8 is divided by 255.",
        ),
        (
            {"x_test": X[:10, :3]},
            "samples of training.inputs have the shape (4,) and samples of test.inputs (3,).",
        ),
        ({"x_test": X[:10].double()}, "test.inputs is of type float64, and networks take float32."),
        (
            {"x": X.double(), "x_test": X[:10].double()},
            "training.inputs is of type float64, and networks take float32. Give x.float().",
        ),
        ({"x_test": {"left": X[:10]}}, "training has inputs, and test inputs.left."),
        ({"y_test": torch.arange(10)}, "test.label holds the label 2 in row 2. With 2 classes"),
        ({"y": Y.int()}, "training.label is of type int32, and classes are numbers of type int64."),
        ({"y": Y.float()}, "training.label is of type float32, and classes are numbers"),
        ({"y": Y.bool()}, "training.label is of type bool, and classes are numbers"),
        ({"y": Y[:, None]}, "training.label has the shape (40, 1), but there are 40 samples"),
        ({"y": Y - 1}, "training.label holds the label -1 in row 0. Labels start at 0"),
        ({"y": 100 * (Y - 1)}, "training.label holds the label -100 in row 0."),
        ({"weights": torch.zeros(40)}, "training.weights run from 0 to 0. Weights are finite"),
        ({"weights": Y - 1.0}, "training.weights run from -1 to 0. Weights are finite"),
        ({"weights": with_nan(torch.ones(40), 3)}, "training.weights run from nan to nan."),
    ],
)
def test_batches_that_cannot_be_learned_from_or_tested_with_are_refused(changes, message):
    with pytest.raises(DataError, match=re.escape(message)):
        own(**changes)


@pytest.mark.parametrize("name", ["ids", "weights"])
def test_a_batch_has_one_number_and_one_weight_a_sample(name):
    with pytest.raises(ValueError, match=rf"{name} of a batch are .* \(40,\); got shape \(40, 1\)"):
        ow.Batch(X, **{name: torch.ones(40, 1)})


def test_samples_that_do_not_count_may_have_any_label_and_weight():
    first, ones = torch.tensor([0]), torch.ones(40)
    given = {"y": Y.index_fill(0, first, -100), "weights": ones.index_fill(0, first, -1)}

    dataset = own(**given, index=torch.arange(1, 40))

    assert dataset.training.num_counted == 39


def test_codes_may_be_more_or_fewer_in_the_test():
    tokens = torch.zeros(40, 8, dtype=torch.int64)

    assert own(x=tokens, x_test=tokens[:10, :5]).test.inputs.shape == (10, 5)


def test_samples_that_were_looked_at_are_not_read_again(monkeypatch):
    dataset = replace(own(), digest="known")
    monkeypatch.setattr("onward.data.dataset.check_finite", None)

    assert replace(dataset, name="other").num_samples == 40
