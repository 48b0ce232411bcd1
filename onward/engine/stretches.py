"""The engine: trains one block for a stretch of mini-batches. It knows no ranks and no files."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from onward import seeds
from onward.batch import Batch
from onward.engine.kernels.closed_form import ClosedFormStep, SharedPassStep, has_closed_form
from onward.engine.kernels.units import UnitsStep
from onward.engine.slices import SampleSlicesStep, check_cut
from onward.engine.steps import AutogradStep, FrozenStep, Step, StepReport
from onward.engine.team import Alone, Team
from onward.errors import DivergedError
from onward.network.blocks import Block
from onward.network.optimizers import Schedule, lr_scale
from onward.network.readouts import is_head
from onward.network.samplers import Views
from onward.settings import Cut

ADVICE = "A smaller learning rate usually helps."
"""What to do about training that leaves the finite numbers."""

CHECK_EVERY = 1000
"""Mini-batches after which losses are looked at, at the latest: looking waits for the device."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What decides how a block learns, beside the batches it is given."""

    seed: int
    """Decides all randomness."""

    epochs: int = 1
    """Epochs of the run, for the schedule."""

    schedule: Schedule = "constant"
    """Learning rate over time, see `TrainingConfig.schedule`."""

    closed_form: bool = True
    """Whether closed forms are used where there are some."""

    label_inputs: int = 0
    """In how many inputs, the first, views of the first block differ, where that is made use of."""

    slices: int = 1
    """Parts of every mini-batch."""

    cut: Cut = "samples"
    """What a slice is a part of."""


class Position(NamedTuple):
    """Where the training of a block stands: mini-batches done."""

    epoch: int
    """Epochs that are done."""

    batch: int
    """Mini-batches of this epoch that are done."""

    def after(self, batches: int) -> "Position":
        """Return where it stands after one more mini-batch, of so many an epoch."""
        if self.batch + 1 == batches:
            return Position(self.epoch + 1, 0)
        return Position(self.epoch, self.batch + 1)


BEGINNING = Position(0, 0)
"""Where the training of a block begins."""


def make_step(
    block: Block, training: Training, example: Views | None = None, team: Team | None = None
) -> Step:
    """Return the way to train a block: in closed form if asked for and known, else by autograd.

    Of a frozen block: the way to pass samples through it.

    Args:
        block: What is trained.
        training: How.
        example: Views like those it will learn from; closed forms are for tensors whose samples all
            count the same.
        team: The ranks that share the work.

    Raises:
        SettingError: Its mini-batches cannot be cut as `training` says.
    """
    if block.is_frozen:
        return FrozenStep(block)
    is_plain = all(view.is_plain for view in (example or {}).values())
    closed_form = training.closed_form and is_plain and has_closed_form(block)
    slices, team = training.slices, team or Alone()
    check_cut(block, closed_form=closed_form, slices=slices, cut=training.cut)
    # A head is small: where units are cut, every rank trains all of it.
    if slices > 1 and training.cut == "units" and not is_head(block):
        return UnitsStep(block, slices, team)
    step: Step
    if not closed_form:
        step = AutogradStep(block)
    elif training.label_inputs:
        step = SharedPassStep(block, training.label_inputs)
    else:
        step = ClosedFormStep(block)
    return step if slices == 1 or training.cut == "units" else SampleSlicesStep(step, slices, team)


def learn(
    step: Step,
    views: Views,
    training: Training,
    *,
    number: int,
    at: Position,
    batches: int,
    tick: int = 0,
) -> tuple[dict[str, Batch], StepReport]:
    """Let a block learn from one mini-batch.

    Args:
        step: How it learns.
        views: What the block reads, prepared, by view.
        training: What decides how.
        number: Number of the block, of which draws depend.
        at: Mini-batches that it has learned from.
        batches: Mini-batches of an epoch.
        tick: How often this mini-batch has visited the block before.

    Returns:
        What it puts out, by view, and the figures of the step, for `added`.
    """
    outputs, report = step(
        views,
        seed=seeds.derive(training.seed, "step", number, *at, *([tick] if tick else [])),
        lr_scale=lr_scale(
            step.block.schedule or training.schedule,
            at.epoch,
            (at.batch + 1) / batches,
            training.epochs,
        ),
    )
    if not step.block.is_frozen:
        report.losses.append((at, report.sums[0].clone()))
    return outputs, report


def added(report: StepReport, total: StepReport | None, number: int) -> StepReport:
    """Return the figures of some mini-batches of a block with those of one more.

    Raises:
        DivergedError: A loss is not finite; it is looked for every `CHECK_EVERY` mini-batches.
    """
    total = report.added_to(total)
    if len(total.losses) >= CHECK_EVERY:
        check_finite(total, number)
    return total


def check_finite(total: StepReport, number: int) -> None:
    """Refuse losses that are not finite, among those not looked at yet.

    Args:
        total: The figures of some mini-batches, at least one.
        number: Number of the block.

    Raises:
        DivergedError: One is not.
    """
    losses, total.losses = total.losses, []
    is_finite = torch.stack([loss for _, loss in losses]).isfinite().tolist() if losses else []
    if all(is_finite):
        return
    (epoch, batch), loss = losses[is_finite.index(False)]
    raise DivergedError(
        f"The loss of block {number} is no longer finite ({float(loss)}) in mini-batch {batch} of "
        f"epoch {epoch}, both counted from 0. {ADVICE}"
    )


def train_block(
    block: Block,
    stretch: Iterable[Views],
    training: Training,
    *,
    number: int = 0,
    start: Position = BEGINNING,
    batches: int,
    step: Step | None = None,
) -> tuple[Position, StepReport]:
    """Train a block for a stretch of mini-batches.

    The block holds its weights and its optimizer's state. With the position that one call returns,
    the next one goes on as if there had been one.

    Args:
        block: What is trained, in place.
        stretch: What the block reads, by view, for each mini-batch, as `Block.prepared` returns it.
        training: What decides how.
        number: Number of the block, of which draws depend.
        start: Where its training stands.
        batches: Mini-batches of an epoch.
        step: How it learns; None: as `make_step` says.

    Returns:
        Where its training stands now, and the figures of all mini-batches together.

    Raises:
        DivergedError: A loss is not finite.
        ValueError: There is no mini-batch.

    Example:
        >>> import torch, onward as ow
        >>> from torch import nn
        >>> block = ow.Block(nn.Linear(4, 8), ow.CrossEntropy(nn.Linear(8, 3)), ow.Adam())
        >>> batch = ow.Batch(torch.ones(6, 4), {"label": torch.arange(6) % 3})
        >>> stretch = [{"input": batch}] * 5
        >>> at, report = train_block(block, stretch, Training(seed=0), batches=2)
        >>> at
        Position(epoch=2, batch=1)
    """
    at, total = start, None
    for views in stretch:
        step = step or make_step(block, training, views)
        _, report = learn(step, views, training, number=number, at=at, batches=batches)
        total = added(report, total, number)
        at = at.after(batches)
    if total is None or step is None:
        raise ValueError("A block cannot be trained for no mini-batch at all.")
    check_finite(total, number)
    return at, step.finish(total)
