"""Backpropagation, to compare with."""

from dataclasses import replace

from onward.recipes.dense import dense
from onward.recipes.recipe import ONE_BLOCK

backprop = replace(
    dense,
    name="backprop",
    summary="The same layers in one block, trained by backpropagation: what to compare with.",
    source="the usual way; the twin of one-pass",
    twin=ONE_BLOCK,
    defaults=ONE_BLOCK
    | {
        "network.gain": 2**0.5,
        "network.dropout": 0.2,
        "training.schedule": "warmup",
        "training.gradients": "autograd",
    },
)
