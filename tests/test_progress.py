"""What is said of a run while it goes on."""

import io
import re
import time

import pytest
from commands import SMALL, config_of, onward
from rich.console import Console

import onward as ow
from onward.runs import preparation, progress
from onward.runs.progress import Bars


class Telling:
    """A run of two chapters of two blocks, told to a listener."""

    def __init__(self, **console):
        self.file = io.StringIO()
        self.bars = Bars(Console(file=self.file, width=100, **console))
        config = config_of(*SMALL)
        plan, placement, *_ = preparation.preview(config, 1)[0]
        self.bars.begin(plan, placement)
        for chapter in range(2):
            for block in range(2):
                figures = {"loss": 0.5 / (chapter + 1), "accuracy": 0.75 + 0.1 * chapter}
                self.bars.progress(ow.Progress(chapter, block, figures))
        self.bars.progress(ow.Progress(1, None, {"validation_accuracy": 0.625}))
        self.bars.end()
        self.text = self.file.getvalue()


def test_in_a_terminal_each_block_has_a_bar_with_its_loss_accuracy_and_time_left():
    lines = Telling(force_terminal=True, color_system=None).text.splitlines()

    for block in range(2):
        bar = next(line for line in reversed(lines) if f"block {block} " in line)
        assert "2/2 loss 0.2500  accuracy 85.00% 0:00:00" in bar


def test_in_a_terminal_validation_has_a_bar_below_those_of_the_blocks():
    lines = Telling(force_terminal=True, color_system=None).text.splitlines()

    *_, above, last = (line for line in lines if "2/2" in line)
    assert above.startswith("block 1")
    assert last.startswith("validation")
    assert "2/2 accuracy 62.50%" in last


@pytest.mark.parametrize("dumb", [False, True], ids=["no terminal", "dumb terminal"])
def test_elsewhere_there_are_few_lines_and_no_control_codes(dumb, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")

    text = Telling(force_terminal=dumb).text

    assert text.splitlines() == [
        "2 blocks, 2 epochs in 2 chapters, 1,293 samples; sequential on 1 rank",
        "chapter 1, block 1: loss 0.2500  accuracy 85.00%; 0 s, about 0 s left",
        "chapter 1: validation accuracy 62.50%",
    ]


def test_elsewhere_a_long_run_says_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)

    lines = Telling().text.splitlines()

    assert [line.partition(":")[0] for line in lines[1:5]] == [
        f"chapter {chapter}, block {block}" for chapter in (0, 1) for block in (0, 1)
    ]


def trained():
    dataset = ow.dataset([[float(n), 1.0] for n in range(40)], [0, 1] * 20)
    network = ow.mlp((2,), num_classes=2, widths=(4, 4))
    return ow.train(network, dataset, training=ow.TrainingConfig(epochs=2, batch_size=10))


@pytest.mark.filterwarnings("ignore::onward.OnwardWarning")
@pytest.mark.parametrize("is_watched", [True, False])
def test_from_python_there_are_bars_where_somebody_watches(is_watched, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(is_watched)))
    monkeypatch.setenv("TTY_INTERACTIVE", str(int(is_watched)))

    trained()

    said = capsys.readouterr()
    assert said.out == ""
    assert ("2 blocks, 2 epochs" in said.err) is is_watched


@pytest.mark.filterwarnings("ignore::onward.OnwardWarning")
def test_an_estimator_for_scikit_learn_is_silent(monkeypatch, capsys):
    from onward.sklearn import OnwardClassifier

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    estimator = OnwardClassifier(widths=(4, 4), epochs=1, batch_size=10)

    estimator.fit([[float(n), 1.0] for n in range(40)], [0, 1] * 20)

    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_table_tells_start_up_and_the_whole_time(capsys, monkeypatch):
    monkeypatch.setenv("ONWARD_STARTED", str(time.time() - 100))

    onward("train", *SMALL, "--out", "run")

    told = capsys.readouterr().out
    startup, total = (
        float(re.search(rf"{name} +│ +([\d.]+) s", told)[1]) for name in ("start-up", "total time")
    )
    assert 100 < startup < total < 130
