"""The binary version of CIFAR-10; the Python version is a pickle, and never read."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.data.dataset import Dataset, from_arrays
from onward.data.published import CIFAR_TEST_FILE, CIFAR_TRAIN_FILES
from onward.errors import DataError

ROW_BYTES = 1 + 3 * 32 * 32
"""A label, then the red, green and blue values of 32 x 32 pixels."""


def read_cifar10(folder: Path) -> Dataset:
    """Read the six files of a folder.

    Raises:
        DataError: A file is missing or damaged.
    """
    x, y = zip(*(read_batch(folder / file) for file in CIFAR_TRAIN_FILES), strict=True)
    x_test, y_test = read_batch(folder / CIFAR_TEST_FILE)
    return from_arrays(
        np.concatenate(x),
        np.concatenate(y),
        x_test=x_test,
        y_test=y_test,
        num_classes=10,
        name="cifar10",
    )


def read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one file.

    Returns:
        Images of shape [samples, 3, 32, 32], and their labels.

    Raises:
        DataError: The file is missing, its size is wrong, or a label is not from 0 to 9.
    """
    try:
        values = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if values.size == 0 or values.size % ROW_BYTES:
        raise DataError(
            f"{path} is damaged: its {values.size} bytes are not a whole number of samples of "
            f"{ROW_BYTES} bytes. Fetch it again."
        )
    samples = values.reshape(-1, ROW_BYTES)
    labels, images = samples[:, 0], samples[:, 1:].reshape(-1, 3, 32, 32)
    wrong = np.flatnonzero(labels > 9)
    if len(wrong):
        raise DataError(
            f"{path} is damaged: row {wrong[0]} has the label {labels[wrong[0]]}, but labels of "
            f"CIFAR-10 run from 0 to 9. Fetch it again."
        )
    return images, labels
