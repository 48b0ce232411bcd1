"""Which rows each rank learns from: loading, validation rows, shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from onward import data as datasets
from onward.checkpoint import tensors_sha256
from onward.config import RunConfig
from onward.data import Dataset
from onward.errors import DataError, SettingError
from onward.runtime.workers import Rows
from onward.transport.messages import Transport


@dataclass(frozen=True)
class Shape:
    """What all ranks know of the data before any training."""

    rows: tuple[int, ...]
    """Training rows of each shard."""

    validation_rows: tuple[int, ...]
    """Validation rows of each shard."""

    num_classes: int
    """Number of classes over all shards."""

    data_sha256: str
    """Digest of the rows that are not test rows: rank 0's, where each rank has its own."""


def load_data(config: RunConfig, rank: int) -> Dataset:
    """Load the data of a rank: all rows, or its own shard where the name holds `{rank}`."""
    return datasets.load(
        config.data.name.replace("{rank}", str(rank)),
        data_dir=config.data.dir,
        split_seed=config.data.split_seed,
        test=config.data.test,
        allow_one_class=is_private(config),
    )


def is_private(config: RunConfig) -> bool:
    """Return whether each rank has data of its own."""
    return "{rank}" in config.data.name


def with_private_shards(config: RunConfig, num_ranks: int) -> RunConfig:
    """Return the settings with a shard a rank, where each rank has data of its own."""
    if not is_private(config):
        return config
    return config.with_settings({"plan.shards": num_ranks})


def deal_alone(config: RunConfig, dataset: Dataset) -> Rows:
    """Split the rows of one shard into training and validation."""
    training, held_out = datasets.split_validation(
        dataset, config.data.validation, seed=config.data.split_seed
    )
    x, y = dataset.x, dataset.y
    if not len(held_out):
        return Rows(x, y, x[:0], y[:0])
    return Rows(x[training], y[training], x[held_out], y[held_out])


def deal(
    config: RunConfig, dataset: Dataset, transport: Transport
) -> tuple[dict[int, Rows], Shape]:
    """Split rows into training and validation, and into shards; agree on it with all ranks.

    Args:
        config: Settings of the run.
        dataset: All rows, or those of this rank.
        transport: How ranks hear of each other.

    Returns:
        The shards this rank holds, and the shape of all.

    Raises:
        DataError: There is one class only, over all shards, or the ranks' data do not agree.
    """
    held = hold(config, dataset, transport.rank)
    return held, agree(config, transport.exchange("data", describe(held, dataset)))


def data_sha256(dataset: Dataset) -> str:
    """Return a digest of the rows that may be learned from, and of their classes."""
    return tensors_sha256({"x": dataset.x, "y": dataset.y})


def hold(config: RunConfig, dataset: Dataset, rank: int) -> dict[int, Rows]:
    """Return the shards that a rank has rows of, by number."""
    shift, shape = config.data.shift, dataset.input_shape
    if shift and (len(shape) != 3 or shift >= min(shape[1:])):
        raise SettingError(
            f"data.shift is {shift} pixels, but the rows have shape {shape}. It is for images, of "
            f"shape (channels, height, width), and smaller than they are."
        )
    whole = deal_alone(config, dataset)
    number = config.plan.shards
    if is_private(config):
        return {rank: whole}
    if number == 1:
        return {0: whole}
    by, seed = config.plan.shard_by, config.training.seed
    parts = datasets.shards(whole.y, number, by, seed=seed)
    cuts = torch.arange(len(whole.y_validation)).tensor_split(number)
    return {
        shard: Rows(whole.x[rows], whole.y[rows], whole.x_validation[cut], whole.y_validation[cut])
        for shard, (rows, cut) in enumerate(zip(parts, cuts, strict=True))
    }


def describe(held: Mapping[int, Rows], dataset: Dataset) -> dict[str, Any]:
    """Return what a rank tells the others of its rows."""
    classes = torch.cat([rows.y for rows in held.values()]).bincount(minlength=dataset.num_classes)
    return {
        "rows": [len(rows.y) for rows in held.values()],
        "validation_rows": [len(rows.y_validation) for rows in held.values()],
        "classes": classes.tolist(),
        "input_shape": list(dataset.input_shape),
        "sha256": data_sha256(dataset),
    }


def agree(config: RunConfig, notes: Sequence[dict[str, Any]]) -> Shape:
    """Return the shape of the data of all ranks, from what each says of its own.

    Raises:
        DataError: There is one class only, over all shards, or the ranks' data do not agree.
    """
    shapes = sorted({tuple(n["input_shape"]) for n in notes})
    if len(shapes) > 1:
        raise DataError(f"The ranks have rows of different shapes: {shapes}. They must be alike.")
    if not is_private(config):
        if any(note != notes[0] for note in notes):
            raise DataError("The ranks have different data. Give all of them the same files.")
        notes = notes[:1]
    num_classes = max(len(n["classes"]) for n in notes)
    totals = [
        sum(n["classes"][c] for n in notes if c < len(n["classes"])) for c in range(num_classes)
    ]
    datasets.check_classes(totals)
    return Shape(
        tuple(rows for n in notes for rows in n["rows"]),
        tuple(rows for n in notes for rows in n["validation_rows"]),
        num_classes,
        notes[0]["sha256"],
    )
