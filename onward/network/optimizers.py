"""Update rules whose state is named arrays beside the parameters.

The arithmetic is that of `torch.optim`, through its functional forms. The state is kept here, as
plain tensors with names, because it travels between machines and rests in files.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from onward.arguments import fits, said
from onward.errors import SettingError, name_of
from onward.settings import NotNegative, Share
from onward.values import kinds

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

    def placed(self, state: OptimizerState, device: torch.device) -> OptimizerState:
        """Return a state, wherever it came from, where a parameter on a device has it."""
        return {name: tensor.to(device) for name, tensor in state.items()}


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, with decoupled weight decay on matrices (AdamW)."""

    is_elementwise = True

    lr: NotNegative = 1e-3
    """Learning rate."""

    beta1: Share = 0.9
    """Decay of the mean of the gradients."""

    beta2: Share = 0.999
    """Decay of the mean of their squares."""

    eps: NotNegative = 1e-8
    """Added to the denominator."""

    weight_decay: NotNegative = 0.0
    """Share of the weights lost a step, times the learning rate; biases are spared."""

    def __post_init__(self) -> None:
        _check_numbers(self, Adam)

    def init(self, parameter: Tensor) -> OptimizerState:
        return {
            "exp_avg": _zeros_like(parameter),
            "exp_avg_sq": _zeros_like(parameter),
            # Where the parameter is: a fused rule reads it there.
            "step": torch.zeros((), device=parameter.device),
        }

    def count(self, state: OptimizerState) -> None:
        state["step"] += 1

    def step(
        self, parameter: Tensor, gradient: Tensor, state: OptimizerState, *, lr_scale: float
    ) -> None:
        # What `torch.optim.adam.adam` ends in: on the way there it counts, which a slice must not,
        # and takes as long as a small parameter does.
        own, gradient = (with_strides(t, like=state["exp_avg"]) for t in (parameter, gradient))
        torch._fused_adamw_(
            [own],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=self.lr * lr_scale,
            weight_decay=self.weight_decay if parameter.ndim > 1 else 0.0,
            eps=self.eps,
            maximize=False,
        )
        if own is not parameter:
            parameter.copy_(own)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Steps along the running mean of the gradient, with decoupled weight decay on matrices.

    Source:
        Hinton's published Matlab code: v <- momentum v + (1 - momentum) gradient, then
        W <- W - lr (v + weight_decay W). In torch's words: momentum with dampening = momentum.
    """

    is_elementwise = True

    lr: NotNegative = 0.01
    """Learning rate, for the running mean."""

    momentum: Share = 0.9
    """Decay of the running mean."""

    weight_decay: NotNegative = 0.0
    """Share of the weights lost a step, times the learning rate; biases are spared."""

    def __post_init__(self) -> None:
        _check_numbers(self, SGD)

    def init(self, parameter: Tensor) -> OptimizerState:
        return {"momentum": _zeros_like(parameter)}

    def step(
        self, parameter: Tensor, gradient: Tensor, state: OptimizerState, *, lr_scale: float
    ) -> None:
        lr = self.lr * lr_scale
        if self.weight_decay and parameter.ndim > 1:
            parameter.mul_(1 - lr * self.weight_decay)
        own, gradient = (with_strides(t, like=state["momentum"]) for t in (parameter, gradient))
        sgd(
            [own],
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
        if own is not parameter:
            parameter.copy_(own)


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
        self.counts_there = bool(arguments.get("fused") or arguments.get("capturable"))
        self.numbers: dict[str, type] = {}
        """Parts of the state that are plain numbers in torch, and their types."""
        self._layouts: dict[tuple[torch.Size, torch.dtype], OptimizerState] = {}

    def init(self, parameter: Tensor) -> OptimizerState:
        parameter = self._shaped(parameter)
        layout = self._layout(parameter.shape, parameter.dtype)
        state: OptimizerState = {BEGUN: torch.zeros(())}
        for name, part in layout.items():
            if part.ndim and part.shape == parameter.shape:
                state[name] = torch.zeros_like(parameter, dtype=part.dtype)
            else:
                device = parameter.device if part.ndim or self.counts_there else None
                state[name] = torch.zeros(part.shape, dtype=part.dtype, device=device)
        return state

    def placed(self, state: OptimizerState, device: torch.device) -> OptimizerState:
        # Single numbers stay on the processor, as torch has them: it asks for them in each step.
        is_there = {n: t.ndim > 0 or (self.counts_there and n != BEGUN) for n, t in state.items()}
        return {n: t.to(device) if is_there[n] else t for n, t in state.items()}

    def _layout(self, shape: torch.Size, dtype: torch.dtype) -> OptimizerState:
        """Return tensors like those of the state, found by steps of zeros.

        Raises:
            SettingError: The state is more than tensors and numbers, or lies elsewhere.
        """
        if (shape, dtype) in self._layouts:
            return self._layouts[shape, dtype]
        with torch.random.fork_rng(devices=[]):
            parameter, gradient = (torch.zeros(shape, dtype=dtype) for _ in range(2))
            made = self._made(parameter, {}, 1.0)
            before = _beside_state(made)
            # Some keep in a second step what they do not in a first.
            self._let_step(made, gradient)
            self._let_step(made, gradient)
        changed = sorted(n for n, text in _beside_state(made).items() if before.get(n) != text)
        if changed:
            raise SettingError(
                f"{self.kind.__name__} changes its {changed[0]} in a step, beside the state of a "
                f"parameter. Only that state travels and is kept. Use another optimizer."
            )
        found = self._layouts[shape, dtype] = {}
        for name, part in made.state[made.param_groups[0]["params"][0]].items():
            if isinstance(part, bool | int | float):
                self.numbers[name] = type(part)
                found[name] = torch.zeros((), dtype=torch.float64)
            elif isinstance(part, Tensor):
                found[name] = part.to("meta") if part.ndim else torch.zeros((), dtype=part.dtype)
            elif part is not None:
                raise SettingError(
                    f"{self.kind.__name__} keeps {name}, a {type(part).__name__}, for each "
                    f"parameter. Its state travels and rests as arrays: only tensors and numbers "
                    f"can be kept. Use another optimizer."
                )
        return found

    def step(
        self, parameter: Tensor, gradient: Tensor, state: OptimizerState, *, lr_scale: float
    ) -> None:
        has_begun = bool(state[BEGUN])
        known = {n: self._as_kept(n, t) for n, t in state.items() if n != BEGUN and has_begun}
        made = self._made(self._shaped(parameter), known, lr_scale)
        stepped = self._let_step(made, self._shaped(gradient))
        if stepped.data_ptr() != parameter.data_ptr():
            # Channels that lie last cannot be flattened in place, and a rule may set `data` anew.
            parameter.copy_(stepped.view(parameter.shape))
        for name, part in made.state[stepped].items():
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

    def _made(
        self, parameter: Tensor, state: dict[str, Any], lr_scale: float
    ) -> torch.optim.Optimizer:
        """Return torch's optimizer of a parameter; it makes its own first state where none is."""
        parameter = parameter.detach()
        try:
            made = self.kind([parameter], **self.arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._unsuited(parameter, error) from error
        if state:
            made.state[parameter] = state
        for group in made.param_groups:
            group["lr"] = group["lr"] * lr_scale
        return made

    def _let_step(self, made: torch.optim.Optimizer, gradient: Tensor) -> Tensor:
        """Let torch do a step, and return the parameter."""
        parameter: Tensor = made.param_groups[0]["params"][0]
        parameter.grad = gradient
        try:
            made.step()
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
            raise self._unsuited(parameter, error) from error
        finally:
            parameter.grad = None
        return parameter

    def _unsuited(self, parameter: Tensor, error: Exception) -> SettingError:
        return SettingError(
            f"{self.kind.__name__} cannot train a parameter of shape {tuple(parameter.shape)}: "
            f"{error}. Give a block several optimizers by name where it does not suit all "
            f"parameters, or use another."
        )

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.arguments.items()]
        given += ["flatten=True"] * self.flattens
        given += [f"project={name_of(self.project)}"] if self.project is not None else []
        return f"{self.kind.__name__}({', '.join(given)})"


