"""Which samples each rank learns from: loading, held-out samples, shards."""

import hashlib
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onward import data as datasets
from onward.batch import Batch
from onward.config import RunConfig
from onward.data import Dataset
from onward.data.augmentation import with_augmentation
from onward.data.inputs import (
    InputTransformation,
    Moments,
    granularity,
    kind_of,
)
from onward.data.quoting import listed
from onward.data.splits import num_held
from onward.errors import DataError, OnwardWarning, SettingError
from onward.runtime.workers import Shard
from onward.settings import TrainingConfig
from onward.transport.messages import Transport
from onward.world import current_rank


@dataclass(frozen=True)
class DataSummary:
    """What all ranks know of the data before any training."""

    samples: tuple[int, ...]
    """Training samples of each shard, whose labels are kept."""

    validation_samples: tuple[int, ...]
    """Validation samples of each shard."""

    counted_samples: int
    """Those of all shards that count."""

    every_samples: tuple[int, ...]
    """Training samples of each shard, whether their labels are kept or not."""

    every_counted_samples: int
    """Those of all shards that count."""

    class_samples: tuple[int, ...]
    """Training samples of each class, whose labels are kept."""

    num_classes: int
    """Number of classes over all shards."""

    class_names: tuple[str, ...] | None
    """Name of each class; None where they have numbers only."""

    data_sha256: str
    """Digest of the samples that are not test samples: rank 0's, where each rank has its own."""

    every_sha256: str
    """Digest of those of all ranks."""

    held_out_sha256: tuple[str, ...]
    """Digest of the test samples and of validation samples of one's own, of each rank that has its
    own; otherwise one."""

    inputs: InputTransformation
    """The input transformation, from the moments of all training samples of all shards."""

    def of(self, *, sees_labels: bool) -> "DataSummary":
        """Return the summary of what a stage learns from: samples with labels, or all."""
        if sees_labels:
            return self
        return replace(self, samples=self.every_samples, counted_samples=self.every_counted_samples)


SHARED = "ONWARD_SHARED_DATA"
"""Variable with the file in which the command hands its data to the ranks that it starts."""


def load_data(config: RunConfig, rank: int, *, allow_one_class: bool = False) -> Dataset:
    """Load the data of a rank: all samples, or its own shard where the name holds `{rank}`.

    Args:
        config: The run.
        rank: The rank.
        allow_one_class: Whether all samples may have the same class, also where they are no shard.
    """
    if SHARED in os.environ:
        return datasets.read_shared(Path(os.environ[SHARED]))
    label = config.data.label
    dataset = datasets.load(
        config.data.name.replace("{rank}", str(rank)),
        data_dir=config.data.dir,
        split_seed=config.data.split_seed,
        test=config.data.test,
        allow_one_class=allow_one_class or is_private(config),
        context=config.data.context,
        label=label and label.replace("{rank}", str(rank)),
        links=config.data.links,
    )
    if dataset.has_own_test and rank == 0:
        _warn_if_chosen(config, "test", f"{dataset.name} has test samples of its own")
    return dataset


def handed_over(config: RunConfig, dataset: Dataset) -> RunConfig:
    """Return the settings of a run whose data set is there already.

    Those that say what is read, and how, have no effect, unless it was read by them.
    """
    if Path(config.data.name).name != dataset.name:
        for name in ("name", "label", "dir", "test", "context", "links"):
            _warn_if_chosen(config, name, f"the data set was handed over, {dataset.name}")
    return config.with_settings({"data.name": dataset.name})


def _warn_if_chosen(config: RunConfig, name: str, reason: str) -> None:
    """Warn of a setting of the data that has no effect, where it is not that of the recipe.

    Rank 0 does, unless the command, which has handed it the data, has done so.
    """
    if SHARED in os.environ or current_rank() != 0:
        return
    chosen = getattr(config.data, name)
    if chosen != getattr(RunConfig(recipe=config.recipe, method=config.method).data, name):
        text = f"data.{name} = {chosen} has no effect: {reason}."
        warnings.warn(text, OnwardWarning, stacklevel=2)


def is_private(config: RunConfig) -> bool:
    """Return whether each rank has data of its own."""
    return "{rank}" in config.data.name


