"""What a network is asked: checked by whoever is asked, whatever holds the samples."""

import warnings

import numpy as np
import pytest
import torch
from samples import SHORT, classes, draw, pixels, trained
from torch import nn

import onward as ow
from onward.data.inputs import InputTransformation
from onward.errors import DataError, OnwardWarning
from onward.exits.policies import full_depth
from onward.onnx_files import run_exported

# What is asked


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((2, 3)),
            r"x has samples of shape \(3,\), and the network was trained on samples",
        ),
        (np.zeros((2, 16)), r"Reshape them: x.reshape\(-1, 1, 4, 4\)"),
        (np.full((1, 1, 4, 4), np.nan), "x holds 16 values that are NaN or infinite"),
        (np.array([["a"]]), "x holds values of type <U1. It needs real numbers"),
        ({"x": 1}, "x is a dict, and an array, a tensor or a table of all samples is needed"),
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
    network = trained(draw().random((60, 3)), classes())

    assert network.predict([[0.1, 0.2, 0.3]]).equal(network.predict(np.array([[0.1, 0.2, 0.3]])))


def test_values_far_from_those_of_the_training_are_warned_of_with_both_ranges():
    network = trained(pixels() / 255, classes())

    with pytest.warns(OnwardWarning, match=r"from 0 to 200, and the network was trained on values"):
        network.predict(np.linspace(0, 200, 16).reshape(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("learned", "asked"),
    [(1 / 255, lambda x: x * 2 - 1), (1 / 255, lambda x: (x - 0.13) / 0.31), (1.0, lambda x: x)],
    ids=["-1 to 1", "standardized", "0 to 1 for 0 to 255"],
)
def test_images_scaled_otherwise_than_those_of_the_training_are_warned_of(learned, asked):
    network = trained((pixels() * learned).astype(np.float32), classes())

    with pytest.warns(OnwardWarning, match="Scale them as the training samples were"):
        network.predict(asked(np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)))


def test_images_that_are_all_dark_or_somewhat_brighter_are_not_warned_of():
    network = trained(pixels() / 255, classes())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.predict(np.zeros((1, 1, 4, 4)))
        network.predict(np.linspace(0, 1.3, 16).reshape(1, 1, 4, 4))


def test_pixels_asked_of_a_network_of_floats_are_warned_of():
    network = trained(pixels() / 255, classes())

    with pytest.warns(OnwardWarning, match="Scale them as the training samples were"):
        network.predict(np.full((1, 1, 4, 4), 200, np.uint8))


def test_classes_that_a_network_does_not_know_are_refused():
    network = trained(draw().random((60, 3)), classes())
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


# Other ways to ask


def test_arrays_of_any_layout_are_asked_of_a_network():
    x = draw().random((60, 3, 4, 4)).astype(np.float32)
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
    ow.train(network, ow.dataset(draw().random((60, 1, 8, 8)), classes()), training=SHORT)

    assert len(network.predict(draw().random((5, 1, 12, 12)))) == 5
    with pytest.raises(DataError, match=r"x has samples of shape \(2, 12, 12\)"):
        network.predict(draw().random((5, 2, 12, 12)))


def test_a_feature_in_another_unit_is_warned_of_by_its_number():
    x = draw().normal((0, 500, 3), (1, 100, 0.01), size=(80, 3))
    network = trained(x, np.arange(80) % 2)
    x[:, 0] *= 30

    with pytest.warns(OnwardWarning, match="Feature 0 of the samples is up to"):
        network.predict(x)


def test_samples_and_classes_are_evaluated_as_they_are_or_as_a_data_set():
    x, y = draw().random((60, 3)), classes()
    dataset = ow.dataset(x, y, x_test=x, y_test=y)
    network = ow.mlp((3,), num_classes=2, widths=(8,))
    ow.train(network, dataset, training=SHORT)

    expected = ow.evaluate(network, dataset.test)

    assert ow.evaluate(network, x, y) == expected
    with pytest.raises(DataError, match="These samples have no classes"):
        ow.evaluate(network, x)
    with pytest.warns(OnwardWarning, match=r"arrays: about 90% of the samples .* equal training"):
        assert ow.evaluate(network, dataset) == expected


def test_samples_are_an_example_to_export_a_network_by(tmp_path):
    network = ow.mlp((3,), num_classes=2, widths=(8,))

    ow.export(network, tmp_path / "onnx", like=draw().random((4, 3)))

    x = draw().random((5, 3)).astype(np.float32)
    labels, _ = run_exported(tmp_path / "onnx", x)
    assert labels.tolist() == network.predict(x).tolist()


def test_exported_files_warn_of_values_far_from_those_of_the_training(tmp_path):
    network = trained(pixels() / 255, classes())
    ow.export(network, tmp_path / "onnx")

    with pytest.warns(UserWarning, match="from 200 to 200, and the network was trained on values"):
        run_exported(tmp_path / "onnx", np.full((1, 1, 4, 4), 200, np.uint8))


def test_a_network_that_was_not_trained_yet_refuses_samples_of_another_shape():
    network = ow.mlp((4,), num_classes=2, widths=(8,))

    assert network.predict(torch.zeros(4)).shape == (1,)
    with pytest.raises(
        DataError, match=r"x has samples of shape \(2,\), and the network was built"
    ):
        network.predict(torch.zeros(3, 2))
