"""The command: what is common to all of it, then train, plan, evaluate, predict and the lists."""

import csv
import inspect
import io
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL, onward

import onward as ow
from onward.cli import train
from onward.cli.main import COMMANDS, main
from onward.cli.parser import BOUNDS, POLICIES, RISKS, make_parser
from onward.data import read_shared
from onward.recipes import RECIPES
from onward.recipes.catalog import FAMILIES
from onward.runs import training
from onward.runs.folders import FILES, read_result
from onward.runs.sharding import SHARED


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("ONWARD_DATA", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run on samples of eight numbers, the data in a file next to it."""
    folder = tmp_path_factory.mktemp("finished")
    random = np.random.default_rng(0)
    x = random.integers(256, size=(300, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", x=x, y=(x[:, 0] > 127).astype(int) + (x[:, 1] > 127))
    arguments = ("--data", folder / "data.npz", *SMALL, "--batch-size", 50, "--out", folder / "run")
    assert onward("train", *arguments) == 0
    return folder / "run"


# All commands


@pytest.mark.parametrize("command", ["train", "plan", "evaluate", "predict", "recipes", "data"])
def test_every_command_explains_itself(command, capsys):
    assert onward(command, "--help") == 0

    assert f"usage: onward {command}" in capsys.readouterr().out


def test_each_command_of_the_parser_is_a_function_that_takes_its_options():
    (known,) = (a.choices for a in make_parser()._actions if isinstance(a.choices, dict))

    assert sorted(known) == sorted(COMMANDS)
    for name, where in COMMANDS.items():
        module, _, function = where.partition(":")
        assert [*inspect.signature(getattr(import_module(module), function)).parameters] == [
            "options"
        ], name


def test_the_policies_that_exits_takes_are_those_that_there_are():
    assert tuple(ow.exits.CONFIDENCES) == POLICIES
    assert ow.exits.BOUNDS == BOUNDS
    assert ow.exits.RISKS == RISKS


WITHOUT_UNIX = """
import os, signal, sys
# Packages that look for themselves whether these are there.
import filelock, numpy, pooch, psutil, rich.console, safetensors, scipy, sklearn, torch.distributed
for name in ("fcntl", "resource", "pwd", "termios"):
    sys.modules[name] = None
for owner, name in (
    (os, "fork"), (os, "getloadavg"), (os, "killpg"), (os, "sched_getaffinity"), (os, "uname"),
    (signal, "SIGHUP"), (signal, "SIGKILL"), (signal, "SIGUSR1"),
):
    delattr(owner, name)
from onward.cli.main import COMMANDS, main
for where in COMMANDS.values():
    __import__(where.partition(":")[0])
main(["--help"])
"""


def test_the_command_starts_where_what_windows_lacks_is_missing():
    done = subprocess.run([sys.executable, "-c", WITHOUT_UNIX], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "usage: onward" in done.stdout


SLOW_TO_IMPORT = """
import sys
from onward.cli.main import main
try:
    main(sys.argv[1:])
finally:
    slow = {"matplotlib", "scipy", "sklearn", "sympy", "torch", "torch._dynamo"}
    print("imported:", *sorted(slow & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "imported"),
    [
        pytest.param(["--help"], "", id="help"),
        pytest.param(["--version"], "", id="version"),
        *(pytest.param([name, "--help"], "", id=f"{name} --help") for name in COMMANDS),
        pytest.param(["recipes"], "", id="recipes"),
        pytest.param(["recipes", "hinton"], "", id="recipes hinton"),
        pytest.param(["data"], "", id="data"),
        # Samples are held out by scikit-learn.
        pytest.param(["train", *SMALL, "--out", "run"], " scipy sklearn torch", id="train"),
    ],
)
def test_what_takes_long_to_import_is_left_to_those_who_need_it(arguments, imported):
    """Each adds a third of a second to two seconds."""
    command = [sys.executable, "-c", SLOW_TO_IMPORT, *arguments]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"imported:{imported}"


def test_the_version_is_that_of_the_package(capsys):
    assert onward("--version") == 0

    assert capsys.readouterr().out.startswith("onward 0.")


def test_without_a_command_the_usage_is_shown(capsys):
    assert onward() == 2

    assert "usage: onward [-h] [--version] COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_says_so_and_has_the_status_of_the_signal(
    number, status, monkeypatch, capsys
):
    monkeypatch.setattr(training, "run", lambda *arguments, **settings: signal.raise_signal(number))
    before = signal.getsignal(number)

    assert onward("train", *SMALL, "--out", "run") == status
    assert capsys.readouterr().err == "onward: stopped.\n"
    assert os.listdir() == []
    assert signal.getsignal(number) is before


