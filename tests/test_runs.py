"""A run folder is a public interface: names and types of all that it holds."""

import json
import math
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import onward as ow
from onward.checkpoint import weights_sha256
from onward.cli.main import main
from onward.config import RunConfig, read_run, read_settings
from onward.errors import FileError
from onward.files import write_atomically
from onward.runs import folders
from onward.runs.folders import FILES, read_result
from onward.runtime.workers import report_fields

pytestmark = pytest.mark.usefixtures("unchecked_module")

SMALL = (
    *("--data", "data.npz", "--batch-size", "30", "--epochs", "4", "--widths", "16,12"),
    *("--validate-every", "2", "--seed", "3"),
)

RUNS = {
    "one-pass": ("one-pass", *SMALL, "--dropout", "0.1"),
    "pff": ("pff", *SMALL, "--chapters", "2"),
    "hinton": ("hinton", *SMALL, "--hint-age", "2"),
    "shards": ("one-pass", *SMALL, "--shards", "2", "--set", "plan.optimizer_state=aged:2"),
}


def onward(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def write_data(path):
    random = np.random.default_rng(0)
    x = random.random((200, 6))
    np.savez(path, x=x, y=(x[:, 0] > 0.5).astype(int) + (x[:, 1] > 0.5))


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """The folder of a finished run, of each kind."""
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "data.npz")
    before = Path.cwd()
    os.chdir(folder)
    onward("train", *RUNS[request.param], "--out", "run")
    os.chdir(before)
    return folder / "run"


def is_number(value):
    return isinstance(value, float) and math.isfinite(value)


def is_digest(value):
    return len(value) == 64 and set(value) <= set("0123456789abcdef")


def is_count(value):
    return type(value) is int and value >= 0


def is_share(value):
    return is_number(value) and 0 <= value <= 1


def is_text(value):
    return isinstance(value, str) and value != ""


def is_nothing(value):
    return value is None


def listed(check):
    return lambda value: isinstance(value, list) and all(check(entry) for entry in value)


def either(*checks):
    return lambda value: any(check(value) for check in checks)


RESULT = {
    "accuracy": {
        "test": is_share,
        "balanced": is_share,
        "roc_auc": either(is_share, is_nothing),
        "sensitivity": listed(either(is_share, is_nothing)),
        "validation": either(is_share, is_nothing),
        "per_block": listed(is_share),
        "readouts": lambda value: all(is_text(n) and is_share(v) for n, v in value.items()),
    },
    "metrics": lambda value: value == [],
    "error_count": is_count,
    "class_names": is_nothing,
    "class_samples": listed(is_count),
    "doubts": listed(is_text),
    "recipe": is_text,
    "data": is_text,
    "samples": {"training": is_count, "validation": is_count, "test": is_count},
    "seed": is_count,
    "epochs": is_count,
    "chapters_trained": is_count,
    "block_epochs": listed(is_number),
    "best_chapter": either(is_count, is_nothing),
    "chapters": is_count,
    "plan": {"chapters", "stream"}.__contains__,
    "hint_age": either(is_count, is_nothing),
    "shards": is_count,
    "slices": is_count,
    "teams": listed(is_count),
    "timeline_is_whole": lambda value: value is True,
    "tasks_done_before": lambda value: value == 0,
    "device": {"cpu"}.__contains__,
    "precision": {"fp32", "bf16"}.__contains__,
    "memory_format": {"contiguous", "channels-last"}.__contains__,
    "augmentation": lambda value: value == [],
    "activities": listed({"memory"}.__contains__),
    "placement": is_text,
    "world_size": is_count,
    "data_sha256": is_digest,
    "held_out_sha256": is_digest,
    "recipe_sha256": lambda value: value is None,
    "recipe_has_changed": lambda value: value is False,
    "seconds": is_number,
    "cpu_seconds": listed(is_number),
    "idle_seconds": listed(is_number),
    "bytes_sent": listed(is_count),
    "validation_seconds": listed(is_number),
    "validation_cpu_seconds": listed(is_number),
    "estimated_memory_bytes": listed(is_count),
    "peak_memory_bytes": listed(is_count),
    "estimated_device_bytes": listed(is_count),
    "peak_device_bytes": listed(is_count),
    "weights_sha256": is_digest,
    "versions": {"onward": is_text, "torch": is_text, "python": is_text},
    "machine": {
        "platform": is_text,
        "processor": is_text,
        "cores": is_count,
        "load": is_number,
        "gpu": is_nothing,
    },
}
"""Every field of `result.json`, and what it may be."""

