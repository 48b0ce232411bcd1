"""Forward-Forward contrastive learning: one network in three stages."""

import json
from pathlib import Path

import pytest
import torch
from commands import onward

import onward as ow
from onward.recipes.contrasts import PairContrast, Pairs
from onward.recipes.residual import Whole, residual_layers

SMALL = {"network.channels": (4, 6), "training.epochs": 1, "training.batch_size": 100}


def digest(folder):
    return json.loads((Path(folder) / "result.json").read_text())["weights_sha256"]


def test_layers_by_themselves_are_the_network_of_all_layers():
    torch.manual_seed(0)
    layers = residual_layers(1, (4, 6))
    blocks = [
        ow.Block(layer.module, PairContrast(0.0), ow.Adam(), reads=layer.reads) for layer in layers
    ]
    network = ow.Network(blocks, Pairs(), None, num_classes=0)
    images = torch.rand(3, 1, 8, 8)

    outputs = {"input": images}
    for number, block in enumerate(network.all_blocks):
        read = {edge.key: outputs[edge.source] for edge in network.edges[number]}
        batch = ow.Batch(read if len(read) > 1 else next(iter(read.values())))
        outputs[number] = block.infer(batch).tensor

    assert Whole(layers).eval()(images).equal(outputs[len(layers) - 1])


@pytest.mark.slow
def test_two_processes_end_in_the_weights_of_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = ("train", "ffcl", "--data", "digits", "--set", "network.channels=4,6", "--epochs", 2)
    for processes in 1, 2:
        assert onward(*train, "--processes", processes, "--out", f"run-{processes}") == 0

    for stage in ".", "stage-0", "stage-1":
        assert digest(f"run-1/{stage}") == digest(f"run-2/{stage}")
    # A stage of one block has no work for a second rank that never takes a turn.
    assert onward(*train, "--processes", 2, "--plan", "stream") == 2
    assert "has work for 1 rank at most (one a block)" in capsys.readouterr().err


def test_what_was_trained_predicts_and_is_evaluated_as_before_from_its_file(tmp_path):
    config = ow.RunConfig(recipe="ffcl").with_settings(SMALL)

    result = ow.run(config, folder=tmp_path / "run")

    loaded, dataset = ow.load(tmp_path / "run" / "model.safetensors"), ow.load_data("digits")
    expected = result.network.scores(dataset.x_test).network
    assert loaded.scores(dataset.x_test).network.equal(expected)
    assert loaded.predict(dataset.x_test).equal(expected.argmax(dim=1))
    assert ow.evaluate(loaded, dataset.test).accuracy == result.accuracy


def test_stages_of_no_epochs_are_left_out_and_classes_alone_remain():
    config = ow.RunConfig(recipe="ffcl").with_settings(SMALL)
    alone = {"network.local_epochs": 0, "network.global_epochs": 0}

    assert len(ow.run(config).earlier) == 2
    assert len(ow.run(config.with_settings({"network.global_epochs": 0})).earlier) == 1
    assert len(ow.run(config.with_settings(alone)).earlier) == 0


def test_the_margin_has_no_effect_where_no_stage_learns_from_pairs():
    config = ow.RunConfig(recipe="ffcl").with_settings(
        {"network.local_epochs": 0, "network.global_epochs": 0, "network.margin": 0.2}
    )

    assert "margin" in config.network.without_effect()
