"""What a rank does for each task of a plan, on tensors.

A worker knows its network, its data and the plan, but not where other tasks run: it is given what a
task needs, and returns what it makes.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onward import seeds
from onward.arguments import fits, said
from onward.batch import Batch, mapped
from onward.data.augmentation import Augmentation, augmented
from onward.devices import free_bytes
from onward.engine.steps import StepReport
from onward.engine.stretches import ADVICE, Training
from onward.engine.team import Alone, Team
from onward.errors import DivergedError, SettingError
from onward.evaluation import Evaluation, evaluate
from onward.network.blocks import Block
from onward.network.networks import Network
from onward.network.optimizers import with_strides
from onward.network.readouts import is_head
from onward.network.samplers import Views
from onward.plan.standing import NEVER, Standing
from onward.plan.tasks import NOTES, Plan, Product, ProductKind, Task, TaskKind
from onward.runtime.holding import Way
from onward.timeline import Recorder
from onward.transport.copies import brought_beside

Given = Mapping[Product, list[Tensor]]
"""What a task needs."""

SHARE_OF_SAMPLES = 0.25
"""Part of the free memory of a device that training samples may take; others are brought there
mini-batch by mini-batch."""

Made = dict[Product, list[Tensor]]
"""What a task has made."""

LAID_OUT = (ProductKind.WEIGHTS, ProductKind.OPTIMIZER_STATE, ProductKind.BEST)
"""Products whose tensors lie in memory as those of a block do."""


@dataclass(frozen=True)
class Shard:
    """The samples of one shard."""

    training: Batch
    """Those that are learned from."""

    validation: Batch
    """Those that are held out."""

    labelled: Tensor | None = None
    """Numbers of the training samples whose labels are kept; None: all."""


@dataclass(frozen=True, kw_only=True)
class Settings:
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

    augment: tuple[Augmentation, ...] = ()
    """What is done to each training mini-batch, in order."""


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

    Args:
        plan: What is computed.
        network: The network of this rank, trained in place.
        shards: The shards that this rank has.
        settings: What decides the weights beside the plan.
    """

    def __init__(
        self, plan: Plan, network: Network, shards: Mapping[int, Shard], settings: Settings
    ) -> None:
        self.plan = plan
        self.network = network
        self.blocks = network.all_blocks
        for block in self.blocks:
            # Of what learns now, by the rule of now: the layouts of messages follow it.
            block.reset_optimizer()
        self.layouts = [block.layouts() for block in self.blocks]
        self.device = network.device
        self.shards = {number: _near(shard, self.device) for number, shard in shards.items()}
        self.settings = settings
        self.released: list[int] = []
        self.end = NEVER
        """The first chapter that is not trained, by the counts that this rank has seen."""
        self.validation_seconds = self.validation_cpu_seconds = 0.0
        self.recorder = Recorder(0, most=0)
        self.team: Team = Alone()
        self.way: Way = "memory"
        """How outputs of frozen blocks are held."""

    def execute(self, task: Task, given: Given) -> Made:
        """Do a task.

        Args:
            task: What to do.
            given: What it needs.

        Returns:
            What it makes.
        """
        for product, tensors in given.items():
            is_last = product.kind is ProductKind.BEST and task.kind is TaskKind.GATHER
            if product.kind is ProductKind.WEIGHTS or is_last:
                self.bind(product.block, tensors)
            if product.kind is ProductKind.COUNTS and task.kind is not TaskKind.GATHER:
                self.end = min(self.end, Standing.of(tensors[0].tolist()).end)
        is_over = self.plan.chapter(task) >= self.end
        match task.kind:
            case TaskKind.TRAIN | TaskKind.PASS | TaskKind.SCORE if is_over:
                return self.unchanged(task)
            case TaskKind.TRAIN:
                return self.train(task, given)
            case TaskKind.PASS:
                return self.pass_neutral(task, given)
            case TaskKind.SCORE:
                return self.score(task)
            case TaskKind.VALIDATE:
                return self.validate(task, given)
        return {}

    @abstractmethod
    def train(self, task: Task, given: Given) -> Made:
        """Train a block."""

    def pass_neutral(self, task: Task, given: Given) -> Made:
        """Pass a mini-batch through a block, as inference sees it."""
        raise NotImplementedError

    def score(self, task: Task) -> Made:
        """Score the training samples."""
        raise NotImplementedError

    def layout(self, product: Product) -> list[Tensor]:
        """Return tensors of the shapes and types that a product has, with any content."""
        match product.kind:
            case ProductKind.WEIGHTS | ProductKind.BEST:
                return self.layouts[product.block]
            case ProductKind.OPTIMIZER_STATE:
                return self.blocks[product.block].optimizer_tensors()
            case ProductKind.HINTS:
                return [torch.empty(self.plan.samples_of(product), self.network.num_classes)]
            case ProductKind.REPORT:
                names = report_fields(self.blocks[product.block])
                return [torch.empty(len(names), dtype=torch.float64)]
            case ProductKind.COUNTS:
                figures = 2 + len(self.network.line) + len(Standing._fields)
                return [torch.empty(figures, dtype=torch.float64)]
        raise NotImplementedError

    def received(self, product: Product, tensors: list[Tensor]) -> list[Tensor]:
        """Return a product that another rank has made, on the device, and laid out as here.

        Optimizer state is brought there by the block that it is given to.
        """
        if product.kind not in (*NOTES, ProductKind.OPTIMIZER_STATE):
            tensors = brought_beside(tensors, self.device)
        if product.kind in LAID_OUT:
            likes = self.layout(product)
            return [with_strides(t, like) for t, like in zip(tensors, likes, strict=True)]
        return tensors

    def bind(self, block: int, tensors: list[Tensor]) -> bool:
        """Let a block have these weights; return whether it had others."""
        targets = self.blocks[block].weights()
        if all(a.data_ptr() == b.data_ptr() for a, b in zip(targets, tensors, strict=True)):
            return False
        for target, tensor in zip(targets, tensors, strict=True):
            target.data = tensor
        return True

    def weights(self, block: int) -> list[Tensor]:
        """Return the weights of a block as a product, which shares their memory."""
        return [tensor.detach() for tensor in self.blocks[block].weights()]

    def release(self, blocks: Iterable[int]) -> None:
        """Free the weights of blocks that come from other ranks before they are needed here."""
        for block in blocks:
            if not self.blocks[block].is_released:
                self.blocks[block].release()
                self.released.append(block)

    def settle(self) -> None:
        """Reallocate released weights that never came, filled with NaN, where there is room."""
        for block in self.blocks:
            block.reset_optimizer()
        for number in self.released:
            if not self.blocks[number].is_released:
                continue  # They came.
            for tensor, like in zip(
                self.blocks[number].weights(), self.layouts[number], strict=True
            ):
                tensor.data = with_strides(tensor.detach().cpu(), like)

    def training(self, block: int) -> Training:
        """Return what decides how a block learns."""
        settings = self.settings
        return Training(
            seed=settings.seed,
            epochs=self.plan.epochs,
            schedule=settings.schedule,
            closed_form=settings.closed_form,
            label_inputs=self.network.num_classes if settings.shared_pass and block == 0 else 0,
            slices=self.plan.slices,
            cut=self.plan.cut,
        )

    def order(self, epoch: int, shard: int) -> Tensor:
        """Return the samples of a shard in the order of an epoch, where they lie."""
        training = self.shards[shard].training
        if training.structure and not self.takes_parts:
            return torch.arange(self.plan.samples[shard], device=training.device)
        # The same on all devices.
        draw = seeds.generator(self.settings.seed, "order", epoch)
        order = torch.randperm(self.plan.samples[shard], generator=draw)
        if training.index is not None:
            order = spread_out(order, training.index.cpu())
        return order.to(training.device)

    @property
    def takes_parts(self) -> bool:
        """Whether views are parts of a structure, made for each mini-batch."""
        return self.network.sampler.takes_parts

    def samples(self, shard: int, chosen: Tensor | slice) -> Batch:
        """Return some training samples as they are, transformed; of a graph in one piece, all."""
        return self.network.transformed(self._taken(shard, chosen))

    def _taken(self, shard: int, chosen: Tensor | slice) -> Batch:
        training = self.shards[shard].training
        if training.structure and not self.takes_parts:
            return training
        return training.take(chosen).to(self.device)

    def mini_batch(self, epoch: int, shard: int, number: int, chosen: Tensor) -> Batch:
        """Return a training mini-batch as its epoch sees it: transformed, augmented if asked for.

        Args:
            epoch: The epoch.
            shard: The shard.
            number: Number of the mini-batch in the epoch.
            chosen: Its samples.
        """
        if not self.settings.augment:
            return self.samples(shard, chosen)
        batch = self._taken(shard, chosen)
        if batch.structure:
            # An augmentation may work in place, and so gets a copy.
            batch = batch.replace(inputs=mapped(torch.clone, batch.inputs))
        drawn_at = (epoch, shard, number)
        draw = seeds.generator(self.settings.seed, "augment", *drawn_at, device=self.device)
        own = self.plan.epochs_before(epoch, shard)
        return self.network.transformed(
            batch, lambda seen: augmented(seen, self.settings.augment, draw, own)
        )

    def sampled(
        self, batch: Batch, hints: Tensor | None, time: int, shard: int, *mini_batch: int
    ) -> dict[str, Batch]:
        """Return the views of some samples.

        Args:
            batch: The samples.
            hints: Their class scores by an earlier network; None before there are any.
            time: Chapter, or mini-batch of the run.
            shard: Shard of the samples.
            mini_batch: Epoch and mini-batch, where a chapter is sampled by mini-batch.
        """
        sampler = self.network.sampler
        drawn_at = (0, shard) if sampler.draws_once else (time, shard, *mini_batch)
        draw = seeds.generator(self.settings.seed, "negatives", *drawn_at, device=self.device)
        # A sampler that draws from these after all draws the same on every rank.
        seeds.seed_global_generators(draw.initial_seed(), self.device)
        views = sampler.views(batch, draw, hints)
        if not fits(views, dict[str, Batch]):
            raise SettingError(
                f"The sampler {type(sampler).__name__} makes {said(views)}; its `views` returns a "
                f"dict of ow.Batch by name."
            )
        if set(views) != set(sampler.names):
            raise SettingError(
                f"The sampler {type(sampler).__name__} makes the views {', '.join(views)}, and "
                f"its names are {', '.join(sampler.names)}."
            )
        for name, view in views.items():
            if len(view) != len(batch) and not view.structure:
                raise SettingError(
                    f"The sampler {type(sampler).__name__} makes a view {name} of {len(view)} "
                    f"samples from {len(batch)}. A view has as many samples as the batch; put "
                    f"several versions of them into several views."
                )
        return {name: views[name] for name in sampler.names}

    def continued(self, name: str) -> str:
        """Return the view whose output is the next input of a view."""
        return self.network.sampler.continues.get(name, name)

    def handed_on(self, read: Views, outputs: Views) -> dict[str, Batch]:
        """Return what a block hands on: what it has read, with what it puts out as inputs."""
        return {
            name: view.replace(inputs=outputs[self.continued(name)].inputs, context={})
            for name, view in read.items()
        }

    def report(self, task: Task, total: StepReport, epochs: float, elapsed: Tensor) -> Made:
        """Return the report of a task, its figures in the order of `report_fields`.

        Args:
            task: The task.
            total: Figures of what was learned.
            epochs: Over how many epochs.
            elapsed: Seconds, of the clock and of the processor.

        Raises:
            DivergedError: A weight of the block is not finite.
        """
        block = self.blocks[task.block]
        for name, tensor in block.state_dict().items():
            if tensor.is_floating_point() and not math.isfinite(tensor.sum().item()):
                raise DivergedError(
                    f"The {name} of block {task.block} is no longer finite at the end of "
                    f"chapter {self.plan.chapter(task)}. {ADVICE}"
                )
        dead = math.nan if is_head(block) else 1 - total.active.cpu().double().mean().item()
        figures = [*total.means(), dead, epochs, *elapsed.tolist()]
        report = Product(ProductKind.REPORT, task.time, task.block)
        return {report: [torch.tensor(figures, dtype=torch.float64)]}

    def validate(self, task: Task, given: Given) -> Made:
        """Count validation samples of a shard: all, right, and right for each block (or -1).

        The standing of the chapters so far comes after these counts.
        """
        plan, clock, cpu = self.plan, Clock(), time.process_time()
        before = plan.judged_with(task)
        then = Standing(best=-1, merit=-1, since=0, end=NEVER)
        if before:
            then = Standing.of(given[before[0]][0].tolist())
        trained = min(task.time, then.end - 1)
        is_known = trained < task.time and plan.validated_before(then.end) == trained
        if is_known or (trained < task.time < plan.chapters - 1):
            # Nothing was trained since, or the last validation will see it.
            found, now = Evaluation(0, 0, {}), then
        else:
            found = evaluate(self.network, self.shards[task.block].validation)
            now = then.after(trained, found.merit(plan.monitor), plan.patience, plan.stop_age)
        each = [found.correct_blocks.get(block, -1) for block in range(plan.num_blocks)]
        counts = [found.samples, found.correct, *each, *now]
        made = {
            Product(ProductKind.COUNTS, task.time, task.block): [
                torch.tensor(counts, dtype=torch.float64)
            ]
        }
        for product in plan.best(task.time):
            is_new = now.best != then.best
            earlier = [] if is_new else given[before[1 + product.block]]
            # Blocks learn on in the same memory.
            made[product] = earlier or [w.clone() for w in self.weights(product.block)]
        self.validation_seconds += clock.read()[0].item()
        self.validation_cpu_seconds += time.process_time() - cpu
        return made

    def unchanged(self, task: Task) -> Made:
        """Return what a task makes in a chapter that is not trained: weights as they were."""
        made: Made = {}
        for product in self.plan.makes(task):
            if product.kind is ProductKind.WEIGHTS:
                made[product] = self.weights(product.block)
            elif product.kind is ProductKind.REPORT:
                made[product] = [torch.full_like(t, math.nan) for t in self.layout(product)]
            else:
                # Nothing is learned from it: later chapters are not trained, either.
                likes = self.layout(product)
                zeros = [torch.zeros(like.shape, dtype=like.dtype) for like in likes]
                made[product] = self.received(product, zeros)
        return made


