"""Plans in which every mini-batch updates every block."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from onward.errors import SettingError
from onward.plan.tasks import INPUT, Plan, Product, ProductKind, Task, TaskKind, Work

QUEUE = 16
"""Mini-batches of activities from one source that wait on a rank before no more are taken."""


@dataclass(frozen=True)
class StreamPlan(Plan):
    """Every mini-batch updates every block, in order.

    A block sees the outputs that the block below had before its update. Hints come from samples
    passed through as inference sees them `hint_age` mini-batches ahead, so that hints of age a are
    the scores of the network as it was a mini-batches ago; 0 is Hinton's own order, in which every
    mini-batch waits for the whole network. Time is counted in ticks, of which a mini-batch has one
    unless the network is recurrent; validation and gathering are timed by chapter.

    Source:
        Hinton 2022, arXiv:2212.13345, and his published Matlab code.
    """

    ticks: int = 1
    """How often a mini-batch visits every block."""

    kind = "stream"
    is_sliceable = False
    placements = ("sequential", "stream")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.samples) > 1:
            raise SettingError(
                f"plan.shards is {len(self.samples)}, but a stream plan has one stream of "
                f"mini-batches, and so one shard. Shards go with chapters."
            )
        if self.hint_age is not None and self.hint_age < 0:
            raise SettingError(f"plan.hint_age is {self.hint_age}; it cannot be negative.")
        if self.has_delays and self.ticks == 1 and self.batches(0) > 1:
            raise SettingError(
                "A block reads with a delay what came out at the visit before of the same samples. "
                "So the network needs ticks of 2 or more, or training.batch_size all samples; "
                f"there are {self.batches(0)} mini-batches an epoch."
            )
        if self.heads and (self.ticks > 1 or self.has_delays):
            raise SettingError(
                "Heads that learn from what inference sees do not go with ticks and delays yet. "
                "Let the blocks have scores of their own."
            )

    @property
    def time_word(self) -> str:
        return "mini-batch" if self.ticks == 1 else "tick"

    @property
    def usual_placement(self) -> str:
        return "stream"

    def work(self, task: Task) -> Work:
        share = self.samples_at(task.time) / self.batch_size
        return Work(share, 0.0) if task.kind is TaskKind.TRAIN else Work(0.0, share)

    def samples_of(self, product: Product) -> int:
        # Neutral samples are ahead of the others.
        ahead = self.lead if product.kind is ProductKind.NEUTRAL else 0
        return self.samples_at(product.time + ahead)

    def stalled(self, age: int) -> str:
        if age == 0:
            return "every mini-batch waits for the whole network (lock-step)"
        return "the first rank waits for hints from the last"

    def least_stop_age(self, teams: int) -> int:
        return 1

    @property
    def most_waiting(self) -> int:
        return QUEUE

    @property
    def steps(self) -> int:
        """Ticks of the run."""
        return self.epochs * self.batches(0) * self.ticks

    @property
    def lead(self) -> int:
        """Mini-batches by which samples go ahead, as inference sees them, of the others."""
        return self.hint_age or 0

    def position(self, step: int) -> tuple[int, int, int]:
        """Return epoch, mini-batch of the epoch, and tick of a time."""
        batch, tick = divmod(step, self.ticks)
        return *divmod(batch, self.batches(0)), tick

    def samples_at(self, step: int) -> int:
        """Return the samples of a mini-batch; the last of an epoch may be smaller."""
        _, batch, _ = self.position(step)
        return min(self.batch_size, self.samples[0] - batch * self.batch_size)

    def has_before(self, step: int) -> bool:
        """Return whether the same samples have visited the blocks before, as delays count it."""
        return step % self.ticks > 0 if self.ticks > 1 else step > 0

    @cached_property
    def chapter_ends(self) -> dict[int, int]:
        """The chapter that ends with a tick."""
        return {self._end(chapter): chapter for chapter in range(self.chapters)}

    def _end(self, chapter: int) -> int:
        last = self.segments(chapter)[-1]
        return (last.epoch * self.batches(0) + last.last) * self.ticks - 1

    def all_tasks(self) -> Iterator[Task]:
        for step in range(self.steps):
            yield from (Task(TaskKind.PASS, step, block) for block in sorted(self.below_heads))
            yield from (Task(TaskKind.TRAIN, step, head) for head in self.heads)
            yield from (Task(TaskKind.TRAIN, step, block) for block in range(self.num_blocks))
            if step in self.chapter_ends:
                yield from self.validations(self.chapter_ends[step])
        yield self.gather

    def maker(self, product: Product) -> Task:
        match product.kind:
            case ProductKind.HINTS:
                assert self.hinting is not None
                return Task(TaskKind.TRAIN, product.time - self.lead, self.hinting)
            case ProductKind.NEUTRAL:
                return Task(TaskKind.PASS, product.time, product.block)
            case ProductKind.COUNTS:
                return Task(TaskKind.VALIDATE, product.time, product.block)
            case ProductKind.BEST:
                return self.validations(product.time)[0]
        return Task(TaskKind.TRAIN, product.time, product.block)

    def all_needs(self, task: Task) -> list[Product]:
        step, block = task.time, task.block
        before, decided = [], []
        if step - 1 in self.chapter_ends:
            before = [
                Product(thing, step - 1, block)
                for thing in (ProductKind.WEIGHTS, ProductKind.OPTIMIZER_STATE)
            ]
            decided = self.deciding(self.chapter_ends[step - 1] + 1)
        match task.kind:
            case TaskKind.PASS:
                return [*decided, *before[:1], *self._read(ProductKind.NEUTRAL, task)]
            case TaskKind.TRAIN if block in self.heads:
                return [*decided, *before, *self._read(ProductKind.NEUTRAL, task)]
            case TaskKind.TRAIN:
                is_hinted = self.hint_age is not None and step >= self.lead
                hints = [Product(ProductKind.HINTS, step, 0)] * (
                    is_hinted and self._reads_input(block)
                )
                return [*decided, *before, *hints, *self._read(ProductKind.ACTIVITIES, task)]
            case TaskKind.VALIDATE:
                return [*self.judged_with(task), *self._weights_after(task.time)]
        ends, last = self.chapter_ends.items(), self.chapters - 1
        return [
            *(self.best(last) or self._weights_after(last)),
            *(Product(ProductKind.REPORT, step, b) for step, _ in ends for b in self.trained),
            *(Product(ProductKind.COUNTS, *v[1:]) for _, c in ends for v in self.validations(c)),
        ]

    def _read(self, kind: ProductKind, task: Task) -> list[Product]:
        """Return the outputs of other blocks, or of itself before, that a task reads."""
        reads = {
            Product(kind, task.time - delay, source)
            for source, delay in self.nodes[task.block].reads
            if source != INPUT and (not delay or self.has_before(task.time))
        }
        return sorted(reads)

    def _reads_input(self, block: int) -> bool:
        return any(source == INPUT for source, _ in self.nodes[block].reads)

    def makes(self, task: Task) -> list[Product]:
        step, block = task.time, task.block
        match task.kind:
            case TaskKind.PASS:
                return [Product(ProductKind.NEUTRAL, step, block)]
            case TaskKind.VALIDATE:
                return [Product(ProductKind.COUNTS, step, block), *self.best(step)]
            case TaskKind.GATHER:
                return []
        makes = []
        if block not in self.heads:
            makes.append(Product(ProductKind.ACTIVITIES, step, block))
        elif block == self.hinting and self.hint_age is not None:
            makes.append(Product(ProductKind.HINTS, step + self.lead, 0))
        if step in self.chapter_ends:
            things = [ProductKind.WEIGHTS, ProductKind.OPTIMIZER_STATE, ProductKind.REPORT]
            makes += [Product(thing, step, block) for thing in things]
        return makes

    def all_uses(self, product: Product) -> list[Task]:
        step, block = product.time, product.block
        match product.kind:
            case ProductKind.HINTS:
                blocks = [b for b in range(self.num_blocks) if self._reads_input(b)]
                return [Task(TaskKind.TRAIN, step, b) for b in blocks] if step < self.steps else []
            case ProductKind.ACTIVITIES:
                readers = range(self.num_blocks)
                now = [
                    Task(TaskKind.TRAIN, step, b) for b in readers if (block, 0) in self.reads[b]
                ]
                if step + 1 == self.steps or not self.has_before(step + 1):
                    return now
                later = [b for b in readers if (block, 1) in self.reads[b]]
                return [*now, *(Task(TaskKind.TRAIN, step + 1, b) for b in later)]
            case ProductKind.NEUTRAL:
                reading = [b for b in self.trained if (block, 0) in self.reads[b]]
                return [
                    Task(TaskKind.TRAIN if b in self.heads else TaskKind.PASS, step, b)
                    for b in reading
                    if b in self.heads or b in self.below_heads
                ]
            case ProductKind.WEIGHTS:
                chapter = self.chapter_ends[step]
                validations = self.validations(chapter)
                if chapter == self.chapters - 1:
                    return validations if self.keep_best else [*validations, self.gather]
                kinds = (
                    (TaskKind.PASS, TaskKind.TRAIN)
                    if block in self.below_heads
                    else (TaskKind.TRAIN,)
                )
                return [*validations, *(Task(kind, step + 1, block) for kind in kinds)]
            case ProductKind.OPTIMIZER_STATE:
                is_last = step + 1 == self.steps
                return [] if is_last else [Task(TaskKind.TRAIN, step + 1, block)]
            case ProductKind.BEST:
                return self.uses_of_best(product)
            case ProductKind.COUNTS:
                uses = self.judging(step)
                for chapter in self.decided(step):
                    first = self._end(chapter - 1) + 1
                    uses += [Task(TaskKind.PASS, first, b) for b in sorted(self.below_heads)]
                    uses += [Task(TaskKind.TRAIN, first, b) for b in self.trained]
                return [*uses, self.gather]
        return [self.gather]

    @cached_property
    def reads(self) -> tuple[frozenset[tuple[int, int]], ...]:
        """For each block, what it reads, and with which delay."""
        return tuple(frozenset(node.reads) for node in self.nodes)

    def chapter(self, task: Task) -> int:
        if task.kind in (TaskKind.VALIDATE, TaskKind.GATHER):
            return task.time
        return bisect_left(self._ends, task.time)

    def follows(self, task: Task) -> Task | None:
        if task.kind not in (TaskKind.PASS, TaskKind.TRAIN) or not task.time:
            return None
        before = Task(TaskKind.TRAIN, task.time - 1, task.block)
        return None if before.time in self.chapter_ends else before

    def is_kept(self, product: Product, every: int) -> bool:
        ages = {
            ProductKind.WEIGHTS: 1,
            ProductKind.OPTIMIZER_STATE: 1,
            ProductKind.HINTS: self.lead,
        }
        if self.ticks == 1 and any((product.block, 1) in reads for reads in self.reads):
            ages[ProductKind.ACTIVITIES] = 1
        if product.kind is ProductKind.BEST:
            chapters = range(product.time, product.time + (self.validate_every or 1))
            return any((c + 1) % every == 0 or c + 1 == self.chapters for c in chapters)
        age = ages.get(product.kind, 0)
        # Hints are timed by the mini-batch that needs them.
        first = product.time - (age if product.kind is ProductKind.HINTS else 0)
        steps = range(first, first + age)
        ends = [self.chapter_ends[step] + 1 for step in steps if step in self.chapter_ends]
        return any(end % every == 0 or end == self.chapters for end in ends)

    @cached_property
    def _ends(self) -> list[int]:
        return list(self.chapter_ends)

    def _weights_after(self, chapter: int) -> list[Product]:
        return [Product(ProductKind.WEIGHTS, self._end(chapter), block) for block in self.trained]
