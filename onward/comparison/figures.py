"""Figures of a comparison: of a run, of a line, and of all of it."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from onward.costs.flops import Traffic
from onward.data import Dataset
from onward.errors import FileError
from onward.exits.calibration import choose, held_out
from onward.exits.outcomes import follow
from onward.exits.policies import full_depth
from onward.network.networks import Network, in_fp32
from onward.runs import folders
from onward.runs.sharding import counted

ALLOWED = 0.001
"""Share of validation samples that may become wrong by early exit, as `onward exits` has it."""


class Spread(NamedTuple):
    """Mean and spread over runs."""

    mean: float
    """Mean."""

    deviation: float | None
    """Standard deviation of the runs; None of one alone."""

    n: int
    """Runs."""

    @staticmethod
    def of(values: Iterable[float | None]) -> "Spread | None":
        """Return that of some values; None where there is none.

        Example:
            >>> Spread.of([1.0, 3.0, None])
            Spread(mean=2.0, deviation=1.4142135623730951, n=2)
        """
        known = [value for value in values if value is not None]
        if not known:
            return None
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return Spread(statistics.mean(known), deviation, len(known))


@dataclass(frozen=True)
class EarlyExit:
    """What early exit saves, under a policy that was chosen on validation samples."""

    macs_ratio: float
    """How many times fewer multiply-accumulates a test sample takes, on average."""

    error_change: float
    """By how much the share of test samples that are wrong changes."""


@dataclass(frozen=True)
class Curve:
    """How a run learned."""

    what: str
    """What is shown: `validation`, or `training` of the last block."""

    epochs: tuple[float, ...]
    """Epochs that were done."""

    accuracy: tuple[float, ...]
    """Share of samples that were right."""


@dataclass(frozen=True)
class RunFigures:
    """Figures of one run."""

    seed: int
    """Seed."""

    folder: str
    """Its folder."""

    accuracy: float | None
    """Share of test samples that are right."""

    roc_auc: float | None
    """Area under the ROC curve of the test samples, of two classes."""

    validation_accuracy: float | None
    """Share of validation samples that are right."""

    core_seconds: float | None
    """Processor time of the training, all ranks and stages together; None of a run that was cut and
    went on, whose first part nobody has timed."""

    peak_memory_bytes: int | None
    """Largest memory of a process; None like `core_seconds`."""

    early_exit: EarlyExit | None
    """None where it has one exit, or no validation samples."""

    curve: Curve | None
    """None where nothing was right or wrong."""

    doubts: tuple[str, ...]
    """Signs that it has learned nothing."""

    weights_sha256: str
    """Digest of the weights."""


SPREAD = ("accuracy", "roc_auc", "core_seconds", "peak_memory_bytes")
"""Figures of runs whose mean and standard deviation are told."""


@dataclass(frozen=True)
class EntryFigures:
    """Figures of a line of a comparison."""

    name: str
    """What it is called."""

    recipe: str
    """Its recipe."""

    is_twin: bool
    """Whether it is trained by backpropagation, to compare others with."""

    twin: str | None
    """The name of the backpropagation beside it."""

    is_twin_alike: bool
    """Whether that has the same layers."""

    without: tuple[str, ...]
    """Settings common to all that its recipe does not have."""

    settings: Mapping[str, Any] = field(repr=False)
    """All others, by full name."""

    epochs: int
    """Epochs of training."""

    samples: Mapping[str, int]
    """Training, validation and test samples."""

    training_flops: float | None
    """Floating-point operations of a training."""

    inference_flops: int | None
    """Floating-point operations to classify a sample, without early exit."""

    parameters: int | None
    """Parameters of the network."""

    traffic: Traffic | None
    """What some ranks would send; None where one block is all there is."""

    runs: tuple[RunFigures, ...]
    """Its finished runs."""

    errors: Mapping[int, str]
    """Why runs have failed, by seed."""

    def spread(self, name: str) -> Spread | None:
        """Return mean and spread of a figure of its runs."""
        return Spread.of(getattr(each, name) for each in self.runs)

    @property
    def macs_ratio(self) -> Spread | None:
        """How many times fewer operations early exit takes."""
        return Spread.of(each.early_exit.macs_ratio for each in self.runs if each.early_exit)

    @property
    def error_change(self) -> Spread | None:
        """What that changes of the error."""
        return Spread.of(each.early_exit.error_change for each in self.runs if each.early_exit)

    @property
    def curve(self) -> Curve | None:
        """Mean over curves of its runs that are alike, those of validation samples first."""
        curves = [each.curve for each in self.runs if each.curve]
        curves.sort(key=lambda curve: curve.what != "validation")
        alike = [c for c in curves if (c.what, c.epochs) == (curves[0].what, curves[0].epochs)]
        if not alike:
            return None
        means = tuple(map(statistics.mean, zip(*(c.accuracy for c in alike), strict=True)))
        return replace(alike[0], accuracy=means)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        found = asdict(self) | {"traffic": self.traffic and self.traffic._asdict()}
        spreads = {name: self.spread(name) for name in SPREAD} | {
            "macs_ratio": self.macs_ratio,
            "error_change": self.error_change,
        }
        return found | {name: each and each._asdict() for name, each in spreads.items()}


@dataclass(frozen=True)
class Comparison:
    """What a comparison has found."""

    data: str
    """Name of the data set."""

    entries: tuple[EntryFigures, ...]
    """A line each, twins last."""

    pflop: float | None
    """Operations that each training was to take; None where each had its epochs."""

    @property
    def errors(self) -> list[str]:
        """Runs that have failed, a line each."""
        return [
            f"{entry.name}, seed {seed}: {text}"
            for entry in self.entries
            for seed, text in entry.errors.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return what `compare.json` holds."""
        entries = [entry.to_json() for entry in self.entries]
        return {"data": self.data, "pflop": self.pflop, "entries": entries}


