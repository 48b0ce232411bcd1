"""Text as windows of bytes, each with the bytes that follow its own."""

import math
from pathlib import Path

import numpy as np
import torch

from onward.batch import Batch
from onward.data.dataset import Dataset
from onward.errors import DataError

BYTES = 256
"""Classes of the byte that follows a window."""

NEXT = "next"
"""Target with the byte that follows each byte of a window."""


def read_text(path: Path, *, context: int, test: float | int = 0.2) -> Dataset:
    """Read a file as windows of bytes, one after the other; any bytes will do, in any encoding.

    A sample is a window, and its class is the byte that follows it. The target `next` has the byte
    that follows each byte of the window.

    Args:
        path: The file.
        context: Bytes of a window. What is left over at the end of the file is not used.
        test: Share of the windows, or number, that are test samples: those at the end.

    Raises:
        DataError: The file cannot be read, or has too few bytes.
    """
    try:
        found = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    windows = max(len(found) - 1, 0) // context
    if windows < 2:
        raise DataError(
            f"{path} has {len(found):,} bytes. A window to learn from, another to test with and "
            f"the byte after it take {2 * context + 1:,}, with data.context = {context}. Give a "
            f"longer text, or set a smaller data.context."
        )
    held = math.ceil(test * windows) if 0 < test < 1 else int(test)
    if not 0 < held < windows:
        raise DataError(
            f"{path} has {windows:,} windows of data.context = {context} bytes, of which {test} "
            f"cannot be held out for the test so that some are left on both sides. Give a share "
            f"between 0 and 1, or a longer text."
        )
    # Not uint8, which is taken for pixels.
    used = np.frombuffer(found, np.uint8, windows * context + 1).astype(np.int16)
    inputs, following = (
        torch.from_numpy(used[first : first + windows * context].reshape(windows, context))
        for first in (0, 1)
    )
    whole = Batch(inputs, {"label": following[:, -1].long(), NEXT: following})
    return Dataset(
        name=path.name,
        training=whole.take(slice(0, windows - held)),
        test=whole.take(slice(windows - held, windows)),
        num_classes=BYTES,
    )
