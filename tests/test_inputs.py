"""The input transformation: fitted on training samples, part of the network, applied once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import FP32, SHORT, classes, draw, pixels, trained
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from test_bad_models import rewrite
from torch import nn

import onward as ow
from onward.checkpoint import load, save
from onward.cli.main import main
from onward.data import Dataset
from onward.data.inputs import Moments
from onward.errors import OnwardWarning, SettingError
from onward.exits.policies import full_depth
from onward.onnx_files import export, run_exported
from onward.runs.folders import read_result
from onward.runs.sharding import agree, describe, local_shards, split

# Moments


@pytest.mark.parametrize("cut", [1, 700, 2_400])
@pytest.mark.parametrize("by", ["feature", "channel"])
def test_moments_of_parts_are_those_of_the_whole(cut, by):
    x = torch.from_numpy(draw().normal(5, 2, size=(2_500, 3, 4)))
    over = (0,) if by == "feature" else (0, 2)

    moments = Moments.merged([Moments.of(x[:cut], by), Moments.of(x[cut:], by)])

    np.testing.assert_allclose(moments.mean, x.mean(dim=over).flatten().numpy(), rtol=1e-12)
    expected = x.std(dim=over, correction=0).flatten().numpy()
    np.testing.assert_allclose(moments.std, expected, rtol=1e-12)
    assert (moments.low, moments.high) == (x.min().item(), x.max().item())


def test_moments_keep_every_bit_on_their_way_through_json():
    moments = Moments.of(torch.from_numpy(draw().normal(size=(50, 3))), "feature")

    again = Moments.from_json(moments.to_json())

    assert again.mean.tobytes() == moments.mean.tobytes()
    assert again.deviation.tobytes() == moments.deviation.tobytes()


# Which samples are standardized


@pytest.mark.parametrize(
    ("x", "is_standardized"),
    [
        pytest.param(load_wine().data, True, id="columns of other scales"),
        pytest.param(load_breast_cancer().data, True, id="columns of very other scales"),
        pytest.param(load_iris().data, True, id="columns far from 0"),
        pytest.param(draw().normal(0, 3, size=(60, 5)), False, id="columns of one scale"),
        pytest.param(pixels().reshape(60, -1), False, id="pixels as vectors"),
        pytest.param(pixels(), False, id="gray images"),
        pytest.param(np.repeat(pixels(), 3, axis=1), True, id="color images"),
        pytest.param(draw().random((60, 3, 4, 4)), True, id="color images of floats"),
        pytest.param(100 + draw().random((60, 4, 9)), False, id="signals"),
    ],
)
def test_vectors_of_other_scales_and_images_of_several_channels_are_standardized(
    x, is_standardized
):
    y = np.arange(len(x)) % 2

    network = trained(x, y)

    assert (network.inputs.mean is not None) is is_standardized


def test_each_feature_gets_mean_0_and_standard_deviation_1_over_the_training_samples():
    x = draw().normal((0, 500, 3), (1, 100, 0.01), size=(80, 3))
    dataset = ow.dataset(x, np.arange(80) % 2, x_val=x, y_val=np.arange(80) % 2)
    network = ow.mlp((3,), num_classes=2, widths=(8,))

    ow.train(network, dataset, training=SHORT)

    seen = network.inputs(dataset.x)
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(dim=0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_held_out_samples_have_no_part_in_it():
    x = draw().normal((0, 500), (1, 100), size=(80, 2))
    y = np.arange(80) % 2
    plain = ow.dataset(x, y, x_val=x[:20], y_val=y[:20], x_test=x[:20], y_test=y[:20])
    other = ow.dataset(x, y, x_val=x[:20] + 9, y_val=y[:20], x_test=x[:20] - 9, y_test=y[:20])
    networks = [ow.mlp((2,), num_classes=2, widths=(8,)) for _ in range(2)]

    for network, dataset in zip(networks, (plain, other), strict=True):
        ow.train(network, dataset, training=SHORT)

    assert networks[0].inputs.mean.equal(networks[1].inputs.mean)
    assert networks[0].inputs.std.equal(networks[1].inputs.std)


def test_a_feature_that_never_varies_becomes_0_and_not_nan():
    x = draw().normal((0, 500, 0), (1, 100, 0), size=(80, 3))
    x[:, 2] = 7

    network = trained(x, np.arange(80) % 2)

    assert network.inputs(torch.full((1, 3), 7.0))[0, 2] == 0
    assert network.inputs(torch.full((1, 3), 7.0)).isfinite().all()


@pytest.mark.parametrize(
    ("standardize", "shape"),
    [("none", None), ("channel", (3, 1, 1)), ("feature", (3, 4, 4))],
)
def test_the_setting_says_what_is_standardized(standardize, shape):
    x = draw().random((60, 3, 4, 4))

    network = trained(x, classes(), standardize=standardize)

    mean = network.inputs.mean
    assert shape == (None if mean is None else tuple(mean.shape))


def test_vectors_have_no_channels():
    with pytest.raises(SettingError, match=r"channel is for samples of shape \(channels, \.\.\.\)"):
        trained(draw().random((60, 3)), classes(), standardize="channel")


def test_token_ids_stay_as_they_are():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, ids):
            return self.table(ids).mean(dim=1)

    ids, label = torch.arange(60)[:, None].remainder(9), torch.arange(60) % 2
    batch = ow.Batch(ids, {"label": label})
    block = ow.Block(Mean(), ow.CrossEntropy(nn.Linear(4, 2)), ow.Adam())
    network = ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=2)

    ow.train(network, Dataset(training=batch, test=batch, num_classes=2), training=SHORT)

    assert network.inputs.kind == "kept"
    # As an array as well as in a batch.
    assert network.predict(ids.numpy()).equal(network.predict(batch))
    dataset = Dataset(training=batch, test=batch, num_classes=2)
    network = ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=2)
    with pytest.raises(SettingError, match=r"standardize = feature is for one input of type"):
        ow.train(network, dataset, training=SHORT, standardize="feature")


# One function, whoever asks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the command on color images of uint8, and their array."""
    folder = tmp_path_factory.mktemp("pixels")
    x = np.random.default_rng(1).integers(256, size=(200, 3, 4, 4), dtype=np.uint8)
    y = (x[:, 0].mean(axis=(1, 2)) > 128).astype(np.int64)
    np.savez(folder / "own.npz", x=x, y=y)
    arguments = ["train", "pff", "--data", str(folder / "own.npz"), "--widths", "16,16"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--epochs", "2", *FP32, "--out", str(folder / "run")])
    assert ended.value.code == 0
    return folder / "run", x


@pytest.mark.distributed
def test_all_five_doors_answer_alike_for_pixels_and_for_their_shares(run, tmp_path, capsys):
    path, x = run
    network = load(path)
    policy = full_depth(network.num_exits)
    export(network, tmp_path / "onnx", policy)
    expected = network.predict(x)
    # So that the doors can differ at all.
    assert 0 < expected.sum() < len(x)
    shares = x.astype(np.float32) / 255

    for samples in (x, shares):
        np.savez(tmp_path / "x.npz", x=samples)
        out = tmp_path / "found.npz"
        with pytest.raises(SystemExit):
            main(["predict", str(path), str(tmp_path / "x.npz"), "--out", str(out)])
        program = [sys.executable, str(tmp_path / "onnx" / "infer.py"), str(tmp_path / "onnx")]
        done = subprocess.run(
            [*program, str(tmp_path / "x.npz")], capture_output=True, text=True, check=True
        )
        doors = {
            "predict": network.predict(samples),
            "answer": ow.answer(network, samples, policy).labels,
            "the command": torch.from_numpy(np.load(out)["labels"]),
            "infer.py": torch.tensor([int(line.split()[0]) for line in done.stdout.splitlines()]),
            "run_exported": torch.from_numpy(run_exported(tmp_path / "onnx", samples)[0]),
        }
        assert {
            name: bool(found.equal(expected)) for name, found in doors.items()
        } == dict.fromkeys(doors, True)


def test_what_was_fitted_is_in_the_model_file_and_its_digest(run):
    path, _ = run
    network = load(path)

    assert network.inputs.kind == "pixels"
    assert network.inputs.shape == (3, 4, 4)
    assert network.inputs.mean.flatten().tolist() == pytest.approx([0.5] * 3, abs=0.02)
    before = ow.checkpoint.weights_sha256(network)
    network.inputs.mean += 0.1
    assert ow.checkpoint.weights_sha256(network) != before


def test_a_network_keeps_what_was_fitted_when_it_is_trained_further(tmp_path):
    x = draw().normal((0, 500), (1, 100), size=(80, 2))
    network = trained(x, np.arange(80) % 2)
    save(network, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    again.blocks[0].optimizer = ow.Adam()

    ow.train(again, ow.dataset(x + 50, np.arange(80) % 2), training=SHORT)

    assert again.inputs.mean.equal(network.inputs.mean)


def test_files_of_before_divide_bytes_by_255_and_leave_all_else(tmp_path):
    path, x = tmp_path / "model.safetensors", pixels()
    network = trained(x, classes())
    save(network, path)
    rewrite(path, format=2, inputs=None)

    older = load(path)

    assert older.predict(x).equal(network.predict(x))
    assert older.inputs(torch.tensor([3])).dtype == torch.int64


# Shards of several ranks


def test_shards_of_several_ranks_are_standardized_as_one_rank_with_as_many_shards(tmp_path):
    x = draw().normal((0, 500), (1, 100), size=(90, 2))
    y = np.arange(90) % 2
    whole = ow.dataset(x, y, x_test=x, y_test=y)
    together = ow.RunConfig().with_settings({"plan.shards": 3, "data.validation": 0})
    shards = local_shards(together, split(together, whole), 0)
    apart = ow.RunConfig().with_settings({"data.name": "{rank}.npz", "data.validation": 0})
    own = [
        ow.dataset(s.training.tensor, s.training.label, x_test=x, y_test=y) for s in shards.values()
    ]

    one = agree(together, [describe(together, shards, split(together, whole))])
    several = agree(
        apart,
        [
            describe(apart, local_shards(apart, split(apart, d), rank), split(apart, d))
            for rank, d in enumerate(own)
        ],
    )

    assert one.inputs.mean.equal(several.inputs.mean)
    assert one.inputs.std.equal(several.inputs.std)


# What it is for


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("recipe", ["one-pass", "hinton", "pff", "backprop"])
@pytest.mark.parametrize(
    "load_data", [load_wine, pytest.param(load_breast_cancer, marks=pytest.mark.slow)]
)
def test_raw_features_are_learned_by_every_recipe(recipe, load_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = load_data()
    np.savez("raw.npz", x=raw.data, y=raw.target)
    arguments = ["train", recipe, "--data", "raw.npz", "--widths", "100,100", "--epochs", "30"]

    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--batch-size", "20", "--out", "run"])

    assert ended.value.code == 0
    assert read_result(Path("run"))["accuracy"]["test"] >= 0.95


@pytest.mark.usefixtures("unchecked")
def test_raw_colour_images_are_learned():
    # Bright images that differ in one channel by a little; what is said of them in hinton's way.
    y = np.arange(240) % 2
    x = draw().integers(180, 230, (240, 3, 8, 8))
    x[:, 0] += 20 * y[:, None, None]
    config = ow.RunConfig(recipe="hinton").with_settings(
        {"network.widths": (100, 100), "training.epochs": 20, "training.batch_size": 20}
    )

    result = ow.run(config, dataset=ow.dataset(x.astype(np.uint8), y))

    assert result.accuracy > 0.9


# What goes with a network


@pytest.mark.parametrize("x", [pixels(), draw().normal((0, 500), (1, 100), size=(60, 2))])
def test_a_state_dict_has_the_transformation(x):
    network = trained(x, classes())
    other = ow.mlp(network.inputs.shape, num_classes=2, widths=(8,), is_image=x.ndim == 4)

    other.load_state_dict(network.state_dict())
    other.set_precision(network.blocks[0].precision)

    assert other.scores(x).network.equal(network.scores(x).network)
    assert str(other.inputs) == str(network.inputs)


def test_a_refused_run_leaves_a_network_as_it_was():
    x = draw().normal((0, 500), (1, 100), size=(60, 2))
    network = ow.mlp((2,), num_classes=2, widths=(8,))

    with pytest.raises(SettingError):
        ow.train(network, ow.dataset(x, classes()), plan=ow.PlanConfig(slices=500))

    assert not network.inputs.is_fitted


def test_stages_see_samples_alike():
    x = draw().normal((0, 500), (1, 100), size=(60, 2))
    first = ow.mlp((2,), num_classes=2, widths=(8,))
    ow.train(first, ow.dataset(x, classes()), training=SHORT)
    second = ow.Network(first.all_blocks, ow.Plain(), ow.SumOfHeads(), num_classes=2)

    stages = [ow.Stage(network=n, training=SHORT) for n in (first, second)]
    ow.train(stages, ow.dataset(7 * x, classes()))

    assert second.inputs.mean.equal(first.inputs.mean)


def test_a_setting_that_a_trained_network_does_not_follow_is_named():
    network = trained(draw().random((60, 3)), classes(), standardize="none")

    with pytest.warns(OnwardWarning, match=r"data\.standardize = feature has no effect"):
        ow.train(
            network,
            ow.dataset(draw().random((60, 3)), classes()),
            training=SHORT,
            standardize="feature",
        )


def test_nodes_of_a_graph_that_do_not_count_need_no_class():
    label = torch.arange(60) % 2
    label[30:] = -1
    graph = ow.Batch(
        torch.rand(60, 3),
        {"label": label},
        structure={"edges": torch.zeros(2, 1, dtype=torch.int64)},
        index=torch.arange(30),
    )
    block = ow.Block(nn.Linear(3, 4), ow.CrossEntropy(nn.Linear(4, 2)), ow.Adam())
    network = ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=2)

    found = ow.evaluate(network, graph)

    assert found.samples == 30
