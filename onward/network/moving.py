"""Moves a network to the device that it is trained on, and back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from onward.devices import (
    CPU,
    denormals_flushed,
    forget_peak,
    release_memory,
    reproducible,
    resolve_precision,
)
from onward.network.networks import Network


@contextmanager
def moved(network: Network, device: torch.device) -> Iterator[None]:
    """Have a network on a device for a while, and then on the processor, where it rests.

    A network in bf16 that comes from a GPU computes in fp32 on a processor without bf16.
    """
    forget_peak(device)
    try:
        for block in network.all_blocks:
            was_released = block.is_released
            block.to(device)
            if was_released:
                # There may be no room for all of them.
                block.release()
        network.to(device)
        with reproducible(device), denormals_flushed():
            yield
    finally:
        network.to(CPU)
        if device.type != "cpu":
            release_memory(device)
            if resolve_precision("auto", CPU) == "fp32":
                network.set_precision(torch.float32)
