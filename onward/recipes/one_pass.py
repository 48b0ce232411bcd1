"""Performance-optimized Pipeline Forward-Forward."""

from collections.abc import Collection

from onward.data import DataInfo
from onward.networks import Network
from onward.recipes.dense import dense
from onward.recipes.recipe import recipe
from onward.settings import NetworkConfig, OptimizerConfig


@recipe(
    name="one-pass",
    source="Aktemur et al. 2024, arXiv:2404.08573, section 4.4 (performance-optimized PFF)",
    defaults={
        "network.gain": 2**0.5,
        "network.dropout": 0.2,
        "training.schedule": "warmup",
    },
)
def one_pass(
    settings: NetworkConfig,
    data: DataInfo,
    *,
    optimizer: OptimizerConfig,
    held: Collection[int] | None = None,
) -> Network:
    """Each block learns to classify with a linear head of its own; the heads vote.

    No negatives. The choice for a good model.
    """
    return dense(settings, data, optimizer=optimizer, held=held)
