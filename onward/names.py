"""Public names of packages, which are imported when they are first asked for.

torch takes more than a second to import, and settings, lists and the help of the command need none
of it.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def on_demand(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package (PEP 562).

    Modules of the package are found as well, as if they had been imported.

    Args:
        package: Name of the package.
        homes: Modules, and what is public of each, written as after `import`: `name`, or
            `name as other`.
    """
    where: dict[str, tuple[str, str]] = {}
    for module, names in homes.items():
        for text in names:
            name, _, other = text.partition(" as ")
            where[other or name] = (module, name)

    def find(public: str) -> Any:
        module, name = where.get(public, (package, public))
        if module != package:
            found = getattr(importlib.import_module(module), name)
        else:
            found = _module(package, name)
        setattr(sys.modules[package], public, found)
        return found

    return find, lambda: list(sys.modules[package].__all__)


def _module(package: str, name: str) -> Any:
    """Return a module of a package."""
    whole = f"{package}.{name}"
    try:
        if not name.startswith("_"):
            return importlib.import_module(whole)
    except ModuleNotFoundError as error:
        if error.name != whole:
            raise
    raise AttributeError(
        f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package]
    )
