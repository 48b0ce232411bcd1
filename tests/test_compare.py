"""Comparisons: what is trained and read, what the figures are, and what is refused."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from commands import onward

import onward as ow
from onward.cli.compare import remarks
from onward.costs import flops
from onward.errors import FileError, SettingError, Stopped
from onward.runs import preparation
from onward.runs.folders import read_result
from onward.runs.sharding import read
from onward.runs.trial import block_costs
from onward.runtime.chapters import ChapterWorker

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


class Told(ow.Listener):
    """Keeps what it is told."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    @property
    def trained(self):
        """Folders of the runs that were trained."""
        return [Path(n.rpartition(" in ")[2][:-1]).name for n in self.notes if n[:4] == "Run "]


def compare(*recipes, folder, settings=SMALL, seeds=1, **options):
    """Return the comparison, and the folders of what was trained for it."""
    listener = Told()
    found = ow.compare(
        list(recipes), folder=folder, settings=settings, seeds=seeds, listener=listener, **options
    )
    return found, listener.trained


def entry(found, name):
    (only,) = (each for each in found.entries if each.name == name)
    return only


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a comparison of two recipes and their twin, two seeds each."""
    folder = tmp_path_factory.mktemp("compare")
    _, trained = compare("one-pass", "pff", folder=folder, settings=FIVE, seeds=2)
    names = ("one-pass-0", "pff-0", "backprop-0", "one-pass-1", "pff-1", "backprop-1")
    assert trained == [*names]
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "compare")


# What is trained


def test_what_is_there_is_read_and_what_is_missing_is_trained(copied):
    shutil.rmtree(copied / "pff-1")

    found, trained = compare("one-pass", "pff", folder=copied, settings=FIVE, seeds=2)

    assert trained == ["pff-1"]
    assert [len(each.runs) for each in found.entries] == [2, 2, 2]


def test_a_run_that_was_cut_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    def cut(worker, task, given):
        if (task.time, task.block) == (1, 1):
            raise Stopped(signal.SIGTERM)
        return original(worker, task, given)

    original = ChapterWorker.train
    monkeypatch.setattr(ChapterWorker, "train", cut)
    with pytest.raises(Stopped):
        compare("one-pass", folder=tmp_path / "cut", twin=False)
    monkeypatch.undo()
    listener = Told()

    found = ow.compare(
        ["one-pass"],
        folder=tmp_path / "cut",
        settings=SMALL,
        seeds=1,
        twin=False,
        listener=listener,
    )

    whole, _ = compare("one-pass", folder=tmp_path / "whole", twin=False)
    assert any(note.startswith("Resuming: 4 of") for note in listener.notes)
    (run,), (other,) = found.entries[0].runs, whole.entries[0].runs
    assert run.weights_sha256 == other.weights_sha256
    # Nobody has timed its first part.
    assert run.core_seconds is run.peak_memory_bytes is None
    assert found.entries[0].spread("core_seconds") is None
    assert any(line.startswith("Of runs that were cut") for line in remarks(found))
    assert not any(line.startswith("Of runs that were cut") for line in remarks(whole))


def test_a_run_with_other_settings_is_refused_by_name(copied):
    other = FIVE | {"training.epochs": 6}

    with pytest.raises(SettingError, match=r"one-pass-0 was .*epochs is 5 there, and here 6\."):
        compare("one-pass", "pff", folder=copied, settings=other, seeds=2)

    assert read_result(copied / "one-pass-0")["epochs"] == 5


def test_a_cut_run_with_other_settings_is_refused_by_name(tmp_path, monkeypatch):
    def cut(worker, task, given):
        if task.time:
            raise Stopped(signal.SIGTERM)
        return original(worker, task, given)

    original = ChapterWorker.train
    monkeypatch.setattr(ChapterWorker, "train", cut)
    with pytest.raises(Stopped):
        compare("one-pass", folder=tmp_path, twin=False)
    monkeypatch.undo()

    with pytest.raises(SettingError, match=r"one-pass-0 was .*network.widths is \(24, 16\) there"):
        compare(
            "one-pass", folder=tmp_path, settings=SMALL | {"network.widths": (8, 8)}, twin=False
        )


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "one-pass-0").mkdir()
    (tmp_path / "one-pass-0" / "notes.txt").write_text("mine")

    found, _ = compare("one-pass", folder=tmp_path, twin=False)

    assert "holds something else" in found.errors[0]
    assert (tmp_path / "one-pass-0" / "notes.txt").read_text() == "mine"


def test_a_recipe_that_fails_is_listed_and_the_others_go_on(tmp_path, capsys):
    broken = "conv:network.pooled=1,2,3,4,5"

    status = onward(
        *("compare", broken, "one-pass", *FLAGS, "--seeds", 2, "--no-twin", "--out", tmp_path)
    )

    shown = capsys.readouterr()
    assert status == 1
    lines = (shown.out + shown.err).splitlines()
    first = next(n for n, text in enumerate(lines) if f"{broken} cannot be trained: Sampl" in text)
    assert first < next(n for n, text in enumerate(lines) if "Run 1 of 2: one-pass" in text)
    (line,) = (text for text in shown.err.splitlines() if "failed" in text)
    assert line.startswith(f"onward: failed: {broken}, seed 0: Samples of shape (1, 8, 8)")
    assert "one-pass" in shown.out
    entries = json.loads((tmp_path / "compare.json").read_text())["entries"]
    assert [len(each["runs"]) for each in entries] == [0, 2]
    assert entries[0]["accuracy"] is None


def test_a_run_that_diverges_is_listed_and_the_others_go_on(tmp_path):
    settings = SMALL | {"network.channels": (4,), "network.pooled": (1,)}
    broken = "conv:network.muon=false:optimizer.lr=1e30"

    found, trained = compare(broken, "one-pass", folder=tmp_path, settings=settings, twin=False)

    assert len(trained) == 2
    (line,) = found.errors
    assert line.startswith(f"{broken}, seed 0: The ")
    assert "no longer finite" in line
    assert len(entry(found, "one-pass").runs) == 1


# What is compared


def test_the_table_says_which_is_the_twin_of_what(finished):
    found, _ = compare("one-pass", "pff", folder=finished, settings=FIVE, seeds=2)

    assert [each.twin for each in found.entries] == ["backprop", "backprop", None]
    assert "backprop is the backpropagation twin of one-pass, pff." in remarks(found)


def test_a_twin_with_other_layers_is_said_to_have_them(tmp_path):
    found, _ = compare("one-pass", "pff:network.widths=8,8", folder=tmp_path)

    said = remarks(found)
    assert "backprop is the backpropagation twin of one-pass." in said
    assert (
        "backprop is backpropagation too, but with other layers than pff:network.widths=8,8."
        in said
    )


def test_what_several_recipes_learn_from_is_read_once(tmp_path, monkeypatch):
    asked = []

    def counted(config, ranks):
        asked.append(config.recipe)
        return read(config, ranks)

    monkeypatch.setattr("onward.comparison.contests.read", counted)
    compare("one-pass", "pff", folder=tmp_path, pflop=1e-12)

    assert asked == ["one-pass"]


def test_without_a_twin_there_is_none(finished):
    found, trained = compare("one-pass", folder=finished, settings=FIVE, seeds=2, twin=False)

    assert trained == []
    assert [each.name for each in found.entries] == ["one-pass"]
    assert found.entries[0].twin is None


def test_two_settings_of_a_recipe_are_two_entries(tmp_path):
    given = ("pff", "pff:network.negatives=random")

    settings = SMALL | {"plan.hint_age": 1}
    found, trained = compare(*given, folder=tmp_path, settings=settings, twin=False)

    assert trained == ["pff-0", "pff-network.negatives=random-0"]
    negatives = [each.settings["network.negatives"] for each in found.entries]
    assert negatives == ["adaptive", "random"]
    assert found.entries[0].training_flops > found.entries[1].training_flops


def test_what_a_recipe_does_not_have_is_said_once_for_all(tmp_path):
    listener, settings = Told(), SMALL | {"network.channels": (4,), "network.pooled": (1,)}

    ow.compare(
        ["one-pass", "conv"],
        folder=tmp_path,
        settings=settings,
        seeds=1,
        twin=False,
        listener=listener,
    )

    assert "network.widths is no setting of conv, and changes nothing there." in listener.notes
    assert (
        "network.channels is no setting of one-pass, and changes nothing there." in listener.notes
    )


def test_folders_of_runs_that_differ_in_the_seed_alone_are_one_entry(finished, tmp_path):
    folders = [str(finished / name) for name in ("one-pass-1", "pff-0", "one-pass-0")]

    found, trained = compare(*folders, folder=tmp_path, settings={}, twin=False)

    assert trained == []
    assert [each.name for each in found.entries] == ["one-pass", "pff-0"]
    assert [run.seed for run in found.entries[0].runs] == [1, 0]


def test_a_recipe_of_ones_own_is_compared(tmp_path):
    own = f"{Path(__file__).parent.parent / 'examples' / 'own_recipe.py'}:staged"
    settings = {"network.widths": (16, 16), "training.epochs": 1}

    found, trained = compare(own, folder=tmp_path, settings=settings, twin=False)

    assert found.errors == []
    assert trained == ["own_recipe.py-staged-0"]
    results = [read_result(p.parent) for p in tmp_path.rglob("result.json")]
    assert len(results) == 3
    seconds = sum(sum(r["cpu_seconds"]) - sum(r["validation_cpu_seconds"]) for r in results)
    # Those of all its stages.
    assert found.entries[0].runs[0].core_seconds == pytest.approx(seconds)


# Figures


def test_figures_are_those_of_the_runs(finished):
    compare("one-pass", "pff", folder=finished, settings=FIVE, seeds=2)

    found = json.loads((finished / "compare.json").read_text())
    assert [each["name"] for each in found["entries"]] == ["one-pass", "pff", "backprop"]
    for each in found["entries"]:
        results = [read_result(finished / f"{each['name']}-{seed}") for seed in (0, 1)]
        accuracies = [result["accuracy"]["test"] for result in results]
        assert [run["accuracy"] for run in each["runs"]] == accuracies
        assert each["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert each["accuracy"]["deviation"] == pytest.approx(
            abs(accuracies[0] - accuracies[1]) / 2**0.5
        )
        assert each["accuracy"]["n"] == 2
        assert [run["core_seconds"] for run in each["runs"]] == [
            sum(result["cpu_seconds"]) - sum(result["validation_cpu_seconds"]) for result in results
        ]
        assert [run["peak_memory_bytes"] for run in each["runs"]] == [
            max(result["peak_memory_bytes"]) for result in results
        ]
        assert each["samples"] == results[0]["samples"]
        network = ow.load(finished / f"{each['name']}-0")
        assert each["parameters"] == sum(p.numel() for p in network.parameters())
        assert each["inference_flops"] == flops.of_inference(network)


def test_operations_and_messages_are_those_of_the_plan(finished):
    found, _ = compare("pff", folder=finished, settings=FIVE, seeds=2, twin=False)

    config = ow.RunConfig(recipe="pff").with_settings(FIVE)
    (begun,) = preparation.preview(config, 1, with_weights=True)
    costs = flops.count_steps(begun.plan, begun.network, begun.shard, begun.settings)
    (pff,) = found.entries
    assert pff.training_flops == flops.of_training(begun.plan, costs)
    each = block_costs(begun.network, begun.dataset.training)
    assert pff.traffic == flops.traffic(begun.plan, costs, each, 4)
    assert pff.traffic.ranks == 4


def test_early_exit_is_calibrated_on_validation_samples_and_measured_on_test_samples(finished):
    found, _ = compare("one-pass", folder=finished, settings=FIVE, seeds=2)

    dataset = preparation.preview(ow.RunConfig(), 1)[0].dataset
    for run in entry(found, "one-pass").runs:
        network = ow.load(run.folder)
        network.set_precision(torch.float32)
        calibrated = ow.calibrate(network, dataset.validation, max_error_increase=0.001)
        answers = ow.answer(network, dataset.test, calibrated.policy)
        macs = ow.exits.macs_spent(ow.exits.stage_costs(network), answers).mean()
        wrong, full = (
            (labels != dataset.y_test).double().mean()
            for labels in (answers.labels, network.predict(dataset.test))
        )
        early = run.early_exit
        assert early.macs_ratio == pytest.approx(float(calibrated.full_macs / macs), rel=1e-4)
        assert early.error_change == pytest.approx(float(wrong - full), abs=1e-6)
        assert early.macs_ratio > 1.01
    assert entry(found, "backprop").macs_ratio is None


def test_without_validation_samples_nothing_leaves_early(tmp_path):
    settings = SMALL | {"data.validation": 0}

    found, _ = compare("one-pass", folder=tmp_path, settings=settings, twin=False)

    assert found.entries[0].macs_ratio is None
    assert found.entries[0].samples["validation"] == 0


def test_a_curve_shows_validations_where_there_are_several(tmp_path):
    settings = SMALL | {"plan.validate_every": 1}

    found, _ = compare("one-pass", folder=tmp_path, settings=settings, seeds=2, twin=False)

    (only,) = found.entries
    assert (only.curve.what, only.curve.epochs) == ("validation", (1.0, 2.0))
    last = [run.validation_accuracy for run in only.runs]
    assert only.curve.accuracy[-1] == pytest.approx(sum(last) / 2)


def test_runs_are_validated_for_their_curves(finished):
    found, _ = compare("one-pass", "pff", folder=finished, settings=FIVE, seeds=2)

    curves = [entry(found, name).runs[0].curve for name in ("one-pass", "pff")]
    assert {(c.what, c.epochs) for c in curves} == {("validation", (1.0, 2.0, 3.0, 4.0, 5.0))}


def test_a_curve_shows_the_training_of_the_last_block_else(tmp_path):
    once = FIVE | {"plan.validate_every": 5}
    found, _ = compare("one-pass", "pff", folder=tmp_path, settings=once, twin=False)

    # That blocks tell right labels from wrong ones is no accuracy of the network.
    assert entry(found, "pff").runs[0].curve is None
    curve = entry(found, "one-pass").runs[0].curve
    lines = (tmp_path / "one-pass-0" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert (curve.what, curve.epochs) == ("training", (1.0, 2.0, 3.0, 4.0, 5.0))
    assert [*curve.accuracy] == [line["accuracy"] for line in metrics if line["block"] == 1]


def test_early_exit_is_measured_once(finished, monkeypatch):
    def again(*_):
        raise AssertionError("It has been measured.")

    before, _ = compare("one-pass", folder=finished, settings=FIVE, seeds=2)
    monkeypatch.setattr("onward.comparison.contests.early_exit", again)
    after, _ = compare("one-pass", folder=finished, settings=FIVE, seeds=2)

    assert after.errors == []
    assert [r.early_exit for r in after.entries[0].runs] == [
        r.early_exit for r in before.entries[0].runs
    ]
    (finished / "early-exit.json").write_text("{")
    broken, _ = compare("one-pass", folder=finished, settings=FIVE, seeds=2)
    assert any("It has been measured" in text for text in broken.errors)


def test_each_run_says_its_own_peak_of_memory():
    from onward.costs import memory

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not forget a peak")
    large = bytearray(300 << 20)
    before = memory.peak()
    del large

    memory.forget_peak()

    assert memory.peak() < before - (200 << 20)


@pytest.mark.slow
def test_equal_operations_are_as_many_epochs_as_they_are_enough_for(tmp_path):
    once, _ = compare(
        *("pff", "mono-forward"),
        folder=tmp_path / "once",
        settings=SMALL | {"training.epochs": 1},
    )
    budget = 3.5 * once.entries[0].training_flops

    found, _ = compare("pff", "mono-forward", folder=tmp_path / "equal", pflop=budget / 1e15)

    for each in found.entries:
        more = dict(each.settings) | {"training.epochs": each.epochs + 1}
        config = ow.RunConfig(recipe=each.recipe).with_settings(
            {name: more[name] for name in (*SMALL, "training.epochs")}
        )
        (begun,) = preparation.preview(config, 1, with_weights=True)
        costs = flops.count_steps(begun.plan, begun.network, begun.shard, begun.settings)
        assert each.training_flops <= budget < flops.of_training(begun.plan, costs)
        assert read_result(tmp_path / "equal" / f"{each.name}-0")["epochs"] == each.epochs
    assert len({each.epochs for each in found.entries}) == 3


def test_a_training_has_an_epoch_whatever_it_costs(tmp_path):
    given = ("one-pass", "one-pass:plan.chapters=3")

    found, _ = compare(*given, folder=tmp_path, pflop=1e-12, twin=False)

    # An epoch a chapter.
    assert [each.epochs for each in found.entries] == [1, 3]


# What is refused


def test_runs_on_other_data_are_refused(finished, tmp_path):
    folders = [finished / "one-pass-0", "one-pass:data.test=0.3"]

    with pytest.raises(SettingError, match=r"one-pass:data.test=0.3 is of other data \(digits\)"):
        compare(*folders, folder=tmp_path, settings=FIVE, twin=False)


def test_a_run_whose_data_have_changed_is_refused(copied):
    path = copied / "one-pass-0" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"data_sha256": "0" * 64}))

    with pytest.raises(SettingError, match=r"one-pass-0 is of other data than digits is now"):
        compare("one-pass", folder=copied, settings=FIVE, seeds=2)


def test_the_run_of_a_script_is_refused(tmp_path):
    dataset = ow.load_data("digits")
    network = ow.mlp(dataset.input_shape, num_classes=10, widths=(8, 8))
    ow.train(network, dataset, training=ow.TrainingConfig(epochs=1), folder=tmp_path / "script")

    with pytest.raises(SettingError, match="was built by a script"):
        compare(tmp_path / "script", folder=tmp_path / "out")


def test_recipes_are_a_list(tmp_path):
    with pytest.raises(SettingError, match="recipes must be a list of recipes, run files"):
        ow.compare("one-pass", folder=tmp_path)


def test_an_unfinished_run_is_no_entry(tmp_path):
    (tmp_path / "begun" / "state").mkdir(parents=True)

    with pytest.raises(FileError, match="There is no finished run in"):
        compare(tmp_path / "begun", folder=tmp_path / "out")
