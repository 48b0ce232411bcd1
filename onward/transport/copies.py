"""Copies for messages of what a GPU computes."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Copies:
    """Copies of tensors of a GPU for the processor, made beside what the GPU computes.

    Args:
        tensors: Must not change until the copies are there.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._done: torch.cuda.Event | None = None
        device = next((tensor.device for tensor in tensors if not tensor.is_cpu), None)
        if device is None or device.type != "cuda":
            self._copies = [tensor.cpu() for tensor in tensors]
            return
        if device not in STREAMS:
            STREAMS[device] = torch.cuda.Stream(device)
        stream = STREAMS[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._copies = [_pinned(tensor) for tensor in tensors]
            self._done = torch.cuda.Event(blocking=True)
            self._done.record(stream)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(stream)

    def wait(self) -> list[Tensor]:
        """Return the copies, once they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies


STREAMS: dict[torch.device, torch.cuda.Stream] = {}
"""On which tensors of a GPU are copied."""


def _pinned(tensor: Tensor) -> Tensor:
    """Begin a copy to memory that the GPU can write to by itself."""
    if tensor.is_cpu:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
