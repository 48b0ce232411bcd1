"""Preprocessing of one's own, fitted from sums over the training samples."""

import numpy as np
import pytest
import torch
from contract_networks import Whitening
from samples import SHORT, classes, draw
from torch import nn

import onward as ow
from onward.checkpoint import load, save
from onward.data.preprocessing import total_sums
from onward.errors import SettingError
from onward.exits.policies import full_depth
from onward.onnx_files import export, run_exported
from onward.runs.fitting import fit_preprocessing
from onward.runs.sharding import local_shards, split
from onward.transport.messages import SingleProcessTransport


def whitened(features=4):
    block = ow.Block(nn.Linear(features, 8), ow.CrossEntropy(nn.Linear(8, 2)), ow.Adam())
    return ow.Network(
        [block], ow.Plain(), ow.SumOfHeads(), num_classes=2, preprocessing=Whitening(features)
    )


def correlated(samples=400):
    return draw().normal(size=(samples, 4)) @ draw(1).normal(size=(4, 4)) + (0, 0, 1, 2)


def test_a_network_may_whiten_its_samples():
    x = correlated()
    dataset = ow.dataset(x, classes(400), x_val=x, y_val=classes(400))
    network = whitened()

    ow.train(network, dataset, training=SHORT)

    seen = network.transformed(dataset.training).tensor
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.T.cov(correction=0), torch.eye(4), atol=1e-3, rtol=0)


def test_what_was_whitened_is_saved_exported_and_kept(tmp_path):
    x = correlated().astype(np.float32)
    dataset = ow.dataset(x, classes(400))
    network = whitened()
    ow.train(network, dataset, training=ow.TrainingConfig(epochs=2, precision="fp32"))
    expected = network.predict(x)
    save(network, tmp_path / "model.safetensors")

    again = load(tmp_path / "model.safetensors", whitened())
    export(again, tmp_path / "onnx", full_depth(1))

    assert again.predict(x).equal(expected)
    assert run_exported(tmp_path / "onnx", x)[0].tolist() == expected.tolist()
    matrix = again.preprocessing.matrix.clone()
    ow.train(again, ow.dataset(2 * x, classes(400)), training=SHORT)
    assert again.preprocessing.matrix.equal(matrix)


class Gathering(SingleProcessTransport):
    """The way to ranks that have given these sums."""

    def __init__(self, every):
        super().__init__()
        self.every = every

    def all_gather(self, topic, note):
        assert note in self.every
        return self.every


def test_ranks_with_shards_of_their_own_whiten_as_one_rank_with_as_many_shards():
    together = ow.RunConfig().with_settings({"plan.shards": 3, "data.validation": 0})
    shards = local_shards(together, split(together, ow.dataset(correlated(), classes(400))), 0)
    one, several = whitened(), whitened()
    fit_preprocessing(one, together, shards, SingleProcessTransport())
    apart = ow.RunConfig().with_settings({"data.name": "{rank}.npz"})
    every = [
        [part.tolist() for part in total_sums(one.preprocessing, [shard.training.tensor])]
        for shard in shards.values()
    ]

    fit_preprocessing(several, apart, {1: shards[1]}, Gathering(every))

    assert several.preprocessing.matrix.equal(one.preprocessing.matrix)
    assert not one.preprocessing.matrix.equal(torch.eye(4))


def test_preprocessing_that_changes_samples_in_place_is_refused():
    class Shifted(Whitening):
        def forward(self, x):
            return x.sub_(1)

    network = whitened()
    network.preprocessing = Shifted(4)
    dataset = ow.dataset(draw().normal(size=(60, 4)), classes())
    before = dataset.x.clone()

    with pytest.raises(SettingError, match="Shifted changes samples in place"):
        ow.train(network, dataset, training=SHORT, validation=0)

    # It is seen at the first sample that is tried.
    assert dataset.x[1:].equal(before[1:])


def test_what_fails_in_preprocessing_is_said_with_its_line():
    class Broken(Whitening):
        def fit(self, sums):
            raise KeyError("oops")

    network = whitened()
    network.preprocessing = Broken(4)

    with pytest.raises(
        SettingError, match=r"Broken cannot be fitted: .*test_preprocessing\.py:\d+: KeyE"
    ):
        ow.train(network, ow.dataset(draw().normal(size=(60, 4)), classes()), training=SHORT)


def test_an_untrained_network_is_fitted_after_it_was_saved(tmp_path):
    save(whitened(), tmp_path / "model.safetensors")
    network = load(tmp_path / "model.safetensors", whitened())

    ow.train(network, ow.dataset(correlated(), classes(400)), training=SHORT)

    assert not network.preprocessing.matrix.equal(torch.eye(4))
