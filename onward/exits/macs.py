"""What inference costs: multiply-accumulates and bytes of weights, stage by stage."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from onward.blocks import Block
from onward.exits.stages import Answers, stages
from onward.layers import Dense
from onward.networks import Network
from onward.readouts import GoodnessSweep, SoftmaxHead


@dataclass(frozen=True, slots=True)
class StageCost:
    """Multiply-accumulates (MACs) from one exit to the next, for one row.

    Matrix products and convolutions of blocks and heads, squares for goodness, and one operation a
    class to compare scores. Normalisation and ReLU are left out, as is usual.
    """

    row: int
    """What a row costs once."""

    each: int
    """What each of its passes costs besides: one, or one for each label that is left."""

    weight_bytes: int
    """Bytes of weights that are read."""

    block: int
    """The block after which the exit is."""


def stage_costs(
    network: Network, input_shape: tuple[int, ...] | None = None, *, shared: bool = True
) -> list[StageCost]:
    """Return what each stage costs.

    Args:
        network: The network.
        input_shape: Shape of a row. None: that for which the network was built from settings.
        shared: Whether a sweep over labels computes the first block's products once for all
            labels, as `answer` does.
    """
    if input_shape is None:
        assert network.blueprint is not None, "The network was not built from settings."
        input_shape = network.blueprint.input_shape
    x = torch.zeros(1, *input_shape)
    classes, readout = network.num_classes, network.readout
    is_sweep = isinstance(readout, GoodnessSweep)
    exits = stages(network, x).exits
    activities = network.sampler.neutral(x)
    costs = []
    row = each = weights = 0
    for number, block in enumerate(network.line):
        inputs = activities.flatten(1).shape[1]
        macs, activities = _count(block, activities)
        units = activities.flatten(1).shape[1]
        weights += _bytes(block.module)
        if is_sweep:
            is_shared = shared and number == 0 and type(block.module) is Dense
            row += (inputs - classes) * units if is_shared else 0
            # Its column of the weights, or a pass; then the squares.
            each += (units if is_shared else macs) + units
        elif isinstance(readout, SoftmaxHead):
            row += macs + (classes * units if number in exits else 0)
            weights += classes * units * 4 if number in exits else 0
        else:
            with FlopCounterMode(display=False) as counter:
                block.scores(activities)
            row += macs + counter.get_total_flops() // 2
            weights += _bytes(block.objective)
        if number in exits:
            costs.append(StageCost(row + classes, each, weights, number))
            row = each = weights = 0
    return costs


def _count(block: Block, activities: Tensor) -> tuple[int, Tensor]:
    with FlopCounterMode(display=False) as counter:
        found = block.infer(activities)
    return counter.get_total_flops() // 2, found


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def macs_spent(costs: Sequence[StageCost], answers: Answers) -> Float[Tensor, " rows"]:
    """Return the MACs that each row has cost."""
    total = torch.zeros(len(answers.labels), dtype=torch.float64)
    for cost, passes in zip(costs, answers.passes, strict=True):
        total += (passes > 0) * cost.row + passes * cost.each
    return total
