"""`onward exits` and `onward export`, and what other commands make of calibrated exits."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from commands import onward

import onward as ow
from onward.onnx_files import export, run_exported

pytestmark = pytest.mark.usefixtures("unchecked_module")

READOUTS = {
    "heads": ["one-pass", "--widths", "64,48,32", "--epochs", "8"],
    "sweep": ["pff", "--negatives", "random", "--widths", "64,48,32", "--epochs", "8"],
    "softmax": ["pff", "--readout", "softmax", "--widths", "64,48,32", "--epochs", "8"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run for each readout."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in READOUTS.items():
        words = [*words, "--set", "training.precision=fp32", "--set", "data.validation=400"]
        assert onward("train", *words, "--out", folder / name) == 0
    return folder


@pytest.fixture(scope="module", params=READOUTS)
def run(request, runs):
    """A run whose exits are calibrated."""
    folder = runs / request.param
    assert onward("exits", folder, "--max-error-increase", "0.02") == 0
    return folder


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """The files of a run."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert onward("export", runs / "heads", "--onnx", folder) == 0
    return folder


def test_exits_are_calibrated_on_validation_samples_and_written_into_the_run(run, capsys):
    capsys.readouterr()
    assert onward("exits", run, "--max-error-increase", "0.02") == 0

    said = " ".join(capsys.readouterr().out.split())
    found = json.loads((run / "exits.json").read_text())
    assert "calibrated on the 400 validation samples of digits" in said
    samples = [row.split() for row in said.split("│") if row.strip()]
    shares = [float(cell[0][:-1]) for cell in samples if cell[0].endswith("%")][::2]
    assert shares[-1] == 100
    assert abs(sum(shares[:-1]) - 100) < 0.05
    assert "times fewer" in said
    assert (run / "exits.png").stat().st_size > 10_000
    assert found["samples"] == 400
    assert found["policy"]["confidence"] == "margin"
    assert found["mean_macs"] < found["full_macs"]
    assert not found["on_training_samples"]


def test_a_run_is_evaluated_with_its_exits_beside_full_depth(run, capsys):
    capsys.readouterr()
    assert onward("evaluate", run) == 0
    with_exits = capsys.readouterr().out
    assert onward("evaluate", run, "--full-depth") == 0
    without = capsys.readouterr().out

    cells = [[cell.strip() for cell in line.split("│")] for line in with_exits.splitlines()]
    by_name = {row[1]: row[2:-1] for row in cells if len(row) > 3}
    network, test = ow.load(run), ow.load_data("digits")
    policy = ow.exits.ExitPolicy.from_json(json.loads((run / "exits.json").read_text())["policy"])
    early = ow.answer(network, test.x_test, policy).labels
    right = [labels == test.y_test for labels in (network.predict(test.x_test), early)]
    assert by_name["accuracy"] == [f"{each.double().mean():.2%}" for each in right]
    sevens = test.y_test == 7
    found = [f"{each[sevens].double().mean():.2%}" for each in right]
    assert by_name["sensitivity, class 7"] == found
    assert {"block 0", "block 1"} & set(by_name)
    assert "times fewer" in with_exits
    assert "early exit" not in without


def test_evaluate_times_batches_where_it_is_asked_to(runs, capsys, monkeypatch):
    monkeypatch.setattr("onward.exits.latency.BATCHES", {1: 3, 32: 2})
    assert onward("exits", runs / "heads", "--max-error-increase", "0.02") == 0
    capsys.readouterr()

    assert onward("evaluate", runs / "heads", "--measure") == 0

    lines = capsys.readouterr().out.splitlines()
    timed = [line.split("│")[1:4] for line in lines if line.count("│") == 7 and "block" not in line]
    samples = [[cell.strip() for cell in row] for row in timed][-4:]
    assert samples == [
        ["1", "3", "full depth"],
        ["1", "3", "early exit"],
        ["32", "2", "full depth"],
        ["32", "2", "early exit"],
    ]


