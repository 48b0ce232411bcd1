"""Networks that a script has built: their run folders, and what these are asked."""

import json
import re
import subprocess
import sys
import textwrap
from contextlib import suppress

import numpy as np
import pytest
import torch
from cuts import Cut, CutAfter
from torch import nn
from weight_jobs import convolutions

import onward as ow
from onward.cli.main import main
from onward.config import read_settings
from onward.errors import FileError, SettingError
from onward.files import PARTIAL
from onward.onnx_files import run_exported
from onward.runs.folders import FILES, read_exits, read_result, remove_state

pytestmark = pytest.mark.usefixtures("unchecked_module")

TRAINING = ow.TrainingConfig(epochs=4, batch_size=50, precision="fp32")


def built(seed=0):
    """Build two blocks that no recipe knows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = ((64, 32), (32, 32))
        modules = [nn.Sequential(nn.Flatten(), nn.Linear(*size), nn.GELU()) for size in sizes]
        blocks = [
            ow.Block(m, ow.CrossEntropy(nn.Linear(32, 10)), ow.Adam(lr=0.003)) for m in modules
        ]
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)


@pytest.fixture(scope="module")
def digits():
    return ow.load_data("digits")


def trained(digits, folder=None, **changes):
    return ow.train(built(), digits, training=TRAINING, folder=folder, **changes)


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("custom") / "run"
    trained(digits, str(folder))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# The folder


def test_a_script_writes_the_files_that_the_command_writes(run, digits):
    expected = trained(digits)

    assert names(run) == sorted(FILES)
    assert read_result(run)["weights_sha256"] == expected.facts["weights_sha256"]
    assert read_result(run)["accuracy"] == json.loads(json.dumps(expected.to_json()["accuracy"]))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(expected.progress) == 4 * (2 + 1)


def test_its_settings_are_those_of_the_script(run):
    settings = read_settings(run / "config.toml")

    assert (settings["recipe"], settings["data.name"]) == ("custom", "digits")
    assert (settings["training.epochs"], settings["training.precision"]) == (4, "fp32")
    # Blocks of a script have optimizers of their own.
    assert {name.partition(".")[0] for name in settings} == {
        *("recipe", "data", "training", "plan", "placement")
    }


def test_a_data_set_that_is_named_like_a_file_keeps_its_name(digits, tmp_path):
    dataset = ow.dataset(digits.x[:100], digits.y[:100], name="some.npz")

    ow.train(built(), dataset, training=TRAINING, folder=tmp_path)

    assert read_settings(tmp_path / "config.toml")["data.name"] == "some.npz"


def test_a_cut_run_keeps_its_state_as_that_of_the_command_and_goes_on(digits, run, tmp_path):
    with pytest.raises(Cut):
        trained(digits, tmp_path / "cut", listener=CutAfter(5))
    assert names(tmp_path / "cut") == ["state"]
    assert names(tmp_path / "cut" / "state") == ["rank-0"]

    result = trained(digits, tmp_path / "cut", listener=(listener := CutAfter(100)))

    assert any(note.startswith("Resuming: ") for note in listener.notes)
    assert result.facts["tasks_done_before"] > 0
    assert names(tmp_path / "cut") == sorted(FILES)
    assert read_result(tmp_path / "cut")["weights_sha256"] == read_result(run)["weights_sha256"]


def test_a_finished_run_is_refused_in_words_of_python(run, digits):
    before = (run / "result.json").read_bytes()

    with pytest.raises(FileError, match=re.escape("or replace the run with overwrite=True.")):
        trained(digits, run)

    assert (run / "result.json").read_bytes() == before


def test_a_finished_run_is_replaced_where_that_is_asked_for(digits, tmp_path):
    trained(digits, tmp_path)
    ow.calibrate(
        *(tmp_path, digits.x_test, digits.y_test), max_error_increase=0.01, network=built()
    )

    network, training = built(), ow.TrainingConfig(epochs=1, batch_size=50)
    result = ow.train(network, digits, training=training, folder=tmp_path, overwrite=True)

    assert names(tmp_path) == sorted(FILES)
    assert read_result(tmp_path)["weights_sha256"] == result.facts["weights_sha256"]


def test_a_run_that_cannot_begin_leaves_no_folder(digits, tmp_path):
    with pytest.raises(ow.PlacementError):
        trained(digits, tmp_path / "run", placement=ow.Placement(owners=(0, 7)))

    assert not (tmp_path / "run").exists()


def test_a_run_from_its_settings_has_the_folder_of_the_command(tmp_path):
    config = ow.RunConfig().with_settings({"network.widths": (16, 16), "training.epochs": 2})

    result = ow.run(config, folder=str(tmp_path / "run"))

    with pytest.raises(SystemExit) as ended:
        main(["train", "--widths", "16,16", "--epochs", "2", "--out", str(tmp_path / "command")])
    assert ended.value.code == 0
    assert names(tmp_path / "run") == names(tmp_path / "command") == sorted(FILES)
    for name in ("config.toml", "model.safetensors"):
        own, other = ((tmp_path / folder / name).read_bytes() for folder in ("run", "command"))
        assert own == other
    assert ow.evaluate(tmp_path / "run", ow.load_data("digits").test).accuracy == result.accuracy
    with pytest.raises(FileError, match="is finished"):
        ow.run(config, folder=tmp_path / "run")


# Stages


def staged(digits, folder, listener=None):
    first = built()
    layers = [block.module for block in first.all_blocks]
    head = ow.CrossEntropy(nn.Linear(32, 10))
    with torch.no_grad():
        head.head.weight.zero_()
        head.head.bias.zero_()
    both = ow.Block(nn.Sequential(*layers), head, ow.Adam(lr=0.003))
    second = ow.Network([both], ow.Plain(), ow.SumOfHeads(), num_classes=10)
    stages = [ow.Stage(network=each, training=TRAINING) for each in (first, second)]
    return ow.train(stages, digits, folder=folder, listener=listener)


def test_the_folder_of_a_run_in_stages_holds_the_last_and_those_before_in_it(digits, tmp_path):
    expected = staged(digits, None)
    with pytest.raises(Cut):
        staged(digits, tmp_path / "run", CutAfter(12 + 2))
    assert names(tmp_path / "run") == ["stage-0", "state"]
    assert names(tmp_path / "run" / "state") == ["stage-0", "stage-1"]

    result = staged(digits, tmp_path / "run")

    assert result.facts["weights_sha256"] == expected.facts["weights_sha256"]
    assert names(tmp_path / "run") == sorted([*FILES, "stage-0"])
    assert names(tmp_path / "run" / "stage-0") == sorted(FILES)
    for folder, each in (("run", result), ("run/stage-0", result.earlier[0])):
        assert read_result(tmp_path / folder)["weights_sha256"] == each.facts["weights_sha256"]


# Several ranks

SCRIPT = """
    import os, sys, torch
    from torch import nn
    import onward as ow
    torch.manual_seed(0)
    blocks = [
        ow.Block(nn.Linear(*s), ow.CrossEntropy(nn.Linear(16, 10)), ow.Adam(lr=0.003))
        for s in ((64, 16), (16, 16))
    ]
    network = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)
    digits = ow.load_data("digits")
    dataset = ow.dataset(digits.x.flatten(1), digits.y)
    training = ow.TrainingConfig(epochs=2, precision="fp32")
    is_named = len(sys.argv) < 3 or os.environ.get("RANK", "0") == "0"
    ow.train(network, dataset, training=training, folder=sys.argv[1] if is_named else None)
