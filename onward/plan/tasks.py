"""What is computed: tasks as data, and what each needs of the others.

A plan knows numbers, not tensors. It decides the weights: two runs of one plan end in the same
bits wherever their tasks were placed. Letters of a task, as in "2T7": block 2, train, time 7.

    P  pass samples with the neutral label through a block   (stream plans)
    T  train a block
    S  score the training samples, as hints for negatives    (chapter plans)
    V  validate
    G  gather the finished network
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, NamedTuple

from onward.errors import SettingError
from onward.settings import Cut, Monitor


class TaskKind(StrEnum):
    """What a task does."""

    PASS = "P"
    TRAIN = "T"
    SCORE = "S"
    VALIDATE = "V"
    GATHER = "G"


class Task(NamedTuple):
    """One piece of work, done on one rank."""

    kind: TaskKind
    time: int
    """Chapter; in a stream plan, tick, of which a mini-batch mostly has one."""
    block: int
    """Block; for validation, the shard whose validation samples are looked at; else 0."""

    def __str__(self) -> str:
        return f"{self.block}{self.kind}{self.time}"


class ProductKind(StrEnum):
    """What a task can make for others."""

    WEIGHTS = "weights"
    OPTIMIZER_STATE = "optimizer state"
    HINTS = "hints"
    ACTIVITIES = "activities"
    NEUTRAL = "neutral activities"
    REPORT = "report"
    COUNTS = "counts"
    BEST = "best weights"


NOTES = (ProductKind.REPORT, ProductKind.COUNTS)
"""Small products: they lie with the processor wherever blocks compute, and are kept until the run
is finished."""


class Product(NamedTuple):
    """Something a task made, by its time and block."""

    kind: ProductKind
    time: int
    block: int


INPUT = -1
"""The batch's own inputs, as something that a block reads."""


class Node(NamedTuple):
    """What a plan knows of a block."""

    reads: tuple[tuple[int, int], ...]
    """What it reads: a block, or `INPUT`, and the delay."""

    is_head: bool = False
    """Whether it learns from what inference sees, which no label has touched."""

    is_frozen: bool = False
    """Whether it learns nothing."""


def line(num_blocks: int, head_reads: tuple[int, ...] = ()) -> tuple[Node, ...]:
    """Return blocks in a line, with a head behind them where it reads any.

    Example:
        >>> line(2, (1,))
        (Node(reads=((-1, 0),), is_head=False, is_frozen=False), \
Node(reads=((0, 0),), is_head=False, is_frozen=False), \
Node(reads=((1, 0),), is_head=True, is_frozen=False))
    """
    nodes = [Node(((block - 1, 0),)) for block in range(num_blocks)]
    head = [Node(tuple((block, 0) for block in head_reads), is_head=True)] if head_reads else []
    return (*nodes, *head)


class Segment(NamedTuple):
    """Mini-batches `first` to `last - 1` of an epoch."""

    epoch: int
    first: int
    last: int


class Work(NamedTuple):
    """How much a task does, in mini-batches of full size."""

    learned: float
    """Mini-batches that a block learns from."""

    passed: float
    """Mini-batches that are passed through blocks on the way to it, or through it."""

    scored: float = 0.0
    """Mini-batches that are scored; by the last head, where there is one."""


