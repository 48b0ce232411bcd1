"""What the tasks of a plan take on this machine: a few steps of each block, timed."""

import json
import math
import statistics
import time
from collections.abc import Callable, Set
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from onward import seeds
from onward.batch import Batch, parts
from onward.devices import CPU, wait_for
from onward.engine.slices import SampleSlicesStep
from onward.engine.steps import Gradients, Step
from onward.engine.stretches import Training, make_step
from onward.engine.team import Alone
from onward.errors import FileError, SettingError
from onward.evaluation import evaluate
from onward.network.blocks import Block
from onward.network.networks import Network
from onward.network.passes import passes
from onward.network.readouts import is_head
from onward.network.samplers import NEUTRAL, Views
from onward.plan.standing import Standing
from onward.plan.tasks import Plan, Product, ProductKind, Task, TaskKind
from onward.runtime.passing import pass_through
from onward.runtime.workers import Settings, Shard, report_fields
from onward.simulation import Costs

SLICES = 2
"""Slices whose gradients are added up when that is timed."""

REPEATS = 5
"""Times that each step is timed, of which the median counts."""


@dataclass(frozen=True)
class BlockCosts(Costs):
    """Costs by block, for a mini-batch of full size; those of other sizes follow in proportion."""

    train: tuple[float, ...]
    """Seconds to learn from a mini-batch, for each block that is trained, the head included."""

    forward: tuple[float, ...]
    """Seconds to pass all views of a mini-batch through each block of the line."""

    neutral: tuple[float, ...]
    """Seconds to pass its samples with the neutral label through each block of the line."""

    score: float
    """Seconds to score its samples as hints are."""

    validate: float
    """Seconds of a validation."""

    weights: tuple[int, ...]
    """Bytes of the weights of each block that is trained."""

    optimizer_state: tuple[int, ...]
    """Bytes of its optimizer_state."""

    activities: tuple[int, ...]
    """Bytes of what each block of the line hands on in a stream, all views of a mini-batch."""

    ahead: tuple[int, ...]
    """Bytes of what it hands on of a mini-batch as inference sees it."""

    outputs: tuple[int, ...]
    """Bytes of what it puts out for one view, without targets and so on."""

    views: int
    """Views of a sample."""

    gradients: tuple[int, ...]
    """Bytes of what a slice of samples yields for each block that is trained."""

    update: tuple[float, ...]
    """Seconds in which each block adds up the gradients of slices of samples and follows them."""

    report_fields: tuple[int, ...]
    """Figures in a report of each block that is trained."""

    batch_size: int
    """Samples of a mini-batch."""

    classes: int
    """Number of classes."""

    def seconds(self, plan: Plan, task: Task, known: Set[int], ranks: int) -> float:
        match task.kind:
            case TaskKind.GATHER:
                return 0.0
            case TaskKind.VALIDATE:
                return self.validate
        work, block = plan.work(task), task.block
        if task.kind is TaskKind.SCORE:
            passing = sum(self.neutral[b] for b in plan.below_heads)
            return (work.scored * self.score + work.passed * passing) / ranks
        if task.kind is TaskKind.PASS:
            return work.passed * self.neutral[block]
        is_head, learning = block in plan.heads, self.train[block]
        if plan.slices > 1:
            if plan.cut == "samples":
                learning = learning / ranks + self.update[block]
            elif not is_head:
                learning /= ranks
        # Every rank of a team passes all samples on to a head.
        below = sorted(plan.below[block])
        passing = (
            sum(self.neutral[b] for b in below)
            if is_head
            else sum(self.forward[b] for b in below if b not in known) / ranks
        )
        return work.learned * learning + work.passed * passing

    def exchanged(self, plan: Plan, task: Task, known: Set[int], ranks: int) -> tuple[int, int]:
        if task.kind is TaskKind.SCORE:
            samples = plan.samples[plan.shard(task.time)]
            return 1, 4 * self.classes * samples // ranks
        block, segments = task.block, plan.segments(task.time)
        if plan.nodes[block].is_frozen:
            return 0, 0
        steps = sum(segment.last - segment.first for segment in segments)
        each = steps * plan.batch_size // len(segments)
        passes, num_bytes = 0, 0
        is_head = block in plan.heads
        if not is_head:
            below = [b for b in plan.below[block] if b not in known]
            passes = self.views * len(below)
            per_row = sum(self.outputs[b] for b in below) * self.views // plan.batch_size
            num_bytes = per_row * each // ranks
        own = plan.slices // ranks
        if plan.cut == "samples":
            return passes + steps, num_bytes + steps * own * self.gradients[block]
        if is_head:
            return passes, num_bytes
        # Logits of each class, or the goodness of each view.
        figures = self.classes if self.views == 1 else self.views
        sums = 4 * figures * plan.batch_size * own
        whole = (self.weights[block] + self.optimizer_state[block]) * own // plan.slices
        return passes + steps + 1, num_bytes + steps * sums + whole

    def num_bytes(self, plan: Plan, product: Product) -> int:
        match product.kind:
            case ProductKind.WEIGHTS | ProductKind.BEST:
                return self.weights[product.block]
            case ProductKind.OPTIMIZER_STATE:
                return self.optimizer_state[product.block]
            case ProductKind.REPORT:
                return 8 * self.report_fields[product.block]
            case ProductKind.COUNTS:
                return 8 * (2 + plan.num_blocks + len(Standing._fields))
            case ProductKind.HINTS:
                return 4 * self.classes * plan.samples_of(product)
        each = self.activities if product.kind is ProductKind.ACTIVITIES else self.ahead
        return each[product.block] * plan.samples_of(product) // plan.batch_size

    def to_json(self) -> str:
        """Return the costs as a file holds them; see `read`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def check(self, network: Network, batch_size: int) -> None:
        """Refuse the costs of other blocks, or of mini-batches of another size.

        Raises:
            SettingError: They are.
        """
        sizes = [block.num_bytes for block in network.all_blocks]
        if list(self.weights) != sizes or self.batch_size != batch_size:
            raise SettingError(
                f"The costs are those of blocks of {list(self.weights)} bytes and mini-batches of "
                f"{self.batch_size} samples; the run has {sizes} bytes and {batch_size} samples. "
                f"Measure them anew with --measure."
            )


def read(path: Path) -> BlockCosts:
    """Read costs from a file.

    Raises:
        FileError: It is missing, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
        given: dict[str, Any] = {
            field.name: tuple(found[field.name])
            if isinstance(found[field.name], list)
            else found[field.name]
            for field in fields(BlockCosts)
        }
        each = {name: isinstance(value, tuple) for name, value in given.items()}
        wanted = {field.name: str(field.type).startswith("tuple") for field in fields(BlockCosts)}
        trained, line = len(given["weights"]), len(given["forward"])
        lengths = {len(given[n]) for n in _BY_BLOCK}
        if each != wanted or lengths != {trained} or not trained - line >= 0:
            raise ValueError("a list has another length than others")
        if {len(given[n]) for n in _IN_LINE} != {line}:
            raise ValueError("a list has another length than others")
        numbers = [n for v in given.values() for n in (v if isinstance(v, tuple) else (v,))]
        if not all(isinstance(n, int | float) and 0 <= n < math.inf for n in numbers):
            raise ValueError("a cost is no number, or below zero")
        return BlockCosts(**given)
    except OSError as error:
        raise FileError(f"The costs cannot be read: {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(
            f"{path} does not hold costs ({error}). `onward plan --measure --costs {path}` writes "
            f"such a file."
        ) from error


