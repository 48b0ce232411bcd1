"""The worker of a chapter plan: blocks take turns, each on rows passed through those below it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from onward.blocks import Block, StepReport
from onward.networks import CHUNK_ROWS, Network
from onward.plan.chapters import ChapterPlan
from onward.plan.tasks import Product, Segment, Thing
from onward.readouts import SoftmaxHead, read_activities
from onward.runtime.workers import Arithmetic, Clock, Rows, Worker
from onward.sliced import make_sliced_step
from onward.team import Alone, Team
from onward.views import Negatives, View


class ChapterWorker(Worker):
    """Trains a block for a chapter.

    The activities of the rows at one block are kept, and passed on when a higher block of the
    same chapter needs them: a rank that trains all blocks passes rows through each only once.
    """

    plan: ChapterPlan

    def __init__(
        self,
        plan: ChapterPlan,
        network: Network,
        shards: Mapping[int, Rows],
        arithmetic: Arithmetic,
    ) -> None:
        super().__init__(plan, network, shards, arithmetic)
        self.chapter = -1
        # By inputs: how many blocks the views have passed, and the views.
        self.passed: dict[Segment, tuple[int, dict[str, Tensor]]] = {}
        self.read: dict[Segment, tuple[Tensor, ...]] = {}

    def train(self, time: int, block: int) -> None:
        clock = Clock()
        self._begin_chapter(time)
        self._begin_moments(time, block)
        shard = self.plan.shard(time)
        labels = self.shards[shard].y
        step = make_sliced_step(
            self.blocks[block],
            closed_form=self.arithmetic.closed_form,
            label_inputs=self.label_inputs(block),
            slices=self.plan.slices,
            cut=self.plan.cut,
            team=self.team,
        )
        total: StepReport | None = None
        for segment in self.plan.segments(time):
            order = self._order(segment, shard)
            rows, positions = order.unique(return_inverse=True)
            views = self._views(time, segment, block, rows, select(labels, rows))
            batches = positions.split(self.plan.batch_size)
            for batch, chosen in enumerate(batches, start=segment.first):
                seen = {name: view.rows(chosen) for name, view in views.items()}
                _, told = self.learn(step, block, seen, segment.epoch, batch, shard)
                total = told if total is None else total.add(told)
        assert total is not None
        total = step.finish(total)
        self._hand_over_moments(time, block)
        self.report(Product(Thing.REPORT, time, block), total, clock.read())

    def score(self, time: int) -> None:
        head, x = self.network.head, self.shards[self.plan.shard(time)].x
        if head is None:
            hints = in_chunks(len(x), lambda part: self.network.scores(x[part]).network, self.team)
        elif time == self.chapter and len(self.read) == 1 and not self._inputs_change:
            # Passed through the blocks already, for the head to learn from.
            (read,) = self.read.values()

            def scored(part: slice) -> Tensor:
                return head.scores(head.infer(tuple(activities[part] for activities in read)))

            hints = in_chunks(len(x), scored, self.team)
        else:
            readout = SoftmaxHead()
            hints = in_chunks(
                len(x), lambda part: self.network.scores(x[part], readout).network, self.team
            )
        self.values[Product(Thing.HINTS, time, 0)] = [hints.float()]

    def hint_rows(self, time: int) -> int:
        return self.plan.rows[self.plan.shard(time)]

    def _begin_chapter(self, chapter: int) -> None:
        if chapter != self.chapter:
            self.chapter = chapter
            self.passed.clear()
            self.read.clear()

    def _begin_moments(self, chapter: int, block: int) -> None:
        """Give a block the moments that its chapter starts with."""
        learner, age = self.blocks[block], self.plan.moments_age
        if age is None or chapter < age:
            learner.forget()
            return
        self._give_moments(block, self.values[Product(Thing.MOMENTS, chapter - age, block)])

    def _hand_over_moments(self, chapter: int, block: int) -> None:
        """Make the moments of a block a product, which alone holds their memory from here."""
        self.values[Product(Thing.MOMENTS, chapter, block)] = self._moments(block)
        self.blocks[block].forget()

    @property
    def _inputs_change(self) -> bool:
        """Whether the segments of a chapter see different rows, or other shifts of them."""
        return bool(self.arithmetic.shift) or self.plan.chapters > self.plan.epochs

    def _order(self, segment: Segment, shard: int) -> Tensor:
        """Return the rows of a segment, in the order in which they are learned from."""
        size = self.plan.batch_size
        return self.order(segment.epoch, shard)[segment.first * size : segment.last * size]

    def _views(
        self, chapter: int, segment: Segment, block: int, rows: Tensor, labels: Tensor
    ) -> dict[str, View]:
        """Return the views of some rows as a block sees them."""
        key = segment if self._inputs_change else segment._replace(epoch=0)
        if self.blocks[block].reads is not None:
            if key not in self.read:
                self.read[key] = self._read(chapter, segment, rows)
            return {"input": View(self.read[key], labels)}
        done, views = self.passed.pop(key, (0, {}))
        if not views:
            views = self._first_views(chapter, segment, rows, labels)
        for number in range(done, block):
            with self.recorder.span("forward", f"{number}P{chapter}"):
                views = {
                    name: passed(self.blocks[number], x, self.team) for name, x in views.items()
                }
        self.passed[key] = (block, views)
        return {name: View(x, labels) for name, x in views.items()}

    def _first_views(
        self, chapter: int, segment: Segment, rows: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the views of some rows as the first block sees them."""
        shard, sampler = self.plan.shard(chapter), self.network.sampler
        negatives = None
        if sampler.negatives is not None:
            age = self.plan.hint_age
            hints = self.values.get(Product(Thing.HINTS, chapter - age, 0)) if age else None
            time = 0 if sampler.negatives is Negatives.FIXED else chapter
            all_labels = self.shards[shard].y
            negatives = self.negative_labels(all_labels, hints[0] if hints else None, time, shard)
            negatives = select(negatives, rows)
        views = sampler.views(select(self.inputs(segment.epoch, shard), rows), labels, negatives)
        return {name: view.x for name, view in views.items() if isinstance(view.x, Tensor)}

    def _read(self, chapter: int, segment: Segment, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the activities that the head reads."""
        head, line = self.network.head, self.network.line
        assert head is not None
        x = select(self.inputs(segment.epoch, self.plan.shard(chapter)), rows)
        chunks = self.network.sampler.neutral(x).split(CHUNK_ROWS)
        with self.recorder.span("forward", f"P{chapter}"):
            parts = [read_activities(line, head, chunk) for chunk in chunks]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def select(x: Tensor, rows: Tensor) -> Tensor:
    """Return the rows with these ascending numbers, without a copy where they are all rows."""
    return x if len(rows) == len(x) else x[rows]


def passed(block: Block, x: Tensor, team: Team | None = None) -> Tensor:
    """Pass rows through a block in chunks, without training it."""
    return in_chunks(len(x), lambda part: block.infer(x[part]), team or Alone())


def in_chunks(rows: int, work: Callable[[slice], Tensor], team: Team) -> Tensor:
    """Do something with rows, chunk by chunk, and join what it yields.

    Chunks of `CHUNK_ROWS` are dealt to the ranks of a team, each of which gets all results.

    Args:
        rows: Number of rows.
        work: Returns a row for each row of a chunk.
        team: Who shares the work.
    """
    firsts = range(0, rows, CHUNK_ROWS)

    def bounds(member: int) -> range:
        chunks = firsts[member * len(firsts) // team.size : (member + 1) * len(firsts) // team.size]
        return range(chunks[0], min(chunks[-1] + CHUNK_ROWS, rows)) if chunks else range(0)

    own = bounds(team.index)
    # A rank without a chunk looks at a row, to know what others will tell.
    first = work(slice(own.start, min(own.start + CHUNK_ROWS, own.stop)) if own else slice(0, 1))
    found = first.new_empty(rows, *first.shape[1:])
    if own:
        found[own.start : own.start + len(first)] = first
    for start in own[CHUNK_ROWS::CHUNK_ROWS]:
        chunk = slice(start, min(start + CHUNK_ROWS, own.stop))
        found[chunk] = work(chunk)
    if team.size > 1:
        every = [bounds(member) for member in range(team.size)]
        layouts = [[found[r.start : r.stop]] for r in every]
        told = team.all_gather(layouts[team.index], layouts)
        for (part,), theirs in zip(told, every, strict=True):
            if theirs != own:
                found[theirs.start : theirs.stop] = part
    return found
