"""The worker of a stream plan: every mini-batch updates every block, and blocks stay put."""

from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial

import torch
from torch import Tensor

from onward.batch import Batch, laid_out
from onward.engine.steps import Step, StepReport
from onward.engine.stretches import Position, added, check_finite, learn, make_step
from onward.network.blocks import Edge, gathered
from onward.network.networks import Network
from onward.network.passes import passes
from onward.network.samplers import NEUTRAL, Views
from onward.plan.streams import StreamPlan
from onward.plan.tasks import Product, ProductKind, Task
from onward.runtime.workers import Clock, Given, Made, Settings, Shard, Worker


class StreamWorker(Worker):
    """Trains blocks mini-batch by mini-batch."""

    plan: StreamPlan

    def __init__(
        self,
        plan: StreamPlan,
        network: Network,
        shards: Mapping[int, Shard],
        settings: Settings,
    ) -> None:
        super().__init__(plan, network, shards, settings)
        self.steps: dict[int, Step] = {}
        self.totals: dict[int, StepReport] = {}
        self.elapsed: dict[int, Tensor] = {}
        # Of two epochs, since neutral samples may be ahead of the others.
        self.epoch_order = lru_cache(maxsize=2)(partial(self.order, shard=0))
        # Several ticks, and those who read neutral samples, see the same mini-batch.
        self.seen = lru_cache(maxsize=2)(self._seen)
        # Of some samples: what each block reads and hands on, for the sizes of messages.
        training = shards[0].training
        first = torch.arange(min(2, len(training)), device=self.shards[0].training.device)
        samples = self.mini_batch(0, 0, 0, first)
        views = self.sampled(samples, None, 0, 0)
        views = {**views, NEUTRAL: network.sampler.neutral(samples)}
        passed = {name: list(passes(network, view)) for name, view in views.items()}
        self.read = [{n: each[k].read for n, each in passed.items()} for k in plan.trained]
        self.examples = [
            self.handed_on(self.read[k], {n: each[k].outputs for n, each in passed.items()})
            for k in plan.trained
        ]
        # Their shapes are all that is asked for.
        for views in (*self.read, *self.examples):
            views.update({name: view.to("meta") for name, view in views.items()})

    def train(self, task: Task, given: Given) -> Made:
        clock, step, block = Clock(), task.time, task.block
        is_head, learner = block in self.plan.heads, self.blocks[block]
        read = self._neutral(task, given) if is_head else self._views(task, given)
        views = {name: learner.prepared(view) for name, view in read.items()}
        trainer = self._step(block)
        made: Made = {}
        if block == self.plan.hinting and self.plan.hint_age is not None:
            # Before the head learns from them.
            scores = learner.scores(learner.infer(read[NEUTRAL]))
            made[Product(ProductKind.HINTS, step + self.plan.lead, 0)] = [scores.float()]
        # Views that this block does not learn from are for a later one.
        others = set() if is_head else {self.continued(name) for name in read}
        others -= set(trainer.learned(views))
        outputs = {name: trainer.infer(read[name]) for name in sorted(others)}
        epoch, batch, tick = self.plan.position(step)
        learned, report = learn(
            trainer,
            views,
            self.training(block),
            number=block,
            at=Position(epoch, batch),
            batches=self.plan.batches(0),
            tick=tick,
        )
        if not is_head:
            handed_on = self.handed_on(read, outputs | learned)
            made[Product(ProductKind.ACTIVITIES, step, block)] = self._to_wire(handed_on)
        return made | self._end(task, report, clock)

    def pass_neutral(self, task: Task, given: Given) -> Made:
        outputs = self._step(task.block).infer(self._neutral(task, given)[NEUTRAL])
        product = Product(ProductKind.NEUTRAL, task.time, task.block)
        return {product: self._to_wire({NEUTRAL: outputs})}

    def _step(self, block: int) -> Step:
        """Return the way to train a block, which stays until its weights come from elsewhere."""
        if block not in self.steps:
            names = [NEUTRAL] if block in self.plan.heads else self.network.sampler.names
            example = {name: self.read[block][name] for name in names}
            self.steps[block] = make_step(self.blocks[block], self.training(block), example)
        return self.steps[block]

    def bind(self, block: int, tensors: list[Tensor]) -> bool:
        is_other = super().bind(block, tensors)
        if is_other:
            # A step holds the weights that there were, and a report is of one chapter.
            for known in (self.steps, self.totals, self.elapsed):
                known.pop(block, None)
        return is_other

    def execute(self, task: Task, given: Given) -> Made:
        for product, tensors in given.items():
            if product.kind is ProductKind.OPTIMIZER_STATE:
                self.blocks[product.block].set_optimizer_tensors(tensors)
        return super().execute(task, given)

    def layout(self, product: Product) -> list[Tensor]:
        if product.kind not in (ProductKind.ACTIVITIES, ProductKind.NEUTRAL):
            return super().layout(product)
        samples = self.plan.samples_of(product)
        return [
            self._on_the_wire(name, like)
            # A graph is one whole, whatever its size.
            if view.structure
            else (one := self._on_the_wire(name, like[:1])).expand(samples, *one.shape[1:])
            for view in self._examples(product).values()
            for name, like in view.tensors().items()
        ]

    def _epochs(self, step: int, block: int) -> float:
        """Return the epochs of the chapter that ends with a tick."""
        if self.blocks[block].is_frozen:
            return 0.0
        segments = self.plan.segments(self.plan.chapter_ends[step])
        return sum(part.last - part.first for part in segments) / self.plan.batches(0)

    # What blocks read

    def _samples(self, step: int, lead: int = 0) -> Batch:
        """Return the samples of a mini-batch as their epoch sees them."""
        epoch, batch, _ = self.plan.position(step + lead * self.plan.ticks)
        return self.seen(epoch, batch)

    def _seen(self, epoch: int, batch: int) -> Batch:
        size = self.plan.batch_size
        return self.mini_batch(epoch, 0, batch, self.epoch_order(epoch)[batch * size :][:size])

    def _views(self, task: Task, given: Given) -> Views:
        """Return a mini-batch as a block learns from it, by view."""
        hints = given.get(Product(ProductKind.HINTS, task.time, 0))

        def first() -> Views:
            samples, batch = self._samples(task.time), task.time // self.plan.ticks
            return self.sampled(samples, hints[0] if hints else None, batch, 0)

        return self._gathered(ProductKind.ACTIVITIES, task, given, first)

    def _neutral(self, task: Task, given: Given) -> Views:
        """Return the mini-batch that goes ahead, as inference sees it and a block reads it."""

        def first() -> Views:
            return {NEUTRAL: self.network.sampler.neutral(self._samples(task.time, self.plan.lead))}

        return self._gathered(ProductKind.NEUTRAL, task, given, first)

    def _gathered(
        self, kind: ProductKind, task: Task, given: Given, first: Callable[[], Views]
    ) -> Views:
        """Return what a block reads, by view: outputs of some kind, and what samples begin with."""
        first = cache(first)
        each: list[tuple[Edge, Views | None]] = []
        for edge in self.network.edges[task.block]:
            if edge.source == "input":
                each.append((edge, first()))
            else:
                product = Product(kind, task.time - edge.delay, edge.source)
                came = product in given
                each.append((edge, self._from_wire(product, given[product]) if came else None))
        like = next((views for _, views in each if views is not None), None) or first()
        return {
            name: gathered(
                [(e, e.zeros(view) if vs is None else vs[name].inputs) for e, vs in each], view
            )
            for name, view in like.items()
        }

    # The wire

    def _examples(self, product: Product) -> Views:
        """Return what a product of outputs is like, by view."""
        examples = self.examples[product.block]
        names = (NEUTRAL,) if product.kind is ProductKind.NEUTRAL else self.network.sampler.names
        return {name: examples[name] for name in names}

    def _on_the_wire(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor as it travels, also where the next block is on the same rank.

        Images go as they lie in memory, with channels for their last axis where that is so:
        messages are of elements one after the other.
        """
        is_rounded = (
            self.settings.bf16_wire and name.startswith("inputs") and tensor.is_floating_point()
        )
        tensor = tensor.to(torch.bfloat16 if is_rounded else tensor.dtype)
        tensor = laid_out(tensor, self.network.memory_format)
        return tensor.movedim(1, -1) if self._has_channels_last(tensor) else tensor

    def _off_the_wire(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a tensor that has travelled, in the type and with the axes it was made in."""
        tensor = tensor.movedim(-1, 1) if self._has_channels_last(tensor) else tensor
        return tensor.to(like.dtype)

    def _has_channels_last(self, tensor: Tensor) -> bool:
        return tensor.ndim == 4 and self.network.memory_format is torch.channels_last

    def _to_wire(self, views: Views) -> list[Tensor]:
        """Return views as tensors."""
        return [
            self._on_the_wire(name, tensor)
            for view in views.values()
            for name, tensor in view.tensors().items()
        ]

    def _from_wire(self, product: Product, tensors: list[Tensor]) -> Views:
        """Return the views that `_to_wire` has taken apart, in the types they were made in."""
        rest = iter(tensors)
        return {
            view: Batch.from_tensors(
                {n: self._off_the_wire(next(rest), like) for n, like in example.tensors().items()}
            )
            for view, example in self._examples(product).items()
        }

    def _end(self, task: Task, report: StepReport, clock: Clock) -> Made:
        """Return what is made at the end of a chapter; add up figures until then."""
        step, block = task.time, task.block
        report = added(report, self.totals.get(block), block)
        elapsed = self.elapsed.pop(block, torch.zeros(2, dtype=torch.float64)) + clock.read()
        if step not in self.plan.chapter_ends:
            self.totals[block], self.elapsed[block] = report, elapsed
            return {}
        self.totals.pop(block, None)
        check_finite(report, block)
        learner = self.blocks[block]
        return {
            Product(ProductKind.WEIGHTS, step, block): self.weights(block),
            Product(ProductKind.OPTIMIZER_STATE, step, block): learner.optimizer_tensors(),
            **self.report(task, report, self._epochs(step, block), elapsed),
        }
