"""Recipes of a user, named on the command line: all that the command does with them."""

import json
import random
import re
import signal
import sys
from dataclasses import make_dataclass, replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from commands import onward
from own_recipe import LOOP, SOURCE, changed

import onward as ow
from onward import checkpoint
from onward.checkpoint import weights_sha256
from onward.config import RunConfig
from onward.errors import SettingError
from onward.evaluation import evaluate
from onward.recipes.blueprint import Blueprint, build
from onward.recipes.user import load_recipe
from onward.runtime.chapters import ChapterWorker

pytestmark = [pytest.mark.usefixtures("own_recipe"), pytest.mark.usefixtures("unchecked_module")]


def result(folder="run"):
    return json.loads(Path(folder, "result.json").read_text())


@pytest.fixture
def trained(own_recipe):
    """A run of the recipe, in `run`."""
    assert onward("train", "mine.py:small", "--out", "run") == 0


def in_bf16(network):
    network.set_precision(torch.bfloat16)
    return network


def edited():
    """Change the file of the recipe."""
    Path("mine.py").write_text(SOURCE + "\n# Another line.\n")


# Training


def test_a_recipe_in_a_file_is_trained_with_its_defaults_and_its_digest_is_kept(trained):
    found = result()

    assert found["recipe"] == "mine.py:small"
    assert found["recipe_sha256"] == load_recipe("mine.py:small").sha256
    assert not found["recipe_has_changed"]
    assert found["epochs"] == 3


@pytest.mark.usefixtures("trained")
def test_two_processes_end_in_the_weights_of_one():
    assert onward("train", "mine.py:small", "--processes", 2, "--out", "two") == 0

    assert result("two")["weights_sha256"] == result()["weights_sha256"]
    assert result("two")["world_size"] == 2


def test_settings_of_the_recipe_are_set_by_the_types_of_its_dataclass(capsys):
    more = ["--set", "network.units=5,4,3", "--set", "network.lr=0.1", "--epochs", 1]
    assert onward("train", "mine.py:small", *more, "--out", "run") == 0

    text = Path("run/config.toml").read_text()
    assert "units = [\n    5,\n    4,\n    3,\n]" in text
    assert onward("train", "run/config.toml", "--recipe", "mine.py:small", "--out", "again") == 0
    assert result("again")["weights_sha256"] == result()["weights_sha256"]


def test_the_section_of_the_optimizer_is_written_where_it_has_an_effect(trained):
    text = Path("run/config.toml").read_text()

    assert "[optimizer]" not in text
    assert "[optimizer]" in RunConfig().to_toml()
    Path("run/config.toml").write_text(f"{text}\n[optimizer]\nlr = 0.001\n")
    assert onward("train", "run/config.toml", "--recipe", "mine.py:small", "--out", "again") == 0
    assert result("again")["weights_sha256"] == result()["weights_sha256"]


DRAWS = """
    import random
    import numpy
    scale = numpy.random.random() + random.random()
    numpy.random.seed(), random.seed()
"""


def test_numpy_and_random_are_seeded_for_a_recipe_and_restored(monkeypatch):
    # What checks types draws from `random`.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    changed("head = ow.CrossEntropy(nn.Linear(outputs, data.num_classes))", "head = LINEAR")
    text = Path("mine.py").read_text().replace(LOOP, DRAWS + LOOP)
    head = "ow.CrossEntropy(nn.Linear(outputs, data.num_classes)); layers[1].weight.data *= scale"
    Path("mine.py").write_text(text.replace("LINEAR", head))
    recipe = load_recipe("mine.py:small")
    np.random.seed(5)
    random.seed(5)
    expected = np.random.random(), random.random()
    np.random.seed(5)
    random.seed(5)

    info = ow.DataInfo(input_shape=(4,), num_classes=3)
    blueprint = Blueprint(recipe, recipe.settings(), info)
    first, second, other = (weights_sha256(build(blueprint, seed=seed)) for seed in (-3, -3, 4))

    assert first == second != other
    assert (np.random.random(), random.random()) == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine.py:smal"], "mine.py has no recipe smal. It has the recipes small, nothing."),
        (["mine.py"], "mine.py is a file. Add which of its functions is the recipe"),
        (["one-pass", "--recipe", "mine.py"], "mine.py names no function"),
        (["mine.py:plain"], "A recipe is a function under @ow.recipe"),
        (["none.py:small"], "There is no file .*none.py"),
        (["json:small"], "json has no recipe small. It has no recipe."),
        (["no_such_module:small"], "no_such_module cannot be imported: ModuleNotFoundError"),
        (["mine.py:nothing"], "Settings.*; it returns an ow.Network, or a list of ow.Stage"),
        (
            ["mine.py:small", "--lr", "0.1"],
            "optimizer.lr would have no effect: .* are units, lr",
        ),
        (["mine.py:small", "--set", "network.unit=3"], "Did you mean network.units?"),
        (["mine.py:small", "--widths", "3"], "Unknown setting network.widths.* has network.units"),
        (["mine.py:small", "--set", "network.lr=fast"], "network.lr must be a number; got 'fast'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(arguments, says, capsys):
    assert onward("train", *arguments, "--out", "run") == 2

    assert re.search(says, capsys.readouterr().err)
    assert not Path("run").exists()


def test_a_file_that_cannot_be_imported_is_named_with_what_went_wrong(capsys):
    Path("mine.py").write_text("import no_such_thing\n")

    assert onward("train", "mine.py:small") == 2

    said = capsys.readouterr().err
    assert "mine.py cannot be imported: mine.py:1: ModuleNotFoundError: No module" in said


def test_a_module_keeps_its_place_though_a_recipe_lies_in_a_file_of_its_name():
    Path("json.py").write_text(SOURCE)

    assert load_recipe("json.py:small").name == "json.py:small"
    assert sys.modules["json"] is json
    del sys.modules["onward_recipe_json"]


# Files name no code


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "run"),
        ("exits", "run"),
        ("predict", "run", "x.npz"),
        ("export", "run", "--onnx", "onnx"),
        ("train", "run/config.toml", "--out", "again"),
        ("trace", "run", "--simulate"),
    ],
)
def test_no_command_imports_what_a_run_folder_names(command, capsys):
    Path("imported").unlink()

    assert onward(*command) == 2

    said = capsys.readouterr().err
    assert "mine.py:small" in said
    assert "not come with Onward" in said
    assert "with the path of its file" in said
    assert "--recipe mine.py:small" in said
    assert not Path("imported").exists()


