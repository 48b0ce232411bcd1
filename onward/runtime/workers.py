"""What a rank does for each task of a plan, on tensors.

A worker knows its network, its data and the plan, but not where other tasks run: what it needs is
put into it, what it makes is taken out of it.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onward import seeds
from onward.blocks import StepReport
from onward.errors import DivergedError
from onward.networks import Network, evaluate
from onward.optimizers import laid_out, lr_scale
from onward.plan.tasks import Kind, Plan, Product, Task, Thing
from onward.steps import Step, make_step
from onward.team import Alone, Team
from onward.timeline import Recorder
from onward.views import (
    LabelEmbedding,
    Negatives,
    View,
    likely_wrong_labels,
    shift_images,
    wrong_labels,
)

ADVICE = "A smaller optimizer.lr usually helps."
"""What to do about training that leaves the finite numbers."""

REPORT_FIELDS = ("loss", "accuracy", "goodness_gap", "dead_fraction", "seconds", "cpu_seconds")
"""What a report holds, in order."""


@dataclass(frozen=True)
class Rows:
    """The rows of one shard."""

    x: Tensor
    """Training rows, float."""
    y: Tensor
    """Their classes."""
    x_validation: Tensor
    """Validation rows."""
    y_validation: Tensor
    """Their classes."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Settings that decide weights beside the plan; see `TrainingConfig` and `DataConfig`."""

    seed: int
    """Decides all randomness."""

    schedule: str = "constant"
    """Learning rate over time."""

    closed_form: bool = True
    """Whether closed forms are used where there are some."""

    shared_pass: bool = False
    """Whether the first block multiplies once what positives and negatives have in common."""

    bf16_wire: bool = False
    """Whether activities that blocks hand on in a stream are rounded to bf16."""

    shift: int = 0
    """Largest random shift of training images, in pixels."""


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.thread_time()

    def read(self) -> Tensor:
        """Return both."""
        elapsed = (time.perf_counter() - self.wall, time.thread_time() - self.cpu)
        return torch.tensor(elapsed, dtype=torch.float64)


