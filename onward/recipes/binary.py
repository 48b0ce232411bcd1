"""Binary layers, and heads that are drawn once and never trained."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.network.layers import normalize_length


class BinaryDense(nn.Module):
    """A dense layer whose weights count by their sign alone, and whose units are 0 or 1.

    Gradients go through both steps as if they were not there, for pre-activations between -1 and 1
    (straight-through). Inputs are normalized in length, and products divided by the square root of
    their number, so that pre-activations are of the size of 1.

    Args:
        in_features: Inputs of a sample.
        out_features: Units.

    Source:
        Huang & Aminifar 2025, AAAI (TinyFoA); straight-through: Hubara et al. 2016,
        arXiv:1602.02830.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / in_features**0.5)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples units"]:
        x = normalize_length(x.flatten(1))
        signs: Tensor = Signs.apply(self.weight)  # type: ignore[no-untyped-call]
        pre = F.linear(x, signs.to(x.dtype)) / x.shape[1] ** 0.5 + self.bias
        units: Tensor = Units.apply(pre)  # type: ignore[no-untyped-call]
        return units


class Signs(torch.autograd.Function):
    """Signs of weights, with the derivative of the weights."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Units(torch.autograd.Function):
    """1 where a pre-activation is above 0, else 0, with the derivative of a clamp to -1 and 1."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor) -> Tensor:
        ctx.save_for_backward(pre.abs() <= 1)
        return (pre > 0).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inside,) = ctx.saved_tensors
        derivative: Tensor = grad * inside
        return derivative


def clamp_weights(weight: Tensor) -> None:
    """Keep weights, of which the sign counts, between -1 and 1."""
    if weight.ndim > 1:
        weight.clamp_(-1, 1)


def fixed_head(width: int, num_classes: int) -> nn.Linear:
    """Return class scores by random weights, which stay as they are."""
    head = nn.Linear(width, num_classes, bias=False)
    nn.init.normal_(head.weight, std=width**-0.5)
    return head.requires_grad_(False)
