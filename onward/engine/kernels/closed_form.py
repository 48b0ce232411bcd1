"""Steps of a dense ReLU layer whose derivative is known in closed form.

Two matrix products a step (forward, and the gradient of the weights) and no graph. With bf16
products a bf16 copy of the weights is kept, and weights are updated slice by slice while a slice is
in the processor's cache. Tests hold the results against float64 autograd.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onward.batch import Batch, concatenated
from onward.engine.steps import Gradients, Step, StepReport
from onward.network.blocks import Block
from onward.network.layers import Dense, keep_mask, normalize_length
from onward.network.objectives import CrossEntropy, Metrics, Threshold, classified
from onward.network.samplers import Views

ALL = slice(None)
"""All units of a block."""

SLICE_BYTES = 2 << 20
"""Size of a gradient slice that stays in cache until the update is done."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a closed form yields for one mini-batch."""

    loss: Tensor
    """Mean loss."""

    activities: dict[str, Tensor]
    """Derivative of the loss with respect to the activities of each view."""

    parameters: dict[str, Tensor]
    """Derivative with respect to the objective's own parameters, by name."""

    metrics: Metrics
    """Figures to watch, from what was computed anyway."""


class LocalGradient(ABC):
    """The derivative of an objective, in the precision of the activities, for some of the units."""

    @abstractmethod
    def partial(self, outputs: Views, units: slice) -> Tensor:
        """Return what some units add to the figures of each sample that the loss depends on.

        Args:
            outputs: The activities of these units.
            units: Which they are.
        """

    @abstractmethod
    def gradient(self, total: Tensor, outputs: Views, units: slice) -> Gradient:
        """Return the derivatives for some units, given `partial` summed over all units."""


class OfLinearHead(LocalGradient):
    """Cross-entropy of a linear head without bias."""

    def __init__(self, objective: CrossEntropy) -> None:
        assert isinstance(objective.head, nn.Linear)
        self.head = objective.head

    def partial(self, outputs: Views, units: slice) -> Tensor:
        """Return what these units add to the logits."""
        (view,) = outputs.values()
        activities = view.tensor
        weight = self.head.weight[:, units].to(activities.dtype)
        return F.linear(activities, weight).to(self.head.weight.dtype)

    def gradient(self, total: Tensor, outputs: Views, units: slice) -> Gradient:
        ((name, view),) = outputs.items()
        activities = view.tensor
        weight = self.head.weight[:, units].to(activities.dtype)
        log_p = total.log_softmax(dim=1)
        error = log_p.exp()
        error -= F.one_hot(view.label, error.shape[1])
        error = (error / len(error)).to(activities.dtype)
        return Gradient(
            F.nll_loss(log_p, view.label),
            {name: error @ weight},
            {"head.weight": (error.T @ activities).to(self.head.weight.dtype)},
            classified(log_p, view.label),
        )


class OfThreshold(LocalGradient):
    """Goodness above a threshold for positives, below it for negatives."""

    def __init__(self, objective: Threshold) -> None:
        self.objective = objective

    def partial(self, outputs: Views, units: slice) -> Tensor:
        """Return the sum of squares of these units, the samples of all views in a row."""
        return torch.cat([self.objective.squares(view.tensor) for view in outputs.values()])

    def gradient(self, total: Tensor, outputs: Views, units: slice) -> Gradient:
        objective, num_samples = self.objective, len(total)
        each = next(iter(outputs.values())).tensor
        width = each.shape[1:].numel() if units == ALL else len(objective.peer_mean)
        parts = (total / width).split([len(view) for view in outputs.values()])
        goodness = dict(zip(outputs, parts, strict=True))
        losses, derivatives = [], {}
        for name, view in outputs.items():
            activities = view.tensor
            logit = objective.signed_logit(name, goodness[name])
            losses.append(F.softplus(-logit))
            sign = 1.0 if name == "positive" else -1.0
            factor = -sign * torch.sigmoid(-logit) * (2 * objective.slope / (width * num_samples))
            rows = factor.view(-1, *[1] * (activities.ndim - 1)).to(activities.dtype)
            derivatives[name] = activities * rows
        loss = torch.cat(losses).mean()
        return Gradient(loss, derivatives, {}, objective.separated(goodness))


def _of_cross_entropy(objective: CrossEntropy) -> LocalGradient | None:
    is_linear = type(objective.head) is nn.Linear and objective.head.bias is None
    return OfLinearHead(objective) if is_linear and not objective.label_smoothing else None


