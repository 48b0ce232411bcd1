"""What a person sees of a run: bars in a terminal, a line now and then elsewhere."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onward.placement import Placement, stall
from onward.plan.tasks import Plan, ProductKind
from onward.runs import results
from onward.watching import is_watched

LINE_EVERY_SECONDS = 10.0
"""Longest silence where there is no terminal, as far as there is news."""


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> count(1, "rank"), count(1200, "sample")
        ('1 rank', '1,200 samples')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


UNSHOWN = ("dead_fraction", "epochs", "seconds", "cpu_seconds")
"""Figures of a report that a line of progress leaves out."""

SHARES = {"accuracy": "accuracy", "told_apart": "told apart", "paired": "paired"}
"""Figures that are shares, and what a line of progress calls them."""


def usual_listener() -> results.Listener:
    """Return what shows progress where somebody watches: in a terminal, or in a notebook."""
    console = Console(stderr=True, markup=False)
    return Bars(console) if is_watched(console) else results.Listener()


class Bars(results.Listener):
    """A bar a block with its last loss and accuracy; lines where there is no terminal.

    Args:
        console: Where they are shown. None: standard error, or the notebook.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, markup=False)
        self.bars: Progress | None = None
        self.names: dict[int, str] = {}
        self.tasks: dict[int, TaskID] = {}
        self.done = self.total = self.before = 0
        self.shards = self.chapters = 1
        self.validation: TaskID | None = None
        self.last_validation = -math.inf
        self.started = self.last_line = time.monotonic()
        self.first = time.time()
        """When the first task began, in seconds since 1970."""
        self.has_begun = False

    def begin(self, plan: Plan, placement: Placement) -> None:
        if not self.has_begun:
            self.first, self.has_begun = time.time(), True
        learning = [b for b in plan.trained if not plan.nodes[b].is_frozen]
        self.names = {b: "head" if b in plan.heads else f"block {b}" for b in learning}
        self.done, self.total = 0, plan.chapters * len(learning)
        self.shards, self.chapters = len(plan.samples), plan.chapters
        self.validation, self.last_validation = None, -math.inf
        self.before = sum(
            product.kind is ProductKind.REPORT and product.block in self.names
            for product in plan.held
        )
        self.started = self.last_line = time.monotonic()
        frozen = len(plan.trained) - len(learning)
        self.say(
            f"{count(len(plan.trained), 'block')}{f' ({frozen} frozen)' if frozen else ''}, "
            f"{count(plan.epochs, 'epoch')} in "
            f"{count(plan.chapters, 'chapter')}, {count(sum(plan.samples), 'sample')}; "
            f"{placement.name} on {count(placement.num_ranks, 'rank')}"
        )
        warning = stall(plan, placement)
        if warning:
            self.say(f"Note: {warning}")
        # Not a terminal that cannot move its cursor, either.
        if not is_watched(self.console):
            return
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>4.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.bars.start()
        for block, name in self.names.items():
            self.tasks[block] = self.bars.add_task(name, total=plan.chapters, figures="")

    def say(self, line: str) -> None:
        """Print a line, uncut and without colours of its own."""
        self.console.print(line, soft_wrap=True, highlight=False)

    def note(self, text: str) -> None:
        self.say(f"Note: {text}")

    def progress(self, progress: results.Progress) -> None:
        figures = progress.figures
        if progress.block is None:
            accuracy = figures["validation_accuracy"]
            self.validated(progress, f"{accuracy:.2%}")
            return
        if progress.block not in self.names:
            return
        self.done += 1
        text = "  ".join(
            f"{SHARES[name]} {value:.2%}" if name in SHARES else f"{name} {value:.4f}"
            for name, value in figures.items()
            if name not in UNSHOWN and value is not None
        )
        if self.bars is not None:
            self.bars.update(self.tasks[progress.block], advance=1, figures=text)
        elif time.monotonic() - self.last_line > LINE_EVERY_SECONDS or self.done == self.total:
            self.last_line = time.monotonic()
            elapsed = self.last_line - self.started
            left = elapsed / max(self.done - self.before, 1) * (self.total - self.done)
            self.say(
                f"chapter {progress.chapter}, {self.names[progress.block]}: {text}; "
                f"{elapsed:.0f} s, about {left:.0f} s left"
            )

    def validated(self, progress: results.Progress, accuracy: str) -> None:
        """Show a validation, in a bar of its own where bars are watched."""
        shard = f", shard {progress.figures['shard']}" if self.shards > 1 else ""
        chapter = progress.chapter + 1
        if self.bars is not None:
            if self.validation is None:
                self.validation = self.bars.add_task("validation", total=self.chapters, figures="")
            self.bars.update(
                self.validation, completed=chapter, figures=f"accuracy {accuracy}{shard}"
            )
            return
        now = time.monotonic()
        if now - self.last_validation > LINE_EVERY_SECONDS or chapter == self.chapters:
            self.last_validation = now
            self.say(f"chapter {progress.chapter}{shard}: validation accuracy {accuracy}")

    def end(self) -> None:
        if self.bars is not None:
            self.bars.stop()
