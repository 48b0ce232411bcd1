"""`onward recipes NAME`: the settings of one recipe, each with its type, default and meaning."""

import re
import sys
from pathlib import Path

import pytest

from onward.cli.main import main
from onward.config import RunConfig
from onward.recipes import RECIPES
from onward.settings import NetworkConfig
from onward.values import meanings

SOURCE = '''
from dataclasses import dataclass, make_dataclass
from typing import Literal

import onward as ow


@dataclass(frozen=True, kw_only=True)
class Common:
    units: tuple[int, ...] = (8, 8)
    """Units of [each] block,
    the first one first."""


@dataclass(frozen=True, kw_only=True)
class Settings(Common):
    margin: float | None = None
    is_wide: bool = False
    """Whether it is wide."""


@ow.recipe(source="[a] test", defaults={"network.units": (4, 2), "training.epochs": 3})
def small(settings: Settings, data: ow.DataInfo) -> ow.Network:
    """A few [layers]."""


Made = make_dataclass("Made", [("units", int, 3)], frozen=True)


@ow.recipe(source="a test")
def made(settings: Made, data: ow.DataInfo) -> ow.Network:
    """Settings that no file says."""


@dataclass(frozen=True)
class Nothing:
    pass


@ow.recipe(source="a test")
def bare(settings: Nothing, data: ow.DataInfo) -> ow.Network:
    """It takes nothing."""
'''


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("mine.py").write_text(SOURCE)
    yield
    sys.modules.pop("onward_recipe_mine", None)


@pytest.fixture
def shown(capsys):
    """Run the command and return what it prints, line by line."""

    def shown(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["recipes", *arguments])
        assert ended.value.code == 0
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return shown


def cells(lines, name):
    """Return the cells of the sample of a setting."""
    (line,) = (line for line in lines if line.startswith(f"{name} "))
    return re.split(" {2,}", line)


@pytest.mark.parametrize("name", RECIPES)
def test_each_setting_of_a_recipe_is_shown_and_those_of_others_only_where_it_changes_them(
    name, shown
):
    names = [re.match(r"\w+\.\w+(?= )|", line)[0] for line in shown(name)]

    own = [full for full in RunConfig(recipe=name).setting_names() if full.startswith("network.")]
    changed = [full for full in RECIPES[name].defaults if not full.startswith("network.")]
    found = [name for name in names if name]
    assert found[: len(own)] == own
    assert sorted(found[len(own) :]) == sorted(changed)


def test_a_setting_is_shown_with_what_it_takes_its_default_here_and_its_meaning(shown):
    lines = shown("hinton")

    assert lines[:2] == [RECIPES["hinton"].summary, f"Source: {RECIPES['hinton'].source}"]
    assert cells(lines, "network.peer") == [
        "network.peer", "a number of 0 or more", "0.03", meanings(NetworkConfig)["peer"],
    ]  # fmt: skip
    assert cells(lines, "network.slope")[1:3] == ["a number above 0, or none", "none"]
    assert cells(lines, "training.epochs")[1:3] == ["a whole number of 1 or more", "60"]
    assert "`onward train --help`" in lines[-1]


def test_a_recipe_of_a_user_is_shown_with_the_docstrings_of_its_file(shown):
    lines = shown("mine.py:small")

    assert lines[:2] == ["A few [layers].", "Source: [a] test"]
    assert cells(lines, "network.units") == [
        "network.units",
        "whole numbers separated by commas",
        "4,2",
        "Units of [each] block, the first one first.",
    ]
    assert cells(lines, "network.margin") == ["network.margin", "a number, or none", "none"]
    assert cells(lines, "network.is_wide")[1:] == ["true or false", "false", "Whether it is wide."]
    assert cells(lines, "training.epochs")[2] == "3"


def test_the_meaning_is_empty_where_no_file_holds_the_class(shown):
    assert cells(shown("mine.py:made"), "network.units") == ["network.units", "a whole number", "3"]


def test_a_recipe_without_settings_says_so(shown):
    assert "mine.py:bare has no settings of its own." in shown("mine.py:bare")


def test_nothing_is_cut_in_a_narrow_terminal(shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    lines = shown("backprop")

    assert max(len(line) for line in lines if line.startswith("network.")) <= 80
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("name", ["hintn", "mine.py", "mine.py:smal", "no.py:small"])
def test_a_name_that_is_wrong_is_refused_as_train_refuses_it(name, refused):
    said = refused("recipes", name)

    assert said == refused("train", name)


def test_a_run_file_is_no_name(refused):
    assert refused("recipes", "run.toml").startswith("run.toml is a run file")


def test_code_that_fails_is_one_line_with_its_place_or_all_of_it(refused, capsys):
    Path("mine.py").write_text("1 / 0\n")

    assert "mine.py:1: ZeroDivisionError" in refused("recipes", "mine.py:small")

    with pytest.raises(SystemExit):
        main(["recipes", "mine.py:small", "--traceback"])
    assert "Traceback" in capsys.readouterr().err
