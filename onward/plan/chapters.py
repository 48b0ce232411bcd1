"""Plans in which blocks take turns, chapter by chapter."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from onward.errors import SettingError
from onward.plan.tasks import Plan, Product, ProductKind, Task, TaskKind, Work


@dataclass(frozen=True)
class ChapterPlan(Plan):
    """Blocks take turns: each learns for a chapter from the blocks below as published in it.

    Source:
        Aktemur et al. 2024, arXiv:2404.08573, section 4.
    """

    optimizer_state_age: int | None = 1
    """Age in chapters of the optimizer state a chapter starts with; None to start without."""

    is_augmented: bool = field(default=False, kw_only=True)
    """Whether each epoch sees samples of its own, so that none is passed for two of them."""

    block_patience: int | None = field(default=None, kw_only=True)
    """Validations of a block in a chapter without a better one after which it stops."""

    block_validate_every: int = field(default=1, kw_only=True)
    """Epochs between these validations."""

    kind = "chapters"
    is_sliceable = True
    placements = ("sequential", "single-layer", "all-layers", "federated")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_delays:
            raise SettingError(
                "A block reads with a delay what came out at the visit before, and in a chapter "
                "plan blocks are not visited in turn. Use --plan stream."
            )
        if self.hint_age is not None and self.hint_age < 1:
            raise SettingError(
                f"plan.hint_age is {self.hint_age}, but in a chapter plan hints are at least one "
                f"chapter old: a chapter cannot wait for its own end."
            )
        shards = len(self.samples)
        if self.block_patience is not None:
            self._check_stopping(shards)
        for samples in self.samples if self.cut == "samples" else ():
            last = self.batch_size if self.drop_last else (samples - 1) % self.batch_size + 1
            if last < self.slices:
                raise SettingError(
                    f"plan.slices is {self.slices}, but the last mini-batch of an epoch has "
                    f"{last} {'sample' if last == 1 else 'samples'}: {samples} samples in "
                    f"mini-batches of {self.batch_size}. Choose another training.batch_size."
                )
        if self.chapters < shards:
            raise SettingError(
                f"{self.chapters} chapters visit {self.chapters} of {shards} shards, and no "
                f"samples of the others. Set plan.chapters to {shards} or more, or plan.shards "
                "lower."
            )
        if self.hint_age is not None and shards > 1 and self.hint_age % shards:
            raise SettingError(
                f"plan.hint_age is {self.hint_age}, but hints of a shard come from its owner's "
                f"last visit, {shards} chapters before. Use {shards} or a multiple, or never."
            )

    def _check_stopping(self, shards: int) -> None:
        """Refuse blocks that stop by themselves where that is not known, or not known alike."""
        why = None
        if not self.has_validation:
            why = "there are no validation samples that could tell when a block stops"
        elif shards > 1:
            why = f"each of {shards} shards (plan.shards) would stop blocks by samples of its own"
        elif self.slices > 1:
            why = "ranks that share a block (plan.slices) have all of it at the end alone"
        if why is not None:
            raise SettingError(
                f"plan.block_patience is {self.block_patience}, but {why}. Set it to none (on the "
                f"command line --set plan.block_patience=none)."
            )

    @property
    def time_word(self) -> str:
        return "chapter"

    @property
    def usual_placement(self) -> str:
        return "federated" if len(self.samples) > 1 else "all-layers"

    def work(self, task: Task) -> Work:
        shard = self.shard(task.time)
        whole, batches = self.samples[shard] / self.batch_size, self.batches(shard)
        if task.kind is TaskKind.SCORE:
            # Not passed to a head again where it has just learned from the very same.
            is_anew = self.is_augmented or self.chapters > self.epochs
            return Work(0.0, whole if self.heads and is_anew else 0.0, scored=whole)
        if self.nodes[task.block].is_frozen:
            return Work(0.0, 0.0)
        segments = self.segments(task.time)
        share = (segments[0].last - segments[0].first) / batches
        learned = min(whole, batches) * share
        if self.is_augmented:
            return Work(learned * len(segments), learned * len(segments))
        # A chapter passes each of its samples once, however often it learns from them; of whole
        # epochs also those at the end that one of them leaves out.
        return Work(learned * len(segments), whole if share == 1 else learned)

    def samples_of(self, product: Product) -> int:
        return self.samples[self.shard(product.time)]

    def stalled(self, age: int) -> str:
        return "chapters wait for the hints of others"

    @property
    def most_waiting(self) -> int:
        # A rank may need optimizer state some chapters after the weights that came with it.
        return 2 + (self.optimizer_state_age or 0)

    def least_stop_age(self, teams: int) -> int:
        return teams

    def all_tasks(self) -> Iterator[Task]:
        for chapter in range(self.chapters):
            yield from (Task(TaskKind.TRAIN, chapter, block) for block in self.trained)
            if self._scores_in(chapter):
                yield Task(TaskKind.SCORE, chapter, 0)
            yield from self.validations(chapter)
        yield self.gather

    def maker(self, product: Product) -> Task:
        kinds = {ProductKind.HINTS: TaskKind.SCORE, ProductKind.COUNTS: TaskKind.VALIDATE}
        if product.kind is ProductKind.BEST:
            return self.validations(product.time)[0]
        return Task(kinds.get(product.kind, TaskKind.TRAIN), product.time, product.block)

    def all_needs(self, task: Task) -> list[Product]:
        chapter = task.time
        match task.kind:
            case TaskKind.TRAIN:
                needs = self.deciding(chapter)
                if chapter:
                    needs.append(Product(ProductKind.WEIGHTS, chapter - 1, task.block))
                if self.optimizer_state_age is not None and chapter >= self.optimizer_state_age:
                    needs.append(
                        Product(
                            ProductKind.OPTIMIZER_STATE,
                            chapter - self.optimizer_state_age,
                            task.block,
                        )
                    )
                below = sorted(self.below[task.block])
                needs += [Product(ProductKind.WEIGHTS, chapter, b) for b in below]
                is_hinted = self.hint_age and chapter >= self.hint_age
                if is_hinted and not self.nodes[task.block].is_head:
                    needs.append(Product(ProductKind.HINTS, chapter - (self.hint_age or 0), 0))
                return needs
            case TaskKind.SCORE:
                weights = [Product(ProductKind.WEIGHTS, chapter, b) for b in self.trained]
                return [*self.deciding(chapter), *weights]
            case TaskKind.VALIDATE:
                weights = [Product(ProductKind.WEIGHTS, chapter, b) for b in self.trained]
                return [*self.judged_with(task), *weights]
        return self._needs_of_gather

    def makes(self, task: Task) -> list[Product]:
        match task.kind:
            case TaskKind.TRAIN:
                things = [ProductKind.WEIGHTS, ProductKind.OPTIMIZER_STATE, ProductKind.REPORT]
                return [Product(thing, task.time, task.block) for thing in things]
            case TaskKind.SCORE:
                return [Product(ProductKind.HINTS, task.time, 0)]
            case TaskKind.VALIDATE:
                return [Product(ProductKind.COUNTS, task.time, task.block), *self.best(task.time)]
        return []

    def all_uses(self, product: Product) -> list[Task]:
        chapter, block = product.time, product.block
        match product.kind:
            case ProductKind.WEIGHTS:
                uses = [
                    Task(TaskKind.TRAIN, chapter, b) for b in self.trained if block in self.below[b]
                ]
                if self._scores_in(chapter):
                    uses.append(Task(TaskKind.SCORE, chapter, 0))
                uses += self.validations(chapter)
                if chapter + 1 < self.chapters:
                    return [*uses, Task(TaskKind.TRAIN, chapter + 1, block)]
                return uses if self.keep_best else [*uses, self.gather]
            case ProductKind.OPTIMIZER_STATE:
                later = chapter + (self.optimizer_state_age or self.chapters)
                return [Task(TaskKind.TRAIN, later, block)] if later < self.chapters else []
            case ProductKind.HINTS:
                later = chapter + (self.hint_age or self.chapters)
                return [Task(TaskKind.TRAIN, later, b) for b in range(self.num_blocks)]
            case ProductKind.BEST:
                return self.uses_of_best(product)
            case ProductKind.COUNTS:
                uses = self.judging(chapter)
                for later in self.decided(chapter):
                    uses += [Task(TaskKind.TRAIN, later, b) for b in self.trained]
                    uses += [Task(TaskKind.SCORE, later, 0)] * self._scores_in(later)
                return [*uses, self.gather]
        return [self.gather]

    def chapter(self, task: Task) -> int:
        return task.time

    def follows(self, task: Task) -> Task | None:
        return None

    def is_kept(self, product: Product, every: int) -> bool:
        ages = {
            ProductKind.WEIGHTS: 1,
            ProductKind.OPTIMIZER_STATE: self.optimizer_state_age,
            ProductKind.HINTS: self.hint_age,
            ProductKind.BEST: self.validate_every,
        }
        # The next end at or after this chapter, and whether the product is still needed then.
        end = min(-(-(product.time + 1) // every) * every, self.chapters) - 1
        return end < product.time + (ages.get(product.kind) or 0)

    def _scores_in(self, chapter: int) -> bool:
        return self.hint_age is not None and chapter + self.hint_age < self.chapters

    @cached_property
    def _needs_of_gather(self) -> list[Product]:
        last = self.chapters - 1
        return [
            *(self.best(last) or [Product(ProductKind.WEIGHTS, last, b) for b in self.trained]),
            *(
                Product(ProductKind.REPORT, c, b)
                for c in range(self.chapters)
                for b in self.trained
            ),
            *(
                Product(ProductKind.COUNTS, task.time, task.block)
                for c in range(self.chapters)
                for task in self.validations(c)
            ),
        ]
