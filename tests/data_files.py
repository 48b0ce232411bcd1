"""Small data sets: files in the published formats, a server that publishes them, arrays."""

import gzip
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.data import Dataset, from_arrays
from onward.data.published import CIFAR_TEST_FILE, CIFAR_TRAIN_FILES, IDX_FILES

Bytes = NDArray[np.uint8]

QUICK = ("--epochs", "1", "--widths", "8")
"""Flags of a short run."""


def idx_bytes(array: Bytes) -> bytes:
    """Return an array in the idx format."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_mnist(folder: Path, *, zipped: bool = False, samples: int = 20) -> dict[str, Bytes]:
    """Write the four files of a small MNIST, and return what they hold."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "x": random.integers(256, size=(samples, 4, 3), dtype=np.uint8),
        "y": np.arange(samples, dtype=np.uint8) % 10,
        "x_test": random.integers(256, size=(5, 4, 3), dtype=np.uint8),
        "y_test": np.arange(5, dtype=np.uint8),
    }
    for file, array in zip(IDX_FILES, arrays.values(), strict=True):
        content = idx_bytes(array)
        if zipped:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)
    return arrays


def cifar_bytes(images: Bytes, labels: Bytes) -> bytes:
    """Return images [samples, 3, 32, 32] and labels in the binary form of CIFAR-10."""
    return np.hstack([labels[:, None], images.reshape(len(images), -1)]).tobytes()


def write_cifar10(folder: Path, *, samples: int = 2) -> dict[str, Bytes]:
    """Write the six files of a small CIFAR-10, and return what they hold."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    files = (*CIFAR_TRAIN_FILES, CIFAR_TEST_FILE)
    images = random.integers(256, size=(len(files), samples, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(len(files) * samples, dtype=np.uint8).reshape(len(files), samples) % 10
    for file, x, y in zip(files, images, labels, strict=True):
        (folder / file).write_bytes(cifar_bytes(x, y))
    return {
        "x": np.concatenate(images[:-1]),
        "y": np.concatenate(labels[:-1]),
        "x_test": images[-1],
        "y_test": labels[-1],
    }


def assert_holds(dataset: Dataset, arrays: dict[str, Bytes]) -> None:
    """Check that a data set holds these bytes and these labels."""
    for name in ("x", "x_test"):
        actual = getattr(dataset, name).numpy()
        assert actual.dtype == np.uint8
        np.testing.assert_array_equal(actual, arrays[name].reshape(actual.shape))
    for name in ("y", "y_test"):
        assert getattr(dataset, name).tolist() == arrays[name].tolist()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def published(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine, and yield its address."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def arrays(**changes):
    """Return the members of a data file that can be learned from, some of them changed."""
    random = np.random.default_rng(0)
    members = {"x": random.random((40, 4)), "y": np.arange(40) % 2} | changes
    return {name: member for name, member in members.items() if member is not None}


def of_classes(y, **settings):
    """Make a data set of these labels whose only input is the number of the sample."""
    y = np.asarray(y)
    return from_arrays(np.arange(len(y), dtype=np.float32)[:, None], y, **settings)


def with_values(array, **values):
    """Return an array with other values in some rows, `row7=nan` for instance."""
    array = np.array(array)
    array[[int(row.removeprefix("row")) for row in values]] = list(values.values())
    return array
