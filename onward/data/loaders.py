"""Samples of a data set or a loader of torch, read through once."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from onward.errors import DataError

CHUNK = 256
"""Samples of a data set that are read at once."""


def is_loader(values: Any) -> bool:
    """Return whether something is a data set or a loader of torch."""
    return isinstance(values, Dataset | DataLoader)


def read_pairs(given: Any, what: str) -> tuple[Tensor, Any]:
    """Return all samples and all labels, in the order in which they come.

    Args:
        given: A data set of pairs of a sample and its label, or a loader of such batches. What it
            draws at random, it draws once.
        what: What it is called in errors.

    Raises:
        DataError: It gives something else, or nothing.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> read_pairs(TensorDataset(torch.eye(2), torch.tensor([0, 1])), "x")[1]
        tensor([0, 1])
    """
    loader = given if isinstance(given, DataLoader) else DataLoader(given, batch_size=CHUNK)
    inputs: list[Tensor] = []
    labels: list[Any] = []
    try:
        # A data set that is a stream need not know its length.
        total = None if isinstance(loader.dataset, IterableDataset) else len(loader)
        for pair in watched(loader, what, total):
            _check_pair(pair, what)
            inputs.append(pair[0])
            labels.append(pair[1])
    except (RuntimeError, TypeError) as error:
        # Torch's own, of samples that make no batch.
        if not str(error).startswith(("stack expects", "default_collate")):
            raise
        raise DataError(
            f"{what}: samples make no batch: {error}. Give the data set a transform that makes "
            f"tensors of one shape."
        ) from error
    if not inputs:
        raise DataError(f"{what} gives no samples.")
    shapes = sorted({tuple(each.shape[1:]) for each in inputs})
    if len(shapes) > 1:
        raise DataError(f"{what}: samples have several shapes, such as {shapes[0]}, {shapes[1]}.")
    if all(isinstance(each, Tensor) for each in labels):
        return torch.cat(inputs), torch.cat(labels)
    return torch.cat(inputs), [label for each in labels for label in each]


def _check_pair(pair: Any, what: str) -> None:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], Tensor):
        kind = type(pair).__name__
        found = f"a {kind} of {len(pair)}" if isinstance(pair, list | tuple) else f"a {kind}"
        raise DataError(
            f"{what} gives {found}; a tensor of samples and their labels are needed. For samples "
            f"of several inputs, make ow.Batch, and ow.Dataset of these."
        )
    x, y = pair
    is_batch = x.ndim > 1 and (y.ndim if isinstance(y, Tensor) else isinstance(y, list | tuple))
    if not is_batch or len(x) != len(y):
        raise DataError(
            f"{what} gives samples of shape {tuple(x.shape)} and labels that are not one for each. "
            f"Give a loader with a batch_size."
        )


def watched(values: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
    """Return values that take time to read, with a bar where somebody watches.

    Args:
        values: The values.
        what: What is read.
        total: How many there are; None where that is not known.
    """
    from rich.console import Console  # Takes a tenth of a second.
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        values,
        description=f"reading {what}",
        total=total,
        console=console,
        transient=True,
        disable=not (console.is_terminal or console.is_jupyter),
    )
