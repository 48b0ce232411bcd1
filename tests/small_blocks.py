"""Small blocks, their views, and what a step changes in them."""

import pytest
import torch
from torch import nn

import onward as ow
from onward.batch import Batch
from onward.engine.stretches import Training, make_step
from onward.network.blocks import Block
from onward.network.objectives import CrossEntropy, Threshold
from onward.network.optimizers import SGD, Adam

UNITS, INPUTS, CLASSES = 7, 5, 3

RULES = {
    "adam": Adam(lr=0.01, weight_decay=0.1),
    "sgd": SGD(lr=0.1, weight_decay=0.1),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(inputs=INPUTS, units=UNITS, *, seed=0, **settings):
    return ow.Dense(inputs, units, generator=torch.Generator().manual_seed(seed), **settings)


def linear(inputs=UNITS, outputs=CLASSES, *, seed=5, bias=False):
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(draw(outputs, inputs, seed=seed) / inputs**0.5)
        if bias:
            layer.bias.zero_()
    return layer


def objective_of(name, units=UNITS):
    if name == "cross-entropy":
        return CrossEntropy(linear(units))
    # A slope below Hinton's, so that no sample of this small layer is sure and every one teaches.
    return Threshold(units, threshold=0.8, slope=3.0, peer=0.03)


def block_of(name, rule, *, dtype=torch.float32, precision=torch.float32, **settings):
    block = Block(dense(**settings), objective_of(name), rule).to(dtype)
    block.precision = precision
    block.reset_optimizer()
    block.init_optimizer()
    return block


def step_of(block, example=None, *, team=None, **settings):
    """Make the step of a block; settings are those of `Training`."""
    return make_step(block, Training(seed=0, **settings), example, team)


def views_of(name, *, seed, samples=6, inputs=INPUTS, dtype=torch.float32):
    labels = (torch.arange(samples) + seed) % CLASSES
    names = ("input",) if name == "cross-entropy" else ("positive", "negative")
    return {
        view: Batch(draw(samples, inputs, seed=100 * seed + i).to(dtype), {"label": labels})
        for i, view in enumerate(names)
    }


def state_of(block):
    """Return all that a step may change: weights, running means, the optimizer's state."""
    of_optimizer = {
        f"{name}.{part}": tensor
        for name, parts in block.optimizer_state.items()
        for part, tensor in parts.items()
    }
    return {name: t.clone() for name, t in (block.state_dict() | of_optimizer).items()}


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


objectives = pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
