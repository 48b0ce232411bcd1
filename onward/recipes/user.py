"""Recipes of users, which are code: found where the command line names it, and nowhere else."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from onward.errors import SettingError, told
from onward.recipes.catalog import RECIPES
from onward.recipes.recipe import Recipe
from onward.values import nearest

GROUP = "onward.recipes"
"""Entry points under which installed packages offer recipes."""


def is_named(text: str) -> bool:
    """Return whether a text names code: FILE.py:FUNCTION, MODULE:FUNCTION, or an entry point."""
    return ":" in text or text in entry_points(group=GROUP).names


def load_recipe(text: str) -> Recipe:
    """Import a recipe.

    Args:
        text: `file.py:function`, `package.module:function`, or the name of an installed entry
            point. The last colon separates.

    Raises:
        SettingError: There is none, or it cannot be imported.
    """
    for point in entry_points(group=GROUP, name=text):
        text = point.value
    where, _, name = text.rpartition(":")
    if not where:
        raise SettingError(
            f"{text} names no function. A recipe of your own is FILE.py:FUNCTION or "
            f"PACKAGE.MODULE:FUNCTION; those that come with Onward need no --recipe."
        )
    try:
        module = (
            _module_of_file(Path(where))
            if where.endswith(".py")
            else importlib.import_module(where)
        )
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(f"{where} cannot be imported: {told(error)}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Recipe):
        others = [n for n, value in vars(module).items() if isinstance(value, Recipe)]
        there = f"It has the recipes {', '.join(others)}." if others else "It has no recipe."
        raise SettingError(
            f"{where} has no recipe {name}. {there} A recipe is a function under @ow.recipe(...)."
        )
    # Where the file lies does not matter, as long as it is the same.
    where = Path(where).name if where.endswith(".py") else where
    twin = found.twin
    if isinstance(twin, Recipe):
        twin = _recorded(twin, f"{where}:{twin.function.__name__}")
    elif isinstance(twin, str) and twin not in RECIPES:
        raise SettingError(
            f"The twin of {where}:{name} is to be {twin}, which does not come with Onward."
            f"{nearest(twin, RECIPES)} A recipe of your own is given itself, and not by its name: "
            f"twin=FUNCTION."
        )
    return replace(_recorded(found, f"{where}:{name}"), twin=twin)


def _recorded(found: Recipe, called: str) -> Recipe:
    """Return a recipe with the name and the digest of its file, by which runs know it."""
    function = inspect.unwrap(found.function)
    source = inspect.getsourcefile(function) or sys.modules[function.__module__].__file__
    assert source is not None
    return replace(found, name=called, sha256=hashlib.sha256(Path(source).read_bytes()).hexdigest())


def _module_of_file(path: Path) -> ModuleType:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise SettingError(f"There is no file {path}, which a recipe should be read from.")
    # Under a name of its own, which takes no other module's place.
    name = f"onward_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up, and a recipe may import its neighbours.
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module
