"""The recipe of dense blocks, which those of Hinton and of Aktemur et al. set in different ways."""

from collections.abc import Collection
from typing import Any

from onward.recipes.recipe import recipe
from onward.settings import NetworkConfig, OptimizerConfig


@recipe(source="the blocks of Hinton 2022, and of Aktemur et al. 2024")
def dense(
    config: NetworkConfig,
    data: Any,
    *,
    optimizer: OptimizerConfig,
    held: Collection[int] | None = None,
) -> Any:
    """Build a network of dense blocks from its settings; see `dense_network`."""
    # Lists of recipes and the help of the command do without torch.
    from onward.recipes.blocks import dense_network

    return dense_network(config, data, optimizer=optimizer, held=held)
