"""Memory for tensors that come and go, used again."""

import weakref
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

LINE = 64
"""Bytes of a cache line."""

SMALL = 1 << 16
"""Bytes below which fresh memory is as good as used memory."""


class Buffers:
    """Memory for what arrives, used again once nothing refers to it.

    Fresh memory is dear: the system hands it out page by page, and for a block state of 48 MB that
    was measured to take up to ten times as long as copying the bytes.
    """

    def __init__(self) -> None:
        self.free: dict[int, list[np.ndarray]] = {}

    def empty_like(self, like: Tensor) -> Tensor:
        """Return a tensor of the same shape and type, with any content."""
        size = like.numel() * like.element_size()
        if size < SMALL:
            return torch.empty(like.shape, dtype=like.dtype)
        free = self.free.setdefault(size, [])
        try:
            memory = free.pop()
        except IndexError:
            # Vector instructions like whole cache lines.
            memory = np.empty(size + LINE, np.uint8)
            memory = memory[-memory.ctypes.data % LINE :][:size]
        # The tensor, and all that shares its storage, holds this view alone: as long as it lives,
        # the memory is in use.
        view = memory[:]
        weakref.finalize(view, free.append, memory).atexit = False
        return torch.from_numpy(view).view(like.dtype).view(like.shape)

    def reserve(self, layouts: Iterable[Sequence[Tensor]]) -> None:
        """Have memory ready for messages of these shapes, to be held at the same time."""
        held = [self.empty_like(like).zero_() for layout in layouts for like in layout]
        del held
