"""Samples of a data set or a loader of torch, read through once."""

from collections import Counter
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from onward.data.tables import check_order
from onward.errors import DataError
from onward.watching import watched

CHUNK = 256
"""Samples of a data set that are read at once."""


def is_loader(values: Any) -> bool:
    """Return whether something is a data set or a loader of torch."""
    return isinstance(values, Dataset | DataLoader)


def read_given(x: Any, y: Any, what: str) -> tuple[Any, Any]:
    """Return samples and classes, from a data set or loader of torch where there is one.

    Raises:
        DataError: Such a one has classes of its own, or those of tables are in another order.
    """
    if not is_loader(x):
        check_order(x, y, what)
        return x, y
    if y is not None:
        raise DataError(f"{what} is a {type(x).__name__}, which brings the classes. Leave out y.")
    return read_pairs(x, what)


def read_pairs(given: Any, what: str) -> tuple[Tensor, Any]:
    """Return all samples and all labels, in the order of the data set.

    Args:
        given: A data set of pairs of a sample and its label, or a loader of one. What it draws at
            random, it draws once; that a loader shuffles, or drops what is left over, is ignored.
        what: What it is called in errors.

    Raises:
        DataError: It gives something else, nothing, or a sample twice.

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
    """Return a loader of the same samples, in the order of their data set.

    Raises:
        DataError: A loader makes no batches, or gives a sample twice.
    """
    # A loader without one of its own draws from the global generator.
    draw = torch.Generator().manual_seed(0)
    if not isinstance(given, DataLoader):
        return DataLoader(given, batch_size=CHUNK, generator=draw)
    if given.batch_sampler is None and given.batch_size is None:
        raise DataError(f"{what} is a loader that makes no batches. Give it a batch_size.")
    if isinstance(given.dataset, IterableDataset):
        # Each of several workers would give the whole of a stream.
        size = given.batch_size
        return DataLoader(given.dataset, size, collate_fn=given.collate_fn, generator=draw)
    return DataLoader(
        given.dataset,
        batch_size=given.batch_size or CHUNK,
        sampler=_numbers(given, what),
        collate_fn=given.collate_fn,
        num_workers=given.num_workers,
        generator=draw,
    )


def _numbers(loader: DataLoader[Any], what: str) -> list[Any]:
    """Return the numbers of the samples that a loader gives, in order.

    Raises:
        DataError: It gives one twice, which would be learned from and tested with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Batches may leave some out that are left over, and have an order of their own.
        batches: Any = loader.batch_sampler
        given = chain.from_iterable(batches) if loader.batch_size is None else iter(loader.sampler)
        numbers = list(islice(given, len(loader.dataset) + 1))  # type: ignore[arg-type]
    several = [number for number, times in Counter(numbers).items() if times > 1]
    if several:
        raise DataError(
            f"{what} is a loader that gives some samples twice, such as number {several[0]}, so "
            f"that they would be learned from and tested with. Give its data set itself."
        )
    return sorted(numbers)


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
