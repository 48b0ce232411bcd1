"""What a run tells: while it goes, and at its end."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from onward.evaluation import Evaluation
from onward.html import table
from onward.network.networks import Network
from onward.placement import Placement
from onward.plan.standing import NEVER, Standing
from onward.plan.tasks import Plan, Product, ProductKind
from onward.timeline import Span


@dataclass(frozen=True)
class Progress:
    """Something a rank has finished, as rank 0 hears of it."""

    chapter: int
    """Chapter, from 0."""

    block: int | None
    """Block that was trained; None for a validation."""

    figures: Mapping[str, float | None]
    """Figures of the block (`report_fields`), or of the validation."""


class Listener:
    """Told how training goes; does nothing. A class of one's own shows it as it likes."""

    def begin(self, plan: Plan, placement: Placement) -> None:
        """Called on rank 0 before the first task."""

    def note(self, text: str) -> None:
        """Called with something that the user should know, on the rank that noticed it."""

    def progress(self, progress: Progress) -> None:
        """Called on rank 0 whenever a chapter of a block, or a validation, is finished."""

    def end(self) -> None:
        """Called on rank 0 after the last task, and where training fails."""


@dataclass(frozen=True, repr=False)
class Result:
    """What came out of a run, on rank 0."""

    network: Network
    """The trained network."""

    test: Evaluation
    """How many test samples are right."""

    validation: Evaluation
    """How many validation samples are right, over all shards."""

    readouts: Mapping[str, float]
    """Test accuracy by readout, where a network has several."""

    per_block: list[float]
    """Test accuracy of each block on its own."""

    metrics: list[dict[str, float]]
    """Figures of each block on the test samples, where it has some, such as perplexity."""

    progress: list[Progress]
    """All that was reported, in order of chapter and block."""

    facts: Mapping[str, Any]
    """Settings and figures of the run, as in `result.json`."""

    timeline: list[Span] = field(default_factory=list)
    """What each rank did and when."""

    earlier: tuple["Result", ...] = ()
    """What came out of the stages before the last."""

    doubts: tuple[str, ...] = ()
    """Signs that nothing was learned, see `onward.runs.doubts`."""

    @property
    def accuracy(self) -> float | None:
        """Share of the test samples that are right."""
        return self.test.accuracy

    def __repr__(self) -> str:
        accuracy = "none" if self.accuracy is None else f"{self.accuracy:.2%}"
        what = f"{self.facts.get('recipe')} on {self.facts.get('data')}"
        return f"<Result: {what}, test accuracy {accuracy}>"

    def _repr_html_(self) -> str:
        """Return it as a table, for notebooks."""
        shares = {"test accuracy": self.accuracy, "validation accuracy": self.validation.accuracy}
        shares |= {"test area under the ROC curve": self.test.roc_auc}
        shares |= {f"test accuracy, {name} readout": own for name, own in self.readouts.items()}
        rows = {name: f"{share:.2%}" for name, share in shares.items() if share is not None}
        if self.per_block:
            each = "  ".join(f"{share:.2%}" for share in self.per_block)
            rows["test accuracy, each block alone"] = each
        rows |= {
            "epochs": str(self.facts["epochs"]),
            **({"chapters trained": ended} if (ended := ended_early(self.facts)) else {}),
            "training time": f"{self.facts['seconds']:.1f} s",
            "weights sha256": f"{self.facts['weights_sha256'][:16]}…",
        }
        rows |= {f"doubt {number}": text for number, text in enumerate(self.doubts, 1)}
        return table(f"{self.facts['recipe']} on {self.facts['data']}", rows)

    def to_json(self) -> dict[str, Any]:
        """Return what `result.json` holds."""
        tally = self.test.tally
        return {
            "accuracy": {
                "test": self.test.accuracy,
                "balanced": tally.balanced_accuracy if tally else None,
                "sensitivity": tally.sensitivity if tally else [],
                "roc_auc": self.test.roc_auc,
                "validation": self.validation.accuracy,
                "per_block": self.per_block,
                "readouts": dict(self.readouts),
            },
            "metrics": self.metrics,
            "error_count": self.test.samples - self.test.correct if self.test.samples else None,
            "class_names": self.network.class_names,
            "class_samples": list(tally.samples) if tally else [],
            "doubts": list(self.doubts),
            **self.facts,
        }


