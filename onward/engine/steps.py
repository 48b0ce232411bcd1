"""One training step of a block, by automatic differentiation: the reference for all faster ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from onward.batch import Batch, Tensors, concatenated, mapped, parts
from onward.errors import SettingError
from onward.network.blocks import Block, is_inside
from onward.network.objectives import Metrics, Objective
from onward.network.optimizers import with_strides
from onward.network.samplers import Views
from onward.seeds import seed_global_generators

CLIP_EPSILON = 1e-6
"""Added to the length of a gradient before it is clipped, as torch does."""


class StepReport:
    """What one step, or several added up, says of a block.

    Args:
        sums: For the loss, then for each metric of the objective: a sum, and the samples in it.
        active: Units that were active in at least one sample; or what finds them, once asked.
    """

    def __init__(self, sums: Tensor, active: Tensor | Callable[[], Tensor]) -> None:
        self.sums = sums
        self._active = active
        self.steps = 1
        self.all_are_active = False
        self.losses: list[tuple[tuple[int, int], Tensor]] = []
        """Where mini-batches stand, and their losses, that were not looked at yet."""

    @staticmethod
    def of(
        loss: Tensor, samples: int, metrics: Metrics, active: Tensor | Callable[[], Tensor]
    ) -> "StepReport":
        """Return the report of a step, from its mean loss over so many samples."""
        sums = [loss.detach() * samples, loss.new_full((), samples)]
        for total, number in metrics.values():
            sums += [total, loss.new_full((), number)]
        # A GPU of Apple's knows no float64.
        dtype = torch.float32 if loss.device.type == "mps" else torch.float64
        return StepReport(torch.stack([figure.to(dtype) for figure in sums]), active)

    @staticmethod
    def of_nothing(objective: Objective) -> "StepReport":
        """Return the report of a block that has learned from no sample: its means are NaN."""
        figures = 1 + len(objective.metric_names)
        return StepReport(torch.zeros(2 * figures, dtype=torch.float64), torch.zeros(0) > 0)

    @property
    def active(self) -> Tensor:
        """Units that were active in at least one sample."""
        if not isinstance(self._active, Tensor):
            self._active = self._active()
        return self._active

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.sums[0] / self.sums[1])

    def means(self) -> list[float]:
        """Return the means: of the loss, then of each metric."""
        means: list[float] = (self.sums[0::2] / self.sums[1::2]).tolist()
        return means

    def added_to(self, total: "StepReport | None") -> "StepReport":
        """Return the sum of several reports with this one added, in place; itself as the first.

        Which units were active is not looked for once all have been, which is asked after 1, 2, 4,
        8 and so on, for asking waits for the device.
        """
        if total is None:
            total = StepReport(self.sums, self.active)
            total.losses = self.losses
        else:
            total.sums += self.sums
            total.losses += self.losses
            total.steps += 1
            if not total.all_are_active:
                total.active.logical_or_(self.active)
        if total.steps.bit_count() == 1 and not total.all_are_active:
            total.all_are_active = bool(total.active.all())
        return total


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a batch says of a block, before any update."""

    outputs: dict[str, Batch]
    """The block's outputs, detached, by view."""

    named: dict[str, Tensor]
    """Derivative of the loss with respect to each parameter that learns, by name."""

    report: StepReport
    """Figures of the batch."""

    def content(self) -> list[Tensor]:
        """Return what others need of it: sums, units that were active, derivatives."""
        return [self.report.sums, self.report.active.byte(), *self.named.values()]

    @property
    def num_bytes(self) -> int:
        """Bytes of the content."""
        return sum(tensor.nbytes for tensor in self.content())