def figures_of(folder: Path, network: Network, early: EarlyExit | None) -> RunFigures:
    """Return the figures of a finished run.

    Args:
        folder: Its folder.
        network: What it has trained.
        early: What early exit saves it.

    Raises:
        FileError: A file is missing or damaged.
    """
    result = folders.read_result(folder)
    stages = folders.stages(folder, result)
    try:
        is_whole = not any(each["tasks_done_before"] for each in (result, *stages))
        seconds = sum(sum(each["cpu_seconds"]) for each in (result, *stages))
        validating = sum(sum(r.get("validation_cpu_seconds", [])) for r in (result, *stages))
        peak = max(max(each["peak_memory_bytes"]) for each in (result, *stages))
        return RunFigures(
            seed=result["seed"],
            folder=str(folder),
            accuracy=result["accuracy"]["test"],
            roc_auc=result["accuracy"].get("roc_auc"),
            validation_accuracy=result["accuracy"]["validation"],
            core_seconds=seconds - validating if is_whole else None,
            peak_memory_bytes=peak if is_whole else None,
            early_exit=early,
            curve=_curve(folder, result, network, sum(stage["epochs"] for stage in stages)),
            doubts=tuple(result["doubts"]),
            weights_sha256=result["weights_sha256"],
        )
    except (LookupError, TypeError) as error:
        raise FileError(f"The result in {folder} lacks a figure: {error!r}.") from error


def early_exit(network: Network, dataset: Dataset) -> EarlyExit | None:
    """Return what early exit saves on test samples, chosen on validation samples.

    None where there is one exit, or no validation samples.

    Args:
        network: A trained network.
        dataset: What from, see `onward.runs.sharding.split`.
    """
    validation = dataset.validation
    if validation is None or validation.num_counted < 2 or not counted(dataset.test):
        return None
    if network.readout is None or network.num_exits < 2 or dataset.training.structure:
        return None
    with in_fp32(network):
        policy = choose(held_out(network, validation), max_error_increase=ALLOWED).policy
        seen = held_out(network, dataset.test, force=True)
    outcome = follow(policy, seen)
    full = follow(full_depth(network.num_exits), seen)
    change = outcome.is_wrong.double().mean() - full.is_wrong.double().mean()
    return EarlyExit(float(full.macs.mean() / outcome.macs.mean()), float(change))


def _curve(folder: Path, result: Mapping[str, Any], network: Network, before: int) -> Curve | None:
    """Return how a run learned: by its validations, where there are several.

    Args:
        folder: Its folder.
        result: What is in it.
        network: What it has trained.
        before: Epochs of earlier stages.
    """
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise FileError(f"{folder / 'metrics.jsonl'} cannot be read: {error}.") from error
    length = result["epochs"] / result["chapters"]
    validations: dict[int, list[tuple[float, float]]] = {}
    training: dict[int, float] = {}
    last = max((line["block"] for line in lines if line["block"] is not None), default=None)
    for line in lines:
        chapter, accuracy = line["chapter"], line.get("accuracy")
        if line["block"] is None:
            validations.setdefault(chapter, []).append(
                (line["validation_accuracy"], line["samples"])
            )
        elif line["block"] == last and accuracy is not None:
            training[chapter] = accuracy
    means = {
        chapter: sum(accuracy * samples for accuracy, samples in shards)
        / sum(samples for _, samples in shards)
        for chapter, shards in validations.items()
    }
    what, shown = ("validation", means) if len(means) > 1 else ("training", training)
    # Blocks of a sweep learn to tell right labels from wrong ones, which is another accuracy.
    if not shown or (what == "training" and network.is_sweep):
        return None
    epochs = tuple(before + (chapter + 1) * length for chapter in sorted(shown))
    return Curve(what, epochs, tuple(shown[chapter] for chapter in sorted(shown)))
