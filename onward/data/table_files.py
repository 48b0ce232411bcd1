"""Tables of one's own: .csv and .parquet files, with the classes in a column."""

import csv
import difflib
import math
from pathlib import Path
from typing import Any

import psutil

from onward.data.dataset import Dataset, from_arrays
from onward.data.tables import MOST_COLUMNS, columns_listed
from onward.errors import DataError

SUFFIXES = (".csv", ".parquet")
"""Endings of files that are read as tables."""

SEPARATORS = ",;\t"
"""What may stand between the columns of a .csv file."""


def read_table(
    path: Path,
    *,
    label: str | None,
    test: float | int = 0.2,
    split_seed: int = 0,
    allow_one_class: bool = False,
) -> Dataset:
    """Read a data set from a table: one column has the classes, all others are numbers.

    Classes have names, also where these are whole numbers, which may then begin anywhere.

    Args:
        path: A .csv file, with names of columns in its first line and commas, semicolons or tabs
            between them, or a .parquet file.
        label: Name of the column that has the classes.
        test: See `from_arrays`, as for the others.
        split_seed: Decides which rows are test rows.
        allow_one_class: Whether all training rows may have the same class.

    Raises:
        DataError: The file cannot be read, there is no such column, or what it holds cannot be
            learned from.
    """
    table = read_frame(path)
    columns = list(map(str, table.columns))
    if label is None:
        raise DataError(
            f"Which column of {path} has the classes? Name it as label (--label COLUMN). There "
            f"are {columns_listed(columns, most=20)}."
        )
    if label not in columns:
        near = difflib.get_close_matches(label, columns, n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{path} has no column {label!r}.{hint} There are {columns_listed(columns, most=20)}."
        )
    return from_arrays(
        table.drop(columns=label),
        _classes(table[label], f"{path.name}: the column {label!r}"),
        name=path.name,
        test=test,
        split_seed=split_seed,
        allow_one_class=allow_one_class,
    )


def read_frame(path: Path) -> Any:
    """Read a table as pandas has it.

    Raises:
        DataError: pandas is not installed, or the file cannot be read.
    """
    try:
        import pandas
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path} is a table, and tables are read with pandas and pyarrow. Install them with:\n"
            f'    pip install "onward[tables]"'
        ) from error
    room = psutil.virtual_memory().total
    try:
        if path.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                known = file.metadata
                _check_size(path, known.num_columns, 8 * known.num_rows * known.num_columns, room)
            table = pandas.read_parquet(path)
        else:
            separator, columns = _first_line(path)
            _check_size(path, columns, path.stat().st_size, room)
            table = pandas.read_csv(
                path, sep=separator, skipinitialspace=True, index_col=False, low_memory=False
            )
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # What damaged files raise has no common base.
        text = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{path} cannot be read as a {path.suffix} file: {text}.") from error
    _check_header(path, table)
    return table


def _first_line(path: Path) -> tuple[str, int]:
    """Return what stands between the columns of a .csv file, and how many there seem to be."""
    with path.open(encoding="utf-8-sig") as file:
        line = file.readline(1 << 24)
    separator = max(SEPARATORS, key=line.count)
    return separator, len(next(csv.reader([line], delimiter=separator), []))


def _check_size(path: Path, columns: int, num_bytes: int, room: int) -> None:
    if columns > MOST_COLUMNS:
        raise DataError(
            f"{path} has {columns:,} columns, more than the {MOST_COLUMNS:,} that are taken."
        )
    if num_bytes > room:
        raise DataError(
            f"{path} takes {num_bytes / 1e9:,.1f} GB, and the memory here is {room / 1e9:,.1f} GB."
        )


def _check_header(path: Path, table: Any) -> None:
    """Refuse a table whose first line has no names, or whose first column numbers the rows."""
    names = list(map(str, table.columns))
    numbers = [name for name in names if _is_number(name)]
    # Columns may be called 0, 1, 2.
    if numbers and (len(numbers) == len(names) or any("." in name for name in numbers)):
        raise DataError(
            f"{path} has numbers in its first line, such as {numbers[0]}, where names of columns "
            f"are needed. Add a line with the names."
        )
    if (
        names
        and names[0].startswith("Unnamed: 0")
        and list(table.iloc[:, 0]) == [*range(len(table))]
    ):
        raise DataError(
            f"The first column of {path} has no name and numbers the rows, which tells nothing of "
            f"new ones. Leave it out, as table.to_csv(path, index=False) does in pandas."
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _classes(column: Any, what: str) -> list[str]:
    """Return the classes of the rows as names.

    Raises:
        DataError: One is missing, or a number with a fraction.
    """
    names = []
    for row, value in enumerate(column.tolist()):
        is_float = isinstance(value, float)
        if value is None or type(value).__name__ == "NAType" or (is_float and math.isnan(value)):
            raise DataError(f"{what} is empty in row {row}. Leave out rows without a class.")
        if is_float and not value.is_integer():
            raise DataError(
                f"{what} holds {value} in row {row}. Classes are names or whole numbers; numbers "
                f"with fractions cannot be learned (regression is not offered)."
            )
        names.append(str(int(value) if is_float else value))
    return names
