"""Objectives, a block that has one, and views of a few samples to learn from."""

import torch
from torch import nn

import onward as ow
from onward.batch import Batch
from onward.network.blocks import Block
from onward.network.objectives import CrossEntropy, Threshold


def draw(*shape, seed=0):
    """Draw normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(x, label=None, **known):
    """Make a batch; `known` are further fields of it."""
    return Batch(x, {"label": torch.arange(len(x)) % 3 if label is None else label}, **known)


def one_view(x, **known):
    """Make the view of an objective without negatives."""
    return {"input": labelled(x, **known)}


def two_views(positive, negative, **known):
    """Make the views of an objective with negatives."""
    return {"positive": labelled(positive, **known), "negative": labelled(negative, **known)}


def activities(samples=6, width=5, *, seed=0, scale=1.0):
    """Make activities as a ReLU puts them out: some of them zero, and one sample of several."""
    x = draw(samples, width, seed=seed).clamp_min(0) * scale
    x[1:2] = 0
    return x


def cross_entropy(width=5, num_classes=3):
    head = nn.Linear(width, num_classes, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(draw(num_classes, width, seed=9))
    return CrossEntropy(head)


def threshold(width=5, **named):
    return Threshold(width, **({"threshold": 1.0, "slope": float(width)} | named)).double()


def block_with(objective, width=4):
    layer = ow.Dense(width, width, generator=torch.Generator().manual_seed(0))
    return Block(layer, objective, ow.Adam())
