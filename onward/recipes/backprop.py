"""Backpropagation, to compare with."""

from collections.abc import Collection

from onward.data import DataInfo
from onward.networks import Network
from onward.recipes.dense import dense
from onward.recipes.recipe import recipe
from onward.settings import NetworkConfig, OptimizerConfig


@recipe(
    source="the usual way; the twin of one-pass",
    defaults={
        "network.one_block": True,
        "network.gain": 2**0.5,
        "network.dropout": 0.2,
        "training.schedule": "warmup",
        "training.gradients": "autograd",
    },
)
def backprop(
    settings: NetworkConfig,
    data: DataInfo,
    *,
    optimizer: OptimizerConfig,
    held: Collection[int] | None = None,
) -> Network:
    """The same layers in one block, trained by backpropagation: what to compare with."""
    return dense(settings, data, optimizer=optimizer, held=held)
