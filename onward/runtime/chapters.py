"""The worker of a chapter plan: blocks take turns, each on samples passed through those below."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from onward.batch import CHUNK_SAMPLES, Batch, joined
from onward.engine.steps import StepReport
from onward.engine.stretches import Position, make_step, train_block
from onward.network.networks import Network
from onward.network.samplers import NEUTRAL, Views
from onward.plan.chapters import ChapterPlan
from onward.plan.tasks import Product, ProductKind, Segment, Task
from onward.runtime.activities import Activities
from onward.runtime.block_stopping import BlockStopping
from onward.runtime.passing import in_chunks
from onward.runtime.workers import Clock, Given, Made, Settings, Shard, Worker


class ChapterWorker(Worker):
    """Trains a block for a chapter.

    The outputs of a chapter's samples are kept as long as a higher block of the same chapter reads
    them: a rank that trains all blocks passes samples through each only once.
    """

    plan: ChapterPlan

    def __init__(
        self,
        plan: ChapterPlan,
        network: Network,
        shards: Mapping[int, Shard],
        settings: Settings,
    ) -> None:
        super().__init__(plan, network, shards, settings)
        self.chapter = -1
        self.activities: dict[tuple[Segment, bool], Activities] = {}
        """By samples, and whether they are neutral: what each block puts out for them."""
        self.hints: Tensor | None = None

    def train(self, task: Task, given: Given) -> Made:
        clock, chapter, block = Clock(), task.time, task.block
        self._begin(chapter, given)
        learner = self.blocks[block]
        self._give_optimizer_state(task, given)
        total, epochs = StepReport.of_nothing(learner.objective), 0.0
        if not learner.is_frozen:
            total, epochs = self._learned(chapter, block)
        made = {
            Product(ProductKind.WEIGHTS, chapter, block): self.weights(block),
            Product(ProductKind.OPTIMIZER_STATE, chapter, block): learner.optimizer_tensors(),
            **self.report(task, total, epochs, clock.read()),
        }
        # The product alone holds that memory from here.
        learner.reset_optimizer()
        return made

    def _learned(self, chapter: int, block: int) -> tuple[StepReport, float]:
        """Let a block learn from the samples of a chapter; return its figures, and the epochs."""
        learner, shard = self.blocks[block], self.plan.shard(chapter)
        training, batches = self.training(block), self.plan.batches(shard)
        step, total, stopping = None, None, self._stopping(chapter, block)
        learned = 0
        for segment, stretch in self._stretches(chapter, block):
            views = next(stretch)
            if step is None:
                step = make_step(learner, training, views, self.team)
            _, report = train_block(
                learner,
                chain([views], stretch),
                training,
                number=block,
                start=Position(segment.epoch, segment.first),
                batches=batches,
                step=step,
            )
            total = report.added_to(total)
            learned += segment.last - segment.first
            is_epoch = segment.last == batches
            if stopping is not None and is_epoch and stopping.is_done():
                break
        assert total is not None
        if stopping is not None:
            stopping.restore()
        return total, learned / batches

    def _stopping(self, chapter: int, block: int) -> BlockStopping | None:
        """Return what ends the training of a block early, where that is asked for."""
        plan = self.plan
        if plan.block_patience is None:
            return None
        return BlockStopping(
            self.network,
            block,
            self.shards[plan.shard(chapter)].validation,
            monitor=plan.monitor,
            every=plan.block_validate_every,
            patience=plan.block_patience,
        )

    def score(self, task: Task) -> Made:
        chapter, head = task.time, self.network.head
        self._begin(chapter, {})
        training = self.shards[self.plan.shard(chapter)].training
        if head is None:
            hints = self._hinted(training, lambda part: self.network.scores(part).network)
        elif self.settings.augment:
            # Those that were learned from are others: chunk by chunk, and nothing is held.
            hints = self._hinted(
                training, lambda part: head.scores(head.infer(self._read_by_head(part)))
            )
        else:
            key = self._key(self.plan.segments(chapter)[0])
            if self.plan.chapters > self.plan.epochs:
                # Those that were learned from are others than those of the next chapters.
                key = Segment(-1, 0, 0)
            activities = self._activities(
                (key, True), [len(training)], lambda _: self._neutral(training)
            )
            activities.pass_to(len(self.blocks) - 1)
            read = activities.read(len(self.blocks) - 1, 0)[NEUTRAL]
            hints = self._hinted(read, lambda part: head.scores(head.infer(part)))
        return {Product(ProductKind.HINTS, chapter, 0): [hints.float()]}

    def _neutral(self, batch: Batch) -> Views:
        """Return samples of the data as inference sees them."""
        return {NEUTRAL: self.network.sampler.neutral(self.network.transformed(batch))}

    def _read_by_head(self, batch: Batch) -> Batch:
        """Return samples of the data as the last head reads them."""
        activities = Activities(
            self, self.chapter, [len(batch)], lambda _: self._neutral(batch), is_neutral=True
        )
        return activities.read(len(self.blocks) - 1, 0)[NEUTRAL]

    def _hinted(self, batch: Batch, scored: Callable[[Batch], Tensor]) -> Tensor:
        """Return the class scores of samples, which ranks of a team share; a graph is one whole."""
        if batch.structure:
            return scored(batch)
        hints = in_chunks(len(batch), lambda part: scored(batch.take(part)), self.team)
        assert isinstance(hints, Tensor)
        return hints

    def _begin(self, chapter: int, given: Given) -> None:
        if chapter != self.chapter:
            self.chapter = chapter
            self.activities.clear()
            self.hints = None
        for product, tensors in given.items():
            if product.kind is ProductKind.HINTS:
                self.hints = tensors[0]

    def _give_optimizer_state(self, task: Task, given: Given) -> None:
        """Give a block the optimizer state that its chapter starts with."""
        learner, age = self.blocks[task.block], self.plan.optimizer_state_age
        if age is None or task.time < age:
            learner.reset_optimizer()
        else:
            state = given[Product(ProductKind.OPTIMIZER_STATE, task.time - age, task.block)]
            learner.set_optimizer_tensors(state)

    def _key(self, segment: Segment) -> Segment:
        """Return what tells the inputs of a segment from others of its chapter."""
        return segment if self.settings.augment else segment._replace(epoch=0)

    def _activities(
        self, key: tuple[Segment, bool], samples: Sequence[int], first: Callable[[int], Views]
    ) -> Activities:
        """Return what the blocks of this chapter put out for some samples.

        Args:
            key: What tells the samples from others of the chapter, and whether they are neutral.
            samples: Samples of each portion.
            first: Returns a portion as the network begins with it, by view.
        """
        if key not in self.activities:
            self.activities[key] = Activities(self, self.chapter, samples, first, is_neutral=key[1])
        return self.activities[key]

    # What a block learns from

    def _stretches(self, chapter: int, block: int) -> Iterator[tuple[Segment, Iterator[Views]]]:
        """Yield the segments of a chapter, each with the mini-batches that a block reads."""
        differs = self.settings.augment or self.takes_parts
        return (self._augmented if differs else self._alike)(chapter, block)

    def _alike(self, chapter: int, block: int) -> Iterator[tuple[Segment, Iterator[Views]]]:
        """See `_stretches`; all epochs see the same samples, each in another order."""
        shard, size = self.plan.shard(chapter), self.plan.batch_size
        views: Views = {}
        for segment in self.plan.segments(chapter):
            order = self.order(segment.epoch, shard)[segment.first * size : segment.last * size]
            if segment.last - segment.first == self.plan.batches(shard):
                # All of them, though another epoch may leave out others at its end.
                samples = torch.arange(self.plan.samples[shard], device=order.device)
                positions = order
            else:
                samples, positions = order.unique(return_inverse=True)

            def first(_: int, samples: Tensor = samples) -> Views:
                is_all = len(samples) == self.plan.samples[shard]
                batch = self.samples(shard, slice(None) if is_all else samples)
                return self._views(batch, samples, block, (chapter, shard))

            if not views:
                key = (self._key(segment), self._is_head(block))
                activities = self._activities(key, [len(samples)], first)
                activities.pass_to(block)
                views = self._prepared(block, activities.read(block, 0))
            yield segment, self._mini_batches(views, positions.to(self.device))

    def _augmented(self, chapter: int, block: int) -> Iterator[tuple[Segment, Iterator[Views]]]:
        """See `_stretches`; each epoch sees samples of its own, in portions of mini-batches."""
        shard, size = self.plan.shard(chapter), self.plan.batch_size
        # Parts of a structure stay apart.
        each = 1 if self.takes_parts else max(1, CHUNK_SAMPLES // size)
        for segment in self.plan.segments(chapter):
            order = self.order(segment.epoch, shard)
            numbers = range(segment.first, segment.last)

            def first(
                portion: int,
                segment: Segment = segment,
                order: Tensor = order,
                numbers: range = numbers,
            ) -> Views:
                found = []
                for number in numbers[portion * each : (portion + 1) * each]:
                    chosen = order[number * size : (number + 1) * size]
                    batch = self.mini_batch(segment.epoch, shard, number, chosen)
                    drawn = (chapter, shard, segment.epoch, number)
                    found.append(self._views(batch, chosen, block, drawn))
                return {name: joined([views[name] for views in found]) for name in found[0]}

            learned = order[segment.first * size : segment.last * size]
            samples = [len(part) for part in learned.split(each * size)]
            activities = self._activities((segment, self._is_head(block)), samples, first)
            activities.pass_to(block)
            yield segment, self._in_portions(activities, block)
            if self.takes_parts:
                # Nothing of them is held.
                self.activities.clear()

    def _in_portions(self, activities: Activities, block: int) -> Iterator[Views]:
        for portion in range(activities.portions):
            views = self._prepared(block, activities.read(block, portion))
            samples = torch.arange(len(next(iter(views.values()))), device=self.device)
            yield from self._mini_batches(views, samples)

    def _mini_batches(self, views: Views, positions: Tensor) -> Iterator[Views]:
        for chosen in positions.split(self.plan.batch_size):
            if any(view.structure for view in views.values()):
                yield views
            else:
                yield {name: view.take(chosen) for name, view in views.items()}

    def _views(
        self, batch: Batch, samples: Tensor, block: int, drawn: tuple[int, ...]
    ) -> dict[str, Batch]:
        """Return the views of some samples that the network begins with on the way to a block.

        Args:
            batch: The samples.
            samples: Their numbers in the shard.
            block: The block.
            drawn: Chapter and shard, and where they are a mini-batch, epoch and number.
        """
        if self._is_head(block):
            return {NEUTRAL: self.network.sampler.neutral(batch)}
        hints = None if self.hints is None else self.hints[samples.to(self.device)]
        return self.sampled(batch, hints, *drawn)

    def _is_head(self, block: int) -> bool:
        return self.plan.nodes[block].is_head

    def _prepared(self, block: int, read: Views) -> dict[str, Batch]:
        """Return what a block reads as its module gets it, by view."""
        return {name: self.blocks[block].prepared(view) for name, view in read.items()}