class Worker(ABC):
    """Does the tasks of one rank.

    Weights and moments live in the network's blocks; all else that tasks make for each other is
    kept by product until it is dropped.

    Args:
        plan: What is computed.
        network: The network of this rank, trained in place.
        shards: Rows of the shards that this rank holds.
        arithmetic: Settings that the plan does not hold.
    """

    def __init__(
        self, plan: Plan, network: Network, shards: Mapping[int, Rows], arithmetic: Arithmetic
    ) -> None:
        self.plan = plan
        self.network = network
        self.blocks = network.all_blocks
        for block in self.blocks:
            # Moments of what learns now, by the rule of now: the layouts of messages follow them.
            block.forget()
        self.layouts = [
            [tensor.detach().to("meta") for tensor in self._weights(number)]
            for number in range(len(self.blocks))
        ]
        self.shards = shards
        self.arithmetic = arithmetic
        self.values: dict[Product, list[Tensor]] = {}
        self.released: list[int] = []
        self.validation_seconds = 0.0
        self.recorder = Recorder(0, most=0)
        self.team: Team = Alone()

    def execute(self, task: Task) -> None:
        """Do a task, once all it needs is here."""
        match task.kind:
            case Kind.TRAIN:
                self.train(task.time, task.block)
            case Kind.PASS:
                self.pass_neutral(task.time, task.block)
            case Kind.SCORE:
                self.score(task.time)
            case Kind.VALIDATE:
                clock = Clock()
                self.validate(task.time, task.block)
                self.validation_seconds += clock.read()[0].item()

    @abstractmethod
    def train(self, time: int, block: int) -> None:
        """Train a block."""

    def pass_neutral(self, time: int, block: int) -> None:
        """Pass a mini-batch with the neutral label through a block."""
        raise NotImplementedError

    def score(self, time: int) -> None:
        """Score the training rows."""
        raise NotImplementedError

    @abstractmethod
    def hint_rows(self, time: int) -> int:
        """Return the number of rows that have hints of a time."""

    def layout(self, product: Product) -> list[Tensor]:
        """Return tensors of the shapes and types that a product has, with any content."""
        match product.thing:
            case Thing.WEIGHTS:
                return self.layouts[product.block]
            case Thing.MOMENTS:
                return self._moments(product.block)
            case Thing.HINTS:
                return [torch.empty(self.hint_rows(product.time), self.network.num_classes)]
            case Thing.REPORT:
                return [torch.empty(len(REPORT_FIELDS), dtype=torch.float64)]
            case Thing.COUNTS:
                return [torch.empty(2 + len(self.network.line), dtype=torch.float64)]
        raise NotImplementedError

    def content(self, product: Product) -> list[Tensor]:
        """Return the tensors of a product that is here."""
        match product.thing:
            case Thing.WEIGHTS:
                return self._weights(product.block)
        return self.values[product]

    def accept(self, product: Product, tensors: list[Tensor]) -> None:
        """Take a product that another rank has made."""
        if product.thing in (Thing.WEIGHTS, Thing.MOMENTS):
            likes = self.layout(product)
            tensors = [laid_out(t, like) for t, like in zip(tensors, likes, strict=True)]
        if product.thing is Thing.WEIGHTS:
            for target, tensor in zip(self._weights(product.block), tensors, strict=True):
                target.data = tensor
        else:
            self.values[product] = tensors

    def release(self, blocks: Iterable[int]) -> None:
        """Free the weights of blocks that come from other ranks before they are needed here."""
        for block in blocks:
            if not self.blocks[block].is_released:
                self.blocks[block].release()
                self.released.append(block)

    def settle(self) -> None:
        """Leave blocks as a user may use them: released weights are NaN in memory of their own."""
        for block in self.blocks:
            block.forget()
        for number in self.released:
            for tensor, like in zip(self._weights(number), self.layouts[number], strict=True):
                tensor.data = laid_out(tensor.detach(), like)

    def drop(self, product: Product) -> None:
        """Forget a product that no task of this rank needs any more."""
        self.values.pop(product, None)

    def order(self, epoch: int, shard: int) -> Tensor:
        """Return the rows of a shard in the order of an epoch."""
        draw = seeds.generator(self.arithmetic.seed, "order", epoch)
        return torch.randperm(self.plan.rows[shard], generator=draw)

    def inputs(self, epoch: int, shard: int) -> Tensor:
        """Return the training rows of a shard as an epoch sees them: shifted, where wished."""
        x = self.shards[shard].x
        if not self.arithmetic.shift:
            return x
        draw = seeds.generator(self.arithmetic.seed, "shift", epoch, shard)
        return shift_images(x, self.arithmetic.shift, draw)

    def negative_labels(
        self, labels: Tensor, hints: Tensor | None, time: int, shard: int
    ) -> Tensor:
        """Draw a wrong label for each row.

        Args:
            labels: True classes.
            hints: Class scores of an earlier network; None before there are any.
            time: Chapter or mini-batch.
            shard: Shard of the rows.
        """
        sampler = self.network.sampler
        assert isinstance(sampler, LabelEmbedding)
        draw = seeds.generator(self.arithmetic.seed, "negatives", time, shard)
        if hints is None:
            return wrong_labels(labels, num_classes=sampler.num_classes, generator=draw)
        sampled = sampler.negatives is Negatives.HARD
        return likely_wrong_labels(labels, hints, generator=draw if sampled else None)

    def learn(
        self, step: Step, block: int, views: Mapping[str, View], epoch: int, batch: int, shard: int
    ) -> tuple[dict[str, View], StepReport]:
        """Let a block learn from one mini-batch.

        Raises:
            DivergedError: The loss is not finite.
        """
        outputs, told = step(
            views,
            seed=seeds.derive(self.arithmetic.seed, "step", block, epoch, batch),
            lr_scale=lr_scale(
                self.arithmetic.schedule,
                epoch,
                (batch + 1) / self.plan.batches(shard),
                self.plan.epochs,
            ),
        )
        loss = told.sums[0].item() / told.rows
        if not math.isfinite(loss):
            raise DivergedError(
                f"The loss of block {block} is no longer finite ({loss}) in mini-batch {batch} of "
                f"epoch {epoch}, both counted from 0. {ADVICE}"
            )
        return outputs, told

    def make_step(self, block: int) -> Step:
        """Return the way to train a block."""
        return make_step(
            self.blocks[block],
            closed_form=self.arithmetic.closed_form,
            label_inputs=self.label_inputs(block),
        )

    def label_inputs(self, block: int) -> int:
        """Return the inputs in which views of a block differ, if that is to be made use of."""
        is_shared = self.arithmetic.shared_pass and block == 0
        return self.network.num_classes if is_shared else 0

    def report(self, product: Product, total: StepReport, elapsed: Tensor) -> None:
        """Keep a report, its fields in the order of `REPORT_FIELDS`.

        Raises:
            DivergedError: A weight of the block is not finite.
        """
        for name, tensor in self.blocks[product.block].state_dict().items():
            if tensor.is_floating_point() and not math.isfinite(tensor.sum().item()):
                raise DivergedError(
                    f"The {name} of block {product.block} is no longer finite at the end of "
                    f"chapter {self.plan.chapter(self.plan.maker(product))}. {ADVICE}"
                )
        loss, accuracy, gap = (total.sums / total.rows).tolist()
        is_head = self.blocks[product.block].reads is not None
        dead = float("nan") if is_head else 1 - total.active.double().mean().item()
        figures = [loss, accuracy, gap, dead, *elapsed.tolist()]
        self.values[product] = [torch.tensor(figures, dtype=torch.float64)]

    def validate(self, chapter: int, shard: int) -> None:
        """Count validation rows of a shard: all, right, and right for each block (or -1)."""
        rows = self.shards[shard]
        found = evaluate(self.network, rows.x_validation, rows.y_validation)
        each = found.correct_blocks or (-1,) * len(self.network.line)
        counts = torch.tensor([found.rows, found.correct, *each], dtype=torch.float64)
        self.values[Product(Thing.COUNTS, chapter, shard)] = [counts]

    def _weights(self, block: int) -> list[Tensor]:
        return [
            tensor for _, tensor in sorted(self.blocks[block].state_dict(keep_vars=True).items())
        ]

    def _moments(self, block: int) -> list[Tensor]:
        moments = self.blocks[block].moments
        return [moments[name][part] for name in sorted(moments) for part in sorted(moments[name])]

    def _give_moments(self, block: int, tensors: Iterable[Tensor]) -> None:
        """Give a block moments, in the order of `_moments`."""
        learner, rest = self.blocks[block], iter(tensors)
        learner.moments = {
            name: {part: next(rest) for part in sorted(learner.moments[name])}
            for name in sorted(learner.moments)
        }
