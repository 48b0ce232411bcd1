"""Tables with named columns, as pandas and polars have them, and matrices that are mostly zero."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from onward.data.quoting import listed, text_of
from onward.errors import DataError, OnwardWarning

MOST_COLUMNS = 100_000
"""A table that is wider is taken for a mistake."""

ROUNDED = 16 * 2.0**-23
"""Spread of a column, as a share of its largest number, below which float32 keeps 16 to 32
different values of it at most."""

NOISE = 1e-12
"""The same share, up to which numbers differ by the rounding of float64 alone."""

DENSE_SHARE = 0.25
"""Share of the machine's memory that a sparse matrix may take once its zeros are written out."""


def is_table(values: Any) -> bool:
    """Return whether something is a table, without a look at its library.

    Example:
        >>> is_table([[1, 2]]), is_table(np.zeros((1, 2)))
        (False, False)
    """
    return all(hasattr(values, name) for name in ("columns", "to_numpy", "shape"))


def as_known(values: Any) -> Any:
    """Return tables of Arrow as tables of pandas, and all else as it is."""
    is_arrow = hasattr(values, "column_names") and hasattr(values, "to_pandas")
    return values.to_pandas() if is_arrow else values


def column_names(values: Any) -> tuple[str, ...] | None:
    """Return the names of the columns of a table; None where they only count, or it is none."""
    return _names(values.columns) if is_table(values) else None


def _names(index: Any) -> tuple[str, ...] | None:
    names = list(index)
    return None if names == [*range(len(names))] else tuple(map(str, names))


def check_order(x: Any, y: Any, what: str) -> None:
    """Refuse samples and classes of pandas that have one index in two orders.

    Raises:
        DataError: Both have the same index, in another order.
    """
    if not all(hasattr(each, "iloc") for each in (x, y)) or x.index.equals(y.index):
        return
    if x.index.is_unique and len(x) == len(y) and x.index.isin(y.index).all():
        raise DataError(
            f"{what} and its classes have the same index in another order, and are paired by "
            f"position. Give y.loc[x.index], or, where positions are right, both with "
            f".reset_index(drop=True)."
        )


def in_order(values: Any, names: Sequence[str] | None, what: str) -> Any:
    """Return a table with the columns that are named, in this order; what is no table, as it is.

    Args:
        values: Samples. A table of any order, which may have further columns; or one row of it.
        names: Columns that are needed; None where they have no names.
        what: What the table is called in errors.

    Raises:
        DataError: A column is missing.
    """
    values = as_known(values)
    if is_table(values):
        values = _by_number(values, names)
    is_row = hasattr(values, "to_frame") and hasattr(values, "index") and not is_table(values)
    if names is not None and is_row and _names(values.index) is not None:
        values = values.to_frame().T
    known = column_names(values)
    if known is None or names is None or known == tuple(names):
        return values
    check_names(known, what)
    order = places(known, names, what)
    return values[[list(values.columns)[place] for place in order]]


def _by_number(table: Any, names: Sequence[str] | None) -> Any:
    """Return a table whose columns are numbered from 0 in the order of the training samples.

    These columns have no names, or numbers in another order as names. Other tables stay as they
    are.
    """
    columns = list(table.columns)
    if not all(isinstance(column, int | np.integer) for column in columns):
        return table
    every = [*range(len(columns))]
    if sorted(columns) != every:
        return table
    if names is None:
        return table[every]
    return table[[*map(int, names)]] if set(names) == set(map(str, every)) else table


def places(known: Sequence[str], names: Sequence[str], what: str) -> list[int]:
    """Return where the columns that are named are among those that there are.

    Raises:
        DataError: One is missing.
    """
    place = {name: number for number, name in enumerate(known)}
    missing = [name for name in names if name not in place]
    if missing:
        raise DataError(
            f"{what} lacks {columns_listed(missing)} of the training samples. It has "
            f"{columns_listed(known)}."
        )
    return [place[name] for name in names]


def table_numbers(table: Any, what: str) -> NDArray[Any]:
    """Return the numbers of a table, of which bytes are numbers like others, and no pixels.

    Args:
        table: Of pandas, polars or alike.
        what: What it is called in errors.

    Raises:
        DataError: It is too wide, two columns have one name, or one holds no numbers.
    """
    names = list(table.columns)
    check_names(names, what)
    if len(names) > MOST_COLUMNS:
        raise DataError(
            f"{what} has {len(names):,} columns, more than the {MOST_COLUMNS:,} that are taken. "
            f"Are these samples?"
        )
    columns = [_column_numbers(table[name]) for name in names]
    odd = [name for name, column in zip(names, columns, strict=True) if column is None]
    if odd:
        _check_mostly_none(table[odd[0]], f"{what}: {columns_listed(odd[:1])}")
        raise DataError(
            f"{what} has no numbers in {columns_listed(odd)}. Leave them out, or make numbers of "
            f"them, such as a column of 0 and 1 for each of their values."
        )
    found = [column for column in columns if column is not None]
    _check_whole(names, found, what)
    kind = np.result_type(np.float32, *found)
    whole = np.empty((len(table), len(found)), dtype=kind)
    for number, column in enumerate(found):
        whole[:, number] = column
    return whole


