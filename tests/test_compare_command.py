"""The command that compares: what it prints, writes and refuses."""

import json

import pytest
from commands import onward

import onward as ow
from onward.cli.compare import prefixed, table, told
from onward.cli.output import Output
from onward.figures import Spread
from onward.runs import read_result

SMALL = {"training.epochs": 2, "network.widths": (24, 16), "training.batch_size": 200}
"""Settings of short runs."""

FLAGS = ("--epochs", 2, "--set", "network.widths=24,16", "--set", "training.batch_size=200")
"""The same as flags."""

FIVE = {"training.epochs": 5, "network.widths": (48, 48), "training.batch_size": 100}
"""Settings of runs that learn something."""

pytestmark = pytest.mark.filterwarnings("ignore::onward.OnwardWarning")


def test_the_command_prints_a_table_and_writes_figures_and_picture(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "60")

    status = onward("compare", "one-pass", *FLAGS, "--seeds", 2, "--out", tmp_path)

    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "compare.json").read_text())
    assert status == 0
    for each in found["entries"]:
        spread = each["accuracy"]
        # Whole, however narrow the terminal is.
        assert f"{100 * spread['mean']:.2f} ± {100 * spread['deviation']:.2f}" in shown
        assert prefixed(each["training_flops"]) in shown
    assert "Samples: 1,293 training, 144 validation, 360 test." in shown
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_progress_goes_to_the_standard_error(tmp_path, capsys):
    onward("compare", "one-pass", *FLAGS, "--seeds", 1, "--no-twin", "--out", tmp_path)

    shown = capsys.readouterr()
    assert "Note: Run 1 of 1: one-pass, seed 0, in " in shown.err
    assert "2 blocks, 2 epochs in 2 chapters" in shown.err
    assert "Run 1" not in shown.out


def test_seeds_count_from_that_of_the_settings(tmp_path):
    flags = ("--seed", 7, "--seeds", 2, "--no-twin", "--out", tmp_path)

    assert onward("compare", "one-pass", *FLAGS, *flags) == 0

    assert read_result(tmp_path / "one-pass-8")["seed"] == 8
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["one-pass-7", "one-pass-8"]


def test_a_figure_that_is_missing_is_a_dash(tmp_path):
    settings = SMALL | {"data.validation": 0}
    found = ow.compare(["backprop"], folder=tmp_path, settings=settings, seeds=1)

    console = Output(width=200)
    with console.capture() as captured:
        console.print(table(found))

    (row,) = (line.split() for line in captured.get().splitlines() if "backprop" in line)
    assert row[-2:] == ["-", "-"]


def test_numbers_have_units():
    assert told(Spread(0.9867, 0.0006, 3), 100, 2) == "98.67 ± 0.06"
    assert told(Spread(12.34, None, 1), 1, 1) == "12.3"
    assert [prefixed(n) for n in (None, 0.0, 999, 999_900, 3e16)] == [
        *("-", "0", "999", "1.00 M", "30.0 P")
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing"], "There is no recipe nothing."),
        (["one-pass", "--seeds", "0"], "seeds is 0; it is the number of runs"),
        (["one-pass", "--flops", "0"], "PFLOP are a number above 0; got 0.0."),
        (["one-pass", "--flops", "1", "--epochs", "2"], "Give --epochs or --flops, not both"),
        (["one-pass", "one-pass"], "one-pass is compared with itself"),
        (["one-pass:network.channels=4"], "Unknown setting network.channels."),
        (["one-pass:network.widths=8:nothing"], "got nothing in one-pass"),
        (["one-pass", "--set", "network.channels=4"], "network.channels is no setting of one-pass"),
        (["one-pass", "--set", "placement.processes=2"], "placement.processes has no effect here"),
        (["one-pass", "--set", "epochs"], "--set takes SECTION.NAME=VALUE; got epochs."),
        (["one-pass", "one-pass:data.name=other.npz"], "other.npz"),
        (["one-pass:data.name=shard-{rank}.npz"], "names a file for each rank"),
        (["missing.toml"], "The run file missing.toml cannot be read"),
        (["."], "There is no finished run in ."),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    status = onward("compare", *arguments, "--out", "out")

    message = capsys.readouterr().err
    assert (status, text in message) == (2, True), message
    assert "Run 1" not in message
