"""The command goes on with a run that was cut."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import onward

from onward.errors import DivergedError, FileError
from onward.runs.folders import check_unfinished, read_result
from onward.runtime.chapters import ChapterWorker

pytestmark = pytest.mark.usefixtures("unchecked_module")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


RUN = ("--epochs", 4, "--widths", "8,8")


@pytest.fixture
def stop_in(monkeypatch):
    """Let a run be stopped in the middle of a task."""

    def stop(chapter, block, number=signal.SIGTERM):
        def train(worker, task, given):
            if (task.time, task.block) == (chapter, block):
                signal.raise_signal(number)
            return original(worker, task, given)

        original = ChapterWorker.train
        monkeypatch.setattr(ChapterWorker, "train", train)
        return lambda: monkeypatch.setattr(ChapterWorker, "train", original)

    return stop


@pytest.fixture
def cut(stop_in):
    """A run in `run` that was stopped in its third chapter."""
    go_on = stop_in(2, 1)
    assert onward("train", *RUN, "--out", "run") == 143
    go_on()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that was not."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert onward("train", *RUN, "--out", folder) == 0
    return folder


def weights_of(run):
    return read_result(Path(run))["weights_sha256"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_says_how_to_go_on(number, status, stop_in, capsys):
    stop_in(1, 0, number)

    assert onward("train", *RUN, "--out", "run") == status

    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "onward: stopped. Resume with: onward train --resume run"


def test_a_run_that_goes_on_ends_in_the_same_weights_and_leaves_nothing_behind(
    cut, undisturbed, capsys
):
    assert onward("train", "--resume", "run") == 0

    assert "Resuming: 7 of 13 tasks are done already." in capsys.readouterr().err
    assert weights_of("run") == weights_of(undisturbed)
    names = [sorted(path.name for path in Path(run).iterdir()) for run in ("run", undisturbed)]
    assert names[0] == names[1]


def test_what_was_reported_before_the_cut_is_in_the_metrics(cut, undisturbed):
    assert onward("train", "--resume", "run") == 0

    def reported(run):
        lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
        times = ("seconds", "cpu_seconds")
        return [{n: v for n, v in line.items() if n not in times} for line in lines]

    assert reported("run") == reported(undisturbed)
    assert read_result(Path("run"))["tasks_done_before"] == 7


def test_what_is_reported_again_is_in_the_metrics_once(stop_in, undisturbed):
    go_on = stop_in(2, 1)
    assert onward("train", *RUN, "--set", "placement.checkpoint_every=3", "--out", "run") == 143
    go_on()

    assert onward("train", "--resume", "run") == 0

    lines = [
        len(Path(run, "metrics.jsonl").read_text().splitlines()) for run in ("run", undisturbed)
    ]
    assert lines[0] == lines[1]
    # The first block had come to the end of the third chapter, and the second had not.
    assert read_result(Path("run"))["tasks_done_before"] == 3


@pytest.mark.distributed
def test_a_run_of_one_process_goes_on_in_two(cut, undisturbed):
    command = [sys.executable, "-m", "onward", "train", "--resume", "run", "--processes", "2"]

    subprocess.run(command, check=True, capture_output=True, timeout=120)

    assert read_result(Path("run"))["world_size"] == 2
    assert weights_of("run") == weights_of(undisturbed)


def test_a_damaged_state_is_named_and_trained_again(cut, undisturbed, capsys):
    path = max(Path("run").glob("state/rank-0/weights-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])

    assert onward("train", "--resume", "run") == 0

    said = " ".join(capsys.readouterr().err.split())
    assert f"Note: {path} is damaged" in said
    assert "It is not used." in said
    assert weights_of("run") == weights_of(undisturbed)


def test_a_run_goes_on_even_where_every_state_is_lost(cut, undisturbed):
    for path in Path("run").glob("state/rank-0/*.safetensors"):
        path.unlink()

    assert onward("train", "--resume", "run") == 0
    assert weights_of("run") == weights_of(undisturbed)


# What is refused


def test_a_run_that_is_not_finished_is_not_begun_anew_unless_asked_for(cut, refused):
    said = refused("train", *RUN, "--out", "run")

    assert said == (
        "The folder run holds a run that is not finished. Go on with `onward train --resume run`, "
        "or begin anew with --overwrite."
    )


def test_a_run_may_be_begun_anew(cut, undisturbed, capsys):
    assert onward("train", *RUN, "--out", "run", "--overwrite") == 0

    assert "Going on" not in capsys.readouterr().err
    assert weights_of("run") == weights_of(undisturbed)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_stays_where_the_one_that_was_to_replace_it_cannot_begin(cut, processes, refused):
    refused("train", *RUN, "--chapters", 3, "--processes", processes, "--out", "run", "--overwrite")

    assert onward("train", "--resume", "run") == 0


def test_a_run_does_not_go_on_with_other_settings(cut, capsys):
    assert onward("train", "--resume", "run", "--lr", "0.02") == 2

    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"onward: run/state is of a run with other settings. Then: .*lr = 0.001.*; now: .*lr = "
        r"0.02.*. A run goes on with the settings it was begun with; for more epochs, .*",
        said,
    )
    assert onward("train", "--resume", "run") == 0


def test_a_finished_run_does_not_go_on(cut, refused):
    assert onward("train", "--resume", "run") == 0

    for words in ([], ["one-pass", *RUN]):
        said = refused("train", *words, "--resume", "run")
        assert said == (
            "The run in run is finished, and kept no optimizer state. To repeat it, train "
            "run/config.toml; to train further, begin another run with its weights, --init run. A "
            "run with --set placement.keep_state=true goes on for more epochs."
        )


def test_a_finished_run_of_several_stages_is_told_what_it_can_do(tmp_path):
    (tmp_path / "result.json").write_text('{"stage": 1}')

    with pytest.raises(FileError, match=f"are not trained further. To repeat it, train {tmp_path}"):
        check_unfinished(tmp_path)


def test_a_run_that_goes_on_may_be_one_that_begins(undisturbed):
    assert onward("train", "one-pass", *RUN, "--resume", "run") == 0

    assert weights_of("run") == weights_of(undisturbed)


def test_a_run_goes_on_from_something(refused):
    said = refused("train", "--resume", "nowhere")

    assert said == (
        "There is nothing in nowhere/state that a run could go on from. If other machines have its "
        "state, name its recipe and settings here, beside --resume."
    )


def test_the_folder_is_named_once(cut, refused):
    said = refused("train", "--resume", "run", "--out", "other")

    assert said == "--resume names the run folder already; leave out --out."


def test_a_state_whose_beginning_is_damaged_is_named(cut, refused):
    (begun,) = Path("run").glob("state/rank-0/begun.json")
    begun.write_text("{")

    assert "begun.json is damaged" in refused("train", "--resume", "run")


# What fails by itself


def test_the_last_finite_state_stays_where_training_leaves_the_finite_numbers(monkeypatch, capsys):
    original = ChapterWorker.train

    def train(worker, task, given):
        if (task.time, task.block) == (2, 0):
            raise DivergedError("The loss is gone.")
        return original(worker, task, given)

    monkeypatch.setattr(ChapterWorker, "train", train)

    assert onward("train", *RUN, "--out", "run") == 2
    assert len(list(Path("run").glob("state/rank-0/weights-1-1.safetensors"))) == 1


def test_a_folder_that_vanishes_in_the_middle_is_named(monkeypatch, capsys):
    original = ChapterWorker.train

    def train(worker, task, given):
        if (task.time, task.block) == (1, 0):
            os.rename("run", "gone")
        return original(worker, task, given)

    monkeypatch.setattr(ChapterWorker, "train", train)

    assert onward("train", *RUN, "--out", "run") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"onward: What \d[TV]\d made cannot be written to run/state/rank-0: .*No such", said
    )
