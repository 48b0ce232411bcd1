"""One training step of a block, by autograd or in closed form.

Both do the same arithmetic: forward, derivative of the local objective, update. The closed form
knows the derivative of a dense ReLU layer and so needs two matrix products a step (forward, and
the gradient of the weights) and no graph; with bf16 products it keeps a bf16 copy of the weights,
and it updates them slice by slice while a slice of the gradient is in the processor's cache.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onward.blocks import Block, StepReport
from onward.layers import Dense, keep_mask, normalize_length
from onward.objectives import ALL, CrossEntropy, Gradient, Metrics, Threshold
from onward.optimizers import laid_out
from onward.views import View, Views

SLICE_BYTES = 2 << 20
"""Size of a gradient slice that stays in cache between the product and the update."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a batch says about a block, before any update."""

    outputs: dict[str, View]
    """The block's outputs, detached."""

    named: dict[str, Tensor]
    """Derivative of the mean loss by each parameter that learns, by name."""

    report: StepReport
    """What is told of the batch."""

    def content(self) -> list[Tensor]:
        """Return what others need of it: sums, units that were active, derivatives."""
        return [self.report.sums, self.report.active.byte(), *self.named.values()]

    @property
    def num_bytes(self) -> int:
        """Bytes of the content."""
        return sum(tensor.nbytes for tensor in self.content())


class Step(ABC):
    """Trains one block, batch by batch."""

    def __init__(self, block: Block) -> None:
        self.block = block
        block.begin()

    @abstractmethod
    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, View], StepReport]:
        """Learn from one batch.

        Args:
            views: The views of the batch; those the objective does not learn from are left out.
            seed: Decides dropout and whatever else the block draws in this step.
            lr_scale: Factor on the learning rate.

        Returns:
            The block's outputs before the update, detached, and what the step told.
        """

    def gradients(self, views: Views, *, seed: int) -> Gradients:
        """Return what a batch says, and leave the block as it is."""
        raise NotImplementedError

    def finish(self, told: StepReport) -> StepReport:
        """Make the block whole at the end of a task, and return what was told of all of it."""
        return told

    def infer(self, x: Tensor) -> Tensor:
        """Pass rows through the block as it now is, without training it."""
        return self.block.infer(x)

    def _learned(self, views: Views) -> tuple[Tensor | tuple[Tensor, ...], list[int]]:
        """Return the inputs the objective learns from, joined, and the rows of each view."""
        chosen = [views[name] for name in self.block.objective.views]
        rows = [len(view.labels) for view in chosen]
        if isinstance(chosen[0].x, tuple):
            (view,) = chosen
            return view.x, rows
        return joined([v.x for v in chosen if isinstance(v.x, Tensor)]), rows

    def _nudge(self, outputs: Views) -> Tensor | None:
        """Return the objective's nudges for all rows, joined, or None where it has none."""
        nudges = self.block.objective.nudge(outputs)
        if not nudges:
            return None
        zeros = {n: torch.zeros_like(v.x) for n, v in outputs.items() if isinstance(v.x, Tensor)}
        return torch.cat([nudges.get(name, zeros[name]) for name in outputs])

    def _update(self, name: str, parameter: Tensor, gradient: Tensor, lr_scale: float) -> None:
        self._count(name)
        moments, optimizer = self.block.moments[name], self.block.optimizer
        gradient = laid_out(gradient, like=parameter)
        optimizer.step(parameter.detach(), gradient, moments, lr_scale=lr_scale)

    def _count(self, name: str) -> None:
        self.block.optimizer.count(self.block.moments[name])

    def _outputs(self, activities: Tensor, views: Views, rows: list[int]) -> dict[str, View]:
        names = self.block.objective.views
        parts = activities.split(rows)
        return {n: View(part, views[n].labels) for n, part in zip(names, parts, strict=True)}


def make_step(block: Block, *, closed_form: bool, label_inputs: int = 0) -> Step:
    """Return the way to train a block: in closed form where wished and known, else by autograd.

    Args:
        block: What is trained.
        closed_form: Whether it is wished.
        label_inputs: How many inputs, the first, views differ in, where that is to be made use of.
    """
    if not (closed_form and has_closed_form(block)):
        return AutogradStep(block)
    return SharedPassStep(block, label_inputs) if label_inputs else ClosedFormStep(block)


