"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""Ending of what is not whole yet."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield where to write a file, which takes its place once the disk has all of it.

    Args:
        path: The place of the file. What is there stays, where writing fails.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()


def flush(path: Path) -> None:
    """Have the disk take a file in; where it is full, this is when it says so."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
