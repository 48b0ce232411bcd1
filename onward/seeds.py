"""Randomness derived from what it is for, never drawn from a global generator.

Every random number of a run comes from a generator made here from (seed, purpose, numbers). So a
task draws the same numbers wherever and whenever it runs, which is what makes the weights
independent of the placement.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from onward.devices import CPU


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """Mix a seed, a purpose and some numbers into a new seed of 63 bits.

    Example:
        >>> derive(0, "order", 3) == derive(0, "order", 3)
        True
        >>> derive(0, "order", 3) == derive(0, "shift", 3)
        False
    """
    text = repr((seed, purpose, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def generator(
    seed: int, purpose: str, *numbers: int, device: torch.device = CPU
) -> torch.Generator:
    """Return a generator of a device, seeded by `derive`.

    Example:
        >>> torch.randperm(4, generator=generator(0, "order", 0)).tolist()
        [2, 3, 0, 1]
    """
    return torch.Generator(device).manual_seed(derive(seed, purpose, *numbers))


@contextmanager
def global_generators_kept(device: torch.device = CPU) -> Iterator[None]:
    """Restore the global generators of torch, on a device too, of numpy and random at the end.

    Modules such as `torch.nn.Dropout` know no other generator, so it is seeded before each of
    their steps; the caller of the library should not notice.
    """
    before = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def seed_global_generator(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, of the processor and of a device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def seed_global_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch, on a device too, of numpy and random."""
    seed_global_generator(seed, device)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)


@contextmanager
def global_generators_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random, and restore them at the end."""
    with global_generators_kept():
        seed_global_generators(seed, CPU)
        yield
