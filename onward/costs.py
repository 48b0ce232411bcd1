"""What the tasks of a plan take on this machine: a few steps of each block, timed."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from onward.blocks import Block
from onward.errors import FileError, SettingError
from onward.networks import Network, evaluate
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import Kind, Plan, Product, Task, Thing
from onward.readouts import read_activities
from onward.runtime.chapters import passed
from onward.runtime.workers import REPORT_FIELDS, Arithmetic, Rows
from onward.simulation import Costs
from onward.sliced import RowsStep
from onward.steps import Gradients, Step, make_step
from onward.team import Alone
from onward.views import View

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
    """Seconds to pass its rows with the neutral label through each block of the line."""

    score: float
    """Seconds to score its rows as hints are."""

    validate: float
    """Seconds of a validation."""

    weights: tuple[int, ...]
    """Bytes of the weights of each block that is trained."""

    moments: tuple[int, ...]
    """Bytes of its moments."""

    activities: tuple[int, ...]
    """Bytes of what each block of the line hands on for one view of a mini-batch."""

    views: int
    """Views of a row."""

    gradients: tuple[int, ...]
    """Bytes of what a slice of rows yields for each block that is trained."""

    update: tuple[float, ...]
    """Seconds in which each block adds up the gradients of slices of rows and follows them."""

    batch_size: int
    """Rows of a mini-batch."""

    classes: int
    """Number of classes."""

    def seconds(self, plan: Plan, task: Task, passed: int, ranks: int) -> float:
        match task.kind:
            case Kind.GATHER:
                return 0.0
            case Kind.VALIDATE:
                return self.validate
        if isinstance(plan, StreamPlan):
            share = plan.rows_of(task.time) / plan.batch_size
            return share * (self.train if task.kind is Kind.TRAIN else self.neutral)[task.block]
        shard = plan.shard(task.time)
        epoch = plan.rows[shard] / plan.batch_size
        if task.kind is Kind.SCORE:
            return epoch * self.score / ranks
        # A chapter passes each of its rows once, however often it learns from them.
        segments = plan.segments(task.time)
        rows = epoch * (segments[0].last - segments[0].first) / plan.batches(shard)
        is_head = task.block == plan.head
        learning = self.train[task.block]
        if isinstance(plan, ChapterPlan) and plan.slices > 1:
            if plan.cut == "rows":
                learning = learning / ranks + self.update[task.block]
            elif not is_head:
                learning /= ranks
        # Every rank of a team passes all rows on to a head.
        passing = sum(self.neutral) if is_head else sum(self.forward[passed : task.block]) / ranks
        return rows * (len(segments) * learning + passing)

    def exchanged(self, plan: Plan, task: Task, passed: int, ranks: int) -> tuple[int, int]:
        assert isinstance(plan, ChapterPlan)
        if task.kind is Kind.SCORE:
            rows = plan.rows[plan.shard(task.time)]
            return 1, 4 * self.classes * rows // ranks
        block, segments = task.block, plan.segments(task.time)
        steps = sum(segment.last - segment.first for segment in segments)
        each = steps * plan.batch_size // len(segments)
        passes, num_bytes = 0, 0
        if block != plan.head:
            passes = self.views * (block - passed)
            per_row = sum(self.activities[passed:block]) * self.views // plan.batch_size
            num_bytes = per_row * each // ranks
        own = plan.slices // ranks
        if plan.cut == "rows":
            return passes + steps, num_bytes + steps * own * self.gradients[block]
        if block == plan.head:
            return passes, num_bytes
        # Logits of each class, or the goodness of each view.
        figures = self.classes if self.views == 1 else self.views
        sums = 4 * figures * plan.batch_size * own
        whole = (self.weights[block] + self.moments[block]) * own // plan.slices
        return passes + steps + 1, num_bytes + steps * sums + whole

    def num_bytes(self, plan: Plan, product: Product) -> int:
        match product.thing:
            case Thing.WEIGHTS:
                return self.weights[product.block]
            case Thing.MOMENTS:
                return self.moments[product.block]
            case Thing.REPORT:
                return 8 * len(REPORT_FIELDS)
            case Thing.COUNTS:
                return 8 * (2 + plan.num_blocks)
        if isinstance(plan, StreamPlan):
            # Rows with the neutral label are ahead of the others.
            ahead = plan.lead if product.thing is Thing.NEUTRAL else 0
            rows = plan.rows_of(product.time + ahead)
            if product.thing is not Thing.HINTS:
                views = self.views if product.thing is Thing.ACTIVITIES else 1
                return views * self.activities[product.block] * rows // plan.batch_size
        else:
            rows = plan.rows[plan.shard(product.time)]
        return 4 * self.classes * rows

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
                f"{self.batch_size} rows; the run has {sizes} bytes and {batch_size} rows. Measure "
                f"them anew with --measure."
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
        lengths = {len(given[n]) for n in ("train", "weights", "moments", "gradients", "update")}
        if each != wanted or lengths != {trained} or not 0 <= trained - line <= 1:
            raise ValueError("a list has another length than others")
        if {len(given[n]) for n in ("forward", "neutral", "activities")} != {line}:
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


def measure(
    network: Network, rows: Rows, batch_size: int, arithmetic: Arithmetic, repeats: int = REPEATS
) -> BlockCosts:
    """Time a few steps of each block, on a copy of the network.

    Args:
        network: What would be trained.
        rows: A shard of the data.
        batch_size: Rows of a mini-batch.
        arithmetic: How it would be trained.
        repeats: Times that each thing is timed; the median counts.
    """
    network = deepcopy(network)
    timer = Timer(repeats)
    sampler, closed_form = network.sampler, arithmetic.closed_form
    x, labels = rows.x[:batch_size], rows.y[:batch_size]
    has_negatives = sampler.negatives is not None
    negatives = (labels + 1) % network.num_classes if has_negatives else None
    views, neutral = sampler.views(x, labels, negatives), sampler.neutral(x)
    train, forward, of_neutral, activities, gradients, update = [], [], [], [], [], []
    for number, block in enumerate(network.line):
        label_inputs = network.num_classes if arithmetic.shared_pass and number == 0 else 0
        step = make_step(block, closed_form=closed_form, label_inputs=label_inputs)
        # A learning rate of zero: the weights stay as they are.
        train.append(timer(step, views, seed=0, lr_scale=0.0))
        found = step.gradients(views, seed=0)
        gradients.append(found.num_bytes)
        update.append(_time_of_update(timer, step, found))
        forward.append(timer(through, block, views))
        of_neutral.append(timer(passed, block, neutral))
        views, neutral = through(block, views), passed(block, neutral)
        element = 2 if arithmetic.bf16_wire else neutral.element_size()
        activities.append(neutral.numel() * element)
    head, score = network.head, 0.0
    if head is not None:
        read = read_activities(network.line, head, sampler.neutral(x))
        step = make_step(head, closed_form=closed_form)
        seen = {"input": View(read, labels)}
        train.append(timer(step, seen, seed=0, lr_scale=0.0))
        found = step.gradients(seen, seed=0)
        gradients.append(found.num_bytes)
        update.append(_time_of_update(timer, step, found))
        score = timer(lambda: head.scores(head.infer(read)))
    elif sampler.negatives is not None and sampler.negatives.needs_hints:
        score = timer(network.scores, x)
    validate, num_validated = 0.0, len(rows.y_validation)
    if num_validated:
        some = min(num_validated, batch_size)
        seconds = timer(evaluate, network, rows.x_validation[:some], rows.y_validation[:some])
        validate = seconds * num_validated / some
    blocks = network.all_blocks
    return BlockCosts(
        train=tuple(train),
        forward=tuple(forward),
        neutral=tuple(of_neutral),
        score=score,
        validate=validate,
        weights=tuple(block.num_bytes for block in blocks),
        moments=tuple(
            sum(t.nbytes for parts in block.moments.values() for t in parts.values())
            for block in blocks
        ),
        activities=tuple(activities),
        views=len(sampler.names),
        gradients=tuple(gradients),
        update=tuple(update),
        batch_size=batch_size,
        classes=network.num_classes,
    )


class Timer:
    """Says how long a call takes: the median of some, after one that is not counted."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats

    def __call__(self, work: Callable[..., object], *given: Any, **named: Any) -> float:
        """Return the seconds of a call."""
        work(*given, **named)
        seconds = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            work(*given, **named)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)


def _time_of_update(timer: Timer, step: Step, found: Gradients) -> float:
    """Return how long a block takes to add up the gradients of slices and to follow them."""
    every, shares = [found.content()] * SLICES, [1 / SLICES] * SLICES
    follow = RowsStep(step, SLICES, Alone()).follow
    return timer(follow, every, list(found.named), shares, 0.0)


def through(block: Block, views: Mapping[str, View]) -> dict[str, View]:
    """Pass views through a block."""
    return {
        name: View(passed(block, view.x), view.labels)
        for name, view in views.items()
        if isinstance(view.x, Tensor)
    }
