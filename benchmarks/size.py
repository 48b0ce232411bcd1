"""How large is the library?

    python benchmarks/size.py                      this checkout
    python benchmarks/size.py --root DIR           another one, such as a git worktree
    python benchmarks/size.py --json FILE          the same counts, as a file as well

Counts the Python statements in `onward/`, without the recipes and the command line. A statement is
a node of type `ast.stmt`, at any depth; docstrings of modules, classes, functions and attributes do
not count. Unlike lines, the number does not depend on comments and formatting.
"""

import argparse
import ast
import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

LEFT_OUT = {"recipes", "cli"}
"""Modules and packages of `onward/` that are not counted."""


def num_statements(source: str) -> int:
    """Return the number of statements of a module, docstrings left out.

    Example:
        >>> num_statements("if x > 3: x = 3; y = 'three'")
        3
    """
    nodes = ast.walk(ast.parse(source))
    return sum(isinstance(node, ast.stmt) and not is_docstring(node) for node in nodes)


def is_docstring(node: ast.AST) -> bool:
    """Return whether a node is a string that stands alone, as docstrings do."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def count(root: Path) -> dict[str, int]:
    """Return the number of statements of each module of a checkout, by its path in `onward/`."""
    package = root / "onward"
    paths = {path.relative_to(package): path for path in sorted(package.rglob("*.py"))}
    return {
        where.as_posix(): num_statements(path.read_text(encoding="utf-8"))
        for where, path in paths.items()
        if where.parts[0].removesuffix(".py") not in LEFT_OUT
    }


def table(counts: Mapping[str, int]) -> Table:
    """Return the counts as a table: packages with their modules, other modules, and the total."""
    shown = Table()
    shown.add_column("module", no_wrap=True)
    shown.add_column("statements", justify="right")
    package = ""
    for name, found in counts.items():
        parent, _, module = name.rpartition("/")
        if parent and parent != package:
            total = sum(n for other, n in counts.items() if other.startswith(f"{parent}/"))
            shown.add_row(f"{parent}/", f"{total:,}")
        package = parent
        shown.add_row(f"  {module}" if parent else module, f"{found:,}")
    shown.add_section()
    shown.add_row("total", f"{sum(counts.values()):,}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parent.parent
    parser.add_argument("--root", type=Path, default=here, help="checkout (default: this one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there as well")
    options = parser.parse_args()
    counts = count(options.root)
    if not counts:
        parser.error(f"There is no package onward in {options.root}.")
    found = {"statements": sum(counts.values()), "modules": counts}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    Console().print(table(counts))


if __name__ == "__main__":
    main()
