"""What a network is built from, and how."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from onward.arguments import said
from onward.data import DataInfo
from onward.errors import OnwardError, SettingError, line_of_user, told
from onward.network.networks import Network
from onward.network.stages import Stage
from onward.recipes.recipe import Recipe
from onward.seeds import global_generators_seeded
from onward.settings import OptimizerConfig, PlanConfig, TrainingConfig


@dataclass(frozen=True)
class Blueprint:
    """What a network was built from; it makes saved models self-contained."""

    recipe: Recipe
    """The method."""

    settings: Any
    """Its settings."""

    data: DataInfo
    """What it was built for."""

    stage: int = -1
    """Which of the trainings of the recipe it is of; -1: the last."""

    seed: int = 0
    """The one with which torch, numpy and random were seeded for the recipe."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, the recipe by name and digest."""
        return {
            "recipe": self.recipe.name,
            "recipe_sha256": self.recipe.sha256,
            "settings": asdict(self.settings),
            "data": asdict(self.data),
            "stage": self.stage,
            "seed": self.seed,
        }


def build(
    blueprint: Blueprint, *, optimizer: OptimizerConfig | None = None, seed: int = 0
) -> Network:
    """Build a network by its recipe, see `build_stages`."""
    training = TrainingConfig(seed=seed)
    stages = build_stages(blueprint, optimizer=optimizer, training=training)
    if not -1 <= blueprint.stage < len(stages):
        raise SettingError(
            f"The network is of stage {blueprint.stage} of the recipe {blueprint.recipe.name}, "
            f"which now has {len(stages)}, counted from 0."
        )
    return stages[blueprint.stage].network


def build_stages(
    blueprint: Blueprint,
    *,
    optimizer: OptimizerConfig | None = None,
    training: TrainingConfig,
    plan: PlanConfig | None = None,
    held: Collection[int] | None = None,
) -> list[Stage]:
    """Build all that a recipe trains one after the other: mostly one network.

    Args:
        blueprint: What from.
        optimizer: How weights follow their gradients, for recipes that take it.
        training: Of the run; its seed decides the first weights.
        plan: Of the run.
        held: Blocks that get weights, which others do not need; None for all. Of several stages,
            all have them.

    Raises:
        SettingError: Settings do not fit the data or each other, or the recipe builds something
            else.
    """
    recipe, plan = blueprint.recipe, plan or PlanConfig()
    given = {
        "optimizer": optimizer or OptimizerConfig(),
        "training": training,
        "plan": plan,
        "held": held,
    }
    keywords = {name: value for name, value in given.items() if recipe.takes(name)}
    try:
        with global_generators_seeded(training.seed):
            built = recipe.function(blueprint.settings, blueprint.data, **keywords)
    except Exception as error:
        if isinstance(error, OnwardError) or line_of_user(error) is None:
            raise
        raise SettingError(f"The recipe {recipe.name} fails at {told(error)}") from error
    if isinstance(built, Network):
        for number, block in enumerate(built.all_blocks):
            if held is not None and number not in held and not block.is_released:
                block.release()
        stages = [Stage(network=built, training=training, plan=plan)]
    else:
        stages = _checked(recipe, built)
    for number, stage in enumerate(stages):
        stage.network.blueprint = replace(blueprint, stage=number, seed=training.seed)
    return stages


def _checked(recipe: Recipe, built: Any) -> list[Stage]:
    """Return the stages that a recipe has built."""
    stages = list(built) if isinstance(built, list | tuple) else []
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise SettingError(
            f"The recipe {recipe.name} returns {said(built)}; it returns an ow.Network, or a list "
            f"of ow.Stage."
        )
    if not recipe.takes("training") or recipe.takes("held"):
        raise SettingError(
            f"The recipe {recipe.name} returns stages. Its function then takes the settings of the "
            f"run as `training`, makes those of each stage of them, as in "
            f"dataclasses.replace(training, epochs=5), and does not take `held`."
        )
    return stages
