import ast
import inspect
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
        for node in SOURCE.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]

    assert sorted(onward.__all__) == sorted(imported)


def test_the_package_holds_public_names_and_nothing_else():
    kinds = {type(node) for node in SOURCE.body}

    # A docstring, imports, and `__all__`.
    assert kinds == {ast.Expr, ast.ImportFrom, ast.Assign}


@pytest.mark.parametrize(
    "thing", [t for t in PUBLIC if inspect.isclass(t) or inspect.isfunction(t)], ids=repr
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
