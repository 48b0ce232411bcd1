"""Networks of one's own as ONNX files."""

import copy
import re

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import onward as ow
from onward.errors import SettingError
from onward.exits.policies import full_depth
from onward.network.networks import Forward
from onward.onnx_files import export, run_exported


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def convolution(inputs, units):
    return nn.Sequential(nn.Conv2d(inputs, units, 3), nn.ReLU())


def own_network(name):
    """A network, and samples that leave it at all of its exits."""
    torch.manual_seed(0)
    if name == "sweep over convolutions":
        goals = [ow.Threshold(units, threshold=0.1, slope=8.0) for units in (6, 5, 4)]
        layers = [convolution(3, 6), convolution(6, 5), convolution(5, 4)]
        blocks = [ow.Block(*parts, ow.Adam()) for parts in zip(layers, goals, strict=True)]
        sampler, readout, x = ow.LabelEmbedding(3), ow.GoodnessSweep(), draw(40, 3, 8, 8)
    else:
        layers = [nn.Linear(6, 8), nn.Linear(8, 8)]
        goal = ow.CrossEntropy(nn.Linear(16, 3), views=("neutral",))
        blocks = [
            *(ow.Block(layer, ow.CrossEntropy(nn.Linear(8, 3)), ow.Adam()) for layer in layers),
            ow.Block(Beside(), goal, ow.Adam(), reads=(0, 1)),
        ]
        sampler, readout, x = ow.Plain(), ow.SoftmaxHead(), draw(40, 6)
    return ow.Network(blocks, sampler, readout, num_classes=3), x


class Beside(nn.Module):
    """Puts what it reads side by side."""

    def forward(self, inputs):
        return torch.cat(list(inputs.values()), dim=1)


@pytest.mark.parametrize(
    "name",
    [pytest.param("sweep over convolutions", marks=pytest.mark.slow), "head over two blocks"],
)
def test_files_of_networks_of_ones_own_give_the_same_classes_and_exits(
    name, tmp_path, kept_generator
):
    network, x = own_network(name)
    leads = [
        float(ow.exits.CONFIDENCES["margin"](scores[None]).median())
        for scores in Forward(network, ow.Batch(x))
    ]
    policy = ow.ExitPolicy("margin", tuple(lead * 1.01 for lead in leads[:-1]))

    export(network, tmp_path, policy, like=ow.Batch(x))

    labels, exits = run_exported(tmp_path, x.numpy())
    expected = ow.answer(network, x, policy)
    assert labels.tolist() == expected.labels.tolist()
    assert exits.tolist() == expected.exits.tolist()
    assert len(expected.exits.unique()) == network.num_exits


def test_a_network_in_bf16_is_exported_in_fp32_and_stays_as_it_was(tmp_path, kept_generator):
    network, x = own_network("head over two blocks")
    expected = network.scores(x).network
    network.set_precision(torch.bfloat16)

    export(network, tmp_path, ow.ExitPolicy("margin", ()), like=(6,))

    session = onnxruntime.InferenceSession(tmp_path / "stage-0.onnx")
    _, found = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert all(block.precision is torch.bfloat16 for block in network.blocks)


class Doubtful(nn.Module):
    """Does something else for some samples, which no graph can."""

    def forward(self, x):
        return x if bool(x.sum() > 0) else -x


def line(*blocks, **settings):
    goal = ow.CrossEntropy(nn.Linear(4, 3))
    made = [ow.Block(module, copy.deepcopy(goal), ow.Adam(), **more) for module, more in blocks]
    return ow.Network(made, ow.Plain(), ow.SumOfHeads(), num_classes=3, **settings)


def plain(**more):
    return nn.Linear(4, 4), more


class Counted(nn.Module):
    """Makes a constant of the number of samples."""

    def forward(self, x):
        return x + torch.zeros(len(x), 1)


DELAYED = ow.Edge(0, delay=1, shape=(4,))


@pytest.mark.parametrize(
    ("blocks", "like", "message"),
    [
        ([plain()], None, "does not know its samples. Give some, or their shape, as `like`."),
        ([plain()], (5,), "for samples of shape (5,): mat1 and mat2"),
        ([plain()], ow.Batch({"a": draw(1, 4), "b": draw(1, 4)}), "several inputs (a, b)"),
        ([plain()], ow.Batch(torch.arange(4)[None]), "of type torch.int64, and files take float32"),
        ([plain(structure=("edges",))], (4,), "its samples have a structure (edges)"),
        ([plain(reads=("input", DELAYED))], (4,), "read what came out at an earlier visit"),
        (
            [plain(), plain(), plain(reads=(0,))],
            (4,),
            "block 2 reads 0 across the exit after block 1",
        ),
        ([(Counted(), {})], (4,), "write tensor.shape[0], and not len()"),
        ([(Doubtful(), {})], (4,), "torch cannot write this network as ONNX files: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_files_cannot_hold_is_refused(blocks, like, message, tmp_path, capsys):
    network = line(*blocks)

    with pytest.raises(SettingError, match=re.escape(message)):
        export(network, tmp_path / "onnx", full_depth(len(blocks)), like=like)

    assert not (tmp_path / "onnx").exists()


def test_a_policy_for_another_depth_is_not_exported(tmp_path):
    with pytest.raises(SettingError, match="has 2 thresholds, and the network 1 exits"):
        export(line(plain()), tmp_path, full_depth(3), like=(4,))