class Step(ABC):
    """Trains one block, mini-batch by mini-batch."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.trained = dict(block.trained())
        block.init_optimizer()

    @abstractmethod
    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, Batch], StepReport]:
        """Learn from one mini-batch.

        Args:
            views: What the block reads, prepared, by view; those the objective does not learn from
                are left out.
            seed: Decides dropout and whatever else is drawn in this step.
            lr_scale: Factor on the learning rate.

        Returns:
            The block's outputs before the update, detached, and the figures of the step.
        """

    def gradients(self, views: Views, *, seed: int) -> Gradients:
        """Return what a mini-batch says, and leave the block as it is."""
        raise NotImplementedError

    def finish(self, report: StepReport) -> StepReport:
        """Put the block together at the end of a task, and return the report of all of it."""
        return report

    def take_weight(self) -> None:  # noqa: B027 (most steps have no copy)
        """Take the weights anew, after they were changed from outside; for steps with a copy."""

    def infer(self, batch: Batch) -> Batch:
        """Pass samples through the block as it now is, without training it."""
        return self.block.infer(batch)

    def learned(self, views: Views) -> dict[str, Batch]:
        """Return the views that the objective learns from."""
        names = self.block.objective.views
        return dict(views) if names is None else {name: views[name] for name in names}

    def extra_gradient(self, outputs: Views) -> Tensor | None:
        """Return what the objective adds to derivatives, all views joined; None for nothing."""
        if not self.block.objective.has_extra_gradient:
            return None
        extra = self.block.objective.extra_gradient(outputs)
        zeros = {name: torch.zeros_like(view.tensor) for name, view in outputs.items()}
        return torch.cat([extra.get(name, zeros[name]) for name in outputs])

    def update(self, name: str, parameter: Tensor, gradient: Tensor, lr_scale: float) -> None:
        """Let a parameter follow its gradient."""
        self.count(name)
        state, rule = self.block.optimizer_state[name], self.block.rules[name]
        gradient = with_strides(gradient, like=parameter)
        rule.step(parameter.detach(), gradient, state, lr_scale=lr_scale)

    def count(self, name: str) -> None:
        """Count a step of a parameter."""
        self.block.rules[name].count(self.block.optimizer_state[name])


class AutogradStep(Step):
    """Any block, by automatic differentiation of its loss."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self.known: set[tuple[str, ...]] = set()

    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, Batch], StepReport]:
        found = self.gradients(views, seed=seed)
        gradients = found.named
        if self.block.clip is not None and gradients:
            length = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients.values()]))
            scale = (self.block.clip / (length + CLIP_EPSILON)).clamp(max=1)
            gradients = {name: gradient * scale for name, gradient in gradients.items()}
        for name, gradient in gradients.items():
            self.update(name, self.trained[name], gradient, lr_scale)
        return found.outputs, found.report

    @torch.enable_grad()
    def gradients(self, views: Views, *, seed: int) -> Gradients:
        block, objective = self.block, self.block.objective
        # Modules such as Dropout know the global generators only.
        seed_global_generators(seed, block.device)
        draw = torch.Generator(block.device).manual_seed(seed)
        block.train()
        inputs = self.learned(views)
        with block.autocast():
            outputs, pre_activations = self._forward(inputs)
            losses = objective.loss(inputs, outputs, draw)
        for loss in losses.values() if isinstance(losses, dict) else [losses]:
            if not isinstance(loss, Tensor) or loss.ndim:
                text = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
                raise SettingError(
                    f"The loss of {type(objective).__name__} is {text}; it must be a tensor "
                    f"without axes, such as a mean, or a dict of such by name."
                )
            if not loss.requires_grad and self.trained:
                raise SettingError(
                    f"The loss of {type(objective).__name__} does not depend on the parameters of "
                    f"its block: nothing could be learned. Was it detached?"
                )
        detached = {
            name: view.replace(inputs=mapped(torch.Tensor.detach, view.inputs))
            for name, view in outputs.items()
        }
        objective.eval()
        with torch.no_grad(), block.autocast():
            metrics = objective.metrics(detached)
            extra = self.extra_gradient(detached)
        if tuple(metrics) != tuple(objective.metric_names):
            raise SettingError(
                f"{type(objective).__name__}.metrics returns {', '.join(metrics) or 'nothing'}, "
                f"and its metric_names are {', '.join(objective.metric_names) or 'none'}. Both "
                f"must be the same names, in the same order."
            )
        if extra is not None:
            assert isinstance(losses, Tensor), "An extra gradient goes with one loss."
            named = self._derivatives(losses + (pre_activations * extra).sum(), ("",))
            loss = losses.detach()
        elif isinstance(losses, Tensor):
            named, loss = self._derivatives(losses, ("",)), losses.detach()
        else:
            named = {}
            for name, part in losses.items():
                own = self._derivatives(part, self._group(name))
                both = sorted(named.keys() & own.keys())
                if both:
                    raise SettingError(
                        f"Several losses of {type(objective).__name__} train {both[0]}. Each "
                        f"trains parameters of its own: name them in `group`."
                    )
                named |= own
            loss = torch.stack([part.detach() for part in losses.values()]).sum()
        samples = sum(view.num_counted for view in inputs.values())
        report = StepReport.of(loss, samples, metrics, partial(active_units, detached, objective))
        return Gradients(detached, named, report)

    def _group(self, loss: str) -> tuple[str, ...]:
        """Return what a loss trains; its names are looked at once."""
        group = tuple(self.block.objective.group(loss))
        if group not in self.known:
            known = {"", *(name for name, _ in self.block.named_modules())}
            known |= {name for name, _ in self.block.named_parameters()}
            unknown = [name for name in group if name not in known]
            if unknown:
                raise SettingError(
                    f"{type(self.block.objective).__name__}.group says that the loss {loss} trains "
                    f"{unknown[0]}, which is no part of the block. It has module, objective, and "
                    f"in them {', '.join(name for name, _ in self.block.named_parameters())}."
                )
            self.known.add(group)
        return group

    def _forward(self, inputs: Views) -> tuple[dict[str, Batch], Tensor]:
        """Return the outputs of each view, and what an extra gradient is added to, all joined."""
        if any(view.structure for view in inputs.values()):
            each = {name: self._passed(view) for name, view in inputs.items()}
            outputs = {name: view.replace(inputs=each[name][0]) for name, view in inputs.items()}
            return outputs, torch.cat([before for _, before in each.values()])
        whole = Batch(concatenated([view.inputs for view in inputs.values()]))
        found, pre_activations = self._passed(whole)
        if len(inputs) == 1:
            return {n: v.replace(inputs=found) for n, v in inputs.items()}, pre_activations
        sizes = [len(view) for view in inputs.values()]
        pieces = [part.split(sizes) for part in parts(found)]
        outputs = {}
        for place, (name, view) in enumerate(inputs.items()):
            own = [piece[place] for piece in pieces]
            tensors = own[0] if isinstance(found, Tensor) else dict(zip(found, own, strict=True))
            outputs[name] = view.replace(inputs=tensors)
        return outputs, pre_activations

    def _passed(self, batch: Batch) -> tuple[Tensors, Tensor]:
        """Return what the block puts out, and what an extra gradient is added to."""
        module = self.block.module
        if self.block.objective.has_extra_gradient and _shows_pre_activations(module):
            pre_activations: Tensor = module.pre_activations(batch.inputs)  # type: ignore[operator]
            if hasattr(module, "from_pre_activations"):
                found = module.from_pre_activations(batch.inputs, pre_activations)  # type: ignore[operator]
                return found, pre_activations
            return pre_activations.relu(), pre_activations
        found = self.block(batch)
        return found, parts(found)[0]

    def _derivatives(self, loss: Tensor, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the derivatives with respect to the parameters whose names begin so."""
        chosen = {n: p for n, p in self.trained.items() if is_inside(n, prefixes)}
        if not chosen:
            return {}
        found = torch.autograd.grad(
            loss, list(chosen.values()), allow_unused=True, retain_graph=prefixes != ("",)
        )
        return {n: g for n, g in zip(chosen, found, strict=True) if g is not None}


class FrozenStep(Step):
    """A frozen block: samples pass through it, and nothing is learned."""

    def __call__(
        self, views: Views, *, seed: int, lr_scale: float
    ) -> tuple[dict[str, Batch], StepReport]:
        found = self.gradients(views, seed=seed)
        return found.outputs, found.report

    @torch.no_grad()
    def gradients(self, views: Views, *, seed: int) -> Gradients:
        self.block.eval()
        with self.block.autocast():
            outputs = {name: view.replace(inputs=self.block(view)) for name, view in views.items()}
        return Gradients(outputs, {}, StepReport.of_nothing(self.block.objective))

    def learned(self, views: Views) -> dict[str, Batch]:
        return dict(views)


def _shows_pre_activations(module: nn.Module) -> bool:
    """Return whether a module puts out the ReLU of its `pre_activations`, or what it makes of them.

    A subclass with another forward pass, and no such method of its own, does not.
    """
    forward = next(owner for owner in type(module).__mro__ if "forward" in vars(owner))
    return "pre_activations" in vars(forward)


def active_units(outputs: Views, objective: Objective) -> Tensor:
    """Return which units are above 0 in a sample of any view: columns, or channels of images."""
    found: list[Tensor] = []
    for number, _ in enumerate(parts(next(iter(outputs.values())).inputs)):
        each = [objective.activities(parts(view.inputs)[number]) for view in outputs.values()]
        others = [axis for axis in range(each[0].ndim) if axis != 1]
        highest = torch.stack([tensor.amax(dim=others) > 0 for tensor in each])
        found.append(highest.any(dim=0).flatten())
    return torch.cat(found)
