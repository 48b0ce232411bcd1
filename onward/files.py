"""Files that are written whole or not at all."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from onward.errors import FileError

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


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all.

    Raises:
        FileError: The disk is full, or the folder cannot be written to.
    """
    try:
        with atomic_write(path) as partial, partial.open("wb") as file:
            write(file)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text, see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def flush(path: Path) -> None:
    """Have the disk take a file in; where it is full, this is when it says so."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have the disk take in the names of a folder; Windows opens no folders."""
    if sys.platform == "win32":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
