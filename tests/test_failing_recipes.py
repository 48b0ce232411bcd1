"""Recipes of a user that fail: a clear sentence, with the line of the file."""

from pathlib import Path

import pytest
from commands import onward
from own_recipe import LOOP, SOURCE, changed

import onward as ow
from onward.cli.main import main
from onward.config import RunConfig
from onward.errors import SettingError
from onward.recipes.user import load_recipe
from onward.runs import folders

pytestmark = pytest.mark.usefixtures("own_recipe")


@pytest.fixture
def refused_here(capsys):
    """Run the command, check that it fails as it should, and return its last line."""

    def refused(*arguments):
        capsys.readouterr()
        assert onward(*arguments) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said.splitlines()[-1]

    return refused


LAYERS = "layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())"
MODULE = """
class Failing(nn.Linear):
    def forward(self, x):
        {}
        return super().forward(x.flatten(1))


@ow.recipe(source="a test", defaults"""


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (
            "    nonsense\n",
            "The recipe mine.py:small fails at mine.py:22: NameError: name 'nonsense' is not "
            "defined. --traceback shows the full traceback.",
        ),
        (
            "    torch.zeros(2) @ torch.zeros(3)\n",
            "The recipe mine.py:small fails at mine.py:22: RuntimeError: inconsistent tensor size",
        ),
        ('    raise ow.SettingError("Units are even.")\n', "onward: mine.py:22: Units are even."),
        (
            "    ow.Network([], ow.Plain(), None, num_classes=0)\n",
            "onward: mine.py:22: A network has one block or more; got none.",
        ),
    ],
)
def test_what_fails_in_the_function_is_said_in_a_sentence_with_its_line(refused_here, new, says):
    changed(LOOP, new + LOOP)
    Path("mine.py").write_text("import torch" + Path("mine.py").read_text())

    assert says in refused_here("train", "mine.py:small", "--out", "run")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "Block 0 cannot take what it reads: mine.py:20: NameError: name 'nonsense'"),
        (
            "if self.training: nonsense",
            "The recipe fails at mine.py:20: NameError: name 'nonsense'",
        ),
        ("return x, x", "The module Failing puts out a tuple; a block hands on a tensor"),
    ],
)
@pytest.mark.parametrize("plan", ["chapters", "stream"])
def test_what_fails_in_a_module_is_said_in_a_sentence_with_its_line(refused_here, line, says, plan):
    text = SOURCE.replace('@ow.recipe(source="a test", defaults', MODULE.format(line).lstrip())
    Path("mine.py").write_text(text.replace(LAYERS, "layers = Failing(inputs, outputs)"))

    assert says in refused_here("train", "mine.py:small", "--out", "run", "--plan", plan)


def test_the_whole_traceback_is_shown_where_it_is_asked_for(capsys):
    changed(LOOP, "    nonsense\n")

    assert onward("train", "mine.py:small", "--out", "run", "--traceback") == 2

    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert 'mine.py", line 22, in small' in said
    assert "--traceback" not in said.splitlines()[-1]


def test_a_bug_of_ours_shows_its_traceback_whatever_the_recipe(monkeypatch):
    monkeypatch.setattr(folders, "write", None)

    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        main(["train", "mine.py:small", "--out", "run"])


def test_in_python_what_failed_is_the_cause():
    changed(LOOP, "    nonsense\n")

    with pytest.raises(SettingError, match=r"fails at mine\.py:22") as raised:
        ow.run(RunConfig(method=load_recipe("mine.py:small")))

    assert isinstance(raised.value.__cause__, NameError)


def test_a_recipe_that_fails_is_not_the_fault_of_the_model_file(refused_here):
    assert onward("train", "mine.py:small", "--out", "run") == 0
    changed(LOOP, '    raise TypeError("no")\n')

    said = refused_here("evaluate", "run", "--recipe", "mine.py:small", "--changed-recipe")

    assert said.startswith("onward: The recipe mine.py:small fails at mine.py:22: TypeError: no.")


FIELD = "    lr: float = 0.01\n"
CHECK = """
    def __post_init__(self):
        if len(self.units) * self.lr > 0.5:
            raise ValueError(f"{len(self.units)} blocks at {self.lr}")
"""


def test_settings_that_refuse_their_defaults_are_named(refused_here):
    changed(FIELD, FIELD.replace("0.01", "0.3") + CHECK)

    assert (
        "The settings of the recipe small refuse their defaults: mine.py:19: ValueError: 2 blocks "
        "at 0.3." in refused_here("train", "mine.py:small")
    )


def test_settings_that_do_not_go_together_are_refused_with_their_values(refused_here):
    changed(FIELD, FIELD + CHECK)

    said = refused_here("train", "mine.py:small", "--set", "network.lr=0.4")

    assert "network.lr = 0.4 cannot be used: mine.py:19: ValueError: 2 blocks at 0.4." in said


def test_settings_are_held_against_each_other_once_all_are_read():
    changed(FIELD, FIELD + CHECK)
    config = RunConfig(method=load_recipe("mine.py:small"))

    both = config.with_settings({"network.lr": 0.4, "network.units": "8"})

    assert (both.network.lr, both.network.units) == (0.4, (8,))


def test_a_setting_without_a_type_is_refused(refused_here):
    changed(FIELD, "    lr = 0.01\n")

    said = refused_here("train", "mine.py:small")

    assert (
        "lr of the recipe small has no type, and so is no setting: write lr: float = 0.01" in said
    )


def test_a_tuple_is_not_none(refused_here):
    said = refused_here("train", "mine.py:small", "--set", "network.units=none")

    assert "network.units must be whole numbers separated by commas; got 'none'." in said


def test_a_recipe_without_parentheses_is_told_of_them(refused_here):
    changed('@ow.recipe(source="a test")', "@ow.recipe")

    said = refused_here("train", "mine.py:small")

    assert '@ow.recipe(source="paper and section"), with parentheses.' in said
