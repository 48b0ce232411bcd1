"""Where outputs of frozen blocks are held for a chapter: in memory, in a file, or nowhere."""

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from onward.batch import empty
from onward.errors import FileError

Way = Literal["memory", "file", "again"]
"""memory: it is held there. file: in a file that is mapped into memory, so that the system moves it
to the disk and back. again: nowhere, and it is computed again when it is read."""

Hold = Callable[[Sequence[int], Tensor], list[Tensor]]
"""Returns empty tensors of so many samples each, of a type and with samples of a shape."""

ALIGNED = 64
"""Tensors begin at multiples of so many bytes, in a file as in memory: kernels may round by it."""

IN_MEMORY = ("tmpfs", "ramfs")
"""File systems that lie in memory."""


def in_memory(samples: Sequence[int], like: Tensor) -> list[Tensor]:
    """Return empty tensors in memory.

    Args:
        samples: Samples of each.
        like: Has their type, and samples of their shape.
    """
    return [empty(n, like) for n in samples]


def in_file(samples: Sequence[int], like: Tensor) -> list[Tensor]:
    """Return empty tensors in a file that is gone with them, or with the process.

    Args:
        samples: Samples of each.
        like: Has their type, and samples of their shape.

    Raises:
        FileError: There is no room on the disk.
    """
    each = like[:1].nbytes
    firsts, size = [], 0
    for n in samples:
        firsts.append(size)
        size += math.ceil(n * each / ALIGNED) * ALIGNED
    if not size:
        return in_memory(samples, like)
    where = folder()
    try:
        # It has no name on Linux and macOS, and so is left behind by no crash.
        with tempfile.TemporaryFile(dir=where) as file:
            if hasattr(os, "posix_fallocate"):
                # Without room for all of it, writing into the mapped file would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise FileError(
            f"The outputs of frozen blocks take {size / 1e9:.1f} GB in a file in {where}, which "
            f"cannot be written: {error.strerror}. Set TMPDIR to a folder on a disk with room, or "
            f"raise placement.memory (in GB)."
        ) from error
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    found = []
    for first, n in zip(firsts, samples, strict=True):
        layout = empty(n, like.to("meta"))
        place = whole[first : first + n * each].view(like.dtype)
        found.append(place.as_strided(layout.shape, layout.stride()))
    return found


HOLDS: dict[Way, Hold] = {"memory": in_memory, "file": in_file}
"""How tensors are held, of the ways to hold them."""


def folder() -> Path:
    """Return the folder for files that hold activities: TMPDIR, or one that lies on a disk."""
    usual = Path(tempfile.gettempdir())
    if "TMPDIR" not in os.environ and is_in_memory(usual) and os.access("/var/tmp", os.W_OK):
        return Path("/var/tmp")
    return usual


def is_in_memory(path: Path) -> bool:
    """Return whether a folder lies in memory rather than on a disk."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    above = (mounts.get(str(place)) for place in (path.resolve(), *path.resolve().parents))
    return next((kind for kind in above if kind is not None), "") in IN_MEMORY
