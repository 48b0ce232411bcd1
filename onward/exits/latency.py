"""How long inference takes: batches of a size, under several exit policies in turn."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from onward import seeds
from onward.batch import Batch
from onward.data.numbers import Numbers
from onward.exits.answers import answer
from onward.exits.policies import ExitPolicy
from onward.network.networks import Network

BATCHES = {1: 400, 32: 100, 1024: 12}
"""Batches that are timed, by their size: so many that a 99th percentile, or for the largest the
slowest, says something, and a few seconds are enough."""

TURN = 4
"""Batches in a row under one policy, before it is the turn of the next: what else the machine does
then slows all of them alike."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of some batches of one size."""

    seconds: tuple[float, ...]
    """Of each batch."""

    batch_size: int
    """Samples of each."""

    @property
    def median(self) -> float:
        """Seconds that half of the batches take at most."""
        return float(np.median(self.seconds))

    @property
    def p99(self) -> float:
        """Seconds that 99 % of the batches take at most."""
        return float(np.quantile(self.seconds, 0.99))

    @property
    def samples_a_second(self) -> float:
        """Samples for each second of all batches together."""
        return self.batch_size * len(self.seconds) / sum(self.seconds)


def measure(
    network: Network,
    x: Numbers | Batch,
    policies: Mapping[str, ExitPolicy],
    *,
    batch_size: int,
    batches: int,
) -> dict[str, Latency]:
    """Time inference with early exit, on the threads that torch has.

    Every policy is given the same batches, a few at a time and in turn, after one that is not
    timed. Batches are cut from the samples in an order drawn at random, since files often have
    those of a class or a patient together; where there are too few samples, they come again.

    Args:
        network: A trained network.
        x: Samples.
        policies: When they leave, by name.
        batch_size: Samples of a batch.
        batches: Number of batches.

    Example:
        >>> import onward as ow
        >>> network = ow.mlp((4,), num_classes=3, widths=(8, 8))
        >>> early = {"early": ow.ExitPolicy("margin", (0.0,))}
        >>> found = measure(network, torch.ones(6, 4), early, batch_size=2, batches=5)
        >>> len(found["early"].seconds)
        5
    """
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    batch = network.checked(x)
    order = torch.randperm(len(batch), generator=seeds.generator(0, "latency"))
    drawn = order[torch.arange(batches * batch_size).remainder(len(batch))].split(batch_size)
    runs = {
        name: partial(answer, network, policy=policy, batch_size=batch_size)
        for name, policy in policies.items()
    }
    for run in runs.values():
        run(batch.take(drawn[0]))
    for first in range(0, batches, TURN):
        parts = [batch.take(part) for part in drawn[first : first + TURN]]
        for name, run in runs.items():
            for part in parts:
                start = time.perf_counter()
                run(part)
                seconds[name].append(time.perf_counter() - start)
    return {name: Latency(tuple(found), batch_size) for name, found in seconds.items()}