STOPPED_WITHIN_IMPORT = """
import os, signal, sys

class Stopping:
    def find_spec(self, name, *rest):
        if name == "onward.data.dataset":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:
                pass  # As numpy within torch, which goes on without it.

sys.meta_path.insert(0, Stopping())
from onward.cli.main import main
main(["train"])
"""


def test_a_command_that_is_stopped_within_an_import_ends_there():
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WITHIN_IMPORT], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (143, "onward: stopped.\n")
    assert os.listdir() == []


def test_a_bug_shows_its_traceback(monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("an index is out of range")

    monkeypatch.setattr(training, "run", fail)

    with pytest.raises(RuntimeError, match="an index is out of range"):
        main(["train", *SMALL, "--out", "run"])


def test_a_message_in_a_distributed_run_says_which_rank_it_comes_from(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")

    assert onward("train", "nothing") == 2

    assert capsys.readouterr().err.startswith("onward: rank 3: There is no recipe nothing.")


# onward train


def test_train_writes_a_run_folder_and_says_where(capsys):
    assert onward("train", *SMALL, "--out", "here") == 0

    assert sorted(os.listdir("here")) == sorted(FILES)
    assert "Run folder: here\n" in capsys.readouterr().out


def test_train_prints_results_on_one_stream_and_progress_on_the_other(capsys):
    onward("train", *SMALL, "--out", "run")

    found = read_result(Path("run"))
    shown = capsys.readouterr()
    assert f"{found['accuracy']['test']:.2%}" in shown.out
    assert found["weights_sha256"][:16] in shown.out
    assert shown.err.startswith("2 blocks, 2 epochs in 2 chapters, 1,293 samples; sequential on ")
    assert "augmentation" not in shown.out


def test_train_says_how_samples_were_augmented(capsys):
    onward("train", *SMALL, "--shift", "auto", "--set", "data.flip=random", "--out", "run")

    shown = capsys.readouterr().out
    assert "augmentation" in shown
    assert "Flip(alternating=False)" in shown


def test_run_folders_are_named_by_date_recipe_and_data_and_never_meet(monkeypatch):
    monkeypatch.setattr(train.time, "strftime", lambda pattern: "20261121-120000")

    for _ in range(3):
        assert onward("train", *SMALL) == 0

    name = "20261121-120000-one-pass-digits"
    assert sorted(os.listdir("runs")) == [name, f"{name}-2", f"{name}-3"]


def test_overwrite_replaces_a_run():
    onward("train", *SMALL, "--out", "run")
    onward("train", *SMALL, "--out", "run", "--overwrite", "--seed", "1")

    assert read_result(Path("run"))["seed"] == 1
    assert sorted(os.listdir("run")) == sorted(FILES)


def test_a_training_that_fails_leaves_the_run_that_it_was_to_replace(finished, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}

    status = onward("train", *SMALL, "--set", "optimizer.lr=1e30", "--out", finished, "--overwrite")

    assert status == 2
    assert "is no longer finite" in capsys.readouterr().err
    left = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    assert left == before


@pytest.mark.parametrize("private", [False, True], ids=["one file", "a file a rank"])
def test_ranks_of_this_machine_are_handed_the_data_that_was_read_here(private, monkeypatch):
    for rank in range(2):
        np.savez(f"data-{rank}.npz", x=np.eye(40), y=np.arange(40) % 2)
    handed = []

    def launch(num_ranks, command, restarts, variables):
        handed.extend(read_shared(Path(v)) for n, v in variables.items() if n == SHARED)
        return 0

    monkeypatch.setattr(train, "launch", launch)
    data = "data-{rank}.npz" if private else "data-0.npz"
    flags = ("--batch-size", "10", "--validation", "4", "--processes", "2")
    assert onward("train", "--data", data, *SMALL, *flags) == 0

    assert [len(each.training) for each in handed] == ([] if private else [28])
    assert [len(each.validation) for each in handed] == ([] if private else [4])


# onward plan


def test_plan_prints_a_table_and_a_picture_and_starts_nothing(capsys):
    assert onward("plan", "--processes", "2", "--widths", "8,8", "--epochs", "4") == 0

    shown = capsys.readouterr().out
    assert "all-layers: 2 ranks" in shown
    words = [line.split() for line in shown.splitlines() if line.startswith("rank ")]
    assert words == [
        ["rank", "0", *["0T0", "1T0", "V0", "0T2", "1T2", "V2", "G"]],
        ["rank", "1", *["0T1", "1T1", "V1", "0T3", "1T3", "V3"]],
    ]
    assert os.listdir() == []


def test_the_plan_of_ranks_with_files_of_their_own_is_shown_as_well(capsys):
    for rank in range(2):
        np.savez(f"shard-{rank}.npz", x=np.eye(20), y=np.arange(20) % 2)

    arguments = ("--data", "shard-{rank}.npz", "--batch-size", "5", "--epochs", "2")
    assert onward("plan", *arguments, "--processes", "2", "--widths", "8") == 0

    assert "federated: 2 ranks" in capsys.readouterr().out


def test_a_run_that_will_stall_says_so_beforehand(capsys):
    onward("plan", "hinton", "--processes", "2", "--widths", "8,8", "--epochs", "1")

    note = capsys.readouterr().out.splitlines()[-1]
    assert note.startswith("Note: plan.hint_age is 0 mini-batches and there are 2 ranks: ")


# onward evaluate


def test_evaluate_finds_the_accuracy_that_training_found(finished, capsys):
    assert onward("evaluate", finished) == 0

    shown = capsys.readouterr().out
    accuracy = read_result(finished)["accuracy"]
    assert f"{finished} on the 60 test samples of data.npz" in shown
    for part in (accuracy["test"], *accuracy["per_block"]):
        assert f"{part:.2%}" in shown


def test_evaluate_takes_other_data(finished, capsys):
    np.savez("other.npz", x=np.zeros((4, 8)), y=[0, 1, 0, 1], x_test=np.ones((2, 8)), y_test=[1, 1])

    assert onward("evaluate", finished, "--data", "other.npz") == 0

    assert "on the 2 test samples of other.npz" in capsys.readouterr().out


# onward predict


def test_predict_prints_a_label_and_the_scores_of_each_row(finished, capsys):
    x = np.random.default_rng(1).random((5, 8))
    np.savez("new.npz", x=x)

    assert onward("predict", finished, "new.npz") == 0

    header, *lines = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["label", "score_0", "score_1", "score_2"]
    scores = ow.load(finished).scores(torch.tensor(x, dtype=torch.float32)).network.float()
    assert [int(line[0]) for line in lines] == scores.argmax(dim=1).tolist()
    assert [[float(score) for score in line[1:]] for line in lines] == scores.tolist()


@pytest.mark.parametrize("model", ["", "model.safetensors"], ids=["run folder", "model file"])
def test_predict_writes_labels_and_scores(finished, model, capsys):
    x = np.random.default_rng(1).random((5, 8))
    np.savez("new.npz", x=x)

    assert onward("predict", finished / model, "new.npz", "--out", "found.npz") == 0

    scores = ow.load(finished).scores(torch.tensor(x, dtype=torch.float32)).network.float()
    with np.load("found.npz") as found:
        assert sorted(found) == ["labels", "scores"]
        np.testing.assert_array_equal(found["labels"], scores.argmax(dim=1))
        np.testing.assert_array_equal(found["scores"], scores)
    assert capsys.readouterr().out == "5 labels and scores in found.npz\n"
    assert sorted(os.listdir()) == ["found.npz", "new.npz"]


def test_predict_takes_bytes_for_pixels(finished, capsys):
    pixels = np.random.default_rng(1).integers(256, size=(5, 8), dtype=np.uint8)
    np.savez("bytes.npz", x=pixels)
    np.savez("floats.npz", x=pixels.astype(np.float32) / 255)

    onward("predict", finished, "bytes.npz")
    of_bytes = capsys.readouterr().out
    onward("predict", finished, "floats.npz")

    assert of_bytes == capsys.readouterr().out


def test_predict_ends_quietly_where_nobody_reads_on(finished, monkeypatch, capsys):
    np.savez("new.npz", x=np.zeros((5, 8)))
    read_end, write_end = os.pipe()
    os.close(read_end)

    with os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert onward("predict", finished, "new.npz") == 141

    assert capsys.readouterr().err == ""


# onward recipes, onward data


def test_recipes_lists_each_with_its_source(capsys):
    assert onward("recipes") == 0

    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for recipe in RECIPES.values():
        assert recipe.name in shown
        assert " ".join(recipe.source.split()) in shown
    places = [shown.index(f"{family[0].upper()}{family[1:]}") for family in FAMILIES]
    assert places == sorted(places)


def test_data_lists_each_set_uncut_and_where_it_was_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "a-folder-with-a-name-that-is-longer-than-a-column" / "mnist"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (folder / f"{part}-{kind}-ubyte").touch()

    assert onward("data", "--data-dir", folder.parent) == 0

    shown = capsys.readouterr().out
    for name in ow.data.catalog.NAMES:
        assert f"│ {name} " in shown
    assert f"\nmnist: {folder}\n" in shown


@pytest.mark.slow
@pytest.mark.parametrize("command", ["recipes", "data", "plan"])
def test_a_table_ends_quietly_where_nobody_reads_it(command):
    closed, output = os.pipe()
    os.close(closed)
    with os.fdopen(output, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "onward", command], stdout=stdout, stderr=subprocess.PIPE
        )

    assert (done.returncode, done.stderr) == (141, b"")


def test_evaluate_notes_that_the_data_have_changed(tmp_path, capsys):
    x = np.random.default_rng(0).random((60, 4))
    np.savez("grows.npz", x=x, y=np.arange(60) % 2)
    assert onward("train", "--data", "grows.npz", *SMALL, "--batch-size", 20, "--out", "run") == 0
    assert onward("evaluate", "run") == 0
    assert "note" not in capsys.readouterr().err

    np.savez("grows.npz", x=np.concatenate([x, x[:9]]), y=np.arange(69) % 2)

    assert onward("evaluate", "run") == 0
    assert "onward: note: grows.npz has changed since the network" in capsys.readouterr().err


def test_evaluate_notes_that_the_test_samples_have_changed(tmp_path, capsys):
    x = np.random.default_rng(0).random((60, 4))
    arrays = {"x": x, "y": np.arange(60) % 2, "x_test": x[:9]}
    np.savez("own.npz", **arrays, y_test=np.arange(9) % 2)
    assert onward("train", "--data", "own.npz", *SMALL, "--batch-size", 20, "--out", "run") == 0
    assert onward("evaluate", "run") == 0
    assert "note" not in capsys.readouterr().err

    np.savez("own.npz", **arrays, y_test=np.zeros(9))

    assert onward("evaluate", "run") == 0
    assert "note: the test or validation samples of own.npz have" in capsys.readouterr().err
