"""Moves a network to the device that it is trained on, and back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from onward.networks import Network


@contextmanager
def moved(network: Network, device: torch.device) -> Iterator[None]:
    """Have a network on a device for a while, and then on the processor, where it rests."""
    for block in network.all_blocks:
        was_released = block.is_released
        block.to(device)
        if was_released:
            # There may be no room for all of them.
            block.release()
    network.to(device)
    try:
        yield
    finally:
        network.to("cpu")
