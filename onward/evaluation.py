"""How many samples a network gets right, and what chance would."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from onward.batch import Batch
from onward.errors import DataError
from onward.networks import Network
from onward.readouts import Readout


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How many samples a network gets right."""

    rows: int
    """Samples that were looked at."""

    correct: int
    """Samples whose class the network names."""

    correct_blocks: Mapping[int, int]
    """Samples whose class each block names on its own, where the readout has its scores."""

    class_rows: tuple[int, ...] = ()
    """Samples of each class."""

    class_correct: tuple[int, ...] = ()
    """Those of them whose class the network names."""

    named: tuple[int, ...] = ()
    """Samples of which the network says that they are of each class."""

    by_chance: float = 0.0
    """Share that would be right if the same answers were given to the samples in any order."""

    by_chance_blocks: Mapping[int, float] = field(default_factory=dict)
    """The same for each block on its own, like `correct_blocks`."""

    @property
    def accuracy(self) -> float | None:
        """Share of the samples that are right; None without samples."""
        return self.correct / self.rows if self.rows else None

    @property
    def sensitivity(self) -> list[float | None]:
        """Share of the samples of each class that are right; None without samples."""
        pairs = zip(self.class_correct, self.class_rows, strict=True)
        return [correct / rows if rows else None for correct, rows in pairs]

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the sensitivities; None without samples."""
        known = [share for share in self.sensitivity if share is not None]
        return sum(known) / len(known) if known else None

    @property
    def block_accuracy(self) -> list[float]:
        """The same for each block on its own."""
        return [correct / self.rows for _, correct in sorted(self.correct_blocks.items())]


def evaluate(network: Network, batch: Batch, readout: Readout | None = None) -> Evaluation:
    """Count the samples that a network gets right.

    Args:
        network: What is asked.
        batch: Samples with their true classes. Without classes, or where the network names none,
            nothing is counted.
        readout: Another readout than the network's own.

    Raises:
        DataError: Samples or classes are not like those of the training.
    """
    is_asked = network.readout is not None and "label" in batch.targets
    if not is_asked or not batch.num_counted:
        return Evaluation(0, 0, {})
    counted = batch.counted
    label = checked_labels(network.num_classes, counted.label, len(counted))
    scores = network.scores_of(batch, readout)
    index = slice(None) if batch.index is None else batch.index
    answers = [s[index].argmax(dim=1) for s in (scores.network, *scores.blocks)]

    def counts(labels: Tensor) -> Tensor:
        return labels.bincount(minlength=network.num_classes)

    class_rows, named = counts(label), [counts(each) for each in answers]
    correct = [int((each == label).sum()) for each in answers]
    chance = [(class_rows.double() @ each.double()).item() / len(label) ** 2 for each in named]
    # Where there are ticks, the last one counts.
    blocks = [visit % len(network.all_blocks) for visit in network.fold(readout).exits]
    return Evaluation(
        rows=len(label),
        correct=correct[0],
        correct_blocks=dict(zip(blocks, correct[1:], strict=False)),
        class_rows=tuple(class_rows.tolist()),
        class_correct=tuple(counts(label[answers[0] == label]).tolist()),
        named=tuple(named[0].tolist()),
        by_chance=chance[0],
        by_chance_blocks=dict(zip(blocks, chance[1:], strict=False)),
    )


def checked_labels(num_classes: int, y: Tensor, samples: int) -> Int[Tensor, " samples"]:
    """Return the classes of samples, as such.

    Raises:
        DataError: They are not one whole number a sample, or not those of the network.
    """
    if y.shape != (samples,):
        raise DataError(
            f"There are {samples:,} samples, and their classes have shape {tuple(y.shape)}."
        )
    labels = y.to(torch.int64)
    is_wrong = (labels != y) | (labels < 0) | (labels >= num_classes)
    if samples and is_wrong.any():
        raise DataError(
            f"Classes are whole numbers from 0 to {num_classes - 1} for this network; "
            f"these run from {y.min().item()} to {y.max().item()}."
        )
    return labels
