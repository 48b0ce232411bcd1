"""Samples that stay in their file: read as they are asked for, some at a time."""

import mmap
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

LEFT_BYTES = 1 << 26
"""Bytes from which on samples are left in their file, and chosen ones are not read at once."""

READ_ONLY = "These samples stay in their file, and are read-only; change a copy, x.clone()."

aten = torch.ops.aten


class MappedFile:
    """An array in a file, of which samples are read by their numbers.

    Args:
        array: Samples first, read-only.
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        assert isinstance(array.base, mmap.mmap)
        self.pages: mmap.mmap = array.base
        with warnings.catch_warnings():
            # That it must not be written to: it is only ever read from.
            warnings.simplefilter("ignore", UserWarning)
            self.samples: Tensor = torch.from_numpy(array)

    def read(self, rows: Tensor) -> Tensor:
        """Return some samples."""
        found = self.samples[rows]
        if sys.platform == "linux":
            # What was read counts as memory of this process until it says so.
            self.pages.madvise(mmap.MADV_DONTNEED)
        return found


class MappedSamples(Tensor):
    """Some samples of a memory-mapped file, as a tensor.

    Its shape and type are known, and nothing is read. Choosing from it (`x[numbers]`, `x[3:5]`)
    reads those samples alone, or none where they are many; `x.split(100)` reads none. Everything
    else that torch does with it reads it as a whole.

    Args:
        file: The file.
        samples: Numbers of the samples in the file.
    """

    file: MappedFile
    rows: Tensor

    @staticmethod
    def __new__(cls, file: MappedFile, rows: Tensor) -> "MappedSamples":
        like = file.samples
        made: MappedSamples = Tensor._make_wrapper_subclass(
            cls, (len(rows), *like.shape[1:]), dtype=like.dtype, device=like.device
        )
        made.file, made.rows = file, rows
        return made

    def __init__(self, file: MappedFile, rows: Tensor) -> None:
        """Made by `__new__`, as tensors are."""

    def whole(self) -> Tensor:
        """Return all of these samples, read."""
        return self.file.read(self.rows)

    def chosen(self, rows: Tensor) -> Tensor:
        """Return some samples by their numbers in the file: read, unless they are many."""
        is_much = len(rows) * self.file.samples[:1].nbytes > LEFT_BYTES
        return MappedSamples(self.file, rows) if is_much else self.file.read(rows)

    def tolist(self) -> Any:
        """Return all of these samples as nested lists."""
        return self.whole().tolist()

    def share_memory_(self) -> "MappedSamples":
        """Refuse what has no memory of its own."""
        raise TypeError("These samples stay in their file; share a copy, x.clone().")

    def __setitem__(self, *_: object) -> None:
        """Refuse to change the file."""
        raise TypeError(READ_ONLY)

    def __deepcopy__(self, memo: object) -> "MappedSamples":
        """Return the same samples of the same file."""
        return MappedSamples(self.file, self.rows.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled as a tensor in memory."""
        return self.whole().__reduce_ex__(protocol)

    def numpy(self, *, force: bool = False) -> NDArray[Any]:
        """Return all of these samples as an array."""
        return self.whole().numpy(force=force)

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        """Return it in a line, nothing of it read."""
        return f"<MappedSamples: {self.dtype} of shape {tuple(self.shape)}>"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func._schema.is_mutable and any(
            isinstance(arg, cls) for arg in _mutated(func, args, kwargs)
        ):
            raise TypeError(READ_ONLY)
        mapped, *rest = args
        if func in (aten.detach.default, aten.alias.default):
            return MappedSamples(mapped.file, mapped.rows)
        if func is aten.index.Tensor and isinstance(mapped, cls):
            (first, *others) = rest[0]
            if first is not None and first.ndim == 1 and not others:
                return mapped.chosen(mapped.rows[first])
        if func is aten.slice.Tensor and (not rest or rest[0] == 0):
            return mapped.chosen(mapped.rows[slice(*rest[1:])])
        if func is aten.select.int and rest[0] == 0:
            return mapped.file.read(mapped.rows[rest[1]].reshape(1))[0]
        if func is aten.split.Tensor and (len(rest) == 1 or rest[1] == 0):
            # All at once would be read before the first is looked at.
            return [MappedSamples(mapped.file, rows) for rows in mapped.rows.split(rest[0])]
        read = pytree.tree_map_only(cls, cls.whole, (args, kwargs or {}))
        return func(*read[0], **read[1])


def _mutated(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[Any]:
    """Return the arguments that an operation writes to."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else (kwargs or {}).get(argument.name))
    return found


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor in memory: itself, unless its samples are in a file."""
    return tensor.whole() if isinstance(tensor, MappedSamples) else tensor


def mapped(array: NDArray[Any]) -> Tensor | None:
    """Return the samples of a memory-mapped array where they lie; None where they must be copied.

    Only an array that nobody writes to through the file may stay there, and small ones need not.

    Args:
        array: Samples first, of a type that networks take as it is.
    """
    if not isinstance(array, np.memmap) or not isinstance(array.base, mmap.mmap):
        return None
    if array.mode != "r" or not array.flags.c_contiguous or array.nbytes <= LEFT_BYTES:
        return None
    return MappedSamples(MappedFile(array), torch.arange(len(array)))
