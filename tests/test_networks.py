"""What a network refuses to be built from."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import onward as ow
from onward.errors import SettingError
from onward.preparation import block_costs


def block(module=None, *, reads=None):
    head = nn.Identity() if reads else nn.Linear(4, 3, bias=False)
    return ow.Block(module or nn.Linear(4, 4), ow.CrossEntropy(head), ow.Adam(), reads=reads)


def network(*blocks):
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=3)


def test_blocks_that_share_a_parameter_are_refused():
    shared = nn.Linear(4, 4)

    with pytest.raises(ValueError, match=r"Blocks 0 and 2 share the parameter module\.weight\."):
        network(block(shared), block(), block(shared))


@pytest.mark.parametrize("reads", [(1, 0), (0, 0), (0, 2), (7,)])
def test_a_head_reads_blocks_below_it_each_once_and_in_order(reads):
    head = block(ow.ReadoutLayer((4,) * len(reads), 3), reads=reads)
    message = f"Block 2 reads {reads}. It may read the blocks 0 to 1, each once and in ascending"

    with pytest.raises(ValueError, match=re.escape(message)):
        network(block(), block(), head)


def test_only_the_last_block_reads_several():
    head = block(ow.ReadoutLayer((4,), 3), reads=(0,))

    with pytest.raises(ValueError, match=r"Block 1 of 3 reads several blocks, and only the last"):
        network(block(), head, block())


def test_a_block_costs_what_a_row_through_it_and_its_head_costs():
    # A convolution has few parameters, and uses each for every pixel.
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 10))
    pool = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 8))
    blocks = [
        ow.Block(convolution, ow.CrossEntropy(head), ow.Adam()),
        ow.Block(pool, ow.CrossEntropy(nn.Linear(8, 10)), ow.Adam()),
    ]
    stack = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)

    assert block_costs(stack, (1, 8, 8)) == [
        2 * (64 * 9 * 4 + 4 * 64 * 10),
        2 * (4 * 64 * 8 + 8 * 10),
    ]


def test_a_head_of_another_number_of_classes_is_refused():
    wide = ow.Block(nn.Linear(4, 4), ow.CrossEntropy(nn.Linear(4, 5)), ow.Adam())

    with pytest.raises(SettingError, match=r"Block 1 scores 5 classes, and the network was built"):
        block_costs(network(block(), wide), (4,))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_a_network_predicts_arrays_and_tensors_of_any_number_type(dtype):
    stack, x = ow.mlp((4,), num_classes=3, widths=(8,)), np.eye(4, dtype=dtype)
    expected = stack.predict(torch.eye(4))

    assert stack.predict(x).equal(expected)
    assert stack.predict(torch.from_numpy(x)).equal(expected)