PER_RANK = (
    "cpu_seconds",
    "idle_seconds",
    "bytes_sent",
    "validation_seconds",
    "validation_cpu_seconds",
    "estimated_memory_bytes",
    "peak_memory_bytes",
    "estimated_device_bytes",
    "peak_device_bytes",
)


def assert_has(found, fields, where="result.json"):
    assert set(found) == set(fields), where
    for name, check in fields.items():
        if isinstance(check, dict):
            assert_has(found[name], check, f"{where}: {name}")
        else:
            assert check(found[name]), f"{where}: {name} is {found[name]!r}"


def test_a_run_folder_holds_four_files_and_no_more(run):
    assert sorted(path.name for path in run.iterdir()) == sorted(FILES)


# result.json


def test_every_field_of_the_result_has_its_name_and_type(run):
    assert_has(read_result(run), RESULT)


def test_figures_of_each_rank_are_lists_with_an_entry_a_rank(run):
    found = read_result(run)

    assert [len(found[name]) for name in PER_RANK] == [found["world_size"]] * len(PER_RANK)


def test_the_result_counts_what_the_network_gets_wrong(run):
    found = read_result(run)

    wrong = found["samples"]["test"] * (1 - found["accuracy"]["test"])
    assert found["error_count"] == pytest.approx(wrong)


def test_the_result_says_what_was_asked_for(run):
    found = read_result(run)

    config = read_run(read_settings(run / "config.toml"))
    assert (found["recipe"], found["seed"]) == (config.recipe, config.training.seed)
    assert found["epochs"] == config.training.epochs
    assert found["chapters"] == (config.plan.chapters or found["epochs"])
    assert (found["plan"], found["shards"]) == (config.plan.kind, config.plan.shards)
    assert found["precision"] == config.training.precision
    assert (found["data"], found["placement"]) == ("data.npz", "sequential")


def test_a_result_that_is_not_there_or_damaged_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"There is no finished run in .*result\.json is missing"):
        read_result(tmp_path)
    for text, message in (("{", "is damaged: "), ("[]", "is damaged: it holds no object")):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(FileError, match=message):
            read_result(tmp_path)


# metrics.jsonl


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_metrics_have_a_line_for_each_chapter_of_each_block(run):
    found = read_result(run)
    num_blocks = len(read_settings(run / "config.toml")["network.widths"])
    num_blocks += found["recipe"] == "hinton"  # Its softmax head is trained as well.

    trained = [(line["chapter"], line["block"]) for line in lines_of(run) if "loss" in line]

    assert trained == [(c, b) for c in range(found["chapters"]) for b in range(num_blocks)]


FIGURES = {
    "loss": is_number,
    "accuracy": is_share,
    "told_apart": is_share,
    "paired": is_share,
    "goodness_gap": is_number,
    "dead_fraction": either(is_share, is_nothing),
    "epochs": is_number,
    "seconds": is_number,
    "cpu_seconds": is_number,
}
"""What a line of a block may tell; which of it, its objective decides."""


def test_a_line_of_a_block_has_the_figures_of_its_chapter(run):
    blocks = ow.load(run).all_blocks
    for line in lines_of(run):
        if line["block"] is not None:
            told = {name: FIGURES[name] for name in report_fields(blocks[line["block"]])}
            assert_has(line, {"chapter": is_count, "block": is_count, **told}, "metrics.jsonl")


def test_blocks_with_a_threshold_tell_the_gap_between_positives_and_negatives(run):
    has_threshold = read_result(run)["recipe"] in ("hinton", "pff")

    with_gap = {line["block"] for line in lines_of(run) if "goodness_gap" in line}

    num_blocks = len(read_settings(run / "config.toml")["network.widths"])
    assert with_gap == (set(range(num_blocks)) if has_threshold else set())


def test_a_line_of_a_validation_has_its_accuracy(run):
    validations = [line for line in lines_of(run) if line["block"] is None]

    assert validations
    for line in validations:
        assert is_count(line["chapter"])
        assert is_share(line["validation_accuracy"])
        assert is_count(line["samples"])


def test_the_last_validation_is_that_of_the_result(run):
    found = read_result(run)

    last = [
        (line["samples"], line["validation_accuracy"])
        for line in lines_of(run)
        if line["block"] is None and line["chapter"] == found["chapters"] - 1
    ]

    assert sum(samples for samples, _ in last) == found["samples"]["validation"]
    right = sum(samples * accuracy for samples, accuracy in last)
    assert found["accuracy"]["validation"] == pytest.approx(right / found["samples"]["validation"])


# config.toml