def with_data(config: RunConfig, dataset: Dataset, num_ranks: int) -> RunConfig:
    """Return the settings with what follows from the data.

    Those are augmentations that fit samples of their shape, a mini-batch of all samples, where
    these belong together, and a shard a rank, where each rank has data of its own.

    Raises:
        SettingError: An augmentation is not for samples like these.
    """
    inputs = dataset.training.inputs
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, torch.Tensor) else ()
    config = replace(config, data=with_augmentation(config.data, shape))
    if dataset.training.structure and config.training.batch_size == TrainingConfig.batch_size:
        config = config.with_settings({"training.batch_size": len(dataset.training)})
    if not is_private(config):
        return config
    return config.with_settings({"plan.shards": num_ranks})


def split(config: RunConfig, dataset: Dataset) -> Dataset:
    """Return a data set whose validation samples are held out, unless it has some of its own.

    A size that was chosen and has no effect is warned of. What is held out of a data set is a
    copy: let the data set as it was read go.
    """
    training = dataset.training
    own, other = dataset.sha256(), dataset.held_out_sha256()
    dataset = replace(dataset, digest=own, held_out_digest=other)
    if not training.structure:
        # Nothing is learned from the others.
        training = training.counted
        dataset = replace(dataset, training=training)
    if dataset.validation is not None:
        reason = f"{dataset.name} has validation samples of its own"
        _warn_if_chosen(config, "validation", reason)
        return dataset
    if training.structure or "label" not in training.targets or not config.data.validation:
        # Parts of a graph belong together, and without classes there is nothing to be right about.
        if config.data.validation:
            reason = "nothing is held out of samples without classes"
            if training.structure:
                reason = "nothing is held out of a graph. Give its validation set with it"
            _warn_if_chosen(config, "validation", reason)
        nothing = training.replace(structure={}).take(slice(0, 0))
        return replace(dataset, validation=nothing)
    kept, held_out = datasets.split_validation(
        dataset, config.data.validation, seed=config.data.split_seed
    )
    return replace(
        dataset,
        training=training.take(kept),
        validation=training.take(held_out),
        groups=None,
    )


def labelled(config: RunConfig, training: Batch) -> Tensor | None:
    """Return the numbers of the training samples whose labels are kept; None: all.

    Raises:
        SettingError: They have none, or belong together.
        DataError: A class would have none, or all would.
    """
    share = config.data.labelled
    if share is None:
        return None
    if training.structure or "label" not in training.targets:
        raise SettingError(
            f"data.labelled is {share}, but samples cannot be left out here: these have no labels, "
            f"or belong together as a graph does. Leave it out."
        )
    number = len(training)
    if num_held(1 - share, number) == number:
        step = 10.0 ** math.floor(-math.log10(number))
        least = math.ceil(1 / number / step) * step
        raise DataError(
            f"data.labelled = {share} keeps no label of {number:,} samples. Choose {least:g} or "
            f"more."
        )
    seed = config.data.split_seed
    kept, _ = datasets.hold_out(training.label, None, 1 - share, seed=seed, purpose="labels")
    missing = sorted(set(training.label.tolist()) - set(training.label[kept].tolist()))
    if missing:
        raise DataError(
            f"data.labelled is {share}: of {len(training):,} training samples, labels of "
            f"{len(kept):,} are kept, and none of class {missing[0]}. Keep more."
        )
    return kept


def load_shards(
    config: RunConfig, dataset: Dataset, transport: Transport
) -> tuple[dict[int, Shard], DataSummary]:
    """Cut samples into shards; agree on it with all ranks.

    Args:
        config: Settings of the run.
        dataset: All samples, or those of this rank, as `split` returns them.
        transport: How ranks know of each other.

    Returns:
        The shards that this rank has, and the summary of all; see `seen`.

    Raises:
        DataError: There is one class only, over all shards, or the ranks' data do not agree.
    """
    local = local_shards(config, dataset, transport.rank)
    return local, agree(config, transport.all_gather("data", describe(config, local, dataset)))


