"""Methods as settings, each with its paper and section, and the networks they build."""

from onward.recipes.catalog import RECIPES, Recipe
from onward.recipes.dense import Blueprint, build, check_network, mlp

__all__ = ["Blueprint", "build", "check_network", "mlp", "Recipe", "RECIPES"]
