"""Supervised Forward-Forward."""

from collections.abc import Collection

from onward.data import DataInfo
from onward.networks import Network
from onward.recipes.dense import dense
from onward.recipes.recipe import recipe
from onward.settings import NetworkConfig, OptimizerConfig


@recipe(
    source="Hinton 2022, arXiv:2212.13345, section 3.3, and his published Matlab code",
    defaults={
        "network.widths": (2000, 2000, 2000, 2000),
        "network.objective": "threshold",
        "network.negatives": "hard",
        "network.readout": "goodness",
        "network.peer": 0.03,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.01,
        "optimizer.weight_decay": 0.001,
        "optimizer.head_lr": 0.1,
        "optimizer.head_weight_decay": 0.003,
        "training.epochs": 60,
        "training.schedule": "cooldown",
        "plan.kind": "stream",
    },
)
def hinton(
    settings: NetworkConfig,
    data: DataInfo,
    *,
    optimizer: OptimizerConfig,
    held: Collection[int] | None = None,
) -> Network:
    """Supervised Forward-Forward: labels in the input, hard negatives, a stream.

    Every mini-batch updates every block.
    """
    return dense(settings, data, optimizer=optimizer, held=held)
