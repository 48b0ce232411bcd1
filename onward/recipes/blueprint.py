"""What a network is built from, and how."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from onward.data import DataInfo
from onward.errors import OnwardError, SettingError, line_of_user, told
from onward.networks import Network
from onward.recipes.recipe import Recipe
from onward.seeds import global_generators_seeded
from onward.settings import OptimizerConfig


@dataclass(frozen=True)
class Blueprint:
    """What a network was built from; it makes saved models self-contained."""

    recipe: Recipe
    """The method."""

    settings: Any
    """Its settings."""

    data: DataInfo
    """What it was built for."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, the recipe by name and digest."""
        return {
            "recipe": self.recipe.name,
            "recipe_sha256": self.recipe.sha256,
            "settings": asdict(self.settings),
            "data": asdict(self.data),
        }


def build(
    blueprint: Blueprint,
    *,
    optimizer: OptimizerConfig | None = None,
    seed: int = 0,
    held: Collection[int] | None = None,
) -> Network:
    """Build a network by its recipe.

    Args:
        blueprint: What from.
        optimizer: How weights follow their gradients, for recipes that take it.
        seed: Decides the first weights.
        held: Blocks that get weights, which others do not need; None for all.

    Raises:
        SettingError: Settings do not fit the data or each other, or the recipe builds something
            else.
    """
    recipe = blueprint.recipe
    if not -(1 << 63) <= seed < 1 << 63:
        raise SettingError(f"The seed is {seed}; torch takes whole numbers of 64 bits.")
    given = {"optimizer": optimizer or OptimizerConfig(), "held": held}
    keywords = {name: value for name, value in given.items() if recipe.takes(name)}
    try:
        with global_generators_seeded(seed):
            network = recipe.function(blueprint.settings, blueprint.data, **keywords)
    except Exception as error:
        if isinstance(error, OnwardError) or line_of_user(error) is None:
            raise
        raise SettingError(f"The recipe {recipe.name} fails at {told(error)}") from error
    if not isinstance(network, Network):
        raise SettingError(
            f"The recipe {recipe.name} returns a {type(network).__name__}; it returns an "
            f"ow.Network."
        )
    for number, block in enumerate(network.all_blocks):
        if held is not None and number not in held and not block.is_released:
            block.release()
    network.blueprint = blueprint
    return network