def ended_early(found: Mapping[str, Any]) -> str:
    """Say of how many chapters a run was, where validations decided something; else nothing.

    Args:
        found: What `result.json` holds.
    """
    if found.get("best_chapter") is None:
        return ""
    kept = f"{found['chapters_trained']} of {found['chapters']}"
    return f"{kept}, the best: chapter {found['best_chapter']}"


@dataclass
class Log:
    """Gathers what ranks report, and passes it on."""

    plan: Plan
    fields: Sequence[Sequence[str]]
    """What the report of each block holds."""
    listener: Listener
    entries: list[Progress] = field(default_factory=list)
    validations: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    standings: dict[int, Standing] = field(default_factory=dict)
    """What validations have shown, by chapter, where they decide something."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, product: Product, tensors: list[Tensor]) -> None:
        """Take a report, or a count of validation samples."""
        figures = tensors[0].tolist()
        if product.kind is ProductKind.REPORT:
            chapter = self.plan.chapter(self.plan.maker(product))
            named = dict(zip(self.fields[product.block], figures, strict=True))
            known = {n: None if value != value else value for n, value in named.items()}
            if known["seconds"] is None:
                return  # Training had ended before.
            entry = Progress(chapter, product.block, known)
        else:
            now = Standing.of(figures)
            counts = [int(figure) for figure in figures[: -len(now)]]
            if self.plan.is_judged:
                self.standings[product.time] = now
            chapter = min(product.time, now.end - 1)
            if not counts[0] or (chapter, product.block) in self.validations:
                return
            self.validations[chapter, product.block] = counts
            entry = Progress(
                chapter,
                None,
                {
                    "validation_accuracy": counts[1] / counts[0],
                    "samples": counts[0],
                    "shard": product.block,
                    **{f"block_{b}": c / counts[0] for b, c in enumerate(counts[2:]) if c >= 0},
                },
            )
        # Threads that receive messages come here too.
        with self.lock:
            self.entries.append(entry)
            self.listener.progress(entry)

    @property
    def standing(self) -> Standing | None:
        """What all validations have shown; None where they decide nothing."""
        return self.standings[max(self.standings)] if self.standings else None

    def block_epochs(self) -> list[float]:
        """Return for how many epochs each block has learned."""
        found = [0.0] * len(self.fields)
        for entry in self.entries:
            if entry.block is not None:
                found[entry.block] += entry.figures["epochs"] or 0.0
        return found

    @property
    def chapters_trained(self) -> int:
        """Chapters that were trained: all, where no validation has ended training."""
        return min(self.plan.chapters, self.standing.end if self.standing else NEVER)

    def outcome(self) -> str:
        """Say where training ended early, and whose weights were kept; empty where neither."""
        now, plan = self.standing, self.plan
        if now is None:
            return ""
        found = f"the best validation accuracy was that of chapter {now.best}, counted from 0"
        trained = self.chapters_trained
        parts = [f"Training ended after {trained} of {plan.chapters} chapters: {found}."]
        if trained == plan.chapters:
            parts = [f"Of {plan.chapters} chapters, {found}."]
        if plan.keep_best:
            parts.append("The network has its weights.")
        return " ".join(parts)

    def final_validation(self) -> Evaluation:
        """Return the validation of the finished network, over all shards."""
        kept = self.standing if self.plan.keep_best else None
        whose = kept.best if kept else self.chapters_trained - 1
        last = [c for (chapter, _), c in self.validations.items() if chapter == whose and c[0]]
        if not last:
            return Evaluation(0, 0, {})
        samples, correct, *each = (sum(column) for column in zip(*last, strict=True))
        return Evaluation(samples, correct, {b: c for b, c in enumerate(each) if c >= 0})
