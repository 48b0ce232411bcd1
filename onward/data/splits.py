"""Splits of the samples of a data set: samples held out, and shards."""

import math
import warnings
from collections import Counter

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from onward.errors import DataError, OnwardWarning
from onward.seeds import derive, generator

SAME = 0.1
"""Share of the test samples that are also training samples from which on it is warned of."""

MOST_BYTES = 1 << 28
"""Bytes of training samples up to which they are compared with others."""


def warn_of_same(training: Tensor, others: Tensor, part: str, name: str) -> None:
    """Warn where many samples that were given to measure with are training samples.

    Args:
        training: Training samples.
        others: Test or validation samples; the first 1,000 are compared.
        part: What those are called.
        name: What the data set is called.
    """
    if training.nbytes > MOST_BYTES:
        return
    known = Counter(hash(sample.tobytes()) for sample in others[:1000].numpy())
    num_others = known.total()
    if len(known) < (1 - SAME) * num_others:
        return  # Few values make samples the same by chance.
    shared = known.keys() & (hash(sample.tobytes()) for sample in training.numpy())
    same = sum(known[each] for each in shared)
    if same >= SAME * num_others:
        warnings.warn(
            f"{name}: {same:,} of {num_others:,} {part} samples are training samples too, byte "
            f"for byte. The {part} accuracy then says little about new samples: remove these from "
            f"one of the two, or give x alone, from which samples are held out.",
            OnwardWarning,
            stacklevel=3,
        )


def num_held(size: float | int, num_samples: int) -> int:
    """Return how many samples a size is: a share of them, rounded up, or a number."""
    share = size * num_samples if 0 < size < 1 else 0
    return size if isinstance(size, int) else math.ceil(share)


def hold_out(
    y: Int[Tensor, " samples"],
    groups: Int[Tensor, " samples"] | None,
    size: float | int,
    *,
    seed: int,
    purpose: str,
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Hold some samples out, by class where each that has several can have one on both sides.

    By class, the only sample of a class is kept. Groups are never cut: with them, that share of the
    groups is held out, so the number of samples is met only as well as the sizes of the groups
    allow.

    Args:
        y: Class of each sample.
        groups: Group of each sample, or None.
        size: A share of the samples between 0 and 1, rounded up, or a number of samples.
        seed: Together with `purpose` decides which samples.
        purpose: What they are held out for.

    Returns:
        The numbers of the samples that are kept and of those held out, each in ascending order.

    Raises:
        DataError: One side would have no samples, or all samples belong to one group.

    Example:
        >>> y = torch.tensor([0, 0, 1, 1])
        >>> kept, held = hold_out(y, None, 0.5, seed=0, purpose="test")
        >>> y[kept], y[held]
        (tensor([0, 1]), tensor([0, 1]))
    """
    # Takes a second, and processes that are handed their data need none of it.
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    num_samples = len(y)
    held = num_held(size, num_samples)
    if not 0 < held < num_samples:
        raise DataError(
            f"{size} of {num_samples} samples cannot be held out for {purpose} so that samples are "
            f"left on both sides. Give more samples, or {purpose} samples of their own; a size is "
            f"a share between 0 and 1, or a number of samples."
        )
    state = derive(seed, purpose) % 2**32
    samples = np.arange(num_samples)
    if groups is None:
        _, number, counts = y.unique(return_inverse=True, return_counts=True)
        common = samples[(counts[number] > 1).numpy()]  # A class with one sample has one side.
        by_class = 0 < (counts > 1).sum() <= min(held, len(common) - held)
        split = train_test_split(
            common if by_class else samples,
            test_size=held,
            random_state=state,
            stratify=y.numpy()[common] if by_class else None,
        )
    else:
        num_groups = len(groups.unique())
        if num_groups < 2:
            raise DataError(
                f"All {num_samples} samples belong to one group, which would have to be cut to "
                f"hold samples out for {purpose}. Give samples of a second group, or no groups."
            )
        held_groups = min(max(round(held / num_samples * num_groups), 1), num_groups - 1)
        splitter = GroupShuffleSplit(1, test_size=held_groups, random_state=state)
        split = next(splitter.split(samples, groups=groups.numpy()))
    out = np.sort(split[1])
    return torch.from_numpy(np.delete(samples, out)), torch.from_numpy(out)


def shards(
    y: Int[Tensor, " samples"], number: int, by: str, *, seed: int, alpha: float = 0.5
) -> list[Int[Tensor, " shard"]]:
    """Split all samples into shards, of sizes that differ by one at most except for "dirichlet".

    Args:
        y: Class of each sample.
        number: How many shards.
        by: "iid" deals the samples out at random. "class" sorts them by class, cuts them into twice
            as many slices as shards, and gives each shard two, so that it has few classes.
            "dirichlet" draws for each class which share of it each shard gets.
        seed: Decides which samples of a class go where.
        alpha: Concentration of the Dirichlet distribution: the smaller, the fewer shards share a
            class.

    Returns:
        The numbers of the samples of each shard, in ascending order.

    Raises:
        DataError: A shard would be empty, or `by` is another word.

    Source:
        Dirichlet: Hsu, Qi & Brown 2019, arXiv:1909.06335, with shares of classes in place of
        shares of shards, so that every sample is dealt out.

    Example:
        >>> shards(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), 2, "class", seed=0)
        [tensor([0, 2, 4, 6]), tensor([1, 3, 5, 7])]
    """
    if not 1 <= number <= len(y):
        raise DataError(
            f"{len(y)} samples cannot be split into {number} shards of one sample at least. "
            f"Ask for 1 to {len(y)} shards."
        )
    order = torch.randperm(len(y), generator=generator(seed, "shards"))
    if by == "iid":
        parts = order.tensor_split(number)
    elif by == "class":
        slices = order[y[order].argsort(stable=True)].tensor_split(2 * number)
        parts = tuple(
            torch.cat(pair) for pair in zip(slices[:number], slices[number:], strict=True)
        )
    elif by == "dirichlet":
        parts = _dirichlet(y, order, number, alpha, seed)
    else:
        raise DataError(f'Samples are split by "iid", by "class" or by "dirichlet"; got "{by}".')
    return [part.sort().values for part in parts]


def _dirichlet(
    y: Int[Tensor, " samples"], order: Int[Tensor, " samples"], number: int, alpha: float, seed: int
) -> tuple[Int[Tensor, " shard"], ...]:
    """Deal the samples of each class out to shards in drawn proportions."""
    # Of the old generators of numpy, whose numbers stay the same from version to version.
    draw = np.random.RandomState(derive(seed, "shares of shards") % 2**32)
    dealt: list[list[Tensor]] = [[] for _ in range(number)]
    for label in y.unique().tolist():
        samples = order[y[order] == label]
        shares = draw.dirichlet([alpha] * number)
        ends = np.rint(np.cumsum(shares)[:-1] * len(samples)).astype(int)
        for shard, part in zip(dealt, samples.tensor_split(ends.tolist()), strict=True):
            shard.append(part)
    parts = tuple(torch.cat(shard) for shard in dealt)
    smallest = min(map(len, parts))
    if not smallest:
        raise DataError(
            f"{len(y)} samples were dealt to {number} shards with plan.shard_alpha = {alpha}, and "
            f"one got none. Choose a larger one, fewer shards, or another seed."
        )
    return parts
