"""Training steps in slices, which several ranks can share.

A plan cuts every mini-batch of a block into slices: of its rows, or of the block's units. What the
slices yield is summed in their order, so that the weights are the same whether one rank works on
all of them or each of several on its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from onward.blocks import Block, StepReport
from onward.config import Cut
from onward.errors import SettingError
from onward.layers import Dense
from onward.objectives import Objective, Threshold
from onward.steps import ClosedFormStep, Step, has_closed_form, make_step, report
from onward.team import Team
from onward.views import View, Views


def make_sliced_step(
    block: Block, *, closed_form: bool, slices: int, cut: Cut, team: Team, label_inputs: int = 0
) -> Step:
    """Return the way to train a block in slices.

    Args:
        block: What is trained.
        closed_form: Whether closed forms are used where there are some.
        slices: Number of slices; 1 for the usual step.
        cut: What is cut.
        team: The ranks that share the work.
        label_inputs: See `make_step`.

    Raises:
        SettingError: The block cannot be cut so.
    """
    check_cut(block, closed_form=closed_form, slices=slices, cut=cut)
    # A head that reads several blocks is small: where units are cut, every rank trains all of it.
    if slices == 1 or (cut == "units" and block.reads is not None):
        return make_step(block, closed_form=closed_form, label_inputs=label_inputs)
    if cut == "rows":
        return RowsStep(make_step(block, closed_form=closed_form), slices, team)
    return UnitsStep(block, slices, team)


def check_cut(block: Block, *, closed_form: bool, slices: int, cut: Cut) -> None:
    """Refuse a block that cannot be cut, see `make_sliced_step`.

    Raises:
        SettingError: It cannot; the message says why.
    """
    if slices == 1:
        return
    objective = block.objective
    has_nudge = type(objective).nudge is not Objective.nudge
    if has_nudge and not (type(objective) is Threshold and not objective.peer):
        raise SettingError(
            "Peer normalisation looks at all rows and units of a mini-batch: plan.slices must be "
            "1 with it, or network.peer 0."
        )
    if any(isinstance(module, _BatchNorm) for module in block.modules()):
        raise SettingError(
            "Batch normalisation looks at all rows of a mini-batch: plan.slices must be 1 with it."
        )
    if cut == "rows" or block.reads is not None:
        return
    if not (closed_form and has_closed_form(block)):
        raise SettingError(
            'plan.cut = "units" needs dense blocks and training.gradients = "closed-form". Use '
            'plan.cut = "rows".'
        )
    assert isinstance(block.module, Dense)
    units = len(block.module.weight)
    if units % slices:
        raise SettingError(
            f"A block has {units} units, which cannot be cut into {slices} equal slices. Set "
            f"network.widths to multiples of plan.slices."
        )


class RowsStep(Step):
    """Each slice is a part of the rows; the gradients of all are summed before the update.

    Args:
        step: How a slice is differentiated.
        slices: Number of slices.
        team: The ranks that share the work.
    """

    def __init__(self, step: Step, slices: int, team: Team) -> None:
        super().__init__(step.block)
        self.step, self.slices, self.team = step, slices, team

    @torch.no_grad()
    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, View], StepReport]:
        (rows,) = {len(view.labels) for view in views.values()}
        parts = torch.arange(rows).tensor_split(self.slices)
        own, names = [], []
        for number in self.team.own(self.slices):
            chosen = {name: view.rows(parts[number]) for name, view in views.items()}
            found = self.step.gradients(chosen, seed=seed + number)
            names = list(found.named)
            own.append(found.content())
        every = self.team.share(own)
        self.follow(every, names, [len(part) / rows for part in parts], lr_scale)
        told = StepReport(
            sum(len(views[name].labels) for name in self.block.objective.views),
            _sum([sums for sums, *_ in every]),
            torch.stack([active for _, active, *_ in every]).amax(dim=0).bool(),
        )
        return {}, told

    def follow(
        self,
        every: Sequence[Sequence[Tensor]],
        names: Sequence[str],
        shares: Sequence[float],
        lr_scale: float,
    ) -> None:
        """Update the block from the gradients of all slices.

        Args:
            every: For each slice its content, see `Gradients.content`.
            names: Parameters whose gradients the contents hold.
            shares: Share of each slice in the rows.
            lr_scale: Factor on the learning rate.
        """
        trained = dict(self.block.trained())
        for place, name in enumerate(names):
            total = _weighted([gradients[place] for _, _, *gradients in every], shares)
            self._update(name, trained[name], total, lr_scale)
        if isinstance(self.step, ClosedFormStep):
            self.step.take_weight()


class UnitsStep(Step):
    """Each slice is a part of the units, with their weights and moments.

    Only sums over the units travel in a step: the logits of a head, or the goodness of the rows.
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
    ) -> tuple[dict[str, View], StepReport]:
        step, objective = self.step, self.block.objective
        x, rows = step.inputs(views, seed)
        every = [step.activities(x, units) for units in self.own]
        outputs = [self._outputs(activities, views, rows) for activities in every]
        partials = [
            [objective.partial(o, units)] for o, units in zip(outputs, self.own, strict=True)
        ]
        total = _sum([partial for (partial,) in self.team.share(partials)])
        parameters = dict(objective.named_parameters())
        for name in ("module.weight", "module.bias", *(f"objective.{n}" for n in parameters)):
            if name in self.block.moments:
                self._count(name)
        active = torch.zeros(len(step.weight), dtype=torch.bool)
        for units, activities, own in zip(self.own, every, outputs, strict=True):
            gradient = objective.gradient_from(total, own, units)
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
        return {}, report(sum(rows), gradient.loss, gradient.metrics, active)

    def finish(self, told: StepReport) -> StepReport:
        own = [[part.contiguous() for part in self._parts(units, told)] for units in self.own]
        for units, parts in zip(self.all, self.team.share(own), strict=True):
            if units not in self.own:
                for target, part in zip(self._parts(units, told), parts, strict=True):
                    target.copy_(part)
        self.step.take_weight()
        return told

    def _parts(self, units: slice, told: StepReport) -> list[Tensor]:
        """Return all that belongs to some units, as parts of the whole."""
        columns = {f"objective.{name}" for name, _ in self.block.objective.named_parameters()}
        found = [told.active[units]]
        for name, parameter in self.block.trained():
            moments = self.block.moments[name]
            for tensor in (parameter.detach(), *(moments[part] for part in sorted(moments))):
                if tensor.ndim:
                    found.append(tensor[:, units] if name in columns else tensor[units])
        return found

    def _update_part(
        self, name: str, parameter: Tensor, gradient: Tensor, units: slice, lr_scale: float
    ) -> None:
        """Update a part of a parameter, and that of its moments."""
        moments = self.block.moments[name]
        place = (slice(None), units) if parameter.ndim > 1 else units
        part = {n: t[place].contiguous() if t.ndim else t for n, t in moments.items()}
        self.block.optimizer.step(parameter, gradient.contiguous(), part, lr_scale=lr_scale)
        for n, t in moments.items():
            if t.ndim:
                t[place] = part[n]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Add tensors in their order: what rounding depends on."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _weighted(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted sum of tensors, added in their order, in float32 at least."""
    full = torch.promote_types(parts[0].dtype, torch.float32)
    total = parts[0].to(full, copy=True).mul_(shares[0])
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total.add_(part, alpha=share)
    return total
