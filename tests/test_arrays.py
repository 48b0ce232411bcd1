"""Arrays of one's own: what they may be, images, and validation samples."""

import numpy as np
import pytest
import torch

import onward as ow
from onward.data import from_arrays
from onward.errors import DataError, SettingError

# Images


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (8, 6, 4)])
def test_images_with_channels_last_are_refused_with_what_to_do(shape):
    x, y = np.zeros((20, *shape), np.uint8), np.arange(20) % 2

    with pytest.raises(DataError, match=r"height x width x channels.*x\.transpose\(0, 3, 1, 2\)"):
        from_arrays(x, y)
    with pytest.raises(DataError, match="height x width x channels"):
        from_arrays(x, y, is_image=True)
    assert from_arrays(x, y, is_image=False).input_shape == shape
    assert from_arrays(x.transpose(0, 3, 1, 2), y).input_shape == (shape[2], *shape[:2])


def test_images_with_channels_last_are_not_shifted_along_the_wrong_axes():
    dataset = from_arrays(np.zeros((20, 8, 8, 3)), np.arange(20) % 2, is_image=False)
    network = ow.mlp((8, 8, 3), num_classes=2, widths=(4,))

    with pytest.raises(SettingError, match=r"data.shift is 1 pixels, but the samples have shape"):
        ow.train(network, dataset, shift=1)


# Validation samples of one's own


def test_validation_samples_of_ones_own_are_used_and_no_others_taken():
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
    dataset = from_arrays(x, y, x_val=x[:6] + 100, y_val=y[:6], x_test=x[:4], y_test=y[:4])
    network = ow.mlp((2,), num_classes=2, widths=(4,))

    result = ow.train(network, dataset, training=ow.TrainingConfig(epochs=1, batch_size=5))

    assert dataset.validation.tensor.tolist() == (x[:6] + 100).tolist()
    assert result.validation.samples == 6
    assert result.facts["samples"]["training"] == 20


def test_validation_samples_in_a_file_are_read(tmp_path):
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
    np.savez(tmp_path / "own.npz", x=x, y=y, x_val=x[:6] + 100, y_val=y[:6])

    dataset = ow.load_data(str(tmp_path / "own.npz"))

    assert dataset.validation.tensor.tolist() == (x[:6] + 100).tolist()
    assert dataset.validation.label.tolist() == y[:6].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x_val": np.zeros((2, 2))}, "x_val is given without y_val"),
        ({"x_val": np.zeros((2, 3)), "y_val": [0, 1]}, r"samples of x_val \(3,\)"),
        ({"x_val": np.zeros((2, 2)), "y_val": [0, 7]}, "no sample has 2, 3, 4"),
    ],
)
def test_validation_samples_that_do_not_fit_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        from_arrays(np.zeros((20, 2)), np.arange(20) % 2, **given)


# What arrays may be


def test_lists_and_whatever_is_an_array_make_a_data_set():
    class Frame:
        def __array__(self, dtype=None, copy=None):
            return np.eye(20)

    dataset = from_arrays(Frame(), [0, 1] * 10)

    assert dataset.num_samples + len(dataset.x_test) == 20
    assert from_arrays(np.eye(20).tolist(), np.arange(20) % 2).x.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (iter([1]), "x is a list_iterator, and an array, a tensor or a table of all samples is n"),
        ([[1], [1, 2]], "x is no array of numbers"),
    ],
)
def test_what_is_no_array_is_refused_in_a_sentence(x, message):
    with pytest.raises(DataError, match=message):
        from_arrays(x, [0, 1, 0])
