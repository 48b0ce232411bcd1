"""Closed-form steps cut by units, which several ranks can share."""

import torch
from torch import Tensor

from onward.batch import Batch
from onward.engine.kernels.closed_form import ClosedFormStep
from onward.engine.steps import Step, StepReport
from onward.engine.team import Team, in_order
from onward.network.blocks import Block
from onward.network.samplers import Views


class UnitsStep(Step):
    """Each slice is a part of the units, with their weights and optimizer state.

    Only sums over the units travel in a step: the logits of a head, or the goodness of the samples.
    The slices of all are put together at the end of a task.

    Args:
        block: A block with a closed form.
        slices: Number of slices, which must divide its units.
        team: The ranks that share the work.
    """

    def __init__(self, block: Block, slices: int, team: Team) -> None:
        super().__init__(block)
        self.step, self.team = ClosedFormStep(block), team
        units = len(self.step.weight)
        size = units // slices
        self.all = [slice(first, first + size) for first in range(0, units, size)]
        self.own = [self.all[number] for number in team.own(slices)]

    @torch.no_grad()
    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, Batch], StepReport]:
        step, objective = self.step, self.block.objective
        learned = self.learned(views)
        x = step.multiplied(learned, seed)
        every = [step.activities(x, units) for units in self.own]
        outputs = [step.split(activities, learned) for activities in every]
        partials = [
            [step.local.partial(o, units)] for o, units in zip(outputs, self.own, strict=True)
        ]
        total = in_order([partial for (partial,) in self.team.share(partials)])
        parameters = dict(objective.named_parameters())
        for name in ("module.weight", "module.bias", *(f"objective.{n}" for n in parameters)):
            if name in self.block.optimizer_state:
                self.count(name)
        active = torch.zeros(len(step.weight), dtype=torch.bool, device=x.device)
        for units, activities, own in zip(self.own, every, outputs, strict=True):
            gradient = step.local.gradient(total, own, units)
            active[units] = step.summed(activities) > 0
            derivative = step.derivative(gradient, activities)
            bias = step.layer.bias.detach()
            self._update_part("module.bias", bias[units], step.summed(derivative), units, lr_scale)
            step.update_weight(units, derivative, x, lr_scale)
            for name, found in gradient.parameters.items():
                # The columns of a head.
                if parameters[name].requires_grad:
                    head = parameters[name].detach()
                    part = head[:, units].contiguous()
                    self._update_part(f"objective.{name}", part, found, units, lr_scale)
                    head[:, units] = part
        return {}, StepReport.of(gradient.loss, len(x), gradient.metrics, active)

    def finish(self, report: StepReport) -> StepReport:
        own = [[part.contiguous() for part in self._parts(units, report)] for units in self.own]
        for units, parts in zip(self.all, self.team.share(own), strict=True):
            if units not in self.own:
                for target, part in zip(self._parts(units, report), parts, strict=True):
                    target.copy_(part)
        self.step.take_weight()
        return report

    def _parts(self, units: slice, report: StepReport) -> list[Tensor]:
        """Return all that belongs to some units, as parts of the whole."""
        columns = {f"objective.{name}" for name, _ in self.block.objective.named_parameters()}
        found = [report.active[units]]
        for name, parameter in self.block.trained():
            state = self.block.optimizer_state[name]
            for tensor in (parameter.detach(), *(state[part] for part in sorted(state))):
                if tensor.ndim:
                    found.append(tensor[:, units] if name in columns else tensor[units])
        return found

    def _update_part(
        self, name: str, parameter: Tensor, gradient: Tensor, units: slice, lr_scale: float
    ) -> None:
        """Update a part of a parameter, and that of its optimizer state."""
        state = self.block.optimizer_state[name]
        place = (slice(None), units) if parameter.ndim > 1 else units
        part = {n: t[place].contiguous() if t.ndim else t for n, t in state.items()}
        self.block.rules[name].step(parameter, gradient.contiguous(), part, lr_scale=lr_scale)
        for n, t in state.items():
            if t.ndim:
                t[place] = part[n]
