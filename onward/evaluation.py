"""How many samples a network gets right, and what chance would."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from onward.batch import Batch, in_chunks
from onward.data import Dataset
from onward.data.labels import as_names, check_shape, column, numbers_of, whole_numbers
from onward.data.numbers import Numbers
from onward.data.tables import places
from onward.errors import DataError, SettingError
from onward.network.networks import Network
from onward.network.passes import passes
from onward.network.readouts import Readout, Scores
from onward.network.samplers import NEUTRAL
from onward.settings import Monitor

CHUNK = 100
"""Samples whose metrics are computed at once: one may have thousands of scores."""

MOST_NATS = 700.0
"""Nats whose perplexity is still a number."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Answers to samples, counted by class.

    Example:
        >>> tally = Tally(samples=(8, 2), named=(9, 1), right=(8, 1))
        >>> tally.accuracy, tally.balanced_accuracy
        (0.9, 0.75)
    """

    samples: tuple[int, ...]
    """Samples of each class."""

    named: tuple[int, ...]
    """Answers that name each class."""

    right: tuple[int, ...]
    """Those of them that are right."""

    @classmethod
    def of(cls, answers: Tensor, label: Tensor, num_classes: int) -> "Tally":
        """Count answers to samples whose classes are known."""
        which = (label, answers, label[answers == label])
        return cls(*(tuple(each.bincount(minlength=num_classes).tolist()) for each in which))

    @property
    def accuracy(self) -> float:
        """Share of the samples that are right."""
        return sum(self.right) / sum(self.samples)

    @property
    def sensitivity(self) -> list[float | None]:
        """Share of the samples of each class that are right; None without samples."""
        pairs = zip(self.right, self.samples, strict=True)
        return [right / samples if samples else None for right, samples in pairs]

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the sensitivities of classes that have samples."""
        return statistics.mean(share for share in self.sensitivity if share is not None)

    @property
    def macro_f1(self) -> float:
        """Mean of the F1 scores of classes that have samples."""
        each = zip(self.samples, self.named, self.right, strict=True)
        return statistics.mean(2 * right / (s + named) for s, named, right in each if s)

    @property
    def by_chance(self) -> float:
        """Share that would be right if the same answers were given to the samples in any order."""
        pairs = zip(self.samples, self.named, strict=True)
        return sum(samples * named for samples, named in pairs) / sum(self.samples) ** 2

    @property
    def lead(self) -> float:
        """How much better the answers are than in any order, in standard deviations.

        That of accuracy, or of balanced accuracy where it is more; infinite where the samples are
        of one class, and there is nothing to tell apart.
        """
        known = [each for each in zip(self.samples, self.named, self.right, strict=True) if each[0]]
        if len(known) < 2:
            return math.inf
        total, leads = sum(self.samples), []
        # In accuracy each sample counts the same; in balanced accuracy, each class.
        for is_balanced in (False, True):
            gain = variance = 0.0
            for samples, named, right in known:
                weight = 1 / len(known) if is_balanced else samples / total
                share = named / total
                gain += weight * (right / samples - share)
                variance += weight**2 * share * (1 - share) / samples
            leads.append(gain / math.sqrt(variance) if variance else 0.0)
        return max(leads)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How many samples a network gets right."""

    samples: int
    """Samples that were looked at."""

    correct: int
    """Samples whose class the network names."""

    correct_blocks: Mapping[int, int]
    """Samples whose class each block names on its own, where the readout has its scores."""

    tally: Tally | None = None
    """The network's answers by class; None where they were not counted so."""

    tally_blocks: Mapping[int, Tally] = field(default_factory=dict)
    """The answers of each block on its own, like `correct_blocks`."""

    ordered: int | None = None
    """Of two classes: pairs of a sample of each whose scores are in the right order, counted twice,
    and once where scores are the same. None where there are not two, or each has no samples."""

    unscored: int = 0
    """Samples whose largest score is not finite, such as NaN: no class can be chosen for them."""

    def __repr__(self) -> str:
        """Return it in a line."""
        share = "" if self.accuracy is None else f", {self.accuracy:.2%}"
        return f"<Evaluation: {self.correct:,} of {self.samples:,} samples are right{share}>"

    @property
    def accuracy(self) -> float | None:
        """Share of the samples that are right; None without samples."""
        return self.correct / self.samples if self.samples else None

    @property
    def roc_auc(self) -> float | None:
        """Area under the ROC curve, where there are two classes with samples."""
        if self.ordered is None or self.tally is None:
            return None
        return self.ordered / (2 * math.prod(self.tally.samples))

    @property
    def told_unscored(self) -> str | None:
        """What to say of samples whose scores are not finite; None where there are none."""
        if not self.unscored:
            return None
        return (
            f"{self.unscored:,} of {self.samples:,} samples have scores that are not finite, such "
            f"as NaN, so that no class can be chosen for them, and most count as wrong. Check "
            f"`scores` of the objectives: the logarithm or the square root of a negative number "
            f"may be the cause."
        )

    def merit(self, monitor: Monitor) -> int:
        """Return how good this is, to compare with others of the same samples: more is better.

        Raises:
            DataError: It is an area under a curve, and samples are of one class.
        """
        return merit(self.correct, self.ordered, monitor)

    @property
    def block_accuracy(self) -> list[float]:
        """The same for each block on its own."""
        return [correct / self.samples for _, correct in sorted(self.correct_blocks.items())]