def seen(
    config: RunConfig, shards: Mapping[int, Shard], summary: DataSummary, *, sees_labels: bool
) -> dict[int, Shard]:
    """Return shards as a stage learns from them.

    Args:
        config: Settings of the stage.
        shards: All samples, as `load_shards` returns them.
        summary: That of all shards.
        sees_labels: Whether the stage learns from samples with labels, which then may have weights;
            otherwise it learns from all, and none has its label.

    Raises:
        SettingError: See `weighted`.
    """
    if not sees_labels:
        return {n: Shard(without_labels(s.training), s.validation) for n, s in shards.items()}
    found = {}
    for number, shard in shards.items():
        training = shard.training
        training = training if shard.labelled is None else training.take(shard.labelled)
        found[number] = weighted(config, Shard(training, shard.validation), summary)
    return found


def without_labels(batch: Batch) -> Batch:
    """Return samples without their labels."""
    return batch.replace(targets={n: t for n, t in batch.targets.items() if n != "label"})


def weighted(config: RunConfig, shard: Shard, summary: DataSummary) -> Shard:
    """Return a shard whose training samples have weights by their classes, if settings say so.

    Raises:
        SettingError: They have weights of their own, or no classes.
    """
    power = config.data.class_weights
    if power is None:
        return shard
    training = shard.training
    if training.weights is not None or "label" not in training.targets:
        raise SettingError(
            f"data.class_weights is {power}, and the training samples have "
            + ("weights of their own" if training.weights is not None else "no classes")
            + ". Leave it out."
        )
    samples = torch.tensor(summary.class_samples, dtype=torch.float64)
    # What each class counts; the mean over all samples is 1.
    shares = (samples > 0) if power == "balanced" else samples ** (1 - power)
    weights = summary.counted_samples * shares / (shares.sum() * samples)
    return Shard(training.replace(weights=weights[training.label].float()), shard.validation)


def local_shards(config: RunConfig, dataset: Dataset, rank: int) -> dict[int, Shard]:
    """Return the shards that a rank has, by number; see `load_shards`."""
    assert dataset.validation is not None
    kept = labelled(config, dataset.training)
    whole = Shard(dataset.training, dataset.validation, kept)
    number = config.plan.shards
    if is_private(config):
        return {rank: whole}
    if number == 1:
        return {0: whole}
    if whole.training.structure or "label" not in whole.training.targets:
        raise SettingError(
            f"plan.shards is {number}, but these samples cannot be cut into shards: they have no "
            f"classes, or belong together as a graph does. Set plan.shards to 1."
        )
    by, seed = config.plan.shard_by, config.training.seed
    alpha = config.plan.shard_alpha
    parts = datasets.shards(whole.training.label, number, by, seed=seed, alpha=alpha)
    cuts = torch.arange(len(whole.validation)).tensor_split(number)
    return {
        shard: Shard(
            whole.training.take(samples),
            whole.validation.take(cut),
            None if kept is None else torch.isin(samples, kept).nonzero().squeeze(1),
        )
        for shard, (samples, cut) in enumerate(zip(parts, cuts, strict=True))
    }


class Known(NamedTuple):
    """The data of a run, read before it starts."""

    datasets: list[Dataset]
    """Those of each rank that has its own; otherwise one."""

    shards: list[Mapping[int, Shard]]
    """The shards of each."""

    notes: list[dict[str, Any]]
    """What is said of each, see `describe`."""


def read(config: RunConfig, num_ranks: int) -> Known:
    """Read the data of a run that has not started."""
    ranks = range(num_ranks if is_private(config) else 1)
    found = [split(config, load_data(config, rank)) for rank in ranks]
    config = with_data(config, found[0], num_ranks)
    shards = [local_shards(config, own, rank) for rank, own in zip(ranks, found, strict=True)]
    notes = [describe(config, *each) for each in zip(shards, found, strict=True)]
    return Known(found, [*shards], notes)


