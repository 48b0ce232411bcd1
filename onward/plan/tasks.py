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
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

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

    held: frozenset[Product] = field(default=frozenset(), kw_only=True, repr=False)
    """What an earlier part of the run has made, and need not be made again."""

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

    @cached_property
    def rest(self) -> frozenset[Task]:
        """The tasks that are to be done: those behind what is needed and is not held.

        What was reported is not worth training again: reports that are lost stay lost, and
        validations whose weights are gone.
        """
        rest: set[Task] = set()
        wanted = [self.gather]
        while wanted:
            task = wanted.pop()
            if task in rest:
                continue
            rest.add(task)
            missing = [p for p in self.all_needs(task) if p not in self.held]
            if task == self.gather:
                missing = [p for p in missing if p.thing not in (Thing.REPORT, Thing.COUNTS)]
            wanted += [self.maker(product) for product in missing]
            before = self.follows(task)
            wanted += [before] if before else []
        for chapter in range(self.chapters):
            for task in self.validations(chapter):
                needs = self.all_needs(task)
                if self.held.issuperset(self.makes(task)):
                    continue
                if all(p in self.held or self.maker(p) in rest for p in needs):
                    rest.add(task)
        return frozenset(rest)

    def tasks(self) -> Iterator[Task]:
        """Yield the tasks that are to be done, in an order in which one rank can do them."""
        if not self.held:
            return self.all_tasks()
        return (task for task in self.all_tasks() if task in self.rest)

    def needs(self, task: Task) -> list[Product]:
        """Return what a task needs, made by earlier tasks, or held."""
        needs = self.all_needs(task)
        if self.held and task == self.gather:
            return [p for p in needs if p in self.held or self.maker(p) in self.rest]
        return needs

    def uses(self, product: Product) -> list[Task]:
        """Return the tasks to be done that need a product: `needs`, the other way round."""
        uses = self.all_uses(product)
        return [task for task in uses if task in self.rest] if self.held else uses

    def is_done(self, product: Product) -> bool:
        """Return whether a product comes from an earlier part of the run."""
        return bool(self.held) and self.maker(product) not in self.rest

    @abstractmethod
    def all_tasks(self) -> Iterator[Task]:
        """Yield all tasks, those done before included."""

    @abstractmethod
    def maker(self, product: Product) -> Task:
        """Return the task that makes a product."""

    @abstractmethod
    def all_needs(self, task: Task) -> list[Product]:
        """Return what a task needs, also what nobody has any more."""

    @abstractmethod
    def makes(self, task: Task) -> list[Product]:
        """Return what a task makes."""

    @abstractmethod
    def all_uses(self, product: Product) -> list[Task]:
        """Return the tasks that need a product, those done before included."""

    @abstractmethod
    def chapter(self, task: Task) -> int:
        """Return the chapter that a task belongs to."""

    @abstractmethod
    def follows(self, task: Task) -> Task | None:
        """Return the task that left a block as this one finds it, where it made no product."""

    @abstractmethod
    def is_kept(self, product: Product, every: int) -> bool:
        """Return whether a run can go on from a product, when it does so after some chapters.

        Args:
            product: What a task has made.
            every: Chapters between the ends from which a run can go on.
        """
