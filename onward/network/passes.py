"""Passes samples through the blocks of a network in turn, once, without training them."""

from collections.abc import Iterator
from typing import NamedTuple

from onward.batch import Batch, Tensors
from onward.network.blocks import gathered
from onward.network.networks import Network


class Passed(NamedTuple):
    """What a block has made of some samples."""

    number: int
    """The block."""

    read: Batch
    """What it reads."""

    outputs: Batch
    """What it puts out."""


def passes(network: Network, view: Batch) -> Iterator[Passed]:
    """Pass a view through all blocks in turn, once, without training them.

    Args:
        network: The blocks.
        view: What the first of them read.
    """
    outputs: dict[int | str, Tensors] = {"input": view.inputs}
    for number, block in enumerate(network.all_blocks):
        edges = network.edges[number]
        reads = [(e, e.zeros(view) if e.delay else outputs[e.source]) for e in edges]
        read = gathered(reads, view)
        passed = block.infer(read)
        outputs[number] = passed.inputs
        yield Passed(number, read, passed)
