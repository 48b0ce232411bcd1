import ast
import inspect
import pkgutil
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

import onward
from onward import config

SOURCE = ast.parse(Path(onward.__file__).read_text())

PUBLIC = [getattr(onward, name) for name in onward.__all__]

SETTINGS = [
    cls
    for cls in vars(config).values()
    if inspect.isclass(cls) and cls.__module__ == "onward.config"
]


def test_the_public_names_are_sorted_without_regard_to_case():
    assert onward.__all__ == sorted(onward.__all__, key=str.casefold)


def test_the_public_names_are_all_that_the_package_imports():
    imported = [
        alias.asname or alias.name
        for node in (*SOURCE.body, *typed(SOURCE).body)
        if isinstance(node, ast.ImportFrom) and node.module not in ("typing", "onward.names")
        for alias in node.names
    ]

    assert sorted(onward.__all__) == sorted(imported)


def typed(tree):
    """Return the statement `if TYPE_CHECKING` of a package."""
    (found,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(found.test) == "TYPE_CHECKING"
    return found


@pytest.mark.parametrize("package", [onward, onward.data], ids=lambda package: package.__name__)
def test_what_a_package_finds_is_what_type_checkers_read(package):
    statement = typed(ast.parse(Path(package.__file__).read_text()))

    read = {}
    for node in statement.body:
        read.setdefault(node.module, []).extend(map(ast.unparse, node.names))
    (table,) = (node for node in ast.walk(statement) if isinstance(node, ast.Dict))
    found = ast.literal_eval(table)
    assert {module: list(names) for module, names in found.items()} == read
    assert sorted(package.__all__) == dir(package)
    assert dir(package) == sorted(name for name in package.__all__ if hasattr(package, name))


def test_the_package_holds_public_names_and_nothing_else():
    kinds = {type(node) for node in SOURCE.body}

    # A docstring, imports, those for type checkers with their table, what cuBLAS needs, `__all__`.
    assert kinds == {ast.Expr, ast.Import, ast.ImportFrom, ast.If, ast.Assign}


def test_products_on_a_gpu_are_made_the_same_each_time_from_the_import_on():
    script = "import os; os.environ.pop('{0}', None); import onward; print(os.environ['{0}'])"
    command = [sys.executable, "-c", script.format("CUBLAS_WORKSPACE_CONFIG")]

    assert subprocess.run(command, capture_output=True, text=True).stdout == ":4096:8\n"


def test_no_module_takes_the_place_of_a_public_name():
    """An import of `onward.x` would make a module of `onward.x`, whatever it was before."""
    modules = {module.name for module in pkgutil.iter_modules(onward.__path__)}

    assert modules & set(onward.__all__) == {"data", "exits"}
    assert inspect.ismodule(onward.data)
    assert inspect.ismodule(onward.exits)


def test_all_public_names_come_with_a_star():
    names = {}

    exec("from onward import *", names)

    assert {name: names[name] for name in onward.__all__} == dict(
        zip(onward.__all__, PUBLIC, strict=True)
    )


def test_modules_are_attributes_of_the_package():
    assert onward.settings.NetworkConfig is onward.NetworkConfig
    assert inspect.ismodule(onward.data.catalog)


@pytest.mark.parametrize("name", ["trian", "__wrapped__", "__main__", "_hidden"])
def test_other_names_are_no_attributes(name):
    with pytest.raises(AttributeError, match=f"module 'onward' has no attribute '{name}'"):
        getattr(onward, name)


@pytest.mark.parametrize(
    "thing",
    [t for t in PUBLIC if inspect.isclass(t) or inspect.isfunction(t)],
    ids=lambda thing: thing.__name__,
)
def test_every_public_class_and_function_says_what_it_is(thing):
    first = (inspect.getdoc(thing) or "").split("\n\n")[0]

    assert first.rstrip().endswith(".")
    # A dataclass without words of its own is given its signature for a docstring.
    assert not first.startswith(f"{thing.__name__}(")


@pytest.mark.parametrize("cls", SETTINGS, ids=repr)
def test_every_setting_says_what_it_is_and_in_what_unit(cls):
    body = ast.parse(inspect.getsource(cls)).body[0].body

    undocumented = [
        setting.target.id
        for setting, following in zip_longest(body, body[1:])
        if isinstance(setting, ast.AnnAssign) and not isinstance(following, ast.Expr)
    ]

    assert undocumented == []


def test_every_error_is_also_the_builtin_that_fits():
    errors = [t for t in PUBLIC if inspect.isclass(t) and issubclass(t, onward.OnwardError)]

    assert {error.__name__: error.__mro__[2] for error in errors} == {
        "DataError": ValueError,
        "DivergedError": ArithmeticError,
        "FileError": OSError,
        "OnwardError": BaseException,
        "PlacementError": ValueError,
        "SettingError": ValueError,
    }
