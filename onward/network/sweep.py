"""The first block of a sweep over labels, in one product for all labels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onward.batch import Batch
from onward.network.blocks import Block
from onward.network.layers import TINY, Dense
from onward.network.samplers import LabelEmbedding, Sampler

FirstPass = Callable[[Batch], Tensor]
"""From samples without a label to the activities of each with every label, those of a sample in a
row."""


def shared_pass(layer: Dense, sampler: LabelEmbedding, x: Tensor) -> Tensor:
    """Pass samples through the first layer of a sweep, with each label.

    With a one-hot label c of strength s in front of the rest r of a sample, the length is the same
    for all labels, and so is all of W [s e_c, r] but s times a column of W: C passes of the first
    block cost one product, and C additions of a vector. Equal to plain passes up to rounding; the
    labels' columns are added in the precision of the weights.

    Args:
        layer: The layer.
        sampler: Puts labels in front of samples.
        x: The samples.

    Returns:
        Activities, shape (samples times classes, units).
    """
    classes, strength = sampler.num_classes, sampler.strength
    # `x.shape[0]` and not `len(x)`, which an export would take for a constant.
    rest = sampler.embed(x, x.new_zeros(x.shape[0], classes)).flatten(1)[:, classes:]
    length = (rest.square().sum(dim=1, keepdim=True) + strength**2).sqrt()
    scale = (classes + rest.shape[1]) ** 0.5 / (length + TINY)
    shared = torch.nn.functional.linear(rest * scale, layer.weight[:, classes:])
    columns = (strength * scale)[:, :, None] * layer.weight[:, :classes].T
    every: Tensor = (columns + (shared + layer.bias)[:, None]).relu()
    return every.flatten(0, 1).to(shared.dtype)


TABLE: dict[tuple[type, type], Callable[[Any, Any, Tensor], Tensor]] = {
    (Dense, LabelEmbedding): shared_pass,
}
"""The shared pass for a kind of layer and a kind of sampler."""


def first_pass(block: Block, sampler: Sampler, input_shape: tuple[int, ...]) -> FirstPass | None:
    """Return the shared pass of a first block, or None where none is known.

    Args:
        block: The block.
        sampler: Writes labels into samples.
        input_shape: Shape of a sample.
    """
    layer, found = block.module, TABLE.get((type(block.module), type(sampler)))
    is_leading = sampler.label_inputs(input_shape) > 0
    if found is None or not is_leading or block.prepare is not None:
        return None

    def passed(batch: Batch) -> Tensor:
        # In the precision of the weights: all labels of a sample would share its rounding.
        with torch.no_grad():
            activities = found(layer, sampler, batch.tensor)
        return activities.to(torch.bfloat16) if block.precision is torch.bfloat16 else activities

    return passed