def _check_mostly_none(column: Any, what: str) -> None:
    """Refuse a column that has no numbers in a few places only.

    Raises:
        DataError: It is one.
    """
    values = enumerate(column.to_numpy().tolist())
    texts = {row: str(value) for row, value in values if not is_missing(value)}
    odd = [row for row, text in texts.items() if not is_number(text)]
    if 0 < 2 * len(odd) <= len(texts):
        raise DataError(
            f"{what} has numbers, but for {len(odd)} of {len(texts)} values, the first "
            f"{text_of(texts[odd[0]])} in row {odd[0]}, counted from 0. Leave out these rows, or "
            f"write numbers."
        )


def is_number(text: str) -> bool:
    """Return whether a text is a number, and not NaN."""
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _column_numbers(column: Any) -> NDArray[Any] | None:
    """Return the numbers of a column; None where it holds something else."""
    array = np.asarray(column.to_numpy())
    if array.ndim == 1 and array.dtype.kind in "biuf":
        return array
    if array.ndim != 1 or array.dtype.kind != "O":
        return None
    # What is missing has no type that is common to libraries.
    values = [math.nan if is_missing(value) else value for value in array.tolist()]
    if not all(
        isinstance(value, bool | int | float | np.number | np.bool_ | Decimal) for value in values
    ):
        return None
    try:
        return np.array([float(value) for value in values])
    except OverflowError:
        return None


def is_missing(value: Any) -> bool:
    """Return whether a table has nothing at a place."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def _check_whole(names: Sequence[Any], columns: Sequence[NDArray[Any]], what: str) -> None:
    """Refuse columns with numbers that are missing."""
    missing = {
        name: np.isnan(column)
        for name, column in zip(names, columns, strict=True)
        if column.dtype.kind == "f" and np.isnan(column).any()
    }
    if missing:
        row = min(int(each.argmax()) for each in missing.values())
        number = sum(int(each.sum()) for each in missing.values())
        raise DataError(
            f"{what}: {number} value{'s are' if number > 1 else ' is'} missing, in "
            f"{columns_listed(list(missing))}, the first in row {row}, counted from 0. Fill them "
            f"in, or leave out their rows."
        )


def check_names(names: Sequence[Any], what: str) -> None:
    """Refuse columns of which several have one name.

    Raises:
        DataError: Some have.
    """
    name, number = next(iter(Counter(map(str, names)).most_common(1)), ("", 1))
    if number > 1:
        raise DataError(f"{what} has {number} columns with the name {text_of(name)}. Rename them.")


def warn_of_rounding(array: NDArray[Any], names: Sequence[str] | None, what: str) -> None:
    """Warn of columns whose numbers are nearly the same in float32, such as times in seconds.

    Args:
        array: Samples, in the type in which they were given.
        names: Names of the columns; None where they have none.
        what: What the samples are called.
    """
    if array.ndim != 2 or not array.size or array.dtype.name not in ("int32", "int64", "float64"):
        return
    low, high = (ends(axis=0).astype(np.float64) for ends in (array.min, array.max))
    with np.errstate(invalid="ignore", over="ignore"):  # What is not finite is refused later.
        spread, largest = high - low, np.maximum(np.abs(low), np.abs(high))
    is_rounded = (spread < ROUNDED * largest) & (spread > NOISE * largest)
    if array.dtype.kind == "i":
        is_rounded &= largest > 1 << 24  # Up to there float32 has all whole numbers.
    columns = np.flatnonzero(is_rounded)
    if len(columns):
        found = columns_listed([names[n] if names else n for n in columns.tolist()])
        warnings.warn(
            f"{what}: in {found}, numbers differ by less than {ROUNDED:.4%} of their size, "
            f"and most of that is lost in float32, in which networks compute. Subtract the mean of "
            f"the column first.",
            OnwardWarning,
            stacklevel=3,
        )


def columns_listed(names: Sequence[Any], most: int = 5) -> str:
    """Return names of columns in a line, the first of many.

    Example:
        >>> columns_listed(["age"]), columns_listed(["age", "city"], most=1)
        ("the column 'age'", "the columns 'age', ... (2 names)")
    """
    return f"the column{'s' if len(names) > 1 else ''} {listed([*map(str, names)], most)}"


def is_sparse(values: Any) -> bool:
    """Return whether something is a matrix that keeps what is not zero, as scipy has them."""
    return all(hasattr(values, name) for name in ("toarray", "nnz", "shape", "dtype"))


def densified(matrix: Any, what: str) -> NDArray[Any]:
    """Return a sparse matrix with its zeros written out.

    Raises:
        DataError: It would take too much memory.
    """
    if matrix.dtype.kind in "bui":
        # As numbers of a table: bytes that are mostly zero are counts, and no pixels.
        matrix = matrix.astype(np.float32)
    size = float(np.prod([float(n) for n in matrix.shape])) * matrix.dtype.itemsize
    room = DENSE_SHARE * psutil.virtual_memory().total
    if size > room:
        raise DataError(
            f"{what} is sparse, of shape {tuple(matrix.shape)}: with its zeros it takes "
            f"{size / 1e9:,.1f} GB, and {room / 1e9:,.1f} GB, a quarter of the memory here, are "
            f"allowed. Make fewer columns of it, as sklearn.decomposition.TruncatedSVD does."
        )
    found: NDArray[Any] = matrix.toarray()
    return found
