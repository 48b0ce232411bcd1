"""Listeners that write files, several at once, and what the command writes for TensorBoard."""

import csv
import json

import pytest
from commands import SMALL, onward
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import onward as ow
from onward.errors import FileError, SettingError


def trained(listener, **training):
    network = ow.mlp((1, 8, 8), num_classes=10, widths=(16, 12))
    training = {"epochs": 2, "batch_size": 200} | training
    data = ow.load_data("digits")
    return ow.train(network, data, training=ow.TrainingConfig(**training), listener=listener)


def samples_of(result):
    """Return all figures that a result reports, as chapter, block, name and value."""
    return [
        (entry.chapter, entry.block, name, value)
        for entry in result.progress
        for name, value in entry.figures.items()
        if value is not None
    ]


def in_order(samples):
    return sorted(samples, key=repr)


def test_a_csv_file_holds_every_figure(tmp_path):
    result = trained(ow.CSVLog(tmp_path / "log.csv"))

    head, *lines = csv.reader((tmp_path / "log.csv").read_text().splitlines())
    found = [(int(c), int(b) if b else None, name, float(v)) for _, c, b, name, v in lines]
    assert head == ["stage", "chapter", "block", "name", "value"]
    assert in_order(found) == in_order(samples_of(result))
    assert {(chapter, block) for chapter, block, *_ in found} == {
        (chapter, block) for chapter in range(2) for block in (0, 1, None)
    }


def test_a_csv_file_is_replaced_by_the_next_run(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("what was there before\n" * 99)

    trained(ow.CSVLog(str(path)), epochs=1)

    assert path.read_text().startswith("stage,chapter,block,name,value\n0,0,")


def test_stages_add_to_one_csv_file(tmp_path):
    config = ow.RunConfig(recipe="uff").with_settings(
        {"network.cell": "autoencoder", "network.widths": (16,), "training.epochs": 1}
    )

    result = ow.run(config, ow.CSVLog(tmp_path / "log.csv"))

    head, *lines = csv.reader((tmp_path / "log.csv").read_text().splitlines())
    stages = [samples_of(each) for each in (*result.earlier, result)]
    assert len(stages) == 2
    assert head == ["stage", "chapter", "block", "name", "value"]
    assert [(stage, name) for stage, _, _, name, _ in lines] == [
        (str(stage), name) for stage, found in enumerate(stages) for _, _, name, _ in found
    ]


def test_a_csv_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"nowhere.log\.csv cannot be written: No such file"):
        trained(ow.CSVLog(tmp_path / "nowhere" / "log.csv"))


def events(folder):
    """Return what TensorBoard reads: for each name, steps and values."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def test_tensorboard_reads_back_what_was_reported(tmp_path):
    result = trained(ow.TensorBoard(tmp_path))

    found = events(tmp_path)
    for entry in result.progress:
        what = "validation" if entry.block is None else f"block {entry.block}"
        for name, value in entry.figures.items():
            if value is not None:
                curve = dict(found[f"{what}/{name.removeprefix('validation_')}"])
                assert curve[entry.chapter + 1] == pytest.approx(value, rel=1e-6)
    assert [step for step, _ in found["validation/accuracy"]] == [1, 2]
    assert {name.partition("/")[0] for name in found} == {"block 0", "block 1", "validation"}


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)

    with pytest.raises(SettingError, match=r'pip install "onward\[tensorboard\]"'):
        ow.TensorBoard(tmp_path)


class Kept(ow.Listener):
    """Keeps what it is told, in order."""

    def __init__(self, fails=False):
        self.told, self.fails = [], fails

    def begin(self, plan, placement):
        self.told.append("begin")

    def note(self, text):
        self.told.append(f"note {text}")

    def progress(self, progress):
        self.told.append((progress.chapter, progress.block))
        if self.fails:
            raise RuntimeError("it fails")

    def end(self):
        self.told.append("end")


def test_several_listeners_hear_the_same():
    one, two = Kept(), Kept()

    trained([one, two])

    assert one.told == two.told
    assert (one.told[0], one.told[-1], len(one.told)) == ("begin", "end", 2 + 2 * 3)


def test_all_listeners_hear_the_end_where_one_fails():
    one, two = Kept(), Kept(fails=True)

    with pytest.raises(RuntimeError, match="it fails"):
        trained((one, two))

    assert one.told[-1] == two.told[-1] == "end"


def test_listeners_hear_the_end_where_another_cannot_begin(tmp_path):
    kept = Kept()

    with pytest.raises(FileError, match="cannot be written"):
        trained([kept, ow.CSVLog(tmp_path / "nowhere" / "log.csv"), ow.TensorBoard(tmp_path)])

    assert kept.told == ["begin", "end"]


def test_a_refused_run_leaves_event_files_alone(tmp_path):
    folder = tmp_path / "run"
    constant = ["--set=training.schedule=constant", "--set=placement.keep_state=true"]
    onward("train", *SMALL, *constant, "--tensorboard", f"--out={folder}")
    before = sorted((folder / "tensorboard").iterdir())

    assert onward("train", f"--resume={folder}", "--lr=0.5", "--epochs=4", "--tensorboard")

    assert set(before) <= set((folder / "tensorboard").iterdir())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("listener", [print, ["log.csv"], "log.csv"])
def test_what_is_no_listener_is_refused(listener):
    with pytest.raises(SettingError, match=r"listener .*an ow.Listener, such as ow.CSVLog"):
        trained(listener)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_command_writes_event_files_to_the_run_folder(tmp_path, processes):
    folder = tmp_path / "run"
    given = ["train", *SMALL, "--tensorboard", f"--out={folder}", f"--processes={processes}"]

    status = onward(*given)
    once = events(folder / "tensorboard")
    onward(*given, "--overwrite")

    assert not status
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    accuracy = [line["validation_accuracy"] for line in lines if line["block"] is None]
    assert [v for _, v in once["validation/accuracy"]] == pytest.approx(accuracy)
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert events(folder / "tensorboard")["validation/accuracy"] == once["validation/accuracy"]


def test_event_files_of_a_run_that_failed_do_not_keep_the_next_one_out(tmp_path):
    folder = tmp_path / "run"

    failed = onward("train", *SMALL, "--lr=1e38", "--tensorboard", f"--out={folder}")
    again = onward("train", *SMALL, f"--out={folder}")

    assert failed
    assert not again
