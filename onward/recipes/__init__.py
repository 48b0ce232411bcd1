"""Methods, each a function from settings to a network, with its paper and section."""

from onward.recipes.catalog import BUILT_IN, RECIPES
from onward.recipes.dense import mlp
from onward.recipes.recipe import Blueprint, Recipe, build, build_stages, recipe

__all__ = ["Blueprint", "build", "build_stages", "BUILT_IN", "mlp", "recipe", "Recipe", "RECIPES"]