def describe(config: RunConfig, shards: Mapping[int, Shard], dataset: Dataset) -> dict[str, Any]:
    """Return what a rank says of its samples."""
    training = dataset.training
    by = granularity(config.data.standardize, training, is_image=dataset.is_image)
    kind = kind_of(training)
    each = [shard.training.counted for shard in shards.values() if kind != "kept"]
    known = [
        s.training if s.labelled is None else s.training.take(s.labelled) for s in shards.values()
    ]
    classes = [0] * dataset.num_classes
    if dataset.num_classes:
        labels = torch.cat([batch.counted.label for batch in known])
        classes = labels.bincount(minlength=dataset.num_classes).tolist()
    return {
        "samples": [len(batch) for batch in known],
        "counted_samples": sum(batch.num_counted for batch in known),
        "every_samples": [len(shard.training) for shard in shards.values()],
        "every_counted_samples": sum(shard.training.num_counted for shard in shards.values()),
        "validation_samples": [counted(shard.validation) for shard in shards.values()],
        "classes": classes,
        "class_names": dataset.class_names,
        "feature_names": dataset.feature_names,
        "shapes": {
            name: list(tensor.shape[1:])
            for name, tensor in training.tensors().items()
            if name.partition(".")[0] == "inputs"
        },
        "kind": kind,
        "by": by,
        "moments": [Moments.of(batch.tensor, by).to_json() for batch in each],
        "sha256": dataset.sha256(),
        "held_out_sha256": dataset.held_out_sha256(),
    }


def counted(batch: Batch) -> int:
    """Return the number of samples that count, and have classes to be right about."""
    return batch.num_counted if "label" in batch.targets else 0


def agree(config: RunConfig, notes: Sequence[dict[str, Any]]) -> DataSummary:
    """Return the summary of the data of all ranks, from what each says of its own.

    Raises:
        DataError: There is one class only, over all shards, or the ranks' data do not agree.
    """
    if any(note["shapes"] != notes[0]["shapes"] for note in notes):
        shapes = sorted({tuple(map(tuple, note["shapes"].values())) for note in notes})
        text = [shape[0] if len(shape) == 1 else shape for shape in shapes]
        raise DataError(f"The ranks have samples of different shapes: {text}. They must be alike.")
    names = next((note for note in notes if note["class_names"] != notes[0]["class_names"]), None)
    if names is not None:
        each = [note["class_names"] for note in (notes[0], names)]
        told = " and ".join("numbers" if own is None else listed(own) for own in each)
        raise DataError(
            f"The ranks have different classes: {told}. Name all classes in the data of each, as "
            f"class_names."
        )
    columns = [note["feature_names"] for note in notes]
    if any(names != columns[0] for names in columns):
        raise DataError(
            "The ranks have samples with other names of columns, or in another order. Give all the "
            "same columns in the same order."
        )
    kinds = sorted({note["kind"] for note in notes})
    if len(kinds) > 1:
        raise DataError(
            f"The ranks have samples of different types: {', '.join(kinds)}. Only uint8 is divided "
            f"by 255, so give all in the same type."
        )
    if not is_private(config):
        # Moments may differ in the last bit from one type of machine to another.
        if any(note | {"moments": 0} != notes[0] | {"moments": 0} for note in notes):
            raise DataError("The ranks have different data. Give all of them the same files.")
        notes = notes[:1]
    num_classes = max(len(note["classes"]) for note in notes)
    totals = [
        sum(n["classes"][c] for n in notes if c < len(n["classes"])) for c in range(num_classes)
    ]
    if num_classes:
        datasets.check_classes(totals)
    return DataSummary(
        tuple(samples for note in notes for samples in note["samples"]),
        tuple(samples for note in notes for samples in note["validation_samples"]),
        sum(note["counted_samples"] for note in notes),
        tuple(samples for note in notes for samples in note["every_samples"]),
        sum(note["every_counted_samples"] for note in notes),
        tuple(totals),
        num_classes,
        notes[0]["class_names"] and tuple(notes[0]["class_names"]),
        notes[0]["sha256"],
        hashlib.sha256(" ".join(note["sha256"] for note in notes).encode()).hexdigest(),
        tuple(note["held_out_sha256"] for note in notes),
        _transformation(config, notes),
    )


def _transformation(config: RunConfig, notes: Sequence[dict[str, Any]]) -> InputTransformation:
    """Return the input transformation; shards are taken in their order."""
    kind, by = notes[0]["kind"], notes[0]["by"]
    shapes = [tuple(shape) for shape in notes[0]["shapes"].values()]
    if kind == "kept":
        return InputTransformation(kind, shapes[0] if len(shapes) == 1 else None)
    moments = Moments.merged([Moments.from_json(m) for note in notes for m in note["moments"]])
    inputs = InputTransformation.fitted(config.data.standardize, kind, shapes[0], by, moments)
    names = notes[0]["feature_names"]
    inputs.feature_names = None if names is None else tuple(names)
    return inputs
