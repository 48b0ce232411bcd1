import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from onward.cli.main import main
from onward.launcher import launch
from onward.runs.folders import read_result

# As users run them.
pytestmark = pytest.mark.usefixtures("unchecked")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(capfd, monkeypatch):
    """Run an example as a script, in this process, and return what it printed."""

    def run(script, *arguments):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capfd.readouterr().out

    return run


@pytest.fixture(scope="module")
def convolutions():
    """What the example of convolutions prints in one process."""
    script = str(EXAMPLES / "convolution_blocks.py")
    return subprocess.run(
        [sys.executable, script], check=True, capture_output=True, text=True
    ).stdout


def onward(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def accuracy_in(printed):
    """Return the number before the first percent sign."""
    return float(printed.partition("%")[0].rpartition(" ")[2])


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.name)
def test_every_example_says_what_it_shows_and_how_to_run_it(script):
    text = script.read_text()

    assert text.startswith('"""')
    assert re.search(rf"\n    (python|onward train) examples/{script.name}", text)


def test_arrays_of_ones_own_are_learned_from_saved_and_loaded(run):
    printed = run("own_data.py")

    assert accuracy_in(printed) > 80
    *_, predicted, truth = printed.splitlines()
    assert predicted.removeprefix("predicted ") == truth.removeprefix("in truth  ")


@pytest.mark.parametrize(
    ("recipe", "accuracy"), [("conv", 0.97), ("pairs", 0.94), ("staged", 0.94)]
)
def test_recipes_of_ones_own_are_trained_by_the_command_as_files(recipe, accuracy, tmp_path):
    onward(
        "train", f"{EXAMPLES}/own_recipe.py:{recipe}", "--data", "digits", "--out", tmp_path / "r"
    )

    assert read_result(tmp_path / "r")["accuracy"]["test"] > accuracy


def test_seizures_are_found_in_recordings_that_were_kept_apart(run):
    whole, early, cost = run("recordings.py").splitlines()

    assert float(whole.split("macro-F1 ")[1].partition(",")[0]) > 0.95
    assert float(early.split("macro-F1 ")[1].partition(",")[0]) > 0.9
    assert float(cost.partition(" times fewer")[0]) > 1.2


def test_blocks_of_convolutions_learn(convolutions):
    assert accuracy_in(convolutions) > 95
    assert "ranks 1, weights " in convolutions


@pytest.mark.slow
@pytest.mark.distributed
def test_blocks_of_convolutions_end_in_the_same_weights_on_two_ranks(convolutions, capfd):
    status = launch(2, [str(EXAMPLES / "convolution_blocks.py")])

    assert status == 0
    assert capfd.readouterr().out == convolutions.replace("ranks 1", "ranks 2")


def test_the_federated_run_file_deals_four_shards_to_four_ranks(capsys):
    onward("plan", EXAMPLES / "federated.toml")

    assert "federated: 4 ranks" in capsys.readouterr().out


def test_the_federated_run_file_learns(tmp_path, capsys):
    # One process does the same as four: the plan says which samples each chapter learns from.
    onward("train", EXAMPLES / "federated.toml", "--processes", "1", "--out", tmp_path / "run")

    found = read_result(tmp_path / "run")
    assert found["accuracy"]["test"] > 0.93
    assert (found["placement"], found["shards"]) == ("federated", 4)


def test_nodes_of_a_graph_are_classified(run):
    pytest.importorskip("torch_geometric")

    lines = run("graphs.py").splitlines()

    for recipe in ("forwardgnn-sf", "gnn-backprop"):
        (line,) = (line for line in lines if line.startswith(recipe))
        assert accuracy_in(line) > 90