def test_predictions_say_where_each_row_left(run, tmp_path, capsys):
    x = ow.load_data("digits").x_test[:20].numpy()
    np.savez(tmp_path / "samples.npz", x=x)
    capsys.readouterr()

    assert onward("predict", run, tmp_path / "samples.npz") == 0
    samples = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert onward("predict", run, tmp_path / "samples.npz", "--out", tmp_path / "out.npz") == 0
    assert "20 labels, scores and exits in " in capsys.readouterr().out
    assert onward("predict", run, tmp_path / "samples.npz", "--full-depth") == 0
    full = capsys.readouterr().out

    policy = ow.exits.ExitPolicy.from_json(json.loads((run / "exits.json").read_text())["policy"])
    expected = ow.answer(ow.load(run), x, policy)
    assert [int(row["label"]) for row in samples] == expected.labels.tolist()
    assert [int(row["exit"]) for row in samples] == expected.exits.tolist()
    with np.load(tmp_path / "out.npz") as found:
        assert found["exits"].tolist() == expected.exits.tolist()
    assert full.startswith("label,score_0,")


def test_exported_files_give_the_same_classes_and_exits_without_torch(run, tmp_path, capsys):
    x = ow.load_data("digits").x_test.numpy()
    np.savez(tmp_path / "samples.npz", x=x)

    assert onward("export", run, "--onnx", tmp_path / "onnx") == 0

    policy = ow.exits.ExitPolicy.from_json(json.loads((run / "exits.json").read_text())["policy"])
    expected = ow.answer(ow.load(run), x, policy)
    program = f"""
import runpy, sys
sys.modules["torch"] = sys.modules["onward"] = None
sys.argv = ["infer.py", {str(tmp_path / "onnx")!r}, {str(tmp_path / "samples.npz")!r}]
runpy.run_path({str(tmp_path / "onnx" / "infer.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    told = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    wanted = list(zip(expected.labels.tolist(), expected.exits.tolist(), strict=True))
    same = [one == two for one, two in zip(told, wanted, strict=True)]
    # Products are rounded otherwise: a sample may lie within rounding of a threshold.
    assert sum(same) >= len(x) - 1


def test_the_program_for_exported_files_is_short():
    text = (Path(ow.__file__).parent / "standalone.py").read_text()

    assert len(text.splitlines()) < 200


@pytest.mark.slow
def test_eight_bits_take_less_room(runs, exported, tmp_path, capsys):
    capsys.readouterr()
    assert onward("export", runs / "heads", "--onnx", tmp_path, "--int8") == 0

    (line,) = [row for row in capsys.readouterr().out.splitlines() if "ONNX │" in row]
    same_class = float(line.split("│")[3].strip().removesuffix("%"))
    assert same_class > 97
    sizes = [
        sum(file.stat().st_size for file in folder.glob("*.onnx"))
        for folder in (exported, tmp_path)
    ]
    assert sizes[1] < 0.65 * sizes[0]  # Of small files, the weights are a part.


def test_other_policies_and_costs_may_be_asked_for(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    run = runs / "heads"

    assert onward("exits", run, "--policy", "entropy", "--target-macs", "7000") == 0

    found = json.loads((run / "exits.json").read_text())
    threshold = next(t for t in found["policy"]["thresholds"] if isinstance(t, float))
    shown = capsys.readouterr().out
    assert "entropy up to" in shown
    assert f" {-threshold:.4g} " in shown
    assert found["policy"]["confidence"] == "entropy"
    assert found["mean_macs"] <= 7000


@pytest.mark.parametrize(("allowed", "points"), [("0.1", "10 points"), ("0.01", "1 point")])
def test_a_guarantee_is_told(runs, capsys, allowed, points):
    words = ["--max-error-increase", allowed, "--bound", "ucb", "--delta", "0.5"]
    assert onward("exits", runs / "heads", *words) == 0

    said = " ".join(capsys.readouterr().out.split())
    assert f"With probability 50 % it rises by at most {points} on new samples" in said


def test_a_guarantee_that_cannot_be_given_says_what_it_takes(runs, capsys):
    assert onward("exits", runs / "heads", "--max-error-increase", "0.001", "--delta", "0.1") == 0

    said = " ".join(capsys.readouterr().out.split())
    assert "every sample goes through the whole network" in said
    assert "that half needs 2,302 samples, otherwise more" in said
    assert "1.0 times fewer" in said


def test_an_expectation_is_told_as_one(runs, capsys):
    words = ["--max-error-increase", "0.05", "--bound", "expectation"]
    assert onward("exits", runs / "heads", *words) == 0

    said = " ".join(capsys.readouterr().out.split())
    assert "at most 5 points on average over calibrations, each on samples drawn anew" in said
    assert "This is one of them, and may exceed that" in said
    assert json.loads((runs / "heads" / "exits.json").read_text())["bound"] == "expectation"


def test_what_became_right_may_be_credited(runs, capsys):
    words = ["--max-error-increase", "0.02", "--risk", "net"]
    assert onward("exits", runs / "heads", *words) == 0

    said = " ".join(capsys.readouterr().out.split())
    found = ow.exits.Calibrated.from_json(json.loads((runs / "heads" / "exits.json").read_text()))
    told = f"{found.newly_wrong} became wrong and {found.newly_right} right"
    assert found.risk == "net"
    assert told in said


@pytest.fixture
def infer(exported, tmp_path):
    """Run the program for exported files, on samples as a file; return its status and output."""

    def infer(**members):
        np.savez(tmp_path / "samples.npz", **members)
        command = [sys.executable, exported / "infer.py", exported, tmp_path / "samples.npz"]
        return subprocess.run(command, capture_output=True, text=True)

    return infer


def test_the_program_for_exported_files_takes_bytes_for_pixels(infer):
    x = (ow.load_data("digits").x_test[:5].numpy() * 255).round().astype(np.uint8)

    assert infer(x=x).stdout == infer(x=x.astype(np.float32) / 255).stdout != ""


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"x": np.zeros((2, 64), np.float32)},
            "have shape (64,), and the network takes samples of shape (1, 8, 8).",
        ),
        (
            {"x": np.stack([np.zeros((1, 8, 8)), np.full((1, 8, 8), np.nan)])},
            "1 of 2 samples hold values that are NaN or infinite, the first is sample 1.",
        ),
        ({"z": np.zeros(3)}, "has no member x, the samples. It has z."),
        ({"x": np.zeros((0, 1, 8, 8))}, "holds no samples: x has the shape (0, 1, 8, 8)"),
        ({"x": np.array([None])}, "is damaged, or no .npz file of numbers"),
    ],
    ids=["flat", "not finite", "no x", "empty", "objects"],
)
def test_the_program_for_exported_files_says_what_is_wrong(infer, members, message):
    done = infer(**members)

    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_the_program_for_exported_files_says_which_words_it_takes(exported, tmp_path):
    def told(*words):
        command = [sys.executable, exported / "infer.py", *words]
        return subprocess.run(command, capture_output=True, text=True)

    usage = "usage: python infer.py [-h] DIR SAMPLES.npz\n"
    assert told("--help").stdout.startswith(usage)
    lacking = told(exported)
    assert lacking.stderr.startswith(usage)
    assert "required: SAMPLES.npz" in lacking.stderr
    assert (
        told(exported, tmp_path).stderr == f"infer.py: {tmp_path} cannot be read: Is a directory.\n"
    )


def test_the_program_for_exported_files_takes_one_sample_alone(infer):
    x = ow.load_data("digits").x_test[:1].numpy()

    assert infer(x=x[0]).stdout == infer(x=x).stdout != ""


def test_the_program_for_exported_files_warns_of_other_values_in_a_line(infer):
    done = infer(x=np.full((1, 1, 8, 8), 200, np.float32))

    assert done.returncode == 0
    assert done.stderr.startswith("infer.py: warning: The samples have values from 200 to 200, ")
    assert done.stderr.count("\n") == 1


def test_a_folder_holds_the_files_of_one_export(runs, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "onnx")
    (tmp_path / "onnx" / "stage-7.onnx").touch()

    assert onward("export", runs / "heads", "--onnx", tmp_path / "onnx") == 0

    names = sorted(path.name for path in (tmp_path / "onnx").iterdir())
    assert names == ["infer.py", "manifest.json", *(f"stage-{n}.onnx" for n in range(3))]


def test_files_of_an_older_layout_are_left_to_the_program_beside_them(exported, tmp_path):
    manifest = json.loads((exported / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))

    with pytest.raises(ValueError, match=r"has format 1, and this reads 3\. Run the infer\.py"):
        run_exported(tmp_path, np.zeros((1, 1, 8, 8), np.float32))


# What is refused


def told(capsys, *arguments):
    capsys.readouterr()
    assert onward(*arguments) == 2
    return capsys.readouterr().err


def test_a_run_without_validation_samples_cannot_be_calibrated(tmp_path, capsys):
    words = ["--widths", "8,8", "--epochs", "1", "--validation", "0"]
    assert onward("train", *words, "--out", tmp_path / "run") == 0

    assert "kept no validation samples" in told(capsys, "exits", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heads", "softmax"])
def test_one_graph_stops_where_the_stages_do(runs, tmp_path, name):
    run = runs / name
    assert onward("exits", run, "--max-error-increase", "0.02") == 0
    # In a process of its own, since the checks of shapes in tests keep a list, and no graph can.
    command = [sys.executable, "-m", "onward", "export", run, "--onnx", tmp_path / "onnx"]
    subprocess.run([*command, "--one-graph"], check=True, capture_output=True)

    x = ow.load_data("digits").x_test
    policy = ow.exits.ExitPolicy.from_json(json.loads((run / "exits.json").read_text())["policy"])
    expected = ow.answer(ow.load(run), x, policy)
    graph = onnxruntime.InferenceSession(tmp_path / "onnx" / "network.onnx")
    found = [graph.run(None, {"x": row[None].numpy()}) for row in x]
    same = [
        scores.argmax() == label and number == exit_
        for (scores, number), label, exit_ in zip(
            found, expected.labels, expected.exits, strict=True
        )
    ]
    assert len({int(number[0]) for _, number in found}) > 1
    assert sum(same) >= len(x) - 1


def test_a_sweep_is_not_written_as_one_graph(runs, tmp_path, capsys):
    said = told(capsys, "export", runs / "sweep", "--onnx", tmp_path / "onnx", "--one-graph")

    assert "A sweep over labels is not written as one graph" in said
    assert not (tmp_path / "onnx").exists()


def test_a_folder_with_other_things_in_it_takes_no_export(runs, tmp_path, capsys):
    # The manifest of something else.
    (tmp_path / "manifest.json").write_text("{}")

    said = told(capsys, "export", runs / "heads", "--onnx", tmp_path)

    assert f"The folder {tmp_path} holds something else" in said
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_one_graph_has_no_eight_bits(runs, tmp_path, capsys):
    words = ["--onnx", tmp_path / "onnx", "--int8", "--one-graph"]

    assert "leave out --int8 or --one-graph" in told(capsys, "export", runs / "heads", *words)
    assert not (tmp_path / "onnx").exists()


def test_a_picture_that_cannot_be_written_leaves_the_exits_as_they_were(runs, tmp_path, capsys):
    run = runs / "heads"
    assert onward("exits", run) == 0
    before = (run / "exits.json").read_text()

    nowhere = tmp_path / "nowhere" / "picture.png"
    said = told(capsys, "exits", run, "--policy", "entropy", "--out", nowhere)

    assert "The picture cannot be written" in said
    assert (run / "exits.json").read_text() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target-macs", "7000", "--delta", "0.1"], "delta and bound need max_error_increase"),
        (["--target-macs", "7000", "--max-error-increase", "0.1"], "Give either"),
        (
            ["--max-error-increase", "5"],
            "max_error_increase is a fraction of the samples, from 0 to below 1",
        ),
        (["--delta", "5"], "delta is a probability, above 0 and below 1; got 5.0"),
        (["--target-macs", "7"], "No policy comes to 7 MACs a sample"),
    ],
    ids=str,
)
def test_what_cannot_be_calibrated_is_refused(runs, capsys, words, message):
    assert message in told(capsys, "exits", runs / "heads", *words)


def test_a_run_of_backpropagation_has_one_exit(tmp_path, capsys):
    words = ["backprop", "--widths", "8,8", "--epochs", "1", "--out", tmp_path / "run"]
    assert onward("train", *words) == 0

    assert "This network has one exit" in told(capsys, "exits", tmp_path / "run")


def test_samples_that_belong_together_give_no_guarantee(tmp_path, capsys):
    digits = ow.load_data("digits")
    groups = np.arange(len(digits.x)) // 20
    np.savez(tmp_path / "samples.npz", x=digits.x.numpy(), y=digits.y.numpy(), groups=groups)
    words = ["--data", tmp_path / "samples.npz", "--widths", "8,8", "--epochs", "1"]
    assert onward("train", *words, "--out", tmp_path / "run") == 0

    said = told(capsys, "exits", tmp_path / "run", "--delta", "0.1")
    assert "belong together in groups" in said


def test_validation_samples_that_have_changed_places_with_training_samples_are_noticed(
    tmp_path, capsys
):
    digits = ow.load_data("digits")
    x, y = digits.x.numpy(), digits.y.numpy()
    np.savez(tmp_path / "samples.npz", x=x, y=y)
    words = ["--data", tmp_path / "samples.npz", "--widths", "8,8", "--epochs", "1"]
    assert onward("train", *words, "--out", tmp_path / "run") == 0

    order = np.random.default_rng(0).permutation(len(x))
    np.savez(tmp_path / "samples.npz", x=x[order], y=y[order])

    assert "samples were trained on" in told(capsys, "exits", tmp_path / "run")


def test_exits_that_are_damaged_or_of_other_weights_are_refused(runs, tmp_path, capsys):
    run = runs / "heads"
    assert onward("exits", run) == 0
    good = (run / "exits.json").read_text()

    (run / "exits.json").write_text(good[:-20])
    assert "exits.json cannot be used" in told(capsys, "evaluate", run)
    (run / "exits.json").write_text(json.dumps(json.loads(good) | {"weights_sha256": "0"}))
    assert "was calibrated for other weights" in told(capsys, "evaluate", run)
    (run / "exits.json").write_text(good)
    assert onward("evaluate", run) == 0


def test_a_run_that_is_replaced_by_another_loses_its_exits(tmp_path):
    words = ["--widths", "8,8", "--epochs", "2", "--out", tmp_path / "run"]
    assert onward("train", *words) == 0
    assert onward("exits", tmp_path / "run") == 0

    assert onward("train", *words, "--seed", "1", "--overwrite") == 0

    assert not (tmp_path / "run" / "exits.json").exists()


# On the whole MNIST test set


@pytest.mark.slow
@pytest.mark.skipif("ONWARD_DATA" not in os.environ, reason="ONWARD_DATA names no data folder")
def test_on_all_mnist_test_samples_exported_files_agree_with_the_network(tmp_path):
    mnist = ow.load_data("mnist")
    network = ow.mlp(mnist.input_shape, num_classes=10, widths=(100, 100, 100), is_image=True)
    few = ow.dataset(
        mnist.x[:6000],
        mnist.y[:6000],
        x_test=mnist.x[6000:8000],
        y_test=mnist.y[6000:8000],
        is_image=True,
    )
    ow.train(network, few, training=ow.TrainingConfig(epochs=2, precision="fp32"))
    policy = ow.calibrate(network, few.x_test, few.y_test, max_error_increase=0.005).policy

    export(network, tmp_path, policy)
    labels, exits = run_exported(tmp_path, mnist.x_test.numpy())

    found = ow.answer(network, mnist.x_test, policy)
    differ = (labels != found.labels.numpy()) | (exits != found.exits.numpy())
    # Samples within rounding of a threshold, of 10,000.
    assert differ.sum() <= 3
    assert len(np.unique(exits)) == 3