TABLE: dict[tuple[type, type], Callable[[Any], LocalGradient | None]] = {
    (Dense, CrossEntropy): _of_cross_entropy,
    (Dense, Threshold): OfThreshold,
}
"""The derivative for a kind of layer and a kind of objective. A subclass may have another forward
pass or another loss, and is not in it."""


def local_gradient(block: Block) -> LocalGradient | None:
    """Return the derivative of a block in closed form, or None where none is known."""
    layer = block.module
    found = TABLE.get((type(layer), type(block.objective)))
    if found is None or not isinstance(layer, Dense):
        return None
    is_frozen = not (layer.weight.requires_grad and layer.bias.requires_grad)
    # Weights are updated slice by slice.
    is_cut = block.clip is None and all(rule.is_elementwise for rule in block.rules.values())
    return found(block.objective) if is_cut and not is_frozen and block.prepare is None else None


def has_closed_form(block: Block) -> bool:
    """Return whether the derivative of a block is known in closed form."""
    return local_gradient(block) is not None


class ClosedFormStep(Step):
    """A dense ReLU layer with an objective whose derivative is known."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        local = local_gradient(block)
        assert local is not None
        assert isinstance(block.module, Dense)
        self.local = local
        self.layer = block.module
        self.weight = self.layer.weight.detach()
        bf16 = block.precision is torch.bfloat16
        self.dtype = torch.bfloat16 if bf16 else self.weight.dtype
        # A copy where the products are in bf16, the weights themselves where they are not.
        self.product_weight = self.weight.to(self.dtype)
        units, inputs = self.weight.shape
        slices = math.ceil(units * inputs * self.weight.element_size() / SLICE_BYTES)
        # A GPU has no such cache, and starts each of its kernels slowly.
        self.slice = math.ceil(units / slices) if self.weight.is_cpu else units
        self.gradient = self.weight.new_empty(self.slice, inputs)
        # One product is faster than one a slice, and in bf16 it takes little memory.
        self.product = torch.empty_like(self.product_weight) if bf16 else None

    @torch.no_grad()
    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, Batch], StepReport]:
        x, outputs, gradient, derivative, report = self._derived(views, seed)
        extra = self.extra_gradient(outputs)
        if extra is not None:
            derivative += extra
        self.update("module.bias", self.layer.bias, self.summed(derivative), lr_scale)
        self.count("module.weight")
        self.update_weight(slice(0, len(self.weight)), derivative, x, lr_scale)
        parameters = dict(self.block.objective.named_parameters())
        for name, own in gradient.parameters.items():
            if parameters[name].requires_grad:
                self.update(f"objective.{name}", parameters[name], own, lr_scale)
        return outputs, report

    @torch.no_grad()
    def gradients(self, views: Views, *, seed: int) -> Gradients:
        x, outputs, gradient, derivative, report = self._derived(views, seed)
        weight = torch.empty_like(self.product_weight)
        self.multiply(derivative, x, weight)
        named = {"module.weight": weight, "module.bias": self.summed(derivative)}
        for name, parameter in self.block.objective.named_parameters():
            if parameter.requires_grad and name in gradient.parameters:
                named[f"objective.{name}"] = gradient.parameters[name]
        return Gradients(outputs, named, report)

    def _derived(
        self, views: Views, seed: int
    ) -> tuple[Tensor, dict[str, Batch], Gradient, Tensor, StepReport]:
        """Return inputs, outputs, the objective's gradient, that by pre-activations, a report."""
        learned = self.learned(views)
        x = self.multiplied(learned, seed)
        activities = self.all_activities(x)
        outputs = self.split(activities, learned)
        gradient = self.local.gradient(self.local.partial(outputs, ALL), outputs, ALL)
        active = self.summed(activities) > 0
        report = StepReport.of(gradient.loss, len(x), gradient.metrics, active)
        return x, outputs, gradient, self.derivative(gradient, activities), report

    def multiplied(self, learned: Views, seed: int) -> Tensor:
        """Return what the layer multiplies with, all views joined."""
        x = concatenated([view.inputs for view in learned.values()])
        assert isinstance(x, Tensor)
        return self._dropped(self._normalized(x), seed)

    def split(self, activities: Tensor, learned: Views) -> dict[str, Batch]:
        """Return the activities of each view."""
        parts = activities.split([len(view) for view in learned.values()])
        views = zip(learned.items(), parts, strict=True)
        return {name: view.replace(inputs=part) for (name, view), part in views}

    def all_activities(self, x: Tensor) -> Tensor:
        """Return the activities of all units for the samples of a step, all views joined."""
        return self.activities(x)

    def multiply(self, derivative: Tensor, x: Tensor, out: Tensor) -> None:
        """Write the derivative by the weights of some units, from that by pre-activations."""
        torch.mm(derivative.T, x, out=out)

    def activities(self, x: Tensor, units: slice = ALL) -> Tensor:
        """Return the activities of some units."""
        bias = self.layer.bias[units].to(self.dtype)
        return F.linear(x, self.product_weight[units], bias).relu_()

    def derivative(self, gradient: Gradient, activities: Tensor) -> Tensor:
        """Return the derivative of the loss by the pre-activations."""
        derivative = concatenated(list(gradient.activities.values()))
        assert isinstance(derivative, Tensor)
        torch.ops.aten.threshold_backward.grad_input(
            derivative, activities, 0, grad_input=derivative
        )
        return derivative

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum over the samples, as a product: a sum in another type would copy first."""
        return (x.new_ones(1, len(x), dtype=self.dtype) @ x)[0].to(self.weight.dtype)

    @torch.no_grad()
    def infer(self, batch: Batch) -> Batch:
        # The weights are in the type of the products already.
        return batch.replace(inputs=self.activities(self._normalized(batch.tensor)), context={})

    def _normalized(self, x: Tensor) -> Tensor:
        return normalize_length(x.flatten(1)).to(self.dtype)

    def _dropped(self, x: Tensor, seed: int) -> Tensor:
        if not self.layer.dropout:
            return x
        draw = torch.Generator(x.device).manual_seed(seed)
        return x * keep_mask(x.shape, self.layer.dropout, generator=draw, like=x)

    def update_weight(self, units: slice, derivative: Tensor, x: Tensor, lr_scale: float) -> None:
        """Update the weights of some units from the derivative by their pre-activations."""
        rule = self.block.rules["module.weight"]
        state = self.block.optimizer_state["module.weight"]
        if self.product is not None:
            self.multiply(derivative, x, self.product[units])
        for first in range(units.start, units.stop, self.slice):
            chosen = slice(first, min(first + self.slice, units.stop))
            weight = self.weight[chosen]
            gradient = self.gradient[: len(weight)]
            if self.product is not None:
                gradient.copy_(self.product[chosen])
            else:
                columns = slice(chosen.start - units.start, chosen.stop - units.start)
                self.multiply(derivative[:, columns], x, gradient)
            part = {name: t[chosen] if t.ndim else t for name, t in state.items()}
            rule.step(weight, gradient, part, lr_scale=lr_scale)
            if self.product is not None:
                self.product_weight[chosen] = weight

    def take_weight(self) -> None:
        """Take the weights anew for products, after they were changed from outside."""
        if self.product_weight is not self.weight:
            self.product_weight.copy_(self.weight)


class SharedPassStep(ClosedFormStep):
    """The first block of positives and negatives, which differ in the label only.

    Labels are one-hot and of one strength, so that samples are as long with any of them:
    normalised, too, a positive and its negative have all inputs in common but those of the label.
    One product serves both, forward and for the derivative. Equal up to rounding.

    Args:
        block: The block.
        label_inputs: How many inputs, the first, are the label.
    """

    def __init__(self, block: Block, label_inputs: int) -> None:
        super().__init__(block)
        self.label_inputs = label_inputs
        assert not self.layer.dropout, "It would make the two samples differ."

    def all_activities(self, x: Tensor) -> Tensor:
        labels, rest = self._parts(x)
        weight = self.product_weight
        shared = F.linear(rest, weight[:, self.label_inputs :], self.layer.bias.to(self.dtype))
        activities = F.linear(labels, weight[:, : self.label_inputs])
        activities.view(2, *shared.shape).add_(shared)
        return activities.relu_()

    def multiply(self, derivative: Tensor, x: Tensor, out: Tensor) -> None:
        labels, rest = self._parts(x)
        positive, negative = derivative.chunk(2)
        torch.mm(derivative.T, labels, out=out[:, : self.label_inputs])
        torch.mm((positive + negative).T, rest, out=out[:, self.label_inputs :])

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the labels of all samples, and what positives and negatives have in common."""
        return x[:, : self.label_inputs], x[: len(x) // 2, self.label_inputs :]
