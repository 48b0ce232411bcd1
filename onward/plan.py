"""What is computed: tasks as data, and what each needs of the others.

A plan knows numbers, not tensors. It decides the weights: two runs of one plan end in the same
bits wherever their tasks were placed. Letters of a task, as in "2T7": block 2, train, time 7.

    P  pass rows with the neutral label through a block   (stream plans)
    T  train a block
    S  score the training rows, as hints for negatives    (chapter plans)
    V  validate
    G  gather the finished network
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from onward.config import Cut
from onward.errors import SettingError


class Kind(StrEnum):
    """What a task does."""

    PASS = "P"
    TRAIN = "T"
    SCORE = "S"
    VALIDATE = "V"
    GATHER = "G"


class Task(NamedTuple):
    """One piece of work, done on one rank."""

    kind: Kind
    time: int
    """Chapter; in a stream plan, mini-batch."""
    block: int
    """Block; for validation, the shard whose validation rows are looked at; else 0."""

    def __str__(self) -> str:
        return f"{self.block}{self.kind}{self.time}"


class Thing(StrEnum):
    """What a task can make for others."""

    WEIGHTS = "weights"
    MOMENTS = "moments"
    HINTS = "hints"
    ACTIVITIES = "activities"
    NEUTRAL = "neutral activities"
    REPORT = "report"
    COUNTS = "counts"


class Product(NamedTuple):
    """Something a task made, by its time and block."""

    thing: Thing
    time: int
    block: int


class Segment(NamedTuple):
    """Mini-batches `first` to `last - 1` of an epoch."""

    epoch: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan(ABC):
    """Tasks in an order in which one rank can do them, and their needs."""

    num_blocks: int
    """Blocks in a line."""

    head_reads: tuple[int, ...]
    """Blocks that a head after the last reads; empty without such a head."""

    epochs: int
    """Passes of each block over its training rows (E)."""

    chapters: int
    """Turns of each block (S)."""

    batch_size: int
    """Rows of a mini-batch; the last of an epoch may be smaller."""

    rows: tuple[int, ...]
    """Training rows of each shard."""

    hint_age: int | None
    """Age of the hints that draw negatives; None where no hints are used."""

    validate_every: int | None
    """Chapters between validations; None for the last chapter only."""

    has_validation: bool
    """Whether there are validation rows."""

    def __post_init__(self) -> None:
        if self.epochs % self.chapters and self.chapters % self.epochs:
            raise SettingError(
                f"{self.epochs} epochs cannot be cut into {self.chapters} equal chapters: one of "
                f"training.epochs and plan.chapters must divide the other."
            )
        for shard, rows in enumerate(self.rows):
            if self.batch_size > rows:
                where = f"shard {shard} has" if len(self.rows) > 1 else "the training set has"
                raise SettingError(
                    f"training.batch_size is {self.batch_size}, but {where} {rows} rows. "
                    f"Set --batch-size to {rows} or less."
                )
            if self.chapters // self.epochs > self.batches(shard):
                raise SettingError(
                    f"{self.chapters} chapters in {self.epochs} epochs is more than one chapter "
                    f"a mini-batch: there are {self.batches(shard)} mini-batches an epoch."
                )

    @property
    def head(self) -> int | None:
        """Number of the block that reads several others, if there is one."""
        return self.num_blocks if self.head_reads else None

    @property
    def trained(self) -> range:
        """Numbers of all blocks that are trained, the head included."""
        return range(self.num_blocks + bool(self.head_reads))

    def batches(self, shard: int) -> int:
        """Return the number of mini-batches in an epoch over a shard."""
        return -(-self.rows[shard] // self.batch_size)

    def shard(self, chapter: int) -> int:
        """Return the shard that a chapter learns from."""
        return chapter % len(self.rows)

    def segments(self, chapter: int) -> list[Segment]:
        """Return the mini-batches that a chapter learns from."""
        batches = self.batches(self.shard(chapter))
        if self.chapters <= self.epochs:
            length = self.epochs // self.chapters
            return [Segment(chapter * length + e, 0, batches) for e in range(length)]
        parts = self.chapters // self.epochs
        epoch, part = divmod(chapter, parts)
        return [Segment(epoch, part * batches // parts, (part + 1) * batches // parts)]

    def validations(self, chapter: int) -> list[Task]:
        """Return the validation tasks at the end of a chapter, timed by chapter."""
        if not self.has_validation:
            return []
        if chapter == self.chapters - 1:
            return [Task(Kind.VALIDATE, chapter, shard) for shard in range(len(self.rows))]
        if self.validate_every and (chapter + 1) % self.validate_every == 0:
            return [Task(Kind.VALIDATE, chapter, self.shard(chapter))]
        return []

    @property
    def gather(self) -> Task:
        """The last task."""
        return Task(Kind.GATHER, self.chapters - 1, 0)

    @abstractmethod
    def tasks(self) -> Iterator[Task]:
        """Yield all tasks, in an order in which one rank can do them."""

    @abstractmethod
    def maker(self, product: Product) -> Task:
        """Return the task that makes a product."""

    @abstractmethod
    def needs(self, task: Task) -> list[Product]:
        """Return what a task needs, made by earlier tasks."""

    @abstractmethod
    def makes(self, task: Task) -> list[Product]:
        """Return what a task makes."""

    @abstractmethod
    def uses(self, product: Product) -> list[Task]:
        """Return the tasks that need a product: `needs`, the other way round."""


@dataclass(frozen=True)
class ChapterPlan(Plan):
    """Blocks take turns: each learns for a chapter from the blocks below as published in it.

    Source:
        Aktemur et al. 2024, arXiv:2404.08573, section 4.
    """

    moments_age: int | None = 1
    """Age in chapters of the moments a chapter starts with; None to start without."""

    slices: int = 1
    """Parts of every mini-batch in which a block is trained (R)."""

    cut: Cut = "rows"
    """What a slice is a part of: the rows of the mini-batch, or the units of the block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hint_age is not None and self.hint_age < 1:
            raise SettingError(
                f"plan.hint_age is {self.hint_age}, but in a chapter plan hints are at least one "
                f"chapter old: a chapter cannot wait for its own end."
            )
        shards = len(self.rows)
        for rows in self.rows if self.cut == "rows" else ():
            last = (rows - 1) % self.batch_size + 1
            if last < self.slices:
                raise SettingError(
                    f"plan.slices is {self.slices}, but the last mini-batch of an epoch has "
                    f"{last} {'row' if last == 1 else 'rows'}: {rows} rows in mini-batches of "
                    f"{self.batch_size}. Choose another training.batch_size."
                )
        if self.chapters < shards:
            raise SettingError(
                f"{self.chapters} chapters visit {self.chapters} of {shards} shards, and no rows "
                f"of the others. Set plan.chapters to {shards} or more, or plan.shards lower."
            )
        if self.hint_age is not None and shards > 1 and self.hint_age % shards:
            raise SettingError(
                f"plan.hint_age is {self.hint_age}, but hints of a shard come from its owner's "
                f"last visit, {shards} chapters before. Use {shards} or a multiple, or never."
            )

    def tasks(self) -> Iterator[Task]:
        for chapter in range(self.chapters):
            yield from (Task(Kind.TRAIN, chapter, block) for block in self.trained)
            if self._scores_in(chapter):
                yield Task(Kind.SCORE, chapter, 0)
            yield from self.validations(chapter)
        yield self.gather

    def maker(self, product: Product) -> Task:
        kinds = {Thing.HINTS: Kind.SCORE, Thing.COUNTS: Kind.VALIDATE}
        return Task(kinds.get(product.thing, Kind.TRAIN), product.time, product.block)

    def needs(self, task: Task) -> list[Product]:
        chapter = task.time
        match task.kind:
            case Kind.TRAIN:
                needs = []
                if chapter:
                    needs.append(Product(Thing.WEIGHTS, chapter - 1, task.block))
                if self.moments_age is not None and chapter >= self.moments_age:
                    needs.append(Product(Thing.MOMENTS, chapter - self.moments_age, task.block))
                needs += [Product(Thing.WEIGHTS, chapter, b) for b in range(task.block)]
                if self.hint_age and chapter >= self.hint_age and task.block != self.head:
                    needs.append(Product(Thing.HINTS, chapter - self.hint_age, 0))
                return needs
            case Kind.SCORE:
                return [Product(Thing.WEIGHTS, chapter, b) for b in self.trained]
            case Kind.VALIDATE:
                return [Product(Thing.WEIGHTS, chapter, b) for b in self.trained]
        return self._needs_of_gather

    def makes(self, task: Task) -> list[Product]:
        match task.kind:
            case Kind.TRAIN:
                things = [Thing.WEIGHTS, Thing.MOMENTS, Thing.REPORT]
                return [Product(thing, task.time, task.block) for thing in things]
            case Kind.SCORE:
                return [Product(Thing.HINTS, task.time, 0)]
            case Kind.VALIDATE:
                return [Product(Thing.COUNTS, task.time, task.block)]
        return []

    def uses(self, product: Product) -> list[Task]:
        chapter, block = product.time, product.block
        match product.thing:
            case Thing.WEIGHTS:
                uses = [Task(Kind.TRAIN, chapter, b) for b in self.trained if b > block]
                if self._scores_in(chapter):
                    uses.append(Task(Kind.SCORE, chapter, 0))
                uses += self.validations(chapter)
                if chapter + 1 < self.chapters:
                    return [*uses, Task(Kind.TRAIN, chapter + 1, block)]
                return [*uses, self.gather]
            case Thing.MOMENTS:
                later = chapter + (self.moments_age or self.chapters)
                return [Task(Kind.TRAIN, later, block)] if later < self.chapters else []
            case Thing.HINTS:
                later = chapter + (self.hint_age or self.chapters)
                return [Task(Kind.TRAIN, later, b) for b in range(self.num_blocks)]
        return [self.gather]

    def _scores_in(self, chapter: int) -> bool:
        return self.hint_age is not None and chapter + self.hint_age < self.chapters

    @cached_property
    def _needs_of_gather(self) -> list[Product]:
        last = self.chapters - 1
        return [
            *(Product(Thing.WEIGHTS, last, b) for b in self.trained),
            *(Product(Thing.REPORT, c, b) for c in range(self.chapters) for b in self.trained),
            *(
                Product(Thing.COUNTS, task.time, task.block)
                for c in range(self.chapters)
                for task in self.validations(c)
            ),
        ]


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

    def tasks(self) -> Iterator[Task]:
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

    def needs(self, task: Task) -> list[Product]:
        step, block = task.time, task.block
        match task.kind:
            case Kind.PASS:
                return [Product(Thing.NEUTRAL, step, block - 1)] if block else []
            case Kind.TRAIN if block == self.head:
                return [Product(Thing.NEUTRAL, step, b) for b in self.head_reads]
            case Kind.TRAIN if block:
                return [Product(Thing.ACTIVITIES, step, block - 1)]
            case Kind.TRAIN:
                hinted = self.hint_age is not None and step >= self.lead
                return [Product(Thing.HINTS, step, 0)] if hinted else []
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
            makes += [Product(thing, step, block) for thing in (Thing.WEIGHTS, Thing.REPORT)]
        return makes

    def uses(self, product: Product) -> list[Task]:
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
                is_last = chapter == self.chapters - 1
                return [*self.validations(chapter), *([self.gather] if is_last else [])]
        return [self.gather]

    def _weights_after(self, chapter: int) -> list[Product]:
        last = self.segments(chapter)[-1]
        step = last.epoch * self.batches(0) + last.last - 1
        return [Product(Thing.WEIGHTS, step, block) for block in self.trained]
