"""Recipes that return stages: the command trains them as `ow.train` does."""

import json
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import onward

import onward as ow
from onward.checkpoint import weights_sha256
from onward.config import RunConfig
from onward.costs import memory
from onward.runs import preparation
from onward.runs.folders import FILES
from onward.runtime.chapters import ChapterWorker

pytestmark = pytest.mark.usefixtures("unchecked_module")

SOURCE = '''
from dataclasses import dataclass, replace

import torch
from torch import nn

import onward as ow


@dataclass(frozen=True, kw_only=True)
class Settings:
    first_epochs: int = 3


def linear(inputs, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())


@ow.recipe(source="a test", defaults={"training.epochs": 2})
def staged(
    settings: Settings, data: ow.DataInfo, training: ow.TrainingConfig, plan: ow.PlanConfig
) -> list[ow.Stage]:
    """Three layers, each with a head of its own; then the first two as one block."""
    layers = [linear(data.num_inputs, 32), linear(32, 24), linear(24, 16)]

    def block(module, units):
        head = ow.CrossEntropy(nn.Linear(units, data.num_classes))
        return ow.Block(module, head, ow.Adam(lr=0.01))

    def network(*blocks):
        return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=data.num_classes)

    first = network(block(layers[0], 32), block(layers[1], 24), block(layers[2], 16))
    second = network(block(nn.Sequential(*layers[:2]), 24), block(layers[2], 16))
    return [
        ow.Stage(
            network=first, training=replace(training, epochs=settings.first_epochs), plan=plan
        ),
        ow.Stage(network=second, training=training, plan=plan),
    ]
'''
RECIPE = "mine.py:staged"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOURCE)
    yield
    # The next test has another file of that name.
    sys.modules.pop("onward_recipe_mine", None)


@pytest.fixture
def trained():
    """A run of the recipe, in `run`."""
    assert onward("train", RECIPE, "--out", "run") == 0


def results(folder="run"):
    """Return what the results of both stages hold."""
    return [json.loads(Path(folder, at, "result.json").read_text()) for at in ("stage-0", ".")]


def digests(folder="run"):
    return [result["weights_sha256"] for result in results(folder)]


def changed(old, new):
    """Write the file of the recipe with something else in it."""
    assert old in SOURCE
    Path("mine.py").write_text(SOURCE.replace(old, new))