def test_the_settings_are_complete(run):
    unset = set(RunConfig().setting_names()) - set(read_settings(run / "config.toml"))

    optional = {name for name in RunConfig().setting_names() if value_of(RunConfig(), name) is None}
    assert unset <= optional


def value_of(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def test_the_settings_repeat_the_run_bit_for_bit_from_anywhere(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    onward("train", run / "config.toml", "--out", "again")

    for name in ("config.toml", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    first, second = read_result(run), read_result(tmp_path / "again")
    for name in ("weights_sha256", "accuracy", "samples", "hint_age"):
        assert second[name] == first[name]


def test_the_settings_say_which_arithmetic_was_chosen(run):
    assert read_settings(run / "config.toml")["training.precision"] in ("fp32", "bf16")


def test_the_settings_say_how_many_ranks_there_were_and_where_the_data_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data("data.npz")
    config = RunConfig().with_settings({"data.name": "data.npz", "network.widths": (8,)})
    result = ow.run(config)
    # As if torchrun had started four, which the settings then do not say.
    four = replace(result, facts={**result.facts, "world_size": 4})
    private = config.with_settings({"data.name": "shard-{rank}.npz", "data.dir": "here"})

    with folders.prepared(tmp_path / "run"):
        folders.write(tmp_path / "run", private, four)

    found = read_settings(tmp_path / "run" / "config.toml")
    assert found["placement.processes"] == 4
    assert found["data.name"] == str(tmp_path / "shard-{rank}.npz")
    assert found["data.dir"] == str(tmp_path / "here")


# model.safetensors


def test_the_model_is_the_network_of_the_result(run):
    network = ow.load(run)

    assert weights_sha256(network) == read_result(run)["weights_sha256"]


def test_the_model_gets_as_many_test_samples_wrong_as_the_result_says(run):
    dataset = ow.load_data(str(run.parent / "data.npz"))

    found = ow.evaluate(ow.load(run), dataset.test)

    assert found.samples - found.correct == read_result(run)["error_count"]


# Writing


def test_files_are_written_whole_or_not_at_all(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("before")

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", fail)

    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_folder_that_was_made_goes_away_where_the_run_fails(tmp_path):
    folder = tmp_path / "several" / "run"

    with pytest.raises(KeyboardInterrupt), folders.prepared(folder):
        raise KeyboardInterrupt

    assert not folder.exists()


def test_an_empty_folder_is_taken_and_stays_where_the_run_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), folders.prepared(tmp_path):
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_replaced_where_that_is_asked_for(run):
    message = f"The run in {run} is finished: onward.load reads its network. Name another folder, "
    message += "or replace the run with overwrite=True."

    with pytest.raises(FileError, match=re.escape(message)), folders.prepared(run):
        pass
    with folders.prepared(run, overwrite=True):
        assert sorted(path.name for path in run.iterdir()) == sorted(FILES)


def test_a_file_and_a_folder_with_something_else_are_no_run_folders(tmp_path):
    (tmp_path / "notes.txt").touch()

    with (
        pytest.raises(FileError, match=r"holds something else\. Name another\."),
        folders.prepared(tmp_path, overwrite=True),
    ):
        pass
    with (
        pytest.raises(FileError, match=r"is a file, not a folder\. Name another\."),
        folders.prepared(tmp_path / "notes.txt", overwrite=True),
    ):
        pass


def test_what_an_interrupted_run_left_behind_is_removed(tmp_path):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "config.toml").touch()

    with folders.prepared(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_who_can_read_the_result_can_read_the_model(run):
    modes = {stat.S_IMODE((run / name).stat().st_mode) for name in FILES}

    assert len(modes) == 1


# Several ranks


@pytest.mark.distributed
def test_two_ranks_end_in_the_weights_of_one_and_list_their_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data("data.npz")

    onward("train", *SMALL, "--out", "one")
    onward("train", *SMALL, "--out", "two", "--processes", "2")

    one, two = read_result(Path("one")), read_result(Path("two"))
    assert_has(two, RESULT)
    assert two["weights_sha256"] == one["weights_sha256"]
    assert (two["accuracy"], two["error_count"]) == (one["accuracy"], one["error_count"])
    assert (two["placement"], two["world_size"]) == ("all-layers", 2)
    assert [len(two[name]) for name in PER_RANK] == [2] * len(PER_RANK)
    assert min(two["bytes_sent"]) > 0
    assert sorted(os.listdir("two")) == sorted(FILES)
    assert Path("two/model.safetensors").read_bytes() == Path("one/model.safetensors").read_bytes()
    assert read_settings(Path("two/config.toml"))["placement.processes"] == 2