def _near(shard: Shard, device: torch.device) -> Shard:
    """Return a shard with its training samples on a device, where they take little of its room."""
    is_near = device.type != "cpu" and _take_little(shard.training, device)
    return replace(shard, training=shard.training.to(device)) if is_near else shard


def bytes_there(samples: Batch, device: torch.device, plan: Plan) -> int:
    """Return the bytes of a GPU that training samples take, beside mini-batches."""
    # A chapter takes all of them there in the end.
    is_there = plan.kind != "stream" or _take_little(samples, device)
    return _bytes_of(samples) if is_there else 0


def _take_little(samples: Batch, device: torch.device) -> bool:
    return _bytes_of(samples) <= SHARE_OF_SAMPLES * free_bytes(device)


def _bytes_of(samples: Batch) -> int:
    return sum(tensor.nbytes for tensor in samples.tensors().values())


def spread_out(order: Tensor, counted: Tensor) -> Tensor:
    """Return samples so that each mini-batch has its share of those that count, as in order else.

    The last sample counts, so that the last mini-batch has one, however short it is.

    Example:
        >>> spread_out(torch.tensor([3, 1, 0, 2, 4]), torch.tensor([0, 3]))
        tensor([1, 3, 2, 4, 0])
    """
    counts = torch.isin(order, counted)
    others = ~counts
    place = torch.where(
        counts,
        counts.cumsum(0).double() / counts.sum(),
        others.cumsum(0).double() / (others.sum() + 1),
    )
    return order[place.argsort(stable=True)]


def report_fields(block: Block) -> tuple[str, ...]:
    """Return what a report of a block holds, in order."""
    return (
        "loss",
        *block.objective.metric_names,
        "dead_fraction",
        "epochs",
        "seconds",
        "cpu_seconds",
    )
