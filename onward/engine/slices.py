"""Training steps in slices of samples, which several ranks can share.

A plan cuts every mini-batch of a block into slices: of its samples, or of the block's units. What
the slices yield is summed in their order, so that the weights are the same whether one rank works
on all of them or each of several on its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from onward.batch import Batch
from onward.engine.kernels.closed_form import has_closed_form
from onward.engine.steps import Step, StepReport
from onward.engine.team import Team, in_order
from onward.errors import SettingError
from onward.network.blocks import Block
from onward.network.layers import Dense
from onward.network.readouts import is_head
from onward.network.samplers import Views
from onward.seeds import seed_global_generators
from onward.settings import Cut


def check_cut(block: Block, *, closed_form: bool, slices: int, cut: Cut) -> None:
    """Refuse a block whose mini-batches cannot be cut.

    Args:
        block: What is trained.
        closed_form: Whether closed forms are used where there are some.
        slices: Number of slices; 1 for none.
        cut: What is cut; of a head, samples always.

    Raises:
        SettingError: It cannot; the message says why.
    """
    if slices == 1:
        return
    objective = block.objective
    name = type(objective).__name__
    if not objective.is_mean:
        raise SettingError(
            f"The loss of {name} is not a mean over samples: it compares samples with each other, "
            f"and slices would compare other ones. plan.slices must be 1 with it."
        )
    if objective.has_extra_gradient:
        raise SettingError(
            f"{name} adds to the gradient what depends on the whole mini-batch (such as "
            f"network.peer): plan.slices must be 1 with it, or network.peer 0."
        )
    if block.clip is not None:
        raise SettingError(
            "A block clips the gradient of the whole mini-batch: plan.slices must be 1 with it."
        )
    if any(isinstance(module, _BatchNorm) for module in block.modules()):
        raise SettingError(
            "Batch normalisation looks at all samples of a mini-batch: plan.slices must be 1 with "
            "it."
        )
    if cut == "samples" or is_head(block):
        return
    if not (closed_form and has_closed_form(block)):
        raise SettingError(
            'plan.cut = "units" needs dense blocks, an optimizer that is elementwise (ow.Adam, '
            'ow.SGD) and training.gradients = "closed-form". Use plan.cut = "samples".'
        )
    assert isinstance(block.module, Dense)
    units = len(block.module.weight)
    if units % slices:
        raise SettingError(
            f"A block has {units} units, which cannot be cut into {slices} equal slices. Set "
            f"network.widths to multiples of plan.slices."
        )


class SampleSlicesStep(Step):
    """Each slice is a part of the samples; the gradients of all are summed before the update.

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
    ) -> tuple[dict[str, Batch], StepReport]:
        (samples,) = {view.num_counted for view in views.values()}
        parts = torch.arange(samples, device=self.block.device).tensor_split(self.slices)
        state = [(buffer, buffer._version) for buffer in self.block.buffers()]
        own, names = [], []
        for number in self.team.own(self.slices):
            chosen = {name: _part(view, parts[number]) for name, view in views.items()}
            found = self.step.gradients(chosen, seed=seed + number)
            names = list(found.named)
            own.append(found.content())
        if any(buffer._version != version for buffer, version in state):
            raise SettingError(
                f"The block of {type(self.block.module).__name__} and "
                f"{type(self.block.objective).__name__} changes running state (a buffer) when it "
                f"learns, and each slice would change it anew: plan.slices must be 1 with it."
            )
        every = self.team.share(own)
        # A rule that draws then draws the same on every rank, whichever slices were its own.
        seed_global_generators(seed, self.block.device)
        self.follow(every, names, [len(part) / samples for part in parts], lr_scale)
        active = torch.stack([active for _, active, *_ in every]).amax(dim=0).bool()
        return {}, StepReport(in_order([sums for sums, *_ in every]), active)

    def follow(
        self,
        every: Sequence[Sequence[Tensor]],
        names: Sequence[str],
        fractions: Sequence[float],
        lr_scale: float,
    ) -> None:
        """Update the block from the gradients of all slices.

        Args:
            every: For each slice its content, see `Gradients.content`.
            names: Parameters whose gradients the contents hold.
            fractions: Share of each slice in the samples.
            lr_scale: Factor on the learning rate.
        """
        for place, name in enumerate(names):
            total = _weighted([gradients[place] for _, _, *gradients in every], fractions)
            self.update(name, self.trained[name], total, lr_scale)
        self.step.take_weight()


def _part(view: Batch, counted: Tensor) -> Batch:
    """Return a view with some of the samples that count, given by their places among these."""
    return view.take(counted if view.index is None else view.index[counted])


def _weighted(parts: Sequence[Tensor], fractions: Sequence[float]) -> Tensor:
    """Return the weighted sum of tensors, added in their order, in float32 at least."""
    full = torch.promote_types(parts[0].dtype, torch.float32)
    total = parts[0].to(full, copy=True).mul_(fractions[0])
    for part, share in zip(parts[1:], fractions[1:], strict=True):
        total.add_(part, alpha=share)
    return total
