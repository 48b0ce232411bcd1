"""What methods of one's own in these tests are built of."""

from functools import wraps

import torch
from contract_data import (
    CLASSES,
)
from torch import nn

import onward as ow

BATCH_SIZE, UNITS = 16, 16


def seeded(build):
    """Let a function build the same networks on every rank, whenever it is called."""

    @wraps(build)
    def builds_the_same():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build()

    return builds_the_same


# Blocks that many of them use


def dense(inputs, units=UNITS):
    return nn.Sequential(nn.Linear(inputs, units), nn.ReLU())


class Concatenated(nn.Module):
    """Puts all that a head reads side by side."""

    def forward(self, inputs):
        return torch.cat([inputs[name] for name in sorted(inputs)], dim=1)


def head_over(*reads, width=UNITS, views=("neutral",)):
    objective = ow.CrossEntropy(nn.Linear(len(reads) * width, CLASSES), views=views)
    return ow.Block(Concatenated(), objective, ow.Adam(lr=0.01), reads=reads)