"""


@pytest.mark.distributed
@pytest.mark.parametrize("words", [pytest.param([], marks=pytest.mark.slow), ["rank 0 alone"]])
def test_rank_0_writes_the_folder_of_several_ranks(words, tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, how in (("one", []), ("two", ranks)):
        command = [sys.executable, *how, "script.py", name, *words]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=240)

    one, two = (read_result(tmp_path / name) for name in ("one", "two"))

    assert names(tmp_path / "two") == sorted(FILES)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["weights_sha256"] == one["weights_sha256"]
    assert read_settings(tmp_path / "two" / "config.toml")["recipe"] == "custom"


# What a run is asked


def test_a_run_is_evaluated_by_its_path(run, digits):
    expected = read_result(run)["accuracy"]["test"]

    assert ow.evaluate(run, digits.test, network=built(1)).accuracy == expected
    file = str(run / "model.safetensors")
    assert ow.evaluate(file, digits.test, network=built(1)).accuracy == expected


def test_a_path_without_the_network_of_the_script_is_refused(run, digits):
    with pytest.raises(FileError, match=r"no recipe has built.* network=network to onward.evalua"):
        ow.evaluate(run, digits.test)


def test_two_networks_are_refused(digits):
    with pytest.raises(SettingError, match="Two networks are given"):
        ow.evaluate(built(), digits.test, network=built())


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run, to calibrate."""
    for name in FILES:
        (tmp_path / name).write_bytes((run / name).read_bytes())
    return tmp_path


def test_calibrating_a_run_writes_its_exits(copied, digits):
    (copied / "exits.png").touch()
    x, y = digits.x_test[:200], digits.y_test[:200]
    network = ow.load(copied, built())
    expected = ow.calibrate(network, x, y, max_error_increase=0.02)

    found = ow.calibrate(copied, x, y, max_error_increase=0.02, network=built(1))

    assert found == expected == read_exits(copied, network)
    assert not (copied / "exits.png").exists()


def test_a_calibrated_run_answers_early(copied, digits):
    x, y = digits.x_test, digits.y_test
    with pytest.raises(SettingError, match="Nothing says when samples leave"):
        ow.answer(copied, x, network=built())
    policy = ow.calibrate(copied, x, y, max_error_increase=0.0, network=built()).policy

    found = ow.answer(copied, x, network=built(1))

    expected = ow.answer(ow.load(copied, built()), x, policy)
    assert found.exits.equal(expected.exits)
    assert 0 < found.exits.double().mean() < 1


