"""The command that compares: what it prints, writes and refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from commands import onward

import onward as ow
from onward.cli import report
from onward.cli.compare import prefixed, table, told
from onward.cli.output import Output
from onward.comparison.entries import read_entries, twin_of
from onward.comparison.figures import Spread
from onward.runs.folders import read_result

SMALL = {"training.epochs": 2, "network.widths": (24, 16), "training.batch_size": 200}
"""Settings of short runs."""

FLAGS = ("--epochs", 2, "--set", "network.widths=24,16", "--set", "training.batch_size=200")
"""The same as flags."""

FIVE = {"training.epochs": 5, "network.widths": (48, 48), "training.batch_size": 100}
"""Settings of runs that learn something."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::onward.OnwardWarning"),
    pytest.mark.usefixtures("unchecked_module"),
]


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


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of three runs, on 360 test samples."""
    folder = tmp_path_factory.mktemp("compared")
    return ow.compare(["one-pass"], folder=folder, seeds=3, settings=SMALL, twin=False)


def with_accuracies(found, *accuracies):
    """Return a comparison with a line for each accuracy."""
    (entry,) = found.entries
    entries = [
        replace(entry, name=str(each), runs=(replace(entry.runs[0], accuracy=each),))
        for each in accuracies
    ]
    return replace(found, entries=tuple(entries))


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Returns the axes of the picture of a comparison."""
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(report, "_save", lambda figure, _: figures.append(figure))

    def draw(found):
        report.draw_comparison(found, tmp_path / "compare.png")
        return figures[-1].axes

    return draw


def heights(axis):
    """Return where points of an axis are, in the order in which they were drawn."""
    return [height for line in axis.lines for height in line.get_ydata()]


def test_errors_that_differ_much_are_drawn_on_a_logarithmic_scale(compared, drawn):
    _, *costs = drawn(with_accuracies(compared, 0.3, 0.99, 1.0))

    for axis in costs:
        low, high = axis.get_ylim()
        assert axis.get_yscale() == "logit"
        # None of 360 is wrong: drawn as half an error, and in sight.
        assert heights(axis) == pytest.approx([0.3, 0.99, 1 - 0.5 / 360])
        assert 0 < low < 0.3
        assert max(heights(axis)) < high < 1


def test_errors_that_are_alike_are_drawn_as_they_are(compared, drawn):
    _, seconds, _ = drawn(with_accuracies(compared, 0.95, 0.96))

    assert seconds.get_yscale() == "linear"
    assert seconds.get_yticklabels()[0].get_text().endswith(" %")


def test_a_spread_is_drawn_from_one_end_to_the_other(compared, drawn):
    spread = compared.entries[0].spread("accuracy")

    _, seconds, _ = drawn(compared)

    ends = (spread.mean - spread.deviation, spread.mean + spread.deviation)
    assert heights(seconds) == pytest.approx([spread.mean, *ends])


def test_what_took_a_time_that_is_not_known_is_drawn_by_its_operations(compared, drawn):
    (entry,) = compared.entries
    cut = replace(entry, runs=tuple(replace(run, core_seconds=None) for run in entry.runs))

    _, seconds, operations = drawn(replace(compared, entries=(cut,)))

    assert not heights(seconds)
    assert heights(operations)
    (legend,) = operations.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [entry.name]


def test_curves_of_training_samples_are_not_drawn_beside_those_of_validation(compared, drawn):
    (entry,) = compared.entries
    first, *others = entry.runs
    curve = replace(first.curve, what="training", accuracy=(0.99,) * len(first.curve.epochs))
    first = replace(first, curve=curve)
    both, training = replace(entry, runs=(first, *others)), replace(entry, runs=(first,))

    learned, *_ = drawn(replace(compared, entries=(both, training)))
    assert both.curve.what == "validation"
    assert learned.get_ylabel() == "validation accuracy"
    assert heights(learned) == list(both.curve.accuracy)

    learned, *_ = drawn(replace(compared, entries=(training,)))
    assert learned.get_ylabel() == "training accuracy, last block"
    assert heights(learned) == list(curve.accuracy)


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
        (["runs/nothing"], "There is no run folder runs/nothing."),
        (["one-pass", "--widths", "8,8"], "--widths. Set it by its name: --set network.widths=8,8"),
        (["one-pass", "--batch-size=50"], "Set it by its name: --set training.batch_size=50."),
        (["one-pass", "--seeds", "0"], "seeds is 0; it is the number of runs"),
        (["one-pass", "--flops", "0"], "PFLOP are a number above 0; got 0.0."),
        (["one-pass", "--flops", "1", "--epochs", "2"], "Give --epochs or --flops, not both"),
        (["one-pass", "one-pass"], "one-pass is compared with itself"),
        (["one-pass:network.channels=4"], "Unknown setting network.channels."),
        (["one-pass:network.widths=8:nothing"], "got nothing in one-pass"),
        (
            ["one-pass", "--set", "network.channels=4"],
            "network.channels is no setting of one-pass. There are network.dropout, ",
        ),
        (
            ["symba", "--set", "network.slop=3"],
            "network.slop is no setting of symba. Did you mean network.slope?",
        ),
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


def test_convolutions_and_transformers_have_twins_of_their_own():
    found = read_entries(["vit", "ffcl", "conv", "predsim", "one-pass"], {})

    assert {each.name: twin_of(each, found)[0] for each in found[:5]} == {
        "vit": "vit:network.layers_per_block=all",
        "ffcl": "backprop",
        "conv": "conv:network.layers_per_block=all",
        "predsim": "conv:network.layers_per_block=all",
        "one-pass": "backprop",
    }
    assert len(found) == 8


# What is refused


def write(path, **changes):
    """Write a data set with test and validation samples of its own."""
    x, y = np.random.default_rng(0).random((60, 4)), np.arange(60) % 2
    parts = {"": slice(40), "_val": slice(40, 50), "_test": slice(50, 60)}
    arrays = {f"{n}{p}": a[own] for p, own in parts.items() for n, a in (("x", x), ("y", y))}
    np.savez(path, **arrays | changes)


def test_other_test_or_validation_samples_are_refused(tmp_path, capsys):
    own, other = tmp_path / "own.npz", tmp_path / "other.npz"
    write(own)
    write(other, x_test=np.ones((10, 4)))
    flags = ("--epochs", 1, "--set", "training.batch_size=20", "--seeds", 1, "--no-twin")
    folder = ("--out", tmp_path / "out")
    files = [f"{recipe}:data.name={file}" for recipe, file in (("one-pass", own), ("pff", other))]
    assert onward("compare", *files, *flags, *folder) == 2
    assert "(other.npz) has other test or validation samples than" in capsys.readouterr().err
    assert onward("compare", "one-pass", "--data", own, *flags, *folder) == 0

    write(own, x_test=np.ones((10, 4)))

    assert onward("compare", "one-pass", "pff", "--data", own, *flags, *folder) == 2
    assert "had other test or validation samples than own.npz has now" in capsys.readouterr().err

    # The same weights again, whose early exit is measured on other samples.
    shutil.rmtree(tmp_path / "out" / "one-pass-0")
    assert onward("compare", "one-pass", "--data", own, *flags, *folder) == 0
    assert len(json.loads((tmp_path / "out" / "early-exit.json").read_text())) == 2