_BY_BLOCK = ("train", "weights", "optimizer_state", "gradients", "update", "report_fields")
"""Costs that there are for each block that is trained."""

_IN_LINE = ("forward", "neutral", "activities", "ahead", "outputs")
"""Costs that there are for each block of the line."""


def measure(
    network: Network,
    shard: Shard,
    batch_size: int,
    settings: Settings,
    timer: "Gauge | None" = None,
    *,
    device: torch.device = CPU,
) -> BlockCosts:
    """Time a few steps of each block, on a copy of the network.

    Args:
        network: What would be trained.
        shard: Samples of the data.
        batch_size: Samples of a mini-batch.
        settings: How it would be trained.
        timer: Says what a call takes, in seconds or in another unit. None: a `Timer`.
        device: Where.
    """
    network, timer = deepcopy(network).to(device), timer or Timer(REPEATS, device)
    sampler = network.sampler
    batch = network.transformed(first(network, shard.training, batch_size))
    draw = seeds.generator(settings.seed, "costs", device=device)
    views = {name: list(passes(network, v)) for name, v in sampler.views(batch, draw, None).items()}
    neutral = list(passes(network, sampler.neutral(batch)))
    train, forward, of_neutral, gradients, update = [], [], [], [], []
    activities, ahead, outputs = [], [], []
    score = 0.0
    for number, block in enumerate(network.all_blocks):
        seen = {NEUTRAL: neutral[number].read}
        read = seen if is_head(block) else {n: passed[number].read for n, passed in views.items()}
        prepared = {name: block.prepared(view) for name, view in read.items()}
        label_inputs = network.num_classes if settings.shared_pass and number == 0 else 0
        training = Training(seed=0, closed_form=settings.closed_form, label_inputs=label_inputs)
        step = make_step(block, training, prepared)
        # A learning rate of zero: the weights stay as they are.
        train.append(timer(step, prepared, seed=0, lr_scale=0.0))
        found = step.gradients(prepared, seed=0)
        gradients.append(found.num_bytes)
        update.append(_time_of_update(timer, step, found))
        if is_head(block):
            score = timer(_scores, block, read[NEUTRAL])
            continue
        forward.append(timer(_through, block, read))
        of_neutral.append(timer(_through, block, seen))
        every = [passed[number].outputs for passed in views.values()]
        activities.append(sum(_bytes_sent(view, settings.bf16_wire) for view in every))
        ahead.append(_bytes_sent(neutral[number].outputs, settings.bf16_wire))
        outputs.append(sum(t.nbytes for t in parts(neutral[number].outputs.inputs)))
    if network.head is None and sampler.needs_hints:
        score = timer(network.scores, first(network, shard.training, batch_size))
    validate, num_validated = 0.0, len(shard.validation)
    if num_validated and network.readout is not None:
        some = min(num_validated, batch_size)
        seconds = timer(evaluate, network, first(network, shard.validation, some))
        validate = seconds * num_validated / some
    blocks = network.all_blocks
    return BlockCosts(
        train=tuple(train),
        forward=tuple(forward),
        neutral=tuple(of_neutral),
        score=score,
        validate=validate,
        weights=tuple(block.num_bytes for block in blocks),
        optimizer_state=tuple(sum(t.nbytes for t in block.optimizer_tensors()) for block in blocks),
        activities=tuple(activities),
        ahead=tuple(ahead),
        outputs=tuple(outputs),
        views=len(sampler.names),
        gradients=tuple(gradients),
        update=tuple(update),
        report_fields=tuple(len(report_fields(block)) for block in blocks),
        batch_size=batch_size,
        classes=network.num_classes,
    )


