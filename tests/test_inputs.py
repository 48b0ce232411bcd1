"""The input transformation: fitted on training samples, part of the network, applied once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from test_bad_models import rewrite
from torch import nn

import onward as ow
from onward.checkpoint import load, save
from onward.cli.main import main
from onward.data import Dataset
from onward.errors import DataError, OnwardWarning, SettingError
from onward.exits.policies import full_depth
from onward.fitting import fit_preprocessing
from onward.inputs import InputTransformation, Moments
from onward.onnx_files import export, run_exported
from onward.preprocessing import total_sums
from onward.runs import read_result
from onward.sharding import agree, describe, local_shards, split
from onward.transport.messages import SingleProcessTransport

DRAW = np.random.default_rng(0)
FP32 = ["--set", "training.precision=fp32"]
SHORT = ow.TrainingConfig(epochs=2, batch_size=20)


def trained(x, y, **settings):
    dataset = ow.dataset(x, y)
    network = ow.mlp(dataset.input_shape, num_classes=2, widths=(8,), is_image=dataset.is_image)
    ow.train(network, dataset, training=SHORT, **settings)
    return network


def classes(rows=60):
    return np.arange(rows) % 2


def pixels(rows=60):
    return DRAW.integers(256, size=(rows, 1, 4, 4), dtype=np.uint8)


# Moments


@pytest.mark.parametrize("cut", [1, 700, 2_400])
@pytest.mark.parametrize("by", ["feature", "channel"])
def test_moments_of_parts_are_those_of_the_whole(cut, by):
    x = torch.from_numpy(DRAW.normal(5, 2, size=(2_500, 3, 4)))
    over = (0,) if by == "feature" else (0, 2)

    moments = Moments.merged([Moments.of(x[:cut], by), Moments.of(x[cut:], by)])

    np.testing.assert_allclose(moments.mean, x.mean(dim=over).flatten().numpy(), rtol=1e-12)
    expected = x.std(dim=over, correction=0).flatten().numpy()
    np.testing.assert_allclose(moments.std, expected, rtol=1e-12)
    assert (moments.low, moments.high) == (x.min().item(), x.max().item())


def test_moments_keep_every_bit_on_their_way_through_json():
    moments = Moments.of(torch.from_numpy(DRAW.normal(size=(50, 3))), "feature")

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
        pytest.param(DRAW.normal(0, 3, size=(60, 5)), False, id="columns of one scale"),
        pytest.param(pixels().reshape(60, -1), False, id="pixels as vectors"),
        pytest.param(pixels(), False, id="gray images"),
        pytest.param(np.repeat(pixels(), 3, axis=1), True, id="color images"),
        pytest.param(DRAW.random((60, 3, 4, 4)), True, id="color images of floats"),
        pytest.param(100 + DRAW.random((60, 4, 9)), False, id="signals"),
    ],
)
def test_vectors_of_other_scales_and_images_of_several_channels_are_standardized(
    x, is_standardized
):
    y = np.arange(len(x)) % 2

    network = trained(x, y)

    assert (network.inputs.mean is not None) is is_standardized


def test_each_feature_gets_mean_0_and_standard_deviation_1_over_the_training_samples():
    x = DRAW.normal((0, 500, 3), (1, 100, 0.01), size=(80, 3))
    dataset = ow.dataset(x, np.arange(80) % 2, x_val=x, y_val=np.arange(80) % 2)
    network = ow.mlp((3,), num_classes=2, widths=(8,))

    ow.train(network, dataset, training=SHORT)

    seen = network.inputs(dataset.x)
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(dim=0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_held_out_samples_have_no_part_in_it():
    x = DRAW.normal((0, 500), (1, 100), size=(80, 2))
    y = np.arange(80) % 2
    plain = ow.dataset(x, y, x_val=x[:20], y_val=y[:20], x_test=x[:20], y_test=y[:20])
    other = ow.dataset(x, y, x_val=x[:20] + 9, y_val=y[:20], x_test=x[:20] - 9, y_test=y[:20])
    networks = [ow.mlp((2,), num_classes=2, widths=(8,)) for _ in range(2)]

    for network, dataset in zip(networks, (plain, other), strict=True):
        ow.train(network, dataset, training=SHORT)

    assert networks[0].inputs.mean.equal(networks[1].inputs.mean)
    assert networks[0].inputs.std.equal(networks[1].inputs.std)


def test_a_feature_that_never_varies_becomes_0_and_not_nan():
    x = DRAW.normal((0, 500, 0), (1, 100, 0), size=(80, 3))
    x[:, 2] = 7

    network = trained(x, np.arange(80) % 2)

    assert network.inputs(torch.full((1, 3), 7.0))[0, 2] == 0
    assert network.inputs(torch.full((1, 3), 7.0)).isfinite().all()


@pytest.mark.parametrize(
    ("standardize", "shape"),
    [("none", None), ("channel", (3, 1, 1)), ("feature", (3, 4, 4))],
)
def test_the_setting_says_what_is_standardized(standardize, shape):
    x = DRAW.random((60, 3, 4, 4))

    network = trained(x, classes(), standardize=standardize)

    mean = network.inputs.mean
    assert shape == (None if mean is None else tuple(mean.shape))


def test_vectors_have_no_channels():
    with pytest.raises(SettingError, match=r"channel is for samples of shape \(channels, \.\.\.\)"):
        trained(DRAW.random((60, 3)), classes(), standardize="channel")


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

    for rows in (x, shares):
        np.savez(tmp_path / "x.npz", x=rows)
        out = tmp_path / "found.npz"
        with pytest.raises(SystemExit):
            main(["predict", str(path), str(tmp_path / "x.npz"), "--out", str(out)])
        program = [sys.executable, str(tmp_path / "onnx" / "infer.py"), str(tmp_path / "onnx")]
        done = subprocess.run(
            [*program, str(tmp_path / "x.npz")], capture_output=True, text=True, check=True
        )
        doors = {
            "predict": network.predict(rows),
            "answer": ow.answer(network, rows, policy).labels,
            "the command": torch.from_numpy(np.load(out)["labels"]),
            "infer.py": torch.tensor([int(line.split()[0]) for line in done.stdout.splitlines()]),
            "run_exported": torch.from_numpy(run_exported(tmp_path / "onnx", rows)[0]),
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
    x = DRAW.normal((0, 500), (1, 100), size=(80, 2))
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
    x = DRAW.normal((0, 500), (1, 100), size=(90, 2))
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


# What is asked


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((2, 3)),
            r"The samples x have shape \(3,\), and the network was trained on samples",
        ),
        (np.zeros((2, 16)), r"Reshape them: x.reshape\(-1, 1, 4, 4\)"),
        (np.full((1, 1, 4, 4), np.nan), "x holds 16 values that are NaN or infinite"),
        (np.array([["a"]]), "x holds values of type <U1. It needs real numbers"),
        ({"x": 1}, "x is a dict, and an array or a tensor of all samples is needed"),
        ("x", "x is a str, and an array"),
    ],
)
def test_samples_unlike_those_of_the_training_are_refused_by_whoever_is_asked(x, message):
    network = trained(pixels(), classes())
    policy = full_depth(network.num_exits)
    doors = [
        network.predict,
        lambda x: ow.answer(network, x, policy),
        lambda x: ow.calibrate(network, x, np.zeros(2)),
    ]

    for door in doors:
        with pytest.raises(DataError, match=message):
            door(x)


def test_channels_last_are_told_what_to_do():
    network = trained(np.repeat(pixels(), 3, axis=1), classes())

    with pytest.raises(DataError, match=r"Put channels first: x.transpose\(0, 3, 1, 2\)"):
        network.predict(np.zeros((2, 4, 4, 3)))


def test_one_sample_alone_is_a_batch_of_one():
    x = pixels()
    network = trained(x, classes())

    assert network.predict(x[0]).equal(network.predict(x[:1]))
    assert ow.answer(network, x[0], full_depth(1)).labels.equal(network.predict(x[:1]))


def test_lists_and_what_numpy_takes_for_arrays_are_samples():
    network = trained(DRAW.random((60, 3)), classes())

    assert network.predict([[0.1, 0.2, 0.3]]).equal(network.predict(np.array([[0.1, 0.2, 0.3]])))


def test_values_far_from_those_of_the_training_are_warned_of_with_both_ranges():
    network = trained(pixels() / 255, classes())

    with pytest.warns(OnwardWarning, match=r"from 0 to 200, and the network was trained on values"):
        network.predict(np.linspace(0, 200, 16).reshape(1, 1, 4, 4))


def test_pixels_asked_of_a_network_of_floats_are_warned_of():
    network = trained(pixels() / 255, classes())

    with pytest.warns(OnwardWarning, match="Scale them as the training samples were"):
        network.predict(np.full((1, 1, 4, 4), 200, np.uint8))


def test_classes_that_a_network_does_not_know_are_refused():
    network = trained(DRAW.random((60, 3)), classes())
    batch = ow.Batch(torch.zeros(2, 3), {"label": torch.tensor([0, 2])})

    with pytest.raises(DataError, match="Classes are whole numbers from 0 to 1 for this network"):
        ow.evaluate(network, batch)


def test_a_damaged_description_of_samples_is_refused():
    known = {"kind": "numbers", "shape": [3], "span": [0, 1]}

    assert InputTransformation.from_json(known, None, None).shape == (3,)
    for damage in ({"kind": "code"}, {"shape": ["x"]}, {"span": [0]}):
        with pytest.raises((ValueError, TypeError, LookupError)):
            InputTransformation.from_json(known | damage, None, None)
    for damage in ({"shape": [-1]}, {"shape": [float("inf")]}, {"span": [10**400, 1]}):
        with pytest.raises((ValueError, ArithmeticError)):
            InputTransformation.from_json(known | damage, None, None)
    with pytest.raises(ValueError, match="mean and std go together"):
        InputTransformation.from_json(known, torch.zeros(3), None)
    for mean, std in (
        (torch.zeros(4), torch.ones(4)),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3).double(), torch.ones(3).double()),
        (torch.full((3,), torch.nan), torch.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"mean and std are no float32|a std is not above 0"):
            InputTransformation.from_json(known, mean, std)


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


# Preprocessing of one's own


class Whitening(ow.Preprocessing):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("matrix", torch.eye(features))

    def sums(self, x):
        return [torch.tensor([len(x)]), x.sum(dim=0), x.T @ x]

    def fit(self, sums):
        (count,), total, products = sums
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - mean.outer(mean))
        self.mean.copy_(mean)
        self.matrix.copy_(vectors @ (values + 1e-9).rsqrt().diag() @ vectors.T)

    def forward(self, x):
        return (x - self.mean) @ self.matrix


def whitened(features=4):
    block = ow.Block(nn.Linear(features, 8), ow.CrossEntropy(nn.Linear(8, 2)), ow.Adam())
    return ow.Network(
        [block], ow.Plain(), ow.SumOfHeads(), num_classes=2, preprocessing=Whitening(features)
    )


def correlated(rows=400):
    return DRAW.normal(size=(rows, 4)) @ DRAW.normal(size=(4, 4)) + (0, 0, 1, 2)


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
    dataset = ow.dataset(DRAW.normal(size=(60, 4)), classes())
    before = dataset.x.clone()

    with pytest.raises(SettingError, match="Shifted changes samples in place"):
        ow.train(network, dataset, training=SHORT)

    assert not dataset.x[1:].equal(before[1:]) or dataset.x.equal(before)


def test_preprocessing_goes_with_neither_shifts_nor_several_inputs():
    x = ow.dataset(DRAW.random((60, 1, 2, 2)), classes())

    with pytest.raises(SettingError, match=r"data\.shift is 1, and shifted images would be prep"):
        ow.train(whitened(), x, training=SHORT, shift=1)


def test_what_fails_in_preprocessing_is_said_with_its_line():
    class Broken(Whitening):
        def fit(self, sums):
            raise KeyError("oops")

    network = whitened()
    network.preprocessing = Broken(4)

    with pytest.raises(SettingError, match=r"Broken cannot be fitted: .*test_inputs\.py:\d+: KeyE"):
        ow.train(network, ow.dataset(DRAW.normal(size=(60, 4)), classes()), training=SHORT)


# What goes with a network


@pytest.mark.parametrize("x", [pixels(), DRAW.normal((0, 500), (1, 100), size=(60, 2))])
def test_a_state_dict_has_the_transformation(x):
    network = trained(x, classes())
    other = ow.mlp(network.inputs.shape, num_classes=2, widths=(8,), is_image=x.ndim == 4)

    other.load_state_dict(network.state_dict())
    other.set_precision(network.blocks[0].precision)

    assert other.scores(x).network.equal(network.scores(x).network)
    assert str(other.inputs) == str(network.inputs)


def test_a_refused_run_leaves_a_network_as_it_was():
    x = DRAW.normal((0, 500), (1, 100), size=(60, 2))
    network = ow.mlp((2,), num_classes=2, widths=(8,))

    with pytest.raises(SettingError):
        ow.train(network, ow.dataset(x, classes()), plan=ow.PlanConfig(slices=500))

    assert not network.inputs.is_fitted


def test_an_untrained_network_is_fitted_after_it_was_saved(tmp_path):
    save(whitened(), tmp_path / "model.safetensors")
    network = load(tmp_path / "model.safetensors", whitened())

    ow.train(network, ow.dataset(correlated(), classes(400)), training=SHORT)

    assert not network.preprocessing.matrix.equal(torch.eye(4))


def test_stages_see_samples_alike():
    x = DRAW.normal((0, 500), (1, 100), size=(60, 2))
    first = ow.mlp((2,), num_classes=2, widths=(8,))
    ow.train(first, ow.dataset(x, classes()), training=SHORT)
    second = ow.Network(first.all_blocks, ow.Plain(), ow.SumOfHeads(), num_classes=2)

    stages = [ow.Stage(network=n, training=SHORT) for n in (first, second)]
    ow.train(stages, ow.dataset(7 * x, classes()))

    assert second.inputs.mean.equal(first.inputs.mean)


def test_a_setting_that_a_trained_network_does_not_follow_is_named():
    network = trained(DRAW.random((60, 3)), classes(), standardize="none")

    with pytest.warns(OnwardWarning, match=r"data\.standardize = feature has no effect"):
        ow.train(
            network,
            ow.dataset(DRAW.random((60, 3)), classes()),
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

    assert found.rows == 30


# Other ways to ask


def test_arrays_of_any_layout_are_asked_of_a_network():
    x = DRAW.random((60, 3, 4, 4)).astype(np.float32)
    network = trained(x, classes())
    mirrored = x[..., ::-1]
    read_only = x.copy()
    read_only.flags.writeable = False

    assert network.predict(mirrored).equal(network.predict(mirrored.copy()))
    assert network.predict(read_only).equal(network.predict(x))


def test_networks_for_images_of_any_size_are_asked_about_other_sizes():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    block = ow.Block(nn.Conv2d(1, 4, 3), ow.CrossEntropy(pooled), ow.Adam())
    network = ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=2)
    ow.train(network, ow.dataset(DRAW.random((60, 1, 8, 8)), classes()), training=SHORT)

    assert len(network.predict(DRAW.random((5, 1, 12, 12)))) == 5
    with pytest.raises(DataError, match=r"The samples x have shape \(2, 12, 12\)"):
        network.predict(DRAW.random((5, 2, 12, 12)))


def test_a_feature_in_another_unit_is_warned_of_by_its_number():
    x = DRAW.normal((0, 500, 3), (1, 100, 0.01), size=(80, 3))
    network = trained(x, np.arange(80) % 2)
    x[:, 0] *= 30

    with pytest.warns(OnwardWarning, match="Feature 0 of the samples is up to"):
        network.predict(x)


def test_samples_and_classes_are_evaluated_as_they_are_or_as_a_data_set():
    x, y = DRAW.random((60, 3)), classes()
    dataset = ow.dataset(x, y, x_test=x, y_test=y)
    network = ow.mlp((3,), num_classes=2, widths=(8,))
    ow.train(network, dataset, training=SHORT)

    expected = ow.evaluate(network, dataset.test)

    assert ow.evaluate(network, x, y) == expected
    with pytest.raises(DataError, match="These samples have no classes"):
        ow.evaluate(network, x)
    assert ow.evaluate(network, dataset) == expected


def test_samples_are_an_example_to_export_a_network_by(tmp_path):
    network = ow.mlp((3,), num_classes=2, widths=(8,))

    ow.export(network, tmp_path / "onnx", like=DRAW.random((4, 3)))

    x = DRAW.random((5, 3)).astype(np.float32)
    labels, _ = run_exported(tmp_path / "onnx", x)
    assert labels.tolist() == network.predict(x).tolist()


def test_exported_files_warn_of_values_far_from_those_of_the_training(tmp_path):
    network = trained(pixels() / 255, classes())
    ow.export(network, tmp_path / "onnx")

    with pytest.warns(UserWarning, match="from 200 to 200, and the network was trained on values"):
        run_exported(tmp_path / "onnx", np.full((1, 1, 4, 4), 200, np.uint8))
