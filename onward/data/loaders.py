"""Samples of a data set or a loader of torch, read through once."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from onward.data.watching import watched
from onward.errors import DataError

CHUNK = 256
"""Samples of a data set that are read at once."""


def is_loader(values: Any) -> bool:
    """Return whether something is a data set or a loader of torch."""
    return isinstance(values, Dataset | DataLoader)


def read_pairs(given: Any, what: str) -> tuple[Tensor, Any]:
    """Return all samples and all labels, in the order of the data set.

    Args:
        given: A data set of pairs of a sample and its label, or a loader of one. What it draws at
            random, it draws once; that a loader shuffles, or drops what is left over, is ignored.
        what: What it is called in errors.

    Raises:
        DataError: It gives something else, or nothing, or a loader chooses among the samples.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> read_pairs(TensorDataset(torch.eye(2), torch.tensor([0, 1])), "x")[1]
        tensor([0, 1])
    """
    loader = _in_order(given, what)
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


def _in_order(given: Any, what: str) -> DataLoader[Any]:
    """Return a loader that gives each sample of a data set once, in its order.

    Raises:
        DataError: A loader gives some more or less often than once.
    """
    # A loader without one of its own draws from the global generator.
    draw = torch.Generator().manual_seed(0)
    if not isinstance(given, DataLoader):
        return DataLoader(given, batch_size=CHUNK, generator=draw)
    is_stream = isinstance(given.dataset, IterableDataset)
    if given.batch_sampler is None and not is_stream:
        raise DataError(f"{what} is a loader without a batch_size. Give it one.")
    order, batches = given.sampler, given.batch_sampler
    is_whole = isinstance(order, SequentialSampler) or (
        isinstance(order, RandomSampler)
        and not order.replacement
        and order.num_samples == len(given.dataset)  # type: ignore[arg-type]
    )
    if not is_stream and not (is_whole and type(batches) is BatchSampler):
        chooser = batches if type(batches) is not BatchSampler else order
        raise DataError(
            f"{what} is a loader that chooses its samples, by a {type(chooser).__name__}: some may "
            f"come twice, and be learned from and tested with. Give the data set itself, or "
            f"torch.utils.data.Subset(dataset, numbers)."
        )
    return DataLoader(
        given.dataset,
        batch_size=given.batch_size,
        collate_fn=given.collate_fn,
        # Each worker would give the whole of a stream.
        num_workers=0 if is_stream else given.num_workers,
        generator=draw,
    )


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
