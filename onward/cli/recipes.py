"""The command that says which recipes there are, and which settings one has."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onward.cli.flags import find_recipe
from onward.cli.output import Output
from onward.config import RunConfig
from onward.errors import SettingError
from onward.recipes import RECIPES
from onward.recipes.catalog import FAMILIES
from onward.values import kinds, meanings, say_kind, written

ALL_ELSE = (
    "All other settings have their usual defaults: docs/command.md lists them, and `onward train "
    "--help` the flags of those that are changed most often."
)
"""Where the settings are that a recipe leaves alone."""


def recipes_command(options: argparse.Namespace) -> None:
    """List the recipes, or the settings of one."""
    if options.recipe is None:
        Output().print(_list())
        return
    if options.recipe.endswith(".toml"):
        raise SettingError(
            f"{options.recipe} is a run file, and holds all settings of its run itself. `onward "
            f"recipes` takes one of {', '.join(RECIPES)}, FILE.py:FUNCTION or "
            f"PACKAGE.MODULE:FUNCTION."
        )
    # Errors then say where in its file they come from.
    options.code = None if options.recipe in RECIPES else options.recipe
    recipe = find_recipe(options.recipe)
    run = RunConfig(method=recipe)
    own = [*_rows("network", run.network)]
    changed = [
        row
        for section in dict.fromkeys(full.partition(".")[0] for full in recipe.defaults)
        for row in _rows(section, getattr(run, section), among=recipe.defaults)
        if section != "network"
    ]
    console = Output(highlight=False)
    console.print(f"{recipe.summary}\nSource: {recipe.source}\n", soft_wrap=True)
    if own:
        console.print(_table(f"Settings of {recipe.name}", own), "")
    else:
        console.print(f"{recipe.name} has no settings of its own.\n", soft_wrap=True)
    if changed:
        console.print(_table("Settings of all recipes that have another default here", changed), "")
    console.print(ALL_ELSE, soft_wrap=True)


def _list() -> Group:
    width = max(map(len, RECIPES))
    tables = []
    for family, recipes in FAMILIES.items():
        title = Text(f"{family[0].upper()}{family[1:]}", style="bold")
        table = Table(
            title=title, title_justify="left", box=None, padding=(0, 2, 1, 0), show_header=False
        )
        table.add_column("recipe", no_wrap=True, min_width=width)
        table.add_column("what it does, and its source")
        for recipe in recipes:
            source = Text(f"Source: {recipe.source}", style="dim")
            table.add_row(recipe.name, Text.assemble(recipe.summary, "\n", source))
        tables.append(table)
    return Group(*tables, "`onward recipes RECIPE` lists the settings of one, and their meanings.")


def _rows(
    section: str, settings: Any, among: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, ...]]:
    """Yield name, type, default and meaning of the settings of a section, or some of them."""
    meaning = meanings(type(settings))
    for name, kind in kinds(type(settings)).items():
        full = f"{section}.{name}"
        if among is None or full in among:
            yield full, say_kind(kind), written(getattr(settings, name)), meaning.get(name, "")


def _table(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("takes", overflow="fold", ratio=3)
    table.add_column("default", overflow="fold", max_width=14)
    table.add_column("meaning", overflow="fold", ratio=5)
    for row in rows:
        # Plain text: brackets in the words of a user are no markup.
        table.add_row(*map(Text, row))
    return table
