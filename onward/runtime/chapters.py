"""The worker of a chapter plan: blocks take turns, each on samples passed through those below."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from onward.batch import Batch
from onward.blocks import gathered
from onward.engine import Position, make_step, train_block
from onward.networks import Network
from onward.plan.chapters import ChapterPlan
from onward.plan.tasks import INPUT, Product, ProductKind, Segment, Task
from onward.runtime.workers import (
    Clock,
    Given,
    Made,
    Settings,
    Shard,
    Worker,
    in_chunks,
    pass_through,
)
from onward.samplers import NEUTRAL, Views
from onward.steps import StepReport
from onward.team import Alone


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
        self.outputs: dict[tuple[Segment, bool], dict[int, Views]] = {}
        """By inputs, and whether they are neutral: what each block puts out for them."""
        self.hints: Tensor | None = None

    def train(self, task: Task, given: Given) -> Made:
        clock, chapter, block = Clock(), task.time, task.block
        self._begin(chapter, given)
        learner = self.blocks[block]
        self._give_optimizer_state(task, given)
        shard = self.plan.shard(chapter)
        training, batches = self.training(block), self.plan.batches(shard)
        step, total, key = None, None, None
        for segment in self.plan.segments(chapter):
            order = self._order(segment, shard)
            samples, positions = order.unique(return_inverse=True)
            if key != self._key(segment):
                key = self._key(segment)
                read = self._read(chapter, segment, block, samples)
                views = {name: learner.prepared(view) for name, view in read.items()}
            if step is None:
                step = make_step(learner, training, views, self.team)
            _, report = train_block(
                learner,
                self._mini_batches(views, positions),
                training,
                number=block,
                start=Position(segment.epoch, segment.first),
                batches=batches,
                step=step,
            )
            total = report.added_to(total)
        assert isinstance(total, StepReport)
        made = {
            Product(ProductKind.WEIGHTS, chapter, block): self.weights(block),
            Product(ProductKind.OPTIMIZER_STATE, chapter, block): learner.optimizer_tensors(),
            **self.report(task, total, clock.read()),
        }
        # The product alone holds that memory from here.
        learner.reset_optimizer()
        return made

    def score(self, task: Task) -> Made:
        chapter, head = task.time, self.network.head
        self._begin(chapter, {})
        training = self.shards[self.plan.shard(chapter)].training
        if head is None:
            hints = self._hinted(training, lambda part: self.network.scores(part).network)
        else:
            number = len(self.blocks) - 1
            key = self._key(self.plan.segments(chapter)[0])
            if self._inputs_change:
                # Those that were learned from are others than those of the next chapters.
                key = Segment(-1, 0, 0)
            network = self.network
            read = self._passed_to(
                number,
                (key, True),
                lambda: {NEUTRAL: network.sampler.neutral(network.transformed(training))},
            )[NEUTRAL]
            hints = self._hinted(read, lambda part: head.scores(head.infer(part)))
        return {Product(ProductKind.HINTS, chapter, 0): [hints.float()]}

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
            self.outputs.clear()
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

    @property
    def _inputs_change(self) -> bool:
        """Whether the segments of a chapter see different samples, or other shifts of them."""
        return bool(self.settings.shift) or self.plan.chapters > self.plan.epochs

    def _key(self, segment: Segment) -> Segment:
        """Return what tells the inputs of a segment from others of its chapter."""
        return segment if self._inputs_change else segment._replace(epoch=0)

    def _order(self, segment: Segment, shard: int) -> Tensor:
        """Return the samples of a segment, in the order in which they are learned from."""
        size = self.plan.batch_size
        return self.order(segment.epoch, shard)[segment.first * size : segment.last * size]

    def _mini_batches(self, views: Views, positions: Tensor) -> Iterator[Views]:
        for chosen in positions.split(self.plan.batch_size):
            if any(view.structure for view in views.values()):
                yield views
            else:
                yield {name: view.take(chosen) for name, view in views.items()}

    def _read(self, chapter: int, segment: Segment, block: int, samples: Tensor) -> Views:
        """Return some samples as a block reads them, by view."""
        shard = self.plan.shard(chapter)
        is_head = self.plan.nodes[block].is_head

        def first() -> Views:
            is_all = len(samples) == self.plan.rows[shard]
            batch = self.samples(segment.epoch, shard, slice(None) if is_all else samples)
            if is_head:
                return {NEUTRAL: self.network.sampler.neutral(batch)}
            hints = None if self.hints is None else self.hints[samples]
            return self.sampled(batch, hints, chapter, shard)

        return self._passed_to(block, (self._key(segment), is_head), first)

    def _passed_to(
        self, block: int, key: tuple[Segment, bool], first: Callable[[], Views]
    ) -> Views:
        """Return samples as a block reads them, by view.

        Args:
            block: The block.
            key: What tells these samples from others of the chapter.
            first: Returns the views that the network begins with.
        """
        known = self.outputs.setdefault(key, {})
        # Ranks of a team do not share what a head reads: it is small.
        team = Alone() if key[1] else self.team

        def output(source: int | str) -> Views:
            number = INPUT if isinstance(source, str) else source
            if number == INPUT and INPUT not in known:
                known[INPUT] = first()
            elif number not in known:
                views = read(number)
                # In their order, which ranks that share the work agree on.
                passing = dict.fromkeys(map(self.continued, views))
                with self.recorder.span("forward", f"{number}P{self.chapter}"):
                    found = {n: pass_through(self.blocks[number], views[n], team) for n in passing}
                known[number] = self.handed_on(views, found)
                self._forget(known, block, is_neutral=key[1])
            return known[number]

        def read(number: int) -> Views:
            edges = self.network.edges[number]
            each = [(edge, output(edge.source)) for edge in edges]
            like = each[0][1]
            return {
                name: gathered([(edge, views[name].inputs) for edge, views in each], like[name])
                for name in like
            }

        return read(block)

    def _forget(self, known: dict[int, Views], block: int, *, is_neutral: bool) -> None:
        """Let go of outputs that neither a block of the chapter reads nor one on the way to it."""
        nodes, below = self.plan.nodes, self.plan.below[block]
        line = range(self.plan.num_blocks)
        # Heads read neutral samples, and others what the sampler makes.
        reading = {*self.plan.heads, *self.plan.below_heads} if is_neutral else set(line)
        for source in list(known):
            readers = [b for b in reading if (source, 0) in nodes[b].reads]
            if not any(b >= block or (b in below and b not in known) for b in readers):
                del known[source]