def test_a_run_is_exported_with_its_exits(copied, digits, tmp_path):
    pytest.importorskip("onnxruntime")
    x, y = digits.x_test, digits.y_test
    like = tuple(x.shape[1:])
    ow.export(copied, str(tmp_path / "whole"), like=like, network=built())
    policy = ow.calibrate(copied, x, y, max_error_increase=0.0, network=built()).policy
    ow.export(copied, tmp_path / "early", like=like, network=built())

    _, whole = run_exported(tmp_path / "whole", x.numpy())
    _, early = run_exported(tmp_path / "early", x.numpy())

    assert (whole == 1).all()
    expected = ow.answer(ow.load(copied, built()), x, policy).exits.numpy()
    # Samples within rounding of a threshold.
    assert (early != expected).sum() <= 1
    assert 0 < early.mean() < 1


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["evaluate", "RUN"], 'onward.evaluate("RUN", samples, network=network)'),
        (["predict", "RUN", "x.npz"], 'onward.load("RUN", network).predict(x)'),
        (["exits", "RUN"], 'onward.calibrate("RUN", x, y, network=network, max_error_increase='),
        (["export", "RUN", "--onnx", "DIR"], 'onward.export("RUN", "DIR", network=network, like'),
        (["trace", "RUN", "--simulate"], "Draw the timeline without --simulate"),
        (["train", "RUN/config.toml"], "start that script again"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_the_command_says_what_to_call_from_python(words, call, run, capsys):
    with suppress(SystemExit):
        main([word.replace("RUN", str(run)) for word in words])

    said = capsys.readouterr().err
    assert (
        "built by a script: start that script" in said or "A script has built the network" in said
    )
    assert call.replace("RUN", str(run)) in said


def test_the_command_says_so_of_an_unfinished_run_as_well(digits, tmp_path, capsys):
    with pytest.raises(Cut):
        staged(digits, tmp_path, CutAfter(5))

    with suppress(SystemExit):
        main(["train", "--resume", str(tmp_path)])

    assert "start that script again" in capsys.readouterr().err


def test_the_trace_of_a_run_is_drawn(run, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "trace.png"

    with suppress(SystemExit):
        main(["trace", str(run), "--out", str(picture)])

    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_network_that_is_read_leaves_early_in_fp32(digits, tmp_path):
    network = built()
    network.set_precision(torch.bfloat16)
    ow.save(network, tmp_path / "model.safetensors")
    policy, other = ow.ExitPolicy("margin", (0.5,)), built(1)

    found = ow.answer(tmp_path / "model.safetensors", digits.x_test, policy, network=other)

    network.set_precision(torch.float32)
    assert found.scores.equal(ow.answer(network, digits.x_test, policy).scores)


@pytest.fixture(scope="module")
def few(digits):
    return ow.dataset(digits.x[:200], digits.y[:200], x_test=digits.x_test, y_test=digits.y_test)


def train_convolutions(few, folder=None, memory_format="auto", reports=100):
    return ow.train(
        convolutions(),
        few,
        training=ow.TrainingConfig(epochs=2, batch_size=60, precision="fp32"),
        plan=ow.PlanConfig(memory_format=memory_format),
        folder=folder,
        listener=CutAfter(reports),
    )


def test_a_run_goes_on_with_its_memory_format_and_with_no_other(few, tmp_path):
    expected = train_convolutions(few)
    with pytest.raises(Cut):
        train_convolutions(few, tmp_path / "run", reports=5)

    with pytest.raises(SettingError, match=r'memory_format = "contiguous"'):
        train_convolutions(few, tmp_path / "run", "contiguous")
    result = train_convolutions(few, tmp_path / "run", "channels-last")

    assert result.facts["tasks_done_before"] > 0
    assert read_result(tmp_path / "run")["memory_format"] == "channels-last"
    assert result.facts["weights_sha256"] == expected.facts["weights_sha256"]


def test_a_run_is_replaced_that_was_killed_while_it_was_written(tmp_path):
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / PARTIAL).mkdir()
    (run / PARTIAL / "model.safetensors").write_bytes(b"half")

    remove_state(run, None)

    assert list(run.iterdir()) == []


def test_a_recipe_runs_on_arrays_in_memory_as_on_a_file(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(90, 12)), np.arange(90) % 3
    np.savez(tmp_path / "own.npz", x=x, y=y)
    config = ow.RunConfig(recipe="pff").with_settings(
        {"network.widths": (8, 8), "training.epochs": 2, "training.batch_size": 10}
    )

    here = ow.run(config, dataset=ow.dataset(x, y, name="mine"), folder=tmp_path / "run")
    there = ow.run(config.with_settings({"data.name": str(tmp_path / "own.npz")}))

    assert here.facts["weights_sha256"] == there.facts["weights_sha256"]
    assert here.facts["data"] == read_result(tmp_path / "run")["data"] == "mine"
    assert ow.load(tmp_path / "run").predict(x).shape == (90,)