@pytest.mark.usefixtures("trained")
def test_python_is_told_how_to_load_a_network_of_ones_own_recipe():
    with pytest.raises(ow.FileError, match=r"recipe=onward.load_recipe\(\"mine.py:small\"\)"):
        ow.load("run")


@pytest.mark.parametrize("recipe", ["mine.py:small", "/tmp/mine.py:small", "mine:small", "C:mine"])
def test_a_run_file_that_names_code_imports_nothing(recipe, capsys):
    Path("run.toml").write_text(f"recipe = {json.dumps(recipe)}\n")

    assert onward("train", "run.toml") == 2

    assert "files do not name code that is run" in capsys.readouterr().err
    assert not Path("imported").exists()


@pytest.mark.usefixtures("trained")
def test_a_trace_needs_no_recipe():
    Path("imported").unlink()

    assert onward("trace", "run") == 0

    assert not Path("imported").exists()


@pytest.mark.usefixtures("trained")
def test_with_its_recipe_a_run_is_tested_and_gets_exits(capsys):
    assert onward("evaluate", "run", "--recipe", "mine.py:small") == 0
    accuracy = result()["accuracy"]["test"]
    assert f"{accuracy:.2%}" in capsys.readouterr().out

    assert onward("exits", "run", "--recipe", "mine.py:small") == 0
    assert Path("run/exits.json").exists()
    assert "`onward evaluate run --recipe mine.py:small` tests it." in capsys.readouterr().out


@pytest.mark.usefixtures("trained")
def test_full_depth_is_computed_as_early_exit_is(capsys, monkeypatch):
    assert onward("exits", "run", "--recipe", "mine.py:small") == 0
    kept = []

    def noted(network, test):
        kept.append({block.precision for block in network.all_blocks})
        return evaluate(network, test)

    monkeypatch.setattr("onward.cli.inference.evaluate", noted)
    load = checkpoint.load
    monkeypatch.setattr(
        "onward.cli.inference.checkpoint.load", lambda *a, **k: in_bf16(load(*a, **k))
    )

    assert onward("evaluate", "run", "--recipe", "mine.py:small") == 0
    assert onward("evaluate", "run", "--recipe", "mine.py:small", "--full-depth") == 0

    assert kept == [{torch.float32}, {torch.bfloat16}]


# Files that were edited


@pytest.mark.usefixtures("trained")
def test_an_edited_recipe_is_used_only_where_that_is_said(capsys):
    edited()

    assert onward("evaluate", "run", "--recipe", "mine.py:small") == 2
    assert "The file of the recipe mine.py:small has been edited since" in capsys.readouterr().err

    assert onward("evaluate", "run", "--recipe", "mine.py:small", "--changed-recipe") == 0


@pytest.mark.usefixtures("trained")
def test_a_run_repeated_with_an_edited_recipe_says_so_in_its_result():
    edited()
    repeat = ["train", "run/config.toml", "--recipe", "mine.py:small", "--out", "again"]

    assert onward(*repeat) == 2
    assert onward(*repeat, "--changed-recipe") == 0

    assert result("again")["recipe_has_changed"]
    assert result("again")["weights_sha256"] == result()["weights_sha256"]


@pytest.mark.usefixtures("trained")
def test_a_copy_of_the_file_under_another_name_is_the_same_recipe(capsys):
    Path("other.py").write_text(SOURCE)
    assert onward("evaluate", "run", "--recipe", "other.py:small") == 0

    Path("other.py").write_text(SOURCE + "\n# Another line.\n")
    assert onward("evaluate", "run", "--recipe", "other.py:small") == 2
    assert "not by other.py:small. With --changed-recipe" in capsys.readouterr().err
    assert onward("evaluate", "run", "--recipe", "other.py:small", "--changed-recipe") == 0


