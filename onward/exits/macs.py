"""What inference costs: multiply-accumulates and bytes of weights, stage by stage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from onward.batch import Batch, mapped, parts
from onward.errors import SettingError
from onward.exits.answers import Answers
from onward.flop_counter import FlopCounter
from onward.network.networks import Forward, Network

Like = Any
"""Samples of a kind: some of them, as an array or a batch, or the shape of one. None: those that a
network was trained on or built for."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """Multiply-accumulates (MACs) from one exit to the next, for one sample.

    Matrix products and convolutions of blocks, of their heads and of what a network does to samples
    first (`Network.preprocessing`), squares for goodness, and one operation a class to compare
    scores. Normalisation, pooling and activation functions are left out, as is usual.
    """

    row: int
    """What a sample costs once."""

    each: int
    """What each of its passes costs besides: one, or one for each label that is left."""

    weight_bytes: int
    """Bytes of weights that are read."""

    block: int
    """The block after which the exit is."""

    tick: int | None = None
    """The tick at which that is, where there are several."""

    @property
    def place(self) -> str:
        """Where the exit is, in words."""
        return (
            f"block {self.block}" if self.tick is None else f"tick {self.tick}, block {self.block}"
        )


def stage_costs(network: Network, like: Like = None, *, shared: bool = True) -> list[StageCost]:
    """Return what each stage costs.

    Args:
        network: The network.
        like: What it is asked about; of a batch with a structure, this one.
        shared: Whether a sweep over labels computes the first block's products once for all
            labels, as `answer` does.

    Raises:
        SettingError: The network has no readout, or does not know its samples and `like` is None.
    """
    batch = example(network, like)
    forward = Forward(network, batch, shares=shared)
    is_sweep, passes = forward.readout.sweeps, len(forward.samples)
    costs = []
    with FlopCounter() as counter:
        network.transformed(batch)
    row, each = counter.total // 2 // len(batch), 0
    weights = 0 if network.preprocessing is None else _bytes(network.preprocessing.buffers())
    while forward.visit < forward.num_visits:
        tick, number = divmod(forward.visit, len(forward.blocks))
        is_shared = forward.visit == 0 and forward.first is not None
        with FlopCounter() as counter:
            scores = forward.step()
        if forward.outputs is None:
            continue
        macs = counter.total // 2
        block = forward.blocks[number]
        units = [block.objective.activities(t) for t in parts(forward.outputs.inputs)]
        squares = sum(tensor.numel() for tensor in units) // passes
        weights += _bytes(block.module.parameters())
        if is_sweep and not is_shared:
            each += macs // passes
        else:
            row += macs // len(batch)
            # Of a shared product, each label adds its column of the weights.
            each += squares if is_shared else 0
        if scores is not None:
            each += squares if is_sweep else 0
            weights += _bytes(forward.readout.weights(forward.blocks, network.edges, number))
            at = tick if network.ticks > 1 else None
            costs.append(StageCost(row + network.num_classes, each, weights, number, at))
            row = each = weights = 0
    return costs


def example(network: Network, like: Like = None) -> Batch:
    """Return a sample of zeros; of a batch with a structure, the batch.

    Raises:
        SettingError: The network does not know its samples, and `like` is None.
    """
    if not isinstance(like, Batch | tuple | None):
        like = network.checked(like)
    if isinstance(like, Batch):
        if like.structure:
            return like
        if network.inputs.kind not in ("pixels", "numbers") or not isinstance(like.inputs, Tensor):
            return Batch(mapped(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]), like.inputs))
        like = tuple(like.inputs.shape[1:])
    shape = like
    if shape is None and network.inputs.kind in ("pixels", "numbers"):
        shape = network.inputs.shape
    if shape is None and network.blueprint is not None:
        shape = network.blueprint.data.input_shape
    if shape is None:
        raise SettingError(
            "This network has not been trained, and so does not know its samples. Give some, or "
            "their shape, as `like`."
        )
    return Batch(torch.zeros(1, *shape))


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights)


def macs_spent(costs: Sequence[StageCost], answers: Answers) -> Float[Tensor, " samples"]:
    """Return the MACs that each sample has cost."""
    total = torch.zeros(len(answers.labels), dtype=torch.float64)
    for cost, passes in zip(costs, answers.passes, strict=True):
        total += (passes > 0) * cost.row + passes * cost.each
    return total
