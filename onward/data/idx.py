"""The idx format of MNIST and Fashion-MNIST, plain or gzipped."""

import gzip
import math
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.data.dataset import Dataset, from_arrays
from onward.data.published import IDX_FILES, plain_or_gzipped
from onward.errors import DataError

GZIP = b"\x1f\x8b"
"""How a gzipped file begins."""

MOST_EXPANSION = 1032
"""Bytes that one byte of a gzipped file can stand for, at most (zlib's technical details)."""


def read_mnist(folder: Path, *, name: str) -> Dataset:
    """Read the four files of a folder.

    Raises:
        DataError: A file is missing or damaged, or they do not fit together.
    """
    x, y, x_test, y_test = (
        read_idx(plain_or_gzipped(folder, file), dimensions=dimensions)
        for file, dimensions in zip(IDX_FILES, (3, 1, 3, 1), strict=True)
    )
    return from_arrays(
        x[:, None], y, x_test=x_test[:, None], y_test=y_test, num_classes=10, name=name
    )


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read one file of unsigned bytes.

    What the header announces is held against the size of the file before memory is taken for it.

    Args:
        path: The file. Whether it is gzipped is seen from its first bytes, not from its name.
        dimensions: How many the array must have: 3 for images, 1 for labels.

    Raises:
        DataError: The file is missing, cut short, longer than announced, or another one.
    """
    try:
        with path.open("rb") as file:
            is_gzipped = file.read(2) == GZIP
            file.seek(0)
            room = path.stat().st_size * (MOST_EXPANSION if is_gzipped else 1)
            stream = gzip.GzipFile(fileobj=file) if is_gzipped else file
            return _parse(stream, dimensions, room, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged: it does not unpack as gzip ({error}). Fetch it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _parse(stream: BufferedIOBase, dimensions: int, room: int, path: Path) -> NDArray[np.uint8]:
    magic = bytes([0, 0, 8, dimensions])
    header = stream.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path} is damaged: it ends within its header. Fetch it again.")
    if header[:4] != magic:
        raise DataError(
            f"{path} begins with the bytes {header[:4].hex(' ')}, but an idx file of unsigned "
            f"bytes in {dimensions} dimensions begins with {magic.hex(' ')}. Give the right file "
            f"this name."
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    count = math.prod(shape)
    announced = f"{path} is damaged: its header announces {' x '.join(map(str, shape))} values"
    if max(count, *shape) > room:
        raise DataError(f"{announced}, and the file is too small for them. Fetch it again.")
    values = stream.read(count + 1)
    if len(values) != count:
        found = "more" if len(values) > count else f"only {len(values)}"
        raise DataError(f"{announced}, but {found} follow. Fetch it again.")
    return np.frombuffer(values, np.uint8).reshape(shape)