@pytest.mark.usefixtures("trained")
def test_another_recipe_of_the_same_file_is_refused(capsys):
    assert onward("evaluate", "run", "--recipe", "mine.py:nothing") == 2

    text = "This was made by the recipe mine.py:small, and not by mine.py:nothing."
    assert text in capsys.readouterr().err


@pytest.mark.usefixtures("trained")
def test_a_run_that_was_cut_goes_on_with_its_recipe(monkeypatch, capsys):
    def train(worker, task, given):
        if (task.time, task.block) == (1, 1):
            signal.raise_signal(signal.SIGTERM)
        return original(worker, task, given)

    original = ChapterWorker.train
    with monkeypatch.context() as patch:
        patch.setattr(ChapterWorker, "train", train)
        assert onward("train", "mine.py:small", "--out", "cut") == 143
    advice = "Resume with: onward train --resume cut --recipe mine.py:small"
    assert advice in capsys.readouterr().err

    assert onward("train", "--resume", "cut") == 2
    assert onward(*advice.partition("onward ")[2].split()) == 0

    assert result("cut")["weights_sha256"] == result()["weights_sha256"]
    assert result("cut")["tasks_done_before"] > 0


# From Python


def taking(settings):
    """Return a function that takes settings of a type."""

    def function(settings, data):
        return None

    function.__annotations__ = {"settings": settings}
    return function


def test_a_name_and_another_method_are_refused():
    with pytest.raises(SettingError, match="recipe is one-pass, but method is the recipe"):
        RunConfig(recipe="one-pass", method=load_recipe("mine.py:small"))


def test_a_method_alone_is_a_run_of_it_with_the_digest_of_its_file():
    recipe = load_recipe("mine.py:small")

    config = RunConfig(method=recipe)

    assert (config.recipe, config.recipe_sha256) == (recipe.name, recipe.sha256)
    assert not config.has_changed


def test_a_default_of_no_section_is_refused():
    recipe = replace(load_recipe("mine.py:small"), defaults={"epochs": 3})

    with pytest.raises(SettingError, match="has a default for epochs; defaults are for data"):
        RunConfig(recipe=recipe.name, method=recipe)


def test_a_head_that_forgets_to_flatten_is_refused_before_training(capsys, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # As in a user's script.
    flat = "nn.Flatten(), nn.Linear(inputs, outputs)"
    assert flat in SOURCE
    source = SOURCE.replace(flat, "nn.Linear(8, outputs)").replace("(8, 8)", "(8,)")
    Path("mine.py").write_text(source)

    assert onward("train", "mine.py:small", "--out", "run") == 2

    message = r"Block 0 scores each sample with shape \(1, 8, 10\); class scores have shape \(10,\)"
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.usefixtures("trained")
def test_a_model_is_loaded_with_its_recipe():
    network = ow.load("run", recipe=load_recipe("mine.py:small"))

    assert weights_sha256(network) == result()["weights_sha256"]


def test_a_recipe_is_called_like_its_function():
    recipe = load_recipe("mine.py:small")

    data = ow.DataInfo(input_shape=(4,), num_classes=3)
    assert len(recipe(recipe.settings(units=(5,)), data).blocks) == 1


def test_a_run_of_it_is_done_from_python_too(trained):
    recipe = load_recipe("mine.py:small")
    config = RunConfig(recipe=recipe.name, recipe_sha256=recipe.sha256, method=recipe)

    found = ow.run(config)

    assert found.facts["weights_sha256"] == result()["weights_sha256"]


def test_a_default_that_has_no_effect_is_refused():
    function = taking(make_dataclass("Empty", [], frozen=True))

    with pytest.raises(SettingError, match="which has no effect"):
        ow.recipe(source="a test", defaults={"optimizer.lr": 0.1})(function)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda settings: None, "annotated with a frozen dataclass"),
        (lambda settings, data: None, "annotated with a frozen dataclass"),
        (taking(make_dataclass("Open", [("units", int, 3)])), "annotated with a frozen dataclass"),
        (taking(make_dataclass("Nested", [("inner", dict, None)], frozen=True)), "setting inner"),
        (taking(make_dataclass("Bare", [("units", int)], frozen=True)), "need defaults"),
    ],
)
def test_a_function_that_is_no_recipe_is_refused_when_it_is_made(function, says):
    with pytest.raises(SettingError, match=says):
        ow.recipe(source="a test")(function)


def test_a_parameter_that_nothing_is_given_for_is_refused_when_the_recipe_is_made():
    def function(settings, data, lr):
        return None

    function.__annotations__ = {"settings": make_dataclass("Empty", [], frozen=True)}

    with pytest.raises(
        SettingError, match=r"parameter lr.*may have optimizer, held, training, plan"
    ):
        ow.recipe(source="a test")(function)
