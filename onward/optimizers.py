"""Update rules whose state is named arrays beside the parameters.

The arithmetic is that of `torch.optim`, through its functional forms. The state is kept here, as
plain tensors with names, because it travels between machines and rests in files.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

OptimizerState = dict[str, Tensor]
"""State of one parameter: arrays of its shape, and scalars."""


class Optimizer(ABC):
    """How a parameter follows its gradient.

    `step` may be called on slices of a parameter and of its state, one after the other, since
    every rule here is elementwise: that keeps a slice in the processor's cache.
    """

    @abstractmethod
    def init(self, parameter: Tensor) -> OptimizerState:
        """Return the state before the first step."""

    @abstractmethod
    def step(
        self, parameter: Tensor, gradient: Tensor, state: OptimizerState, *, lr_scale: float
    ) -> None:
        """Update a parameter and its state in place, but not the count of steps (see `count`)."""

    @abstractmethod
    def count(self, state: OptimizerState) -> None:
        """Count a step; called once a step and parameter, before `step`."""


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, with decoupled weight decay on matrices (AdamW)."""

    lr: float = 1e-3
    """Learning rate."""

    beta1: float = 0.9
    """Decay of the mean of the gradients."""

    beta2: float = 0.999
    """Decay of the mean of their squares."""

    eps: float = 1e-8
    """Added to the denominator."""

    weight_decay: float = 0.0
    """Share of the weights lost a step, times the learning rate; biases are spared."""

    def init(self, parameter: Tensor) -> OptimizerState:
        return {
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "step": torch.zeros(()),
        }

    def count(self, state: OptimizerState) -> None:
        state["step"] += 1

    def step(
        self, parameter: Tensor, gradient: Tensor, state: OptimizerState, *, lr_scale: float
    ) -> None:
        adam(
            [parameter],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            # The function counts too, and a slice must not: it gets a copy, one behind.
            [state["step"] - 1],
            fused=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=self.lr * lr_scale,
            weight_decay=self.weight_decay if parameter.ndim > 1 else 0.0,
            eps=self.eps,
            maximize=False,
        )


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Steps along the running mean of the gradient, with decoupled weight decay on matrices.

    Source:
        Hinton's published Matlab code: v <- momentum v + (1 - momentum) gradient, then
        W <- W - lr (v + weight_decay W). In torch's words: momentum with dampening = momentum.
    """

    lr: float = 0.01
    """Learning rate, for the running mean."""

    momentum: float = 0.9
    """Decay of the running mean."""

    weight_decay: float = 0.0
    """Share of the weights lost a step, times the learning rate; biases are spared."""

    def init(self, parameter: Tensor) -> OptimizerState:
        return {"momentum": torch.zeros_like(parameter)}

    def count(self, state: OptimizerState) -> None:
        pass

    def step(
        self, parameter: Tensor, gradient: Tensor, state: OptimizerState, *, lr_scale: float
    ) -> None:
        lr = self.lr * lr_scale
        if self.weight_decay and parameter.ndim > 1:
            parameter.mul_(1 - lr * self.weight_decay)
        sgd(
            [parameter],
            [gradient],
            [state["momentum"]],
            fused=True,
            weight_decay=0.0,
            momentum=self.momentum,
            dampening=self.momentum,
            lr=lr,
            nesterov=False,
            maximize=False,
        )


def with_strides(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with the strides of another.

    Messages hold rows one after the other; a network may hold its channels last. Products may
    round by strides, and the fused rules of torch go through memory without looking at them.
    """
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def lr_scale(schedule: str, epoch: int, fraction: float, epochs: int) -> float:
    """Return the factor on the learning rate.

    Args:
        schedule: `constant`, `warmup` or `cooldown`, see `TrainingConfig.schedule`.
        epoch: Epoch, from 0.
        fraction: Share of the epoch that is done, with the mini-batch to come: in (0, 1].
        epochs: Epochs of the run.

    Example:
        >>> [lr_scale("cooldown", epoch, 1.0, 4) for epoch in range(4)]
        [1.0, 1.0, 0.75, 0.25]
    """
    match schedule:
        case "warmup":
            done = (epoch + fraction) / epochs
            return min(1.0, done / 0.05, max(0.0, (1 - done) / 0.7) + 1e-3)
        case "cooldown":
            return min(1.0, (1 + 2 * (epochs - epoch - 1)) / epochs)
    return 1.0
