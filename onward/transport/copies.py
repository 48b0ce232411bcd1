"""Copies between a GPU and messages, made beside what the GPU computes."""

from collections.abc import Sequence

import torch
from torch import Tensor

STREAMS: dict[tuple[torch.device, str], torch.cuda.Stream] = {}
"""On which tensors are copied from a GPU, and to it."""


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
        stream = _stream(device, "from")
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


def brought_beside(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return what has arrived, on a device; this thread waits until it is there, and no other."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    stream = _stream(device, "to")
    with torch.cuda.stream(stream):
        found = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    stream.synchronize()
    for tensor in found:
        tensor.record_stream(torch.cuda.default_stream(device))
    return found


def _stream(device: torch.device, way: str) -> torch.cuda.Stream:
    if (device, way) not in STREAMS:
        STREAMS[device, way] = torch.cuda.Stream(device)
    return STREAMS[device, way]


def _pinned(tensor: Tensor) -> Tensor:
    """Begin a copy to memory that the GPU can write to by itself."""
    if tensor.is_cpu:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
