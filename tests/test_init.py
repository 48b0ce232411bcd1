"""Training that begins with the weights of a finished run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import onward
from samples import SHORT

import onward as ow
from onward.runs.folders import read_result

pytestmark = pytest.mark.usefixtures("unchecked_module")

X = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)

SMALL = {"network.widths": (12, 12), "training.epochs": 2, "training.batch_size": 20}


def config_of(**changes):
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return ow.RunConfig(recipe="one-pass").with_settings(SMALL | named)


@pytest.fixture(scope="module")
def data():
    return ow.dataset(X, Y)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("finished") / "run"
    ow.run(config_of(), folder=folder, dataset=data)
    return folder


def test_a_run_begins_with_the_weights_of_another(finished, data):
    still = {"optimizer.lr": 1e-30, "optimizer.head_lr": 1e-30}

    result = ow.run(config_of(training__init=str(finished)).with_settings(still), dataset=data)

    before = ow.load(finished).state_dict()
    for name, tensor in result.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_it_is_what_training_the_loaded_network_is(finished, data):
    config = config_of(training__init=str(finished), training__seed=5)

    found = ow.run(config, dataset=data)

    network = ow.load(finished)
    built = ow.run(config_of(training__seed=5), dataset=data).network
    for block, new in zip(network.all_blocks, built.all_blocks, strict=True):
        block.optimizer = new.optimizer
    training = replace(config.training, init=None)
    expected = ow.train(network, data, training=training, plan=config.plan)
    assert found.facts["weights_sha256"] == expected.facts["weights_sha256"]
    assert found.facts["weights_sha256"] != read_result(finished)["weights_sha256"]


def test_the_input_transformation_is_kept(tmp_path):
    wide = ow.dataset(X * [1, 1, 1, 1, 1, 1000], Y)
    first = ow.run(config_of(), folder=tmp_path / "run", dataset=wide).network
    other = ow.dataset(X * [1, 1, 1, 1, 1, 5000], Y)

    found = ow.run(config_of(training__init=str(tmp_path / "run")), dataset=other).network

    assert torch.equal(found.inputs.std, first.inputs.std)


@pytest.mark.parametrize("placement", ["sequential", "all-layers"])
def test_placements_end_in_the_same_weights(placement, tmp_path, capsys):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    flags = ("--data", tmp_path / "d.npz", "--widths", "12,12", "--epochs", 2, "--batch-size", 20)
    assert onward("train", "one-pass", *flags, "--out", tmp_path / "first") == 0
    more = (*flags, "--seed", 1, "--init", tmp_path / "first")

    alone = onward("train", "one-pass", *more, "--out", tmp_path / "alone")
    several = ("--placement", placement, "--processes", 1 if placement == "sequential" else 2)
    beside = onward("train", "one-pass", *more, *several, "--out", tmp_path / "beside")

    assert alone == beside == 0
    digests = [read_result(tmp_path / name)["weights_sha256"] for name in ("alone", "beside")]
    assert digests[0] == digests[1]


def test_samples_that_the_first_training_learned_from_calibrate_nothing(finished, data):
    other = config_of(training__init=str(finished), data__split_seed=1, data__validation=0.5)

    network = ow.run(other, dataset=data).network

    # Held out in the second training, and learned from in the first.
    _, held = ow.data.split_validation(data, 0.5, seed=1)
    with pytest.raises(ow.DataError, match=r"% of these .* samples were trained on"):
        ow.calibrate(network, data.x[held], data.y[held], max_error_increase=0.1)


def test_weights_of_another_network_are_refused(finished, data):
    config = config_of(training__init=str(finished), network__widths=(12, 13))

    with pytest.raises(ow.FileError, match=r"for samples of shape .* does not fit"):
        ow.run(config, dataset=data)


def test_other_classes_and_columns_are_refused(finished):
    named = ow.dataset(X, np.array(["a", "b", "c"])[Y])

    with pytest.raises(
        ow.SettingError, match="was trained on numbered classes, and the data have the c"
    ):
        ow.run(config_of(training__init=str(finished)), dataset=named)


def test_samples_in_other_units_are_warned_of(tmp_path):
    wide = X * np.array([1, 1, 1, 1, 1, 1000], np.float32)
    standardized = ow.run(config_of(), dataset=ow.dataset(wide, Y)).network
    seen = ow.train(ow.mlp((6,), num_classes=3, widths=(8,)), ow.dataset(X, Y), training=SHORT)

    with pytest.warns(ow.OnwardWarning, match=r"Feature 0 of the samples is up to .* standard"):
        ow.train(standardized, ow.dataset(wide * [100, 1, 1, 1, 1, 1], Y), training=SHORT)
    with pytest.warns(ow.OnwardWarning, match=r"from -?[\d.]+ to .* Scale them as the training"):
        ow.train(seen.network, ow.dataset(X * 255, Y), training=SHORT)


def test_the_same_samples_are_not_warned_of(finished, data, recwarn):
    ow.run(config_of(training__init=str(finished)), dataset=data)

    texts = [str(each.message) for each in recwarn]
    assert not any("trained on values" in text or "from its mean" in text for text in texts)


def test_samples_of_another_kind_or_shape_are_refused(finished):
    network, wider = ow.load(finished), ow.dataset(np.pad(X, ((0, 0), (0, 1))), Y)
    batch = ow.Batch(torch.from_numpy(X).long(), {"label": torch.from_numpy(Y)})
    codes = ow.Dataset(training=batch, test=batch, num_classes=3)

    with pytest.raises(ow.DataError, match=r"samples of shape \(7,\), and the network was trained"):
        ow.train(network, wider, training=SHORT)
    with pytest.raises(ow.DataError, match="float32 or uint8, and samples has something"):
        ow.train(network, codes, training=SHORT)


def test_windows_of_another_length_are_refused(tmp_path, capsys):
    small = {
        "network.dim": 8,
        "network.attention_heads": 1,
        "network.layers": 1,
        "training.epochs": 1,
    }
    text = Path(__file__).parent / "counting.txt"
    flags = [f"--set={name}={value}" for name, value in small.items()]
    train = ("train", "byte-lm", "--data", text, *flags, "--batch-size", 20)
    assert onward(*train, "--set", "data.context=16", "--out", tmp_path / "run") == 0
    capsys.readouterr()

    assert onward(*train, "--set", "data.context=32", "--init", tmp_path / "run") == 2

    assert "has samples of shape (32,), and the network was trained" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_refused(data, tmp_path):
    with pytest.raises(ow.FileError, match="There is no model at"):
        ow.run(config_of(training__init=str(tmp_path / "nothing")), dataset=data)


def test_recipes_of_several_stages_are_refused(finished, data):
    config = ow.RunConfig(recipe="uff").with_settings({"training.init": str(finished)})

    with pytest.raises(
        ow.SettingError, match="for recipes of one network, and uff trains 2 stages"
    ):
        ow.run(config, dataset=data)


def test_a_network_of_a_script_is_loaded_by_the_script(finished, data):
    network = ow.mlp((6,), num_classes=3, widths=(12, 12))

    with pytest.raises(
        ow.SettingError, match=r"training\.init is for networks that a recipe builds"
    ):
        ow.train(network, data, training=ow.TrainingConfig(init=str(finished)))


def test_a_run_that_was_cut_knows_what_it_began_with(finished, data, tmp_path):
    config = config_of(training__init=str(finished), training__epochs=4)

    class Cut(ow.Listener):
        def progress(self, progress):
            if progress.chapter == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ow.run(config, Cut(), tmp_path / "run", dataset=data)
    found = ow.run(config, folder=tmp_path / "run", dataset=data)

    assert found.facts["weights_sha256"] == ow.run(config, dataset=data).facts["weights_sha256"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["tasks_done_before"]
