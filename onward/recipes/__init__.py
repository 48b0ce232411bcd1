"""Methods, each a function from settings to a network, with its paper and section."""

from onward.recipes.catalog import BUILT_IN, RECIPES
from onward.recipes.recipe import Recipe, recipe

__all__ = ["BUILT_IN", "recipe", "Recipe", "RECIPES"]