def has_closed_form(block: Block) -> bool:
    """Return whether the derivative of a block is known in closed form."""
    layer, objective = block.module, block.objective
    # A subclass may have another forward pass or another loss.
    if type(layer) is not Dense or not (layer.weight.requires_grad and layer.bias.requires_grad):
        return False
    if type(objective) is CrossEntropy:
        return type(objective.head) is nn.Linear and objective.head.bias is None
    return type(objective) is Threshold


class AutogradStep(Step):
    """Any block, by automatic differentiation of its loss: the reference."""

    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, View], StepReport]:
        found = self.gradients(views, seed=seed)
        trained = dict(self.block.trained())
        for name, gradient in found.named.items():
            self._update(name, trained[name], gradient, lr_scale)
        return found.outputs, found.report

    @torch.enable_grad()
    def gradients(self, views: Views, *, seed: int) -> Gradients:
        block = self.block
        torch.manual_seed(seed)
        block.train()
        x, rows = self._learned(views)
        with block.autocast():
            if type(block.module) is Dense:
                assert isinstance(x, Tensor)
                nudged = block.module.pre_activations(x)
                activities = nudged.relu()
            else:
                nudged = activities = block(x)
            loss = block.objective.loss(self._outputs(activities, views, rows))
        outputs = self._outputs(activities.detach(), views, rows)
        block.objective.eval()
        with torch.no_grad(), block.autocast():
            metrics = block.objective.metrics(outputs)
            nudge = self._nudge(outputs)
        total = loss if nudge is None else loss + (nudged * nudge).sum()
        trained = dict(block.trained())
        gradients: dict[str, Tensor] = {}
        if trained:
            found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
            gradients = {n: g for n, g in zip(trained, found, strict=True) if g is not None}
        # A unit is a column, or a channel of an image.
        others = [axis for axis in range(activities.ndim) if axis != 1]
        active = activities.detach().amax(dim=others) > 0
        return Gradients(outputs, gradients, report(sum(rows), loss.detach(), metrics, active))