def _beside_state(made: torch.optim.Optimizer) -> dict[str, str]:
    """Return what an optimizer holds beside parameters and their state, as text."""
    groups = [{n: v for n, v in group.items() if n != "params"} for group in made.param_groups]
    own = {n: v for n, v in vars(made).items() if n[0] != "_" and n not in ("state", "defaults")}
    return {name: repr(value) for name, value in (own | {"param_groups": groups}).items()}


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
            back to a length, for instance. A run that goes on compares its name, not its body.
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


def _check_numbers(rule: Optimizer, owner: type) -> None:
    """Refuse numbers that a rule cannot be meant to have.

    Raises:
        SettingError: There is one.
    """
    for name, kind in kinds(owner).items():
        value, (_, allowed) = getattr(rule, name), get_args(kind)
        if not fits(value, kind) or not allowed.holds(value):
            raise SettingError(
                f"ow.{owner.__name__}: {name} must be a number {allowed}; got {said(value)}."
            )


def _zeros_like(parameter: Tensor) -> Tensor:
    is_plain = parameter.is_contiguous() or 0 in parameter.stride()
    if parameter.is_meta and is_plain:
        # The same, for which torch does not import sympy, a third of a second.
        return parameter.new_zeros(parameter.shape)
    return torch.zeros_like(parameter)


def with_strides(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with the strides of another.

    Messages hold samples one after the other; a network may hold its channels last, or a part of a
    larger tensor. Products may round by strides, and the fused rules of torch go through memory
    without looking at them.
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
        case "constant":
            return 1.0
        case "cosine":
            return 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * done)) / 2
        case "one-cycle":
            # From 1/25 up to 1 over 30 %, then down to nearly 0, both along a cosine.
            if done < 0.3:
                return 1 - 0.96 * (1 + math.cos(math.pi * done / 0.3)) / 2
            return 4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
    raise SettingError(
        f"There is no schedule {schedule!r}. There are constant, warmup, cosine, one-cycle and "
        f"cooldown, and any function of the share that is done."
    )