def evaluate(network: Network, batch: Batch, readout: Readout | None = None) -> Evaluation:
    """Count the samples that a network gets right.

    Args:
        network: What is asked.
        batch: Samples with their true classes. Without classes, or where the network names none,
            nothing is counted.
        readout: Another readout than the network's own.

    Raises:
        DataError: The classes are not those of the network.
        SettingError: No sample has scores that are finite.
    """
    is_asked = network.readout is not None and "label" in batch.targets
    if not is_asked or not batch.num_counted:
        return Evaluation(0, 0, {})
    counted = batch.counted
    label = checked_labels(network, counted.label, len(counted))
    found = network.scores_of(batch, readout)
    scores = Scores(found.network.cpu(), tuple(own.cpu() for own in found.blocks))
    index = slice(None) if batch.index is None else batch.index.cpu()
    answers = [s[index].argmax(dim=1) for s in (scores.network, *scores.blocks)]
    whole, *each = (Tally.of(a, label, network.num_classes) for a in answers)
    # Where there are ticks, the last one counts.
    blocks = [visit % len(network.all_blocks) for visit in network.fold(readout).exits]
    tallies = dict(zip(blocks, each, strict=False))
    correct = {block: sum(tally.right) for block, tally in tallies.items()}
    order = ordered(scores.network[index], label)
    # A class may be impossible, and have a logarithm of 0.
    unscored = int((~scores.network[index].amax(dim=1).isfinite()).sum())
    counts = Evaluation(len(label), sum(whole.right), correct, whole, tallies, order, unscored)
    if unscored == len(label):
        raise SettingError(f"Nothing can be counted: {counts.told_unscored}")
    return counts


def merit(correct: int, order: int | None, monitor: Monitor) -> int:
    """See `Evaluation.merit`."""
    if monitor == "accuracy":
        return correct
    if order is None:
        raise DataError(
            "plan.monitor = roc-auc compares areas under a curve, and all validation samples are "
            "of one class. Use other validation samples, or accuracy."
        )
    return order


def ordered(scores: Float[Tensor, "samples classes"], label: Tensor) -> int | None:
    """Return how many pairs of samples of two classes are in order, see `Evaluation.ordered`.

    Example:
        >>> ordered(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]), torch.tensor([0, 1, 0]))
        3
    """
    if scores.shape[1] != 2 or len(label.unique()) < 2:
        return None
    lead = scores[:, 1] - scores[:, 0]
    others, own = lead[label == 0].sort().values, lead[label == 1]
    below, at_most = (torch.searchsorted(others, own, right=right).sum() for right in (False, True))
    return int(below + at_most)


