"""What a network refuses to be built from."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import onward as ow
from onward.errors import SettingError
from onward.runs.trial import block_costs


def block(module=None, *, reads=None):
    head = nn.Identity() if reads else nn.Linear(4, 3, bias=False)
    return ow.Block(module or nn.Linear(4, 4), ow.CrossEntropy(head), ow.Adam(), reads=reads)


def network(*blocks):
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=3)


def test_blocks_that_share_a_parameter_are_refused():
    shared = nn.Linear(4, 4)

    with pytest.raises(
        ValueError, match=r"Blocks 0 and 2 share module\.weight, a parameter or buffer\."
    ):
        network(block(shared), block(), block(shared))


def reading(*reads):
    return block(nn.Identity(), reads=reads)


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ((), "Block 1 reads nothing: its module needs an input."),
        ((ow.Edge(0, to="objective"),), "Block 1 reads nothing"),
        ((0, 0), "Block 1 reads two things called 0. Name one."),
        ((7,), "Block 1 reads block 7, and there are 3, counted from 0."),
        ((0, 1), "Block 1 reads block 1, itself. Only a delay lets it"),
        ((2,), "ow.Edge(2, delay=1, shape=...)"),
        ((ow.Edge(2, delay=1),), "Give the shape of a sample"),
        ((ow.Edge("input", delay=1),), "Block 1 reads the input, which has no delay."),
    ],
    ids=str,
)
def test_edges_that_lead_nowhere_are_refused(reads, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        network(block(), reading(*reads), block())


def test_a_block_may_read_any_blocks_before_it_and_the_input():
    stack = network(block(), block(), reading("input", 1, ow.Edge(0, name="first")))

    assert [edge.key for edge in stack.edges[2]] == ["input", "1", "first"]


def test_no_block_reads_a_head():
    head = ow.Block(nn.Identity(), ow.CrossEntropy(nn.Linear(4, 3), views=("neutral",)), ow.Adam())

    with pytest.raises(ValueError, match="Block 2 reads block 1, a head, which learns from what"):
        network(block(), head, block())


def test_a_block_costs_what_a_sample_through_it_and_its_head_costs():
    # A convolution has few parameters, and uses each for every pixel.
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 10))
    pool = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 8))
    blocks = [
        ow.Block(convolution, ow.CrossEntropy(head), ow.Adam()),
        ow.Block(pool, ow.CrossEntropy(nn.Linear(8, 10)), ow.Adam()),
    ]
    stack = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)

    assert block_costs(stack, ow.Batch(torch.zeros(1, 1, 8, 8))) == [
        2 * (64 * 9 * 4 + 4 * 64 * 10),
        2 * (4 * 64 * 8 + 8 * 10),
    ]


def test_a_head_of_another_number_of_classes_is_refused():
    wide = ow.Block(nn.Linear(4, 4), ow.CrossEntropy(nn.Linear(4, 5)), ow.Adam())

    with pytest.raises(SettingError, match=r"Block 1 scores 5 classes, and the network was built"):
        block_costs(network(block(), wide), ow.Batch(torch.zeros(1, 4)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_a_network_predicts_arrays_and_tensors_of_any_number_type(dtype):
    stack, x = ow.mlp((4,), num_classes=3, widths=(8,)), np.eye(4, dtype=dtype)
    expected = stack.predict(torch.eye(4))

    assert stack.predict(x).equal(expected)
    assert stack.predict(torch.from_numpy(x)).equal(expected)


def test_blocks_that_share_a_buffer_are_refused():
    norm = nn.BatchNorm1d(4, affine=False)
    modules = [nn.Sequential(nn.Linear(4, 4), norm) for _ in range(2)]
    blocks = [ow.Block(m, ow.CrossEntropy(nn.Linear(4, 3)), ow.Adam()) for m in modules]

    with pytest.raises(ValueError, match=re.escape("share module.1.running_mean")):
        ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=3)


def head_over(reads):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        line = [
            ow.Block(nn.Linear(4, 4), ow.CrossEntropy(nn.Linear(4, 3)), ow.Adam()) for _ in range(3)
        ]
        layer = ow.ReadoutLayer((4, 4), 3)
        nn.init.normal_(layer.weight)
    goal = ow.CrossEntropy(nn.Identity(), views=("neutral",))
    head = ow.Block(layer, goal, ow.Adam(), reads=reads)
    return ow.Network([*line, head], ow.Plain(), ow.SoftmaxHead(), num_classes=3)


def test_a_head_may_read_blocks_in_any_order():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    network, other = head_over((1, 2)), head_over((2, 1))
    with torch.no_grad():
        other.head.module.weight.copy_(network.head.module.weight.roll(4, dims=1))

    torch.testing.assert_close(other.scores(x).network, network.scores(x).network)


def test_the_figures_of_a_block_are_under_its_number():
    class Silent(ow.Objective):
        def loss(self, inputs, outputs, draw):
            return outputs["input"].tensor.square().mean()

    blocks = [
        ow.Block(nn.Linear(4, 4), goal, ow.Adam())
        for goal in (Silent(), ow.CrossEntropy(nn.Linear(4, 3)), Silent())
    ]
    network = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=3)
    batch = ow.Batch(torch.randn(6, 4), {"label": torch.arange(6) % 3})

    assert list(ow.evaluate(network, batch).correct_blocks) == [1]
