"""Update rules whose state is named arrays beside the parameters.

The arithmetic is that of `torch.optim`, through its functional forms. The state is kept here, as
plain tensors with names, because it travels between machines and rests in files.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from onward.errors import SettingError

Schedule = str | Callable[[float], float]
"""Learning rate over time: a name, or a function of the share of the training that is done."""

OptimizerState = dict[str, Tensor]
"""State of one parameter: arrays of its shape, and scalars."""

BEGUN = "begun"
"""Part of the state of optimizers of torch: 0 before the first step, and 1 after it."""


class Optimizer(ABC):
    """How a parameter follows its gradient."""

    is_elementwise: ClassVar[bool] = False
    """Whether slices of a parameter and of its state may be updated one after the other, which
    keeps a slice in the processor's cache; a rule that is not elementwise sees whole parameters."""

    @abstractmethod
    def init(self, parameter: Tensor) -> OptimizerState:
        """Return the state before the first step."""

    @abstractmethod
    def step(
        self, parameter: Tensor, gradient: Tensor, state: OptimizerState, *, lr_scale: float
    ) -> None:
        """Update a parameter and its state in place, but not the count of steps (see `count`)."""

    def count(self, state: OptimizerState) -> None:  # noqa: B027 (most rules count in `step`)
        """Count a step; called once a step and parameter, before `step`."""


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, with decoupled weight decay on matrices (AdamW)."""

    is_elementwise = True

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

    is_elementwise = True

    lr: float = 0.01
    """Learning rate, for the running mean."""

    momentum: float = 0.9
    """Decay of the running mean."""

    weight_decay: float = 0.0
    """Share of the weights lost a step, times the learning rate; biases are spared."""

    def init(self, parameter: Tensor) -> OptimizerState:
        return {"momentum": torch.zeros_like(parameter)}

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


class TorchOptimizer(Optimizer):
    """An optimizer of `torch.optim`, or one like these, for each parameter on its own.

    See `optimizer`.
    """

    def __init__(
        self,
        kind: type[torch.optim.Optimizer],
        arguments: Mapping[str, Any],
        *,
        flattens: bool = False,
        project: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.kind, self.arguments = kind, dict(arguments)
        self.flattens, self.project = flattens, project
        self.numbers: dict[str, type] = {}
        """Parts of the state that are plain numbers in torch, and their types."""

    def init(self, parameter: Tensor) -> OptimizerState:
        # What a first step would leave, of a parameter and a gradient of zeros: names and shapes.
        parameter = self._shaped(parameter)
        with torch.random.fork_rng(devices=[]):
            tried = self._stepped(torch.zeros(parameter.shape), torch.zeros(parameter.shape), {})
        state: OptimizerState = {BEGUN: torch.zeros(())}
        for name, part in tried.items():
            if isinstance(part, bool | int | float):
                self.numbers[name] = type(part)
                state[name] = torch.zeros((), dtype=torch.float64)
            elif isinstance(part, Tensor):
                is_like = part.shape == parameter.shape
                state[name] = torch.zeros_like(parameter if is_like else part, dtype=part.dtype)
            elif part is not None:
                raise SettingError(
                    f"{self.kind.__name__} keeps {name}, a {type(part).__name__}, for each "
                    f"parameter. Its state travels and rests as arrays: only tensors and numbers "
                    f"can be kept. Use another optimizer."
                )
        return state

    def step(
        self, parameter: Tensor, gradient: Tensor, state: OptimizerState, *, lr_scale: float
    ) -> None:
        known = {n: self._as_kept(n, t) for n, t in state.items() if n != BEGUN and state[BEGUN]}
        shaped = self._shaped(parameter)
        found = self._stepped(shaped, self._shaped(gradient), known, lr_scale)
        # Channels that lie last cannot be flattened in place.
        parameter.copy_(shaped.view(parameter.shape))
        for name, part in found.items():
            if part is not None and part is not state[name]:
                state[name].copy_(torch.as_tensor(part))
        state[BEGUN].fill_(1)
        if self.project is not None:
            self.project(parameter)

    def _shaped(self, parameter: Tensor) -> Tensor:
        """Return a parameter as the rule sees it."""
        return parameter.flatten(1) if self.flattens and parameter.ndim > 2 else parameter

    def _as_kept(self, name: str, tensor: Tensor) -> Any:
        """Return a part of the state as torch keeps it."""
        return self.numbers[name](tensor.item()) if name in self.numbers else tensor

    def _stepped(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], lr_scale: float = 1.0
    ) -> dict[str, Any]:
        """Let torch do a step, from its own first state where there is none; return its state."""
        parameter = parameter.detach()
        parameter.grad = gradient
        try:
            made = self.kind([parameter], **self.arguments)
            if state:
                made.state[parameter] = state
            for group in made.param_groups:
                group["lr"] = group["lr"] * lr_scale
            made.step()
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise SettingError(
                f"{self.kind.__name__} cannot train a parameter of shape "
                f"{tuple(parameter.shape)}: {error}. Give a block several optimizers by name "
                f"where it does not suit all parameters, or use another."
            ) from error
        finally:
            parameter.grad = None
        return dict(made.state[parameter])

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.arguments.items()]
        given += ["flatten=True"] * self.flattens
        given += [f"project={self.project.__qualname__}"] if self.project is not None else []
        return f"{self.kind.__name__}({', '.join(given)})"


def optimizer(
    kind: type[torch.optim.Optimizer],
    *,
    flatten: bool = False,
    project: Callable[[Tensor], None] | None = None,
    **arguments: Any,
) -> Optimizer:
    """Return an update rule that is a class of `torch.optim`, or of one's own like these.

    Each parameter is updated on its own, and the state travels, is kept and resumed as arrays.
    A block with such a rule trains by autograd.

    Args:
        kind: The class.
        flatten: Whether filters of convolutions become matrices, a row a filter, as Muon needs.
        project: Called with each parameter after its step, to change it in place: to scale filters
            back to a length, for instance.
        arguments: Its arguments, `lr` among them, parameters left out.

    Raises:
        SettingError: It needs a closure, or its state is more than tensors and numbers.

    Example:
        >>> optimizer(torch.optim.AdamW, lr=1e-3)
        AdamW(lr=0.001)
    """
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise SettingError(
            f"ow.optimizer takes a class of torch.optim and its arguments, such as "
            f"ow.optimizer(torch.optim.AdamW, lr=1e-3); got {kind!r}."
        )
    step = inspect.signature(kind.step).parameters.get("closure")
    if step is not None and step.default is inspect.Parameter.empty:
        raise SettingError(
            f"{kind.__name__} needs a closure, with which it would ask for the loss again in the "
            f"middle of a step; a block computes a mini-batch once. Use another optimizer."
        )
    rule = TorchOptimizer(kind, arguments, flattens=flatten, project=project)
    try:
        kind([torch.zeros(1, 1)], **arguments)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{rule} cannot be made: {error}.") from error
    return rule


def with_strides(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with the strides of another.

    Messages hold rows one after the other; a network may hold its channels last. Products may
    round by strides, and the fused rules of torch go through memory without looking at them.
    """
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def lr_scale(schedule: Schedule, epoch: int, fraction: float, epochs: int) -> float:
    """Return the factor on the learning rate.

    Args:
        schedule: A name, see `TrainingConfig.schedule`, or a function from the share of the epochs
            that is done, up to 1, to the factor.
        epoch: Epoch, from 0.
        fraction: Share of the epoch that is done, with the mini-batch to come: in (0, 1].
        epochs: Epochs of the run.

    Example:
        >>> [lr_scale("cooldown", epoch, 1.0, 4) for epoch in range(4)]
        [1.0, 1.0, 0.75, 0.25]
    """
    done = (epoch + fraction) / epochs
    if not isinstance(schedule, str):
        return float(schedule(done))
    match schedule:
        case "warmup":
            return min(1.0, done / 0.05, max(0.0, (1 - done) / 0.7) + 1e-3)
        case "cooldown":
            return min(1.0, (1 + 2 * (epochs - epoch - 1)) / epochs)
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case "one-cycle":
            # From 1/25 up to 1 over 30 %, then down to nearly 0, both along a cosine.
            if done < 0.3:
                return 1 - 0.96 * (1 + math.cos(math.pi * done / 0.3)) / 2
            return 4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
    return 1.0