@torch.no_grad()
def block_metrics(network: Network, batch: Batch) -> list[dict[str, float]]:
    """Return the means of what objectives tell of test samples, for each block.

    Args:
        network: What is asked.
        batch: Samples with their targets.

    Returns:
        Means by the `test_metric_names` of each block, none for a block without; and nothing where
        all are without.
    """
    blocks = network.all_blocks
    totals: list[dict[str, list[float]]] = [
        {name: [0.0, 0.0] for name in block.objective.test_metric_names} for block in blocks
    ]
    if not any(totals) or not batch.num_counted:
        return []
    for chunk in in_chunks(batch, CHUNK):
        seen = network.sampler.neutral(network.transformed(chunk))
        for number, _, outputs in passes(network, seen):
            block = blocks[number]
            if not totals[number]:
                continue
            with block.autocast():
                found = block.objective.metrics({NEUTRAL: outputs})
            for name, total in totals[number].items():
                figure, count = found[name]
                total[0] += float(figure)
                total[1] += count
    means = [{name: part / count for name, (part, count) in own.items()} for own in totals]
    return [own | _perplexity(own) for own in means]


def _perplexity(means: Mapping[str, float]) -> dict[str, float]:
    """Return the perplexity that nats stand for, where there are some."""
    return {"perplexity": math.exp(min(means["nats"], MOST_NATS))} if "nats" in means else {}


def as_trained(network: Network, dataset: Dataset) -> Dataset:
    """Return a data set with columns and classes in the order in which a network has them.

    Raises:
        DataError: A column is missing, or the classes are others.
    """
    return _renumbered(network, _reordered(network, dataset))


def _reordered(network: Network, dataset: Dataset) -> Dataset:
    ours, theirs = network.inputs.feature_names, dataset.feature_names
    if ours is None or theirs is None or ours == theirs:
        return dataset
    order = torch.tensor(places(theirs, ours, dataset.name))

    def own(batch: Batch) -> Batch:
        return batch.replace(inputs=batch.tensor[:, order])

    return _with_parts(dataset, own, feature_names=ours)


def _with_parts(dataset: Dataset, own: Callable[[Batch], Batch], **changes: Any) -> Dataset:
    """Return a data set with other batches."""
    validation = dataset.validation
    return replace(
        dataset,
        training=own(dataset.training),
        validation=None if validation is None else own(validation),
        test=own(dataset.test),
        digest=None,
        held_out_digest=None,
        **changes,
    )


def _renumbered(network: Network, dataset: Dataset) -> Dataset:
    ours, theirs = network.class_names, dataset.class_names
    if ours == theirs or network.readout is None or "label" not in dataset.test.targets:
        return dataset
    if ours is None or theirs is None:
        kinds = ("numbers", "names") if ours is None else ("names", "numbers")
        raise DataError(
            f"The network was trained on {kinds[0]} of classes, and {dataset.name} has {kinds[1]}. "
            f"Give the data class_names, as in the training."
        )

    def ours_for(label: Tensor) -> Tensor:
        return numbers_of(ours, np.array(theirs)[label.numpy()], dataset.name)

    def own(batch: Batch) -> Batch:
        structure = dict(batch.structure)
        if "known_label" in structure:
            structure["known_label"] = ours_for(structure["known_label"])
        return batch.with_targets(label=ours_for(batch.label)).replace(structure=structure)

    return _with_parts(dataset, own, num_classes=len(ours), class_names=ours)


def checked_labels(network: Network, y: Numbers, samples: int) -> Int[Tensor, " samples"]:
    """Return the numbers of the classes of samples.

    Args:
        network: What is to name them.
        y: A whole number per sample, or a name, where the network knows names. Where all its names
            are whole numbers, numbers in an array are names; in a tensor they count classes from 0,
            as in data sets.
        samples: How many samples there are.

    Raises:
        DataError: They are something else, or not those of the network.
    """
    y, known = column(y), network.class_names
    names = as_names(y, "y")
    if names is not None:
        if known is None:
            raise DataError(
                "y has names of classes, and the network was trained on numbers. Give numbers."
            )
        check_shape(names.shape, "y", samples)
        return numbers_of(known, names, "y")
    labels = whole_numbers(y, "y", samples)
    if known and not isinstance(y, Tensor) and all(map(_is_number, known)):
        return numbers_of(known, labels.numpy().astype(np.str_), "y")
    if samples and (labels.min() < 0 or labels.max() >= network.num_classes):
        raise DataError(
            f"Classes are whole numbers from 0 to {network.num_classes - 1} for this network; "
            f"these run from {labels.min()} to {labels.max()}."
        )
    return labels


def _is_number(name: str) -> bool:
    """Return whether a name is what a whole number is written as."""
    return name.removeprefix("-").isdecimal() and str(int(name)) == name
