"""Pipeline Forward-Forward."""

from collections.abc import Collection

from onward.data import DataInfo
from onward.networks import Network
from onward.recipes.dense import dense
from onward.recipes.recipe import recipe
from onward.settings import NetworkConfig, OptimizerConfig


@recipe(
    source="Aktemur et al. 2024, arXiv:2404.08573, sections 4 and 5; threshold, slope and "
    "learning rates are ours, those printed do not train deep blocks",
    defaults={
        "network.widths": (2000, 2000, 2000, 2000),
        "network.objective": "threshold",
        "network.negatives": "adaptive",
        "network.readout": "goodness",
        "network.slope": 20.0,
        "optimizer.lr": 1e-3,
        "optimizer.head_lr": 1e-4,
        "training.epochs": 100,
        "training.batch_size": 64,
        "training.schedule": "cooldown",
    },
)
def pff(
    settings: NetworkConfig,
    data: DataInfo,
    *,
    optimizer: OptimizerConfig,
    held: Collection[int] | None = None,
) -> Network:
    """Pipeline Forward-Forward: blocks take turns of a chapter.

    Negatives are the network's likeliest mistakes.
    """
    return dense(settings, data, optimizer=optimizer, held=held)