class ClosedFormStep(Step):
    """A dense ReLU layer with a threshold or a linear head."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        assert isinstance(block.module, Dense)
        self.layer = block.module
        self.weight = self.layer.weight.detach()
        bf16 = block.precision is torch.bfloat16
        self.dtype = torch.bfloat16 if bf16 else self.weight.dtype
        # A copy where the products are in bf16, the weights themselves where they are not.
        self.product_weight = self.weight.to(self.dtype)
        units, inputs = self.weight.shape
        slices = math.ceil(units * inputs * self.weight.element_size() / SLICE_BYTES)
        self.slice = math.ceil(units / slices)
        self.gradient = torch.empty(self.slice, inputs, dtype=self.weight.dtype)
        self.product = torch.empty(self.slice, inputs, dtype=self.dtype) if bf16 else self.gradient

    @torch.no_grad()
    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, View], StepReport]:
        x, outputs, gradient, derivative, told = self._derived(views, seed)
        nudge = self._nudge(outputs)
        if nudge is not None:
            derivative += nudge
        self._update("module.bias", self.layer.bias, self.summed(derivative), lr_scale)
        self._count("module.weight")
        self.update_weight(slice(0, len(self.weight)), derivative, x, lr_scale)
        parameters = dict(self.block.objective.named_parameters())
        for name, own in gradient.parameters.items():
            if parameters[name].requires_grad:
                self._update(f"objective.{name}", parameters[name], own, lr_scale)
        return outputs, told

    @torch.no_grad()
    def gradients(self, views: Views, *, seed: int) -> Gradients:
        x, outputs, gradient, derivative, told = self._derived(views, seed)
        weight = self.product.new_empty(self.weight.shape)
        self.multiply(derivative, x, weight)
        named = {"module.weight": weight, "module.bias": self.summed(derivative)}
        for name, parameter in self.block.objective.named_parameters():
            if parameter.requires_grad and name in gradient.parameters:
                named[f"objective.{name}"] = gradient.parameters[name]
        return Gradients(outputs, named, told)

    def _derived(
        self, views: Views, seed: int
    ) -> tuple[Tensor, dict[str, View], Gradient, Tensor, StepReport]:
        """Return inputs, outputs, the objective's gradient, that by pre-activations, a report."""
        x, rows = self.inputs(views, seed)
        activities = self.passed(x)
        outputs = self._outputs(activities, views, rows)
        gradient = self.block.objective.gradient(outputs)
        active = self.summed(activities) > 0
        told = report(sum(rows), gradient.loss, gradient.metrics, active)
        return x, outputs, gradient, self.derivative(gradient, activities), told

    def inputs(self, views: Views, seed: int) -> tuple[Tensor, list[int]]:
        """Return what the layer multiplies with, and the rows of each view in it."""
        x, rows = self._learned(views)
        assert isinstance(x, Tensor)
        return self._dropped(self._normalized(x), seed), rows

    def passed(self, x: Tensor) -> Tensor:
        """Return the activities of all units for the rows of a step, all views joined."""
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
        derivative = joined([gradient.activities[n] for n in self.block.objective.views])
        torch.ops.aten.threshold_backward.grad_input(
            derivative, activities, 0, grad_input=derivative
        )
        return derivative

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum over the rows, as a product: a sum in another type would copy first."""
        return (torch.ones(1, len(x), dtype=self.dtype) @ x)[0].to(self.weight.dtype)

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        # The weights are in the type of the products already.
        return self.activities(self._normalized(x))

    def _normalized(self, x: Tensor) -> Tensor:
        return normalize_length(x.flatten(1)).to(self.dtype)

    def _dropped(self, x: Tensor, seed: int) -> Tensor:
        if not self.layer.dropout:
            return x
        draw = torch.Generator().manual_seed(seed)
        return x * keep_mask(x.shape, self.layer.dropout, generator=draw, dtype=self.dtype)

    def update_weight(self, units: slice, derivative: Tensor, x: Tensor, lr_scale: float) -> None:
        """Update the weights of some units from the derivative by their pre-activations."""
        moments = self.block.moments["module.weight"]
        for first in range(units.start, units.stop, self.slice):
            chosen = slice(first, min(first + self.slice, units.stop))
            weight = self.weight[chosen]
            product, gradient = self.product[: len(weight)], self.gradient[: len(weight)]
            columns = slice(chosen.start - units.start, chosen.stop - units.start)
            self.multiply(derivative[:, columns], x, product)
            if product.dtype != gradient.dtype:
                gradient.copy_(product)
            part = {name: t[chosen] if t.ndim else t for name, t in moments.items()}
            self.block.optimizer.step(weight, gradient, part, lr_scale=lr_scale)
            if product.dtype != gradient.dtype:
                self.product_weight[chosen] = weight

    def take_weight(self) -> None:
        """Take the weights anew for products, after they were changed from outside."""
        if self.product_weight is not self.weight:
            self.product_weight.copy_(self.weight)


class SharedPassStep(ClosedFormStep):
    """The first block of positives and negatives, which differ in the label only.

    Labels are one-hot and of one strength, so that rows are as long with any of them: normalised,
    too, a positive and its negative have all inputs in common but those of the label. One product
    serves both, forward and for the derivative. Equal up to rounding.

    Args:
        block: The block.
        label_inputs: How many inputs, the first, are the label.
    """

    def __init__(self, block: Block, label_inputs: int) -> None:
        super().__init__(block)
        self.label_inputs = label_inputs
        assert not self.layer.dropout, "It would make the two rows differ."

    def passed(self, x: Tensor) -> Tensor:
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
        """Return the labels of all rows, and what positives and negatives have in common."""
        return x[:, : self.label_inputs], x[: len(x) // 2, self.label_inputs :]


def joined(parts: list[Tensor]) -> Tensor:
    """Return tensors one below the other, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def report(rows: int, loss: Tensor, metrics: Metrics, active: Tensor) -> StepReport:
    """Return what is told of a batch, its means over so many rows."""
    sums = torch.stack([loss, metrics.accuracy, metrics.goodness_gap]).double()
    return StepReport(rows, sums * rows, active)
