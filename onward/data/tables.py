"""Tables with named columns, as pandas and polars have them, and matrices that are mostly zero."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from onward.errors import DataError

MOST_COLUMNS = 100_000
"""A table that is wider is taken for a mistake."""

DENSE_SHARE = 0.25
"""Share of the machine's memory that a sparse matrix may take once its zeros are written out."""


def is_table(values: Any) -> bool:
    """Return whether something is a table, without a look at its library.

    Example:
        >>> is_table([[1, 2]]), is_table(np.zeros((1, 2)))
        (False, False)
    """
    return all(hasattr(values, name) for name in ("columns", "to_numpy", "shape"))


def column_names(values: Any) -> tuple[str, ...] | None:
    """Return the names of the columns of a table; None where they are numbers, or it is none."""
    if not is_table(values):
        return None
    names = list(values.columns)
    return tuple(map(str, names)) if all(isinstance(name, str) for name in names) else None


def in_order(values: Any, names: Sequence[str] | None, what: str) -> Any:
    """Return a table with the columns that are named, in this order; what is no table, as it is.

    Args:
        values: Samples. A table of any order, which may have further columns.
        names: Columns that are needed; None where they have no names.
        what: What the table is called in errors.

    Raises:
        DataError: A column is missing.
    """
    known = column_names(values)
    if known is None or names is None or known == tuple(names):
        return values
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(
            f"{what} lacks {columns_listed(missing)}, which the samples that are learned from "
            f"have. It has {columns_listed(known)}."
        )
    _check_names(values, what)
    return values[list(names)]


def table_numbers(table: Any, what: str) -> NDArray[Any]:
    """Return the numbers of a table; what is missing becomes NaN.

    Args:
        table: Of pandas, polars or alike.
        what: What it is called in errors.

    Raises:
        DataError: It is too wide, two columns have one name, or one holds no numbers.
    """
    _check_names(table, what)
    names = list(table.columns)
    if len(names) > MOST_COLUMNS:
        raise DataError(
            f"{what} has {len(names):,} columns, more than the {MOST_COLUMNS:,} that are taken. "
            f"Are these samples?"
        )
    columns = [_column_numbers(table[name]) for name in names]
    odd = [name for name, column in zip(names, columns, strict=True) if column is None]
    if odd:
        raise DataError(
            f"{what} has no numbers in {columns_listed(odd)}. Leave them out, or make numbers of "
            f"them, as pandas.get_dummies does."
        )
    found = [column for column in columns if column is not None]
    _check_whole(names, found, what)
    if not found:
        return np.zeros((len(table), 0))
    types = {column.dtype for column in found}
    # Bytes alone are pixels, and beside columns of another type they are numbers.
    is_mixed = len(types) > 1 and np.result_type(*types) == np.uint8
    return np.stack(found, axis=1).astype(np.float32 if is_mixed else np.result_type(*types))


def _column_numbers(column: Any) -> NDArray[Any] | None:
    """Return the numbers of a column; None where it holds something else."""
    array = np.asarray(column.to_numpy())
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind != "O":
        return None
    # What is missing has no type that is common to libraries.
    values = [
        math.nan if value is None or type(value).__name__ == "NAType" else value
        for value in array.tolist()
    ]
    is_number = all(isinstance(value, bool | int | float) for value in values)
    return np.array(values, dtype=np.float64) if is_number else None


def _check_whole(names: Sequence[Any], columns: Sequence[NDArray[Any]], what: str) -> None:
    """Refuse columns with numbers that are missing."""
    missing = {name: np.isnan(column) for name, column in zip(names, columns, strict=True)}
    missing = {name: each for name, each in missing.items() if each.any()}
    if missing:
        row = min(int(each.argmax()) for each in missing.values())
        raise DataError(
            f"{what}: {sum(int(each.sum()) for each in missing.values())} values are missing, in "
            f"{columns_listed(list(missing))}, the first in row {row}. Fill them, as "
            f"x.fillna(x.median()) does in pandas, or leave out their rows."
        )


def _check_names(table: Any, what: str) -> None:
    name, number = next(iter(Counter(map(str, table.columns)).most_common(1)), ("", 1))
    if number > 1:
        raise DataError(f"{what} has {number} columns with the name {name!r}. Name them apart.")


def columns_listed(names: Sequence[Any], most: int = 5) -> str:
    """Return names of columns in a line, the first of many."""
    text = ", ".join(repr(str(name)[:40]) for name in names[:most])
    rest = f", ... ({len(names):,} columns)" if len(names) > most else ""
    return f"the column{'s' if len(names) > 1 else ''} {text}{rest}"


def is_sparse(values: Any) -> bool:
    """Return whether something is a matrix that keeps what is not zero, as scipy has them."""
    return all(hasattr(values, name) for name in ("toarray", "nnz", "shape", "dtype"))


def densified(matrix: Any, what: str) -> NDArray[Any]:
    """Return a sparse matrix with its zeros written out.

    Raises:
        DataError: It would take too much memory.
    """
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
