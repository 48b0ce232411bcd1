"""Splits of the rows of a data set: rows held out, and shards."""

import math

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from onward.errors import DataError
from onward.seeds import derive, generator


def hold_out(
    y: Int[Tensor, " rows"],
    groups: Int[Tensor, " rows"] | None,
    size: float | int,
    *,
    seed: int,
    purpose: str,
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Hold some rows out, by class where every class has two rows or more.

    Groups are never cut: with them, that share of the groups is held out, so the number of rows
    is met only as well as the sizes of the groups allow.

    Args:
        y: Class of each row.
        groups: Group of each row, or None.
        size: A share of the rows between 0 and 1, rounded up, or a number of rows.
        seed: Together with `purpose` decides which rows.
        purpose: What they are held out for.

    Returns:
        The numbers of the rows that are kept and of those held out, each in ascending order.

    Raises:
        DataError: One side would have no rows, or all rows belong to one group.

    Example:
        >>> y = torch.tensor([0, 0, 1, 1])
        >>> kept, held = hold_out(y, None, 0.5, seed=0, purpose="test")
        >>> y[kept], y[held]
        (tensor([0, 1]), tensor([0, 1]))
    """
    # Takes a second, and processes that are handed their data need none of it.
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    num_rows = len(y)
    share = size * num_rows if 0 < size < 1 else 0
    held = size if isinstance(size, int) else math.ceil(share)
    if not 0 < held < num_rows:
        raise DataError(
            f"{size} of {num_rows} rows cannot be held out for {purpose} so that rows are left on "
            f"both sides. Give more rows, or {purpose} rows of their own; a size is a share "
            f"between 0 and 1, or a number of rows."
        )
    state = derive(seed, purpose) % 2**32
    rows = np.arange(num_rows)
    if groups is None:
        counts = y.unique(return_counts=True)[1]
        by_class = counts.min() >= 2 and len(counts) <= min(held, num_rows - held)
        split = train_test_split(
            rows, test_size=held, random_state=state, stratify=y.numpy() if by_class else None
        )
    else:
        num_groups = len(groups.unique())
        if num_groups < 2:
            raise DataError(
                f"All {num_rows} rows belong to one group, which would have to be cut to hold "
                f"rows out for {purpose}. Give rows of a second group, or no groups."
            )
        held_groups = min(max(round(held / num_rows * num_groups), 1), num_groups - 1)
        splitter = GroupShuffleSplit(1, test_size=held_groups, random_state=state)
        split = next(splitter.split(rows, groups=groups.numpy()))
    kept, out = (torch.from_numpy(np.sort(part)) for part in split)
    return kept, out


def shards(
    y: Int[Tensor, " rows"], number: int, by: str, *, seed: int, alpha: float = 0.5
) -> list[Int[Tensor, " shard"]]:
    """Split all rows into shards, whose sizes differ by one row at most except for "dirichlet".

    Args:
        y: Class of each row.
        number: How many shards.
        by: "iid" deals the rows out at random. "class" sorts them by class, cuts them into twice
            as many slices as shards, and gives each shard two, so that it has few classes.
            "dirichlet" draws for each class which share of it each shard gets.
        seed: Decides which rows of a class go where.
        alpha: Concentration of the Dirichlet distribution: the smaller, the fewer shards share a
            class.

    Returns:
        The numbers of the rows of each shard, in ascending order.

    Raises:
        DataError: A shard would be empty, or `by` is another word.

    Source:
        Dirichlet: Hsu, Qi & Brown 2019, arXiv:1909.06335, with shares of classes in place of
        shares of shards, so that every row is dealt out.

    Example:
        >>> shards(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), 2, "class", seed=0)
        [tensor([0, 2, 4, 6]), tensor([1, 3, 5, 7])]
    """
    if not 1 <= number <= len(y):
        raise DataError(
            f"{len(y)} rows cannot be split into {number} shards of one row at least. "
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
        raise DataError(f'Rows are split by "iid", by "class" or by "dirichlet"; got "{by}".')
    return [part.sort().values for part in parts]


def _dirichlet(
    y: Int[Tensor, " rows"], order: Int[Tensor, " rows"], number: int, alpha: float, seed: int
) -> tuple[Int[Tensor, " shard"], ...]:
    """Deal the rows of each class out to shards in drawn proportions."""
    # Of the old generators of numpy, whose numbers stay the same from version to version.
    draw = np.random.RandomState(derive(seed, "shares of shards") % 2**32)
    dealt: list[list[Tensor]] = [[] for _ in range(number)]
    for label in y.unique().tolist():
        rows = order[y[order] == label]
        shares = draw.dirichlet([alpha] * number)
        ends = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for shard, part in zip(dealt, rows.tensor_split(ends.tolist()), strict=True):
            shard.append(part)
    parts = tuple(torch.cat(shard) for shard in dealt)
    smallest = min(map(len, parts))
    if not smallest:
        raise DataError(
            f"{len(y)} rows were dealt to {number} shards with plan.shard_alpha = {alpha}, and one "
            f"got none. Choose a larger one, fewer shards, or another seed."
        )
    return parts
