"""The worker of a stream plan: every mini-batch updates every block, and blocks stay put."""

from collections.abc import Mapping
from functools import lru_cache, partial

import torch
from torch import Tensor

from onward.blocks import StepReport
from onward.networks import Network
from onward.plan.streams import StreamPlan
from onward.plan.tasks import Product, Thing
from onward.runtime.workers import Arithmetic, Clock, Rows, Worker
from onward.steps import Step
from onward.views import Negatives, View


class StreamWorker(Worker):
    """Trains blocks mini-batch by mini-batch."""

    plan: StreamPlan

    def __init__(
        self,
        plan: StreamPlan,
        network: Network,
        shards: Mapping[int, Rows],
        arithmetic: Arithmetic,
    ) -> None:
        super().__init__(plan, network, shards, arithmetic)
        self.steps: dict[int, Step] = {}
        self.totals: dict[int, StepReport] = {}
        self.elapsed: dict[int, Tensor] = {}
        # Of two epochs, since rows with the neutral label may be ahead of the others.
        self.epoch_order = lru_cache(maxsize=2)(partial(self.order, shard=0))
        self.epoch_inputs = lru_cache(maxsize=2)(partial(self.inputs, shard=0))
        self.fixed: Tensor | None = None
        if network.sampler.negatives is Negatives.FIXED:
            self.fixed = self.negative_labels(shards[0].y, None, 0, 0)
        sampler = network.sampler
        example = torch.zeros(2, *sampler.width(tuple(shards[0].x.shape[1:])))
        # One row of what each block puts out, for the sizes of messages.
        self.examples: list[Tensor] = []
        self.types: list[torch.dtype] = []
        for block in network.line:
            example = block.infer(example)
            self.examples.append(self._on_the_wire(example[:1]))
            self.types.append(example.dtype)

    def train(self, time: int, block: int) -> None:
        clock = Clock()
        step = self._step(block)
        if block == self.plan.head:
            views = self._neutral_view(time)
            if self.plan.hint_age is not None:
                self._score(time, views["input"])
        else:
            views = self._views(time, block)
        # Views that this block does not learn from are for a later one.
        learned = self.blocks[block].objective.views
        activities = {
            name: step.infer(view.x)
            for name, view in views.items()
            if name not in learned and isinstance(view.x, Tensor)
        }
        epoch, batch = divmod(time, self.plan.batches(0))
        outputs, told = self.learn(step, block, views, epoch, batch, shard=0)
        if block != self.plan.head:
            activities |= {n: v.x for n, v in outputs.items() if isinstance(v.x, Tensor)}
            # As a message would bring them: the next block may be on another rank.
            parts = [self._on_the_wire(activities[name]) for name in self.network.sampler.names]
            self.values[Product(Thing.ACTIVITIES, time, block)] = parts
        self._tell(time, block, told, clock)

    def pass_neutral(self, time: int, block: int) -> None:
        if block:
            (x,) = self._read(Product(Thing.NEUTRAL, time, block - 1))
        else:
            x = self.network.sampler.neutral(self._inputs(time + self.plan.lead))
        x = self._on_the_wire(self._step(block).infer(x))
        self.values[Product(Thing.NEUTRAL, time, block)] = [x]

    def _on_the_wire(self, x: Tensor) -> Tensor:
        """Return activities as they travel, also where the next block is on the same rank."""
        return x.to(torch.bfloat16 if self.arithmetic.bf16_wire else x.dtype).contiguous()

    def _read(self, product: Product) -> list[Tensor]:
        """Return activities as the next block reads them: in the type they were made in."""
        return [x.to(self.types[product.block]) for x in self.values[product]]

    def hint_rows(self, time: int) -> int:
        return self.plan.rows_of(time)

    def layout(self, product: Product) -> list[Tensor]:
        match product.thing:
            case Thing.ACTIVITIES:
                rows, views = self.plan.rows_of(product.time), len(self.network.sampler.names)
            case Thing.NEUTRAL:
                rows, views = self.plan.rows_of(product.time + self.plan.lead), 1
            case _:
                return super().layout(product)
        example = self.examples[product.block]
        return [example.expand(rows, *example.shape[1:])] * views

    def content(self, product: Product) -> list[Tensor]:
        if product.thing is Thing.MOMENTS:
            return self._moments(product.block)
        return super().content(product)

    def accept(self, product: Product, tensors: list[Tensor]) -> None:
        super().accept(product, tensors)
        if product.thing is Thing.MOMENTS:
            self._give_moments(product.block, self.values.pop(product))
        if product.thing is Thing.WEIGHTS:
            # A step holds the weights that there were, and a report is of one chapter.
            for known in (self.steps, self.totals, self.elapsed):
                known.pop(product.block, None)

    def _step(self, block: int) -> Step:
        if block not in self.steps:
            self.steps[block] = self.make_step(block)
        return self.steps[block]

    def _rows(self, time: int) -> Tensor:
        """Return the numbers of the rows of a mini-batch."""
        epoch, batch = divmod(time, self.plan.batches(0))
        return self.epoch_order(epoch)[batch * self.plan.batch_size :][: self.plan.batch_size]

    def _inputs(self, time: int) -> Tensor:
        """Return the rows of a mini-batch as its epoch sees them."""
        return self.epoch_inputs(time // self.plan.batches(0))[self._rows(time)]

    def _views(self, time: int, block: int) -> dict[str, View]:
        rows = self._rows(time)
        labels = self.shards[0].y[rows]
        if block:
            names = self.network.sampler.names
            parts = self._read(Product(Thing.ACTIVITIES, time, block - 1))
            return {name: View(x, labels) for name, x in zip(names, parts, strict=True)}
        negatives = None
        if self.fixed is not None:
            negatives = self.fixed[rows]
        elif self.network.sampler.negatives is not None:
            hints = self.values.get(Product(Thing.HINTS, time, 0))
            negatives = self.negative_labels(labels, hints[0] if hints else None, time, 0)
        return self.network.sampler.views(self._inputs(time), labels, negatives)

    def _neutral_view(self, time: int) -> dict[str, View]:
        read = [self._read(Product(Thing.NEUTRAL, time, b))[0] for b in self.plan.head_reads]
        labels = self.shards[0].y[self._rows(time + self.plan.lead)]
        return {"input": View(tuple(read), labels)}

    def _score(self, time: int, view: View) -> None:
        """Score the rows that go ahead, before the head learns from them."""
        assert self.plan.head is not None
        head = self.blocks[self.plan.head]
        scores = head.scores(head.infer(view.x))
        self.values[Product(Thing.HINTS, time + self.plan.lead, 0)] = [scores.float()]

    def _tell(self, time: int, block: int, told: StepReport, clock: Clock) -> None:
        """Add a step to the block's report, and close it at the end of a chapter."""
        if block in self.totals:
            told = self.totals[block].add(told)
        elapsed = self.elapsed.pop(block, torch.zeros(2, dtype=torch.float64)) + clock.read()
        if time in self.plan.chapter_ends:
            self.totals.pop(block, None)
            self.report(Product(Thing.REPORT, time, block), told, elapsed)
        else:
            self.totals[block], self.elapsed[block] = told, elapsed