def first(network: Network, batch: Batch, samples: int) -> Batch:
    """Return the first samples of a batch; all of one whose samples belong together."""
    is_whole = batch.structure and not network.sampler.takes_parts
    return batch if is_whole else batch.take(slice(0, samples))


def _bytes_sent(view: Batch, is_rounded: bool) -> int:
    """Return the bytes of a view that a block hands on in a stream."""
    return sum(
        2 * tensor.numel()
        if is_rounded and name.startswith("inputs") and tensor.is_floating_point()
        else tensor.nbytes
        for name, tensor in view.tensors().items()
    )


def _scores(block: Block, read: Batch) -> None:
    block.scores(block.infer(read))


def _through(block: Block, views: Views) -> None:
    for view in views.values():
        pass_through(block, view)


Gauge = Callable[..., float]
"""Calls a function with arguments, and says what that took."""


class Timer:
    """Says how long a call takes: the median of some, after one that is not counted."""

    def __init__(self, repeats: int, device: torch.device = CPU) -> None:
        self.repeats, self.device = repeats, device

    def __call__(self, work: Callable[..., object], *given: Any, **named: Any) -> float:
        """Return the seconds of a call."""
        work(*given, **named)
        seconds = []
        for _ in range(self.repeats):
            wait_for(self.device)
            start = time.perf_counter()
            work(*given, **named)
            wait_for(self.device)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)


def _time_of_update(timer: Gauge, step: Step, found: Gradients) -> float:
    """Return how long a block takes to add up the gradients of slices and to follow them."""
    every, fractions = [found.content()] * SLICES, [1 / SLICES] * SLICES
    follow = SampleSlicesStep(step, SLICES, Alone()).follow
    return timer(follow, every, list(found.named), fractions, 0.0)