def trained_in_python(**settings):
    """Train the stages as a script does, which builds them itself, and return both results."""
    recipe = ow.load_recipe(RECIPE)
    info = ow.DataInfo(input_shape=(1, 8, 8), num_classes=10, is_image=True)
    training = replace(RunConfig(method=recipe).training, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        stages = recipe(recipe.settings(), info, training=training, plan=ow.PlanConfig())
    result = ow.train(stages, ow.load_data("digits"))
    return [*result.earlier, result]


# Training


def test_stages_of_a_recipe_end_in_the_weights_of_those_of_a_script(trained):
    expected = [result.facts["weights_sha256"] for result in trained_in_python()]

    assert digests() == expected
    assert [result["epochs"] for result in results()] == [3, 2]
    assert [result["stage"] for result in results()] == [0, 1]
    assert results()[1]["accuracy"]["test"] > 0.8


def test_settings_of_the_run_reach_each_stage():
    flags = ("--seed", 5, "--batch-size", 20, "--epochs", 4, "--set", "network.first_epochs=1")
    assert onward("train", RECIPE, *flags, "--out", "run") == 0

    changed("first_epochs: int = 3", "first_epochs: int = 1")
    found = trained_in_python(seed=5, batch_size=20, epochs=4)
    assert digests() == [result.facts["weights_sha256"] for result in found]


def test_the_folder_is_that_of_a_run_in_stages_and_its_settings_repeat_all_of_them(trained):
    assert {path.name for path in Path("run").iterdir()} == {*FILES, "stage-0"}
    assert {path.name for path in Path("run/stage-0").iterdir()} == set(FILES)

    for number, settings in enumerate(("run/config.toml", "run/stage-0/config.toml")):
        out = f"again-{number}"
        assert onward("train", settings, "--recipe", RECIPE, "--out", out) == 0
        assert digests(out) == digests()


@pytest.mark.usefixtures("trained")
def test_two_processes_end_in_the_weights_of_one():
    assert onward("train", RECIPE, "--processes", 2, "--out", "two") == 0

    assert digests("two") == digests()
    assert [result["world_size"] for result in results("two")] == [2, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_ranks_that_share_a_folder_use_it_for_all_stages_and_for_the_next_run():
    for out in "two", "again":
        more = ("--processes", 2, "--directory", "shared", "--out", out)
        assert onward("train", RECIPE, *more) == 0

        assert digests(out) == digests()


@pytest.mark.slow
def test_a_stream_plan_is_that_of_all_stages():
    for processes in 1, 2:
        more = ("--processes", processes, "--out", f"run-{processes}")
        assert onward("train", RECIPE, "--plan", "stream", *more) == 0

    assert [result["plan"] for result in results("run-2")] == ["stream", "stream"]
    assert digests("run-1") == digests("run-2")


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("tasks", "done"),
    [(5, [True, False]), (9, [True, False]), (11, [True, True])],
    ids=["inside the first", "between both", "inside the second"],
)
def test_a_run_that_was_cut_goes_on_between_and_inside_stages(tasks, done, monkeypatch, capsys):
    left = [tasks]

    def train(worker, task, given):
        left[0] -= 1
        if left[0] < 0:
            signal.raise_signal(signal.SIGTERM)
        return original(worker, task, given)

    original = ChapterWorker.train
    with monkeypatch.context() as patch:
        patch.setattr(ChapterWorker, "train", train)
        assert onward("train", RECIPE, "--out", "cut") == 143
    assert f"onward train --resume cut --recipe {RECIPE}" in capsys.readouterr().err

    assert onward("train", "--resume", "cut", "--recipe", RECIPE) == 0

    assert digests("cut") == digests()
    assert [result["tasks_done_before"] > 0 for result in results("cut")] == done


# The trained network


@pytest.mark.usefixtures("trained")
def test_the_commands_ask_the_network_of_the_last_stage(capsys):
    assert onward("evaluate", "run", "--recipe", RECIPE) == 0
    assert f"{results()[1]['accuracy']['test']:.2%}" in capsys.readouterr().out
    assert onward("exits", "run", "--recipe", RECIPE) == 0
    assert onward("export", "run", "--onnx", "onnx", "--recipe", RECIPE) == 0
    digits = ow.load_data("digits")
    np.savez("samples.npz", x=digits.x_test.numpy())
    command = ("predict", "run", "samples.npz", "--out", "labels.npz", "--recipe", RECIPE)
    assert onward(*command, "--full-depth") == 0
    labels = torch.from_numpy(np.load("labels.npz")["labels"])
    right = (labels == digits.y_test).double().mean()
    assert float(right) == results()[1]["accuracy"]["test"]


@pytest.mark.usefixtures("trained")
def test_a_folder_of_a_stage_holds_the_network_of_that_stage(capsys):
    recipe = ow.load_recipe(RECIPE)
    networks = [ow.load(folder, recipe=recipe) for folder in ("run/stage-0", "run")]

    assert [len(network.blocks) for network in networks] == [3, 2]
    assert [weights_sha256(network) for network in networks] == digests()
    assert onward("evaluate", "run/stage-0", "--recipe", RECIPE) == 0
    assert f"{results()[0]['accuracy']['test']:.2%}" in capsys.readouterr().out


@pytest.mark.usefixtures("trained")
def test_a_network_of_a_stage_that_is_no_more_is_refused(capsys):
    changed("    return [\n", "    return [ow.Stage(network=first, training=training)] or [\n")

    assert onward("evaluate", "run", "--recipe", RECIPE, "--changed-recipe") == 2

    assert "of stage 1 of the recipe mine.py:staged, which now has 1" in capsys.readouterr().err


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("folder", ["run", "run/stage-0"])
def test_the_trace_of_a_stage_is_drawn_beside_its_simulation(folder):
    pytest.importorskip("matplotlib")
    picture = ("--out", "trace.png")

    assert onward("trace", folder, "--simulate", *picture, "--recipe", RECIPE) == 0


# Before training


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "training: ow.TrainingConfig, plan: ow.PlanConfig\n",
            "training=ow.TrainingConfig(), plan=ow.PlanConfig(), held=None\n",
            "returns stages. Its function then takes the settings of the run as `training`",
        ),
        (
            "data: ow.DataInfo, training: ow.TrainingConfig, plan: ow.PlanConfig\n)",
            "data: ow.DataInfo, *, plan: ow.PlanConfig, training_=ow.TrainingConfig()\n)",
            "fails at mine.py:.*: NameError: name 'training' is not defined",
        ),
        (
            "    return [\n",
            "    return [] and [\n",
            "returns a list; it returns an ow.Network, or a",
        ),
        (
            "replace(training, epochs=settings.first_epochs)",
            "ow.TrainingConfig(seed=1)",
            "Stage 0 of the recipe mine.py:staged has training.seed = 1, and the run 0. ",
        ),
        (
            "    return [\n",
            "    plan = replace(plan, wire='bf16')\n    return [\n",
            "plan.wire is for stream plans",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(old, new, says, capsys):
    changed(old, new)

    assert onward("train", RECIPE, "--out", "run") == 2

    assert re.search(says, capsys.readouterr().err)
    assert not Path("run").exists()


def test_stages_without_the_settings_of_the_run_are_refused(capsys):
    text = SOURCE.replace(", training: ow.TrainingConfig, plan: ow.PlanConfig\n", "\n")
    text = text.replace(
        "    layers = ", "    training, plan = ow.TrainingConfig(), None\n    layers = "
    )
    text = text.replace(", plan=plan", "").replace("plan=plan", "")
    Path("mine.py").write_text(text)

    assert onward("train", RECIPE, "--out", "run") == 2

    assert (
        "The recipe mine.py:staged returns stages. Its function then takes the settings of the run "
        "as `training`"
    ) in capsys.readouterr().err


def test_mistakes_in_a_later_stage_show_before_the_first_is_trained(monkeypatch, capsys):
    changed("nn.Sequential(*layers[:2])", "nn.Sequential(*layers[1::-1])")
    monkeypatch.setattr(ChapterWorker, "train", None)

    assert onward("train", RECIPE, "--out", "run") == 2

    assert "Block 0 cannot take what it reads" in capsys.readouterr().err


def test_a_run_without_room_for_a_later_stage_is_refused_before_the_first(monkeypatch, capsys):
    def estimate(plan, placement, network, training, settings, *, keeps, ways):
        return [1 << 50 if len(network.blocks) == 2 else 0]

    monkeypatch.setattr(memory, "estimate", estimate)
    monkeypatch.setattr(ChapterWorker, "train", None)

    assert onward("train", RECIPE, "--out", "run") == 2

    assert re.search("The run would hold about 1,125,[0-9]{3},[0-9]{3} MB", capsys.readouterr().err)


def test_a_plan_shows_each_stage(capsys):
    assert onward("plan", RECIPE, "--processes", 2) == 0

    shown = capsys.readouterr().out
    first, second = re.split("Stage 2 of 2", shown)
    assert first.startswith("Stage 1 of 2")
    # Three chapters of three blocks, then two of two.
    assert {"2T2", "1T0"} <= set(first.split())
    assert {"1T1", "1T0"} <= set(second.split())
    assert not {"2T0", "0T2"} & set(second.partition(" is block")[0].split())


def test_a_plan_is_measured_for_each_stage(capsys):
    assert onward("plan", RECIPE, "--measure") == 0
    assert capsys.readouterr().out.count("The run would take about") == 2

    assert onward("plan", RECIPE, "--measure", "--costs", "costs.json") == 2
    assert "times of one network" in capsys.readouterr().err


def test_what_a_stage_holds_includes_the_weights_of_others():
    def held():
        config = RunConfig(method=ow.load_recipe(RECIPE))
        return [max(stage.memory) for stage in preparation.preview(config, 1)]

    before = held()
    # 128 MB that the second stage does not train.
    wide = "nn.Sequential(layers[0], nn.Linear(32, 500_000, bias=False), nn.Linear(500_000, 32))"
    changed("first = network(block(layers[0], 32)", f"first = network(block({wide}, 32)")

    first, second = (now - then for now, then in zip(held(), before, strict=True))
    assert first > 3 * 128e6
    assert 120e6 < second < 150e6


@pytest.mark.parametrize("stage", [7, -1, "x"])
def test_a_timeline_of_a_stage_that_there_is_not_is_not_simulated(
    finished, refused, tmp_path, stage
):
    run = shutil.copytree(finished, tmp_path / "copy")
    path = run / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage": stage}))

    assert f"is of stage {stage}, and its recipe has 1" in refused("trace", run, "--simulate")
