"""Plans in which every mini-batch updates every block."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from onward.errors import SettingError
from onward.plan.tasks import Kind, Plan, Product, Task, Thing


@dataclass(frozen=True)
class StreamPlan(Plan):
    """Every mini-batch updates every block, in order.

    A block sees the activities that the block below had before its update. Hints come from rows
    passed through with the neutral label `hint_age` mini-batches ahead, so that hints of age a
    are the scores of the network as it was a mini-batches ago; 0 is Hinton's own order, in which
    every mini-batch waits for the whole network. Time is counted in mini-batches; validation and
    gathering are timed by chapter.

    Source:
        Hinton 2022, arXiv:2212.13345, and his published Matlab code.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.rows) > 1:
            raise SettingError(
                f"plan.shards is {len(self.rows)}, but a stream plan has one stream of "
                f"mini-batches, and so one shard. Shards go with chapters."
            )
        if self.hint_age is not None and self.hint_age < 0:
            raise SettingError(f"plan.hint_age is {self.hint_age}; it cannot be negative.")

    @property
    def steps(self) -> int:
        """Mini-batches of the run."""
        return self.epochs * self.batches(0)

    @property
    def lead(self) -> int:
        """Mini-batches by which rows with the neutral label go ahead of the others."""
        return self.hint_age or 0

    def rows_of(self, step: int) -> int:
        """Return the rows of a mini-batch; the last of an epoch may be smaller."""
        first = step % self.batches(0) * self.batch_size
        return min(self.batch_size, self.rows[0] - first)

    @cached_property
    def chapter_ends(self) -> dict[int, int]:
        """The chapter that ends with a mini-batch."""
        batches = self.batches(0)
        last = [self.segments(c)[-1] for c in range(self.chapters)]
        return {s.epoch * batches + s.last - 1: c for c, s in enumerate(last)}

    def all_tasks(self) -> Iterator[Task]:
        line = range(self.num_blocks)
        for step in range(self.steps):
            if self.head is not None:
                yield from (Task(Kind.PASS, step, block) for block in line)
                yield Task(Kind.TRAIN, step, self.head)
            yield from (Task(Kind.TRAIN, step, block) for block in line)
            if step in self.chapter_ends:
                yield from self.validations(self.chapter_ends[step])
        yield self.gather

    def maker(self, product: Product) -> Task:
        match product.thing:
            case Thing.HINTS:
                return Task(Kind.TRAIN, product.time - self.lead, self.num_blocks)
            case Thing.NEUTRAL:
                return Task(Kind.PASS, product.time, product.block)
            case Thing.COUNTS:
                return Task(Kind.VALIDATE, product.time, product.block)
        return Task(Kind.TRAIN, product.time, product.block)

    def all_needs(self, task: Task) -> list[Product]:
        step, block = task.time, task.block
        before = []
        if step - 1 in self.chapter_ends:
            before = [Product(thing, step - 1, block) for thing in (Thing.WEIGHTS, Thing.MOMENTS)]
        match task.kind:
            case Kind.PASS:
                return [*before[:1], *([Product(Thing.NEUTRAL, step, block - 1)] * bool(block))]
            case Kind.TRAIN if block == self.head:
                return [*before, *(Product(Thing.NEUTRAL, step, b) for b in self.head_reads)]
            case Kind.TRAIN if block:
                return [*before, Product(Thing.ACTIVITIES, step, block - 1)]
            case Kind.TRAIN:
                hinted = self.hint_age is not None and step >= self.lead
                return [*before, *([Product(Thing.HINTS, step, 0)] * hinted)]
            case Kind.VALIDATE:
                return self._weights_after(task.time)
        ends = self.chapter_ends.items()
        return [
            *self._weights_after(self.chapters - 1),
            *(Product(Thing.REPORT, step, b) for step, _ in ends for b in self.trained),
            *(Product(Thing.COUNTS, *v[1:]) for _, c in ends for v in self.validations(c)),
        ]

    def makes(self, task: Task) -> list[Product]:
        step, block = task.time, task.block
        match task.kind:
            case Kind.PASS:
                return [Product(Thing.NEUTRAL, step, block)]
            case Kind.VALIDATE:
                return [Product(Thing.COUNTS, step, block)]
            case Kind.GATHER:
                return []
        makes = []
        if block != self.head:
            makes.append(Product(Thing.ACTIVITIES, step, block))
        elif self.hint_age is not None:
            makes.append(Product(Thing.HINTS, step + self.lead, 0))
        if step in self.chapter_ends:
            things = [Thing.WEIGHTS, Thing.MOMENTS, Thing.REPORT]
            makes += [Product(thing, step, block) for thing in things]
        return makes

    def all_uses(self, product: Product) -> list[Task]:
        step, block = product.time, product.block
        match product.thing:
            case Thing.HINTS:
                return [Task(Kind.TRAIN, step, 0)] if step < self.steps else []
            case Thing.ACTIVITIES:
                return [Task(Kind.TRAIN, step, block + 1)] if block + 1 < self.num_blocks else []
            case Thing.NEUTRAL:
                uses = [Task(Kind.PASS, step, block + 1)] if block + 1 < self.num_blocks else []
                reads = block in self.head_reads
                return [*uses, Task(Kind.TRAIN, step, self.num_blocks)] if reads else uses
            case Thing.WEIGHTS:
                chapter = self.chapter_ends[step]
                validations = self.validations(chapter)
                if chapter == self.chapters - 1:
                    return [*validations, self.gather]
                passes = self.head is not None and block != self.head
                kinds = (Kind.PASS, Kind.TRAIN) if passes else (Kind.TRAIN,)
                return [*validations, *(Task(kind, step + 1, block) for kind in kinds)]
            case Thing.MOMENTS:
                is_last = step + 1 == self.steps
                return [] if is_last else [Task(Kind.TRAIN, step + 1, block)]
        return [self.gather]

    def chapter(self, task: Task) -> int:
        if task.kind in (Kind.VALIDATE, Kind.GATHER):
            return task.time
        return bisect_left(self._ends, task.time)

    def follows(self, task: Task) -> Task | None:
        if task.kind not in (Kind.PASS, Kind.TRAIN) or not task.time:
            return None
        before = Task(Kind.TRAIN, task.time - 1, task.block)
        return None if before.time in self.chapter_ends else before

    def is_kept(self, product: Product, every: int) -> bool:
        ages = {Thing.WEIGHTS: 1, Thing.MOMENTS: 1, Thing.HINTS: self.lead}
        age = ages.get(product.thing, 0)
        # Hints are timed by the mini-batch that needs them.
        first = product.time - (age if product.thing is Thing.HINTS else 0)
        steps = range(first, first + age)
        ends = [self.chapter_ends[step] + 1 for step in steps if step in self.chapter_ends]
        return any(end % every == 0 or end == self.chapters for end in ends)

    @cached_property
    def _ends(self) -> list[int]:
        return list(self.chapter_ends)

    def _weights_after(self, chapter: int) -> list[Product]:
        last = self.segments(chapter)[-1]
        step = last.epoch * self.batches(0) + last.last - 1
        return [Product(Thing.WEIGHTS, step, block) for block in self.trained]