@dataclass(frozen=True)
class Plan(ABC):
    """Tasks in an order in which one rank can do them, and their needs."""

    nodes: tuple[Node, ...]
    """The blocks, heads at the end."""

    epochs: int
    """Passes of each block over its training samples (E)."""

    chapters: int
    """Turns of each block (S)."""

    batch_size: int
    """Samples of a mini-batch; the last of an epoch may be smaller."""

    samples: tuple[int, ...]
    """Training samples of each shard."""

    hint_age: int | None
    """Age of the hints that draw negatives; None where no hints are used."""

    validate_every: int | None
    """Chapters between validations; None for the last chapter only."""

    has_validation: bool
    """Whether there are validation samples."""

    slices: int = field(default=1, kw_only=True)
    """Parts of every mini-batch in which a block is trained (R), which as many ranks can share."""

    cut: Cut = field(default="samples", kw_only=True)
    """What a slice is a part of: the samples of the mini-batch, or the units of the block."""

    drop_last: bool = field(default=False, kw_only=True)
    """Whether the last mini-batch of an epoch is left out where it is smaller."""

    patience: int | None = field(default=None, kw_only=True)
    """Validations without a better one after which training stops; None to train all chapters."""

    stop_age: int = field(default=1, kw_only=True)
    """Chapters from that validation to the first that is not trained."""

    monitor: Monitor = field(default="accuracy", kw_only=True)
    """What is compared of validations."""

    keep_best: bool = field(default=False, kw_only=True)
    """Whether the run ends in the weights of its best validation, and not in the last ones."""

    held: frozenset[Product] = field(default=frozenset(), kw_only=True, repr=False)
    """What an earlier part of the run has made, and need not be made again."""

    kind: ClassVar[str]
    """What kind of plan it is, as `plan.kind` names it."""

    is_sliceable: ClassVar[bool]
    """Whether it may have slices."""

    placements: ClassVar[tuple[str, ...]]
    """Names of the placements that can run it."""

    def __post_init__(self) -> None:
        if any(node.is_head for node in self.nodes[: self.num_blocks]):
            raise SettingError("Heads, which learn from what inference sees, are the last blocks.")
        if self.epochs % self.chapters and self.chapters % self.epochs:
            raise SettingError(
                f"{self.epochs} epochs cannot be cut into {self.chapters} equal chapters: one of "
                f"training.epochs and plan.chapters must divide the other."
            )
        for shard, samples in enumerate(self.samples):
            if self.batch_size > samples:
                where = f"shard {shard} has" if len(self.samples) > 1 else "the training set has"
                raise SettingError(
                    f"training.batch_size is {self.batch_size}, but {where} {samples} samples. "
                    f"Set training.batch_size to {samples} or less."
                )
            if self.chapters // self.epochs > self.batches(shard):
                raise SettingError(
                    f"plan.chapters is {self.chapters} and training.epochs is {self.epochs}: that "
                    f"is more than one chapter a mini-batch, of which an epoch has "
                    f"{self.batches(shard)}."
                )

        self._check_judged()

    def _check_judged(self) -> None:
        """Refuse to compare chapters by validation samples that are not there, or of shards."""
        name = "plan.patience" if self.patience is not None else "plan.keep_best"
        if self.is_judged and not self.has_validation:
            raise SettingError(
                f"{name} compares chapters by their validation samples, and there are none, or the "
                f"network has no readout. Set data.validation, such as 0.1, or give it a readout."
            )
        if self.is_judged and len(self.samples) > 1:
            raise SettingError(
                f"{name} compares chapters by the same validation samples, and each of the "
                f"{len(self.samples)} shards has its own. Leave it out, or use one shard."
            )

    def without_slices(self) -> "Plan":
        """Return the plan whose mini-batches are whole."""
        return replace(self, slices=1, cut="samples")

    @property
    @abstractmethod
    def time_word(self) -> str:
        """What a time is, in words."""

    @property
    @abstractmethod
    def usual_placement(self) -> str:
        """The placement of a run on several ranks that names none."""

    @abstractmethod
    def work(self, task: Task) -> Work:
        """Return how much a task does that trains, passes or scores."""

    @abstractmethod
    def samples_of(self, product: Product) -> int:
        """Return the number of samples that hints or outputs are of."""

    @abstractmethod
    def stalled(self, age: int) -> str:
        """Say what ranks wait for where hints of some age are too young for them."""

    @abstractmethod
    def least_stop_age(self, teams: int) -> int:
        """Return the `stop_age` from which teams do not wait long for validations."""

    @property
    @abstractmethod
    def most_waiting(self) -> int:
        """Times of which products from one source may wait on a rank before no more are taken."""

    @property
    def num_blocks(self) -> int:
        """Number of blocks that learn from the sampler's views: all but heads."""
        return sum(not node.is_head for node in self.nodes)

    @property
    def heads(self) -> range:
        """Numbers of the heads, which come last."""
        return range(self.num_blocks, len(self.nodes))

    @property
    def trained(self) -> range:
        """Numbers of all blocks that are trained, heads included."""
        return range(len(self.nodes))

    @property
    def hinting(self) -> int | None:
        """The head whose scores are hints in a stream; None without one."""
        return len(self.nodes) - 1 if self.heads else None

    @property
    def has_delays(self) -> bool:
        """Whether a block reads what came out at the visit before."""
        return any(delay for node in self.nodes for _, delay in node.reads)

    def sources(self, block: int) -> list[int]:
        """Return the blocks that a block reads without a delay."""
        return [source for source, delay in self.nodes[block].reads if source >= 0 and not delay]

    @cached_property
    def below(self) -> tuple[frozenset[int], ...]:
        """For each block, those that samples pass on their way to it."""
        found: list[frozenset[int]] = []
        for block in self.trained:
            own = self.sources(block)
            found.append(frozenset(own).union(*(found[source] for source in own)))
        return tuple(found)

    @cached_property
    def below_heads(self) -> frozenset[int]:
        """The blocks that samples pass on their way to heads."""
        return frozenset().union(*(self.below[head] for head in self.heads))

    def batches(self, shard: int) -> int:
        """Return the number of mini-batches in an epoch over a shard."""
        whole, rest = divmod(self.samples[shard], self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def shard(self, chapter: int) -> int:
        """Return the shard that a chapter learns from."""
        return chapter % len(self.samples)

    def segments(self, chapter: int) -> list[Segment]:
        """Return the mini-batches that a chapter learns from."""
        batches = self.batches(self.shard(chapter))
        if self.chapters <= self.epochs:
            length = self.epochs // self.chapters
            return [Segment(chapter * length + e, 0, batches) for e in range(length)]
        parts = self.chapters // self.epochs
        epoch, part = divmod(chapter, parts)
        return [Segment(epoch, part * batches // parts, (part + 1) * batches // parts)]

    def epochs_before(self, epoch: int, shard: int) -> int:
        """Return in how many epochs before this one samples of a shard were learned from."""
        shards = len(self.samples)
        if self.chapters <= self.epochs:
            chapter, within = divmod(epoch, self.epochs // self.chapters)
            return chapter // shards * (self.epochs // self.chapters) + within
        # Chapters of the shard, of which one epoch may have several.
        chapters = epoch * (self.chapters // self.epochs)
        return min(epoch, -(-(chapters - shard) // shards))

    def validations(self, chapter: int) -> list[Task]:
        """Return the validation tasks at the end of a chapter, timed by chapter."""
        if not self.has_validation:
            return []
        if chapter == self.chapters - 1:
            return [Task(TaskKind.VALIDATE, chapter, shard) for shard in range(len(self.samples))]
        if self.validate_every and (chapter + 1) % self.validate_every == 0:
            return [Task(TaskKind.VALIDATE, chapter, self.shard(chapter))]
        return []

    @property
    def is_judged(self) -> bool:
        """Whether validations decide something: where training ends, or whose weights are kept."""
        return self.patience is not None or self.keep_best

    def validated_before(self, chapter: int) -> int | None:
        """Return the last chapter before this one that is validated; None where none is."""
        if not self.has_validation or not self.validate_every:
            return None
        found = max(chapter, 0) // self.validate_every * self.validate_every - 1
        return found if found >= 0 else None

    def deciding(self, chapter: int) -> list[Product]:
        """Return the counts that say whether a chapter is trained; none where all are."""
        if self.patience is None:
            return []
        found = self.validated_before(chapter - self.stop_age + 1)
        return [] if found is None else [Product(ProductKind.COUNTS, found, 0)]

    def decided(self, chapter: int) -> range:
        """Return the chapters that the counts of this one decide on: `deciding`, backwards."""
        if self.patience is None or not self.validate_every or (chapter + 1) % self.validate_every:
            return range(0)
        first = chapter + self.stop_age
        return range(first, min(first + self.validate_every, self.chapters))

    def judged_with(self, task: Task) -> list[Product]:
        """Return what a validation needs of the one before."""
        before = self.validated_before(task.time) if self.is_judged else None
        if before is None:
            return []
        return [Product(ProductKind.COUNTS, before, 0), *self.best(before)]

    def judging(self, chapter: int) -> list[Task]:
        """Return the validation that needs this one's counts: `judged_with`, backwards."""
        if not self.is_judged or chapter == self.chapters - 1:
            return []
        later = min(chapter + (self.validate_every or self.chapters), self.chapters - 1)
        return self.validations(later)

    def best(self, chapter: int) -> list[Product]:
        """Return the best weights up to the validation of a chapter, where they are kept."""
        blocks = self.trained if self.keep_best else ()
        return [Product(ProductKind.BEST, chapter, block) for block in blocks]

    def uses_of_best(self, product: Product) -> list[Task]:
        """Return the tasks that need the best weights so far."""
        return self.judging(product.time) or [self.gather]

    @property
    def gather(self) -> Task:
        """The last task."""
        return Task(TaskKind.GATHER, self.chapters - 1, 0)

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
                missing = [
                    p for p in missing if p.kind not in (ProductKind.REPORT, ProductKind.COUNTS)
                ]
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
