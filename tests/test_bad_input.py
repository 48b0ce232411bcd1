"""Settings that a user can get wrong: a clear sentence, exit status 2, and nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_files import QUICK

from onward.cli.main import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

# Recipes, settings and flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["onepass"], "There is no recipe onepass. Did you mean one-pass? There are one-pass, "),
        (
            ["x"],
            "There is no recipe x. There are one-pass, mono-forward, tinyfoa, conv, predsim, ",
        ),
        (
            ["runs/a"],
            "There is no run folder runs/a. To repeat a run, give its RUN/config.toml.",
        ),
        (["/"], "/ is a folder. To repeat the run in it, give /config.toml."),
        (["none.toml"], "The run file none.toml cannot be read: No such file or directory."),
        (["--epoch", "3"], "There is no flag --epoch. Did you mean --epochs?"),
        (["--batchsize=3"], "There is no flag --batchsize. Did you mean --batch-size?"),
        (["--xyz", "3"], "There is no flag --xyz."),
        (["pff", "mnist"], "There is one argument too many: mnist."),
        (["--set", "training.epoch=3"], "setting training.epoch. Did you mean training.epochs?"),
        (["--set", "training.epochs"], "--set takes SECTION.NAME=VALUE; got training.epochs."),
        (["--set", "recipe=ppf"], "There is no recipe ppf. Did you mean pff?"),
        (["--epochs", "2.5"], "training.epochs must be a whole number; got '2.5'."),
        (["--epochs", ""], "training.epochs must be a whole number; got ''."),
        (["--widths", "8;8"], "network.widths must be "),
        (["--widths", "8,,8"], "network.widths must be "),
        (["--plan", "streams"], "plan.kind must be one of chapters, stream; got 'streams'."),
        (["--negatives", "easy"], "network.negatives must be one of fixed, random, adaptive, hard"),
        (["--placement", "ring"], "placement.name must be one of sequential, single-layer, "),
        (
            ["--hint-age", "old"],
            "plan.hint_age must be a whole number of 0 or more, or never; got 'old'",
        ),
        (
            ["--set", "network.skip_first=yes"],
            "network.skip_first must be true or false; got 'yes'.",
        ),
        (["--set", "plan.optimizer_state=aged"], "plan.optimizer_state must be travel, restart or"),
    ],
)
def test_an_unknown_name_or_value_is_refused(refused, arguments, message):
    assert message in refused("train", *arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs 3", "The run file run.toml is not valid TOML: "),
        ("[training]\nepoch = 3", "setting training.epoch. Did you mean training.epochs?"),
        ("[training]\nepochs = '3x'", "training.epochs must be a whole number; got '3x'."),
        ("[training]\nepochs = true", "training.epochs must be a whole number; got True."),
        ("recipe = 'ppf'", "There is no recipe ppf. Did you mean pff?"),
        ("recipe = ['pff']", "There is no recipe ['pff']."),
    ],
)
def test_a_run_file_with_a_mistake_is_refused(refused, text, message):
    Path("run.toml").write_text(text)

    assert message in refused("train", "run.toml")


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["trian"])

    assert ended.value.code == 2
    assert "invalid choice: 'trian' (choose from " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "4", "--chapters", "3"], "4 epochs cannot be cut into 3 equal chapters: one"),
        (["--epochs", "3", "--chapters", "4"], "3 epochs cannot be cut into 4 equal chapters: one"),
        (["--epochs", "1", "--chapters", "14"], "chapter a mini-batch, of which an epoch has 13."),
        (["--batch-size", "1294"], "batch_size is 1294, but the training set has 1293 samples."),
        (
            ["--validation", "1437"],
            "1437 of 1437 samples cannot be held out for validation so that ",
        ),
        (
            ["--shift", "8"],
            "data.shift is 8 pixels, but the samples have shape (1, 8, 8). It is for i",
        ),
        (
            ["--shards", "5", "--epochs", "4"],
            "4 chapters visit 4 of 5 shards, and no samples of the ",
        ),
        (
            ["--shards", "1294"],
            "1293 samples cannot be split into 1294 shards of one sample at least.",
        ),
        (
            ["--shards", "4", "--batch-size", "400"],
            "batch_size is 400, but shard 0 has 324 samples.",
        ),
        (
            ["--negatives", "random"],
            "a threshold needs negatives, and cross-entropy has none.",
        ),
        (["--readout", "goodness"], "network.readout = goodness does not fit network.objective = "),
        (["pff", "--readout", "heads"], "network.readout = heads does not fit network.objective ="),
        (["pff", "--hint-age", "0", *QUICK], "plan.hint_age is 0, but in a chapter plan hints are"),
        (["pff", "--plan", "stream", *QUICK], "In a stream plan, hints come from a softmax head, "),
        (["hinton", "--shards", "2", *QUICK], "plan.shards is 2, but a stream plan has one stream"),
        (
            ["--set", "training.gradients=shared-pass"],
            "It needs labels in the first inputs (here: Plain), a dense first block with a "
            "threshold, no dropout (here: 0.2), no slices (here: 1) and no class weights (here: ",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data_or_each_other_are_refused(refused, arguments, message):
    assert message in refused("train", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "3", "--epochs", "2"], "all-layers has work for 2 ranks at most (one a chap"),
        (["-n", "3", "--placement", "sequential"], "sequential has work for 1 rank at most ("),
        (["-n", "5", "--placement", "single-layer"], "single-layer has work for 4 ranks at "),
        (["-n", "3", "--shards", "2"], "federated has work for 2 ranks at most (one a shard"),
        (["-n", "2", "--shards", "3"], "A federated run deals 3 shards to 2 ranks. Set "),
        (["--placement", "stream"], "The placement stream cannot run a chapter plan. Choose "),
        (["hinton", "--placement", "all-layers", *QUICK], "all-layers cannot run a stream plan. "),
        (["--plan", "stream", "-n", "5"], "stream has work for 4 ranks at most (one a block"),
    ],
)
def test_more_ranks_than_there_is_work_for_are_refused(refused, arguments, message):
    assert message in refused("train", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "training.epochs must be a whole number of 1 or more; got '0'."),
        (
            ["--batch-size", "-1"],
            "training.batch_size must be a whole number of 1 or more; got '-1'",
        ),
        (["--chapters", "0"], "plan.chapters must be a whole number of 1 or more; got '0'."),
        (["--widths", "8,0"], "network.widths must be a whole number of 1 or more; got '0'."),
        (["-n", "0"], "placement.processes must be a whole number of 1 or more; got '0'."),
        (
            ["--threads", "0"],
            "training.threads must be a whole number of 1 or more and below 1025;",
        ),
        (["--threads", "9999"], "training.threads must be a whole number of 1 or more and below"),
        (["--shards", "0"], "plan.shards must be a whole number of 1 or more; got '0'."),
        (["--validate-every", "0"], "plan.validate_every must be a whole number of 1 or more; got"),
        (["--shift", "-1"], "data.shift must be a whole number of 0 or more, or auto; got '-1'."),
        (
            ["--validation", "-0.1"],
            "data.validation must be a number of 0 or more, or a whole number",
        ),
        (["--dropout", "1"], "network.dropout must be a number of 0 or more and below 1; got '1'."),
        (["--set", "data.test=0"], "data.test must be a number above 0 and below 1; got '0'."),
        (["--set", "optimizer.lr=-1"], "optimizer.lr must be a number above 0; got '-1'."),
        (["--set", "optimizer.lr=inf"], "optimizer.lr must be a number above 0; got 'inf'."),
        (["--set", "optimizer.momentum=1"], "optimizer.momentum must be a number of 0 or more and"),
        (["--set", "network.gain=nan"], "network.gain must be a number above 0; got 'nan'."),
    ],
)
def test_a_number_out_of_range_is_refused(refused, arguments, message):
    assert message in refused("train", *QUICK, *arguments)


def test_widths_that_no_machine_has_memory_for_are_refused(refused):
    said = refused("train", "--epochs", "1", "--widths", "1000000000000")

    assert said == (
        "network.widths = [1000000000000] with 64 inputs needs 256,000 GB for its weights alone, "
        "and this machine has no room for them."
    )


# Forecasts and timelines


@pytest.mark.parametrize("link", ["", "fast", "1 gigabyte", "0mbit", "10mbit,20", "-1mbit"])
def test_a_link_that_is_none_is_refused(refused, link):
    said = refused("plan", *QUICK, "--measure", f"--link={link or ' '}")

    assert "--link takes a bandwidth" in said
    assert "100mbit,20ms" in said


@pytest.mark.parametrize("speeds", ["1", "1,2,3", "1,0", "1,-1", "1,fast", "1,inf"])
def test_speeds_that_are_not_one_for_each_rank_are_refused(refused, speeds):
    said = refused("plan", "--epochs", 2, "--widths", 8, "-n", 2, "--measure", "--speeds", speeds)

    assert "--speeds takes a positive number for each of 2 ranks" in said


def test_costs_that_are_missing_are_refused(refused):
    assert "cannot be read: nothing.json" in refused("plan", *QUICK, "--costs", "nothing.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"train": "much"}'])
def test_a_file_that_holds_no_costs_is_refused(refused, text):
    Path("costs.json").write_text(text)

    said = refused("plan", *QUICK, "--costs", "costs.json")

    assert "costs.json does not hold costs" in said
    assert "onward plan --measure --costs costs.json" in said


@pytest.mark.parametrize("value", ["1e999", "-1", "NaN", '"fast"'])
def test_costs_that_are_no_times_are_refused(refused, value, capsys):
    with pytest.raises(SystemExit):
        main(["plan", *QUICK, "--measure", "--costs", "costs.json"])
    text = Path("costs.json").read_text()
    Path("costs.json").write_text(text.replace('"score": 0.0', f'"score": {value}'))

    assert "does not hold costs" in refused("plan", *QUICK, "--costs", "costs.json")


def test_costs_of_another_number_of_blocks_are_refused(refused, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--epochs", "1", "--widths", "8,8", "--measure", "--costs", "costs.json"])

    said = refused("plan", *QUICK, "--costs", "costs.json")

    assert "The costs are those of blocks of" in said


def test_a_link_without_a_forecast_is_refused(refused):
    assert "--link and --speeds are for a forecast" in refused("plan", *QUICK, "--link", "1gbit")


@pytest.mark.parametrize("gradients", [[], 1.0, [1, 2]])
def test_costs_with_lists_of_odd_lengths_are_refused(refused, gradients, capsys):
    with pytest.raises(SystemExit):
        main(["plan", *QUICK, "--measure", "--costs", "costs.json"])
    found = json.loads(Path("costs.json").read_text())
    found["gradients"] = gradients
    Path("costs.json").write_text(json.dumps(found))

    assert "does not hold costs" in refused("plan", *QUICK, "--costs", "costs.json")


def test_a_folder_to_share_with_nobody_is_refused(refused):
    said = refused("train", *QUICK, "--directory", "shared")

    assert "this is one process, with nobody" in said


def test_a_wire_in_a_chapter_plan_is_refused(refused):
    assert "plan.wire is for stream plans" in refused("train", *QUICK, "--set", "plan.wire=bf16")


def test_a_run_without_a_timeline_cannot_be_drawn(refused, finished):
    shutil.copytree(finished, "run")
    Path("run/trace.json").unlink()

    assert "There is no timeline in run" in refused("trace", "run")


def test_a_stream_through_a_folder_is_refused(refused):
    said = refused("train", *QUICK, "--plan", "stream", "--directory", "shared", "-n", 2)

    assert "placement.directory is for chapter plans" in said


# Slices and replicas


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--plan", "stream", "--slices", 2), "the steps of a stream plan are not cut"),
        (("--slices", 3, "--cut", "units"), "A block has 8 units"),
        (("--replicas", 2, "-n", 2), "placement.replicas is 2, with 2 ranks"),
        (("--slices", 2, "--replicas", 2, "-n", 3), "it must divide both"),
        (
            ("--slices", 2, "--replicas", 2, "-n", 2, "--directory", "shared"),
            "placement.directory is for ranks that work alone",
        ),
        (
            ("--slices", 2, "--replicas", 2, "-n", 4),
            "has work for 2 ranks at most (one a chapter), but there are 4",
        ),
        (
            ("--slices", 4, "--set", "network.peer=0.03"),
            "plan.slices must be 1 with it, or network.peer 0",
        ),
    ],
)
def test_slices_and_replicas_that_do_not_fit_are_refused(refused, flags, message):
    recipe = "pff" if "network.peer=0.03" in flags else "one-pass"

    assert message in refused("train", recipe, *QUICK, *flags)


def test_a_last_mini_batch_of_fewer_samples_than_slices_is_refused(refused):
    random = np.random.default_rng(0)
    samples = {"x": random.random((41, 4)), "y": np.arange(41) % 2}
    np.savez("data.npz", **samples, x_test=samples["x"], y_test=samples["y"])

    said = refused(
        "train", *QUICK, "--data", "data.npz", "--batch-size", 10, "--slices", 2, "--validation", 0
    )

    assert "the last mini-batch of an epoch has 1 sample" in said
