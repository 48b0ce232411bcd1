"""Tables of one's own: .csv and .parquet files, with the classes in a column."""

import csv
import difflib
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from onward.data.quoting import text_of
from onward.data.tables import MOST_COLUMNS, check_names, columns_listed, is_missing, is_number
from onward.errors import DataError

SUFFIXES = (".csv", ".tsv", ".parquet")
"""Endings of files that are read as tables."""

SEPARATORS = ",;\t"
"""What may stand between the columns of a .csv file."""

FEWEST_COUNTED = 10
"""Rows from which on a first column that counts them is no coincidence."""


def read_table(path: Path, label: str | None) -> dict[str, Any]:
    """Read a table: one column has the classes, all others are numbers.

    Classes have names, also where these are whole numbers, which may then begin anywhere.

    Args:
        path: A .csv or .tsv file, with names of columns in its first line and commas, semicolons
            or tabs between them, or a .parquet file.
        label: Name of the column that has the classes.

    Returns:
        Arguments of `from_arrays`.

    Raises:
        DataError: The file cannot be read, there is no such column, or a column says nothing of
            new rows.
    """
    table = read_frame(path, label)
    columns = list(map(str, table.columns))
    if label is None:
        raise DataError(
            f"Which column of {path} has the classes? Name it as label (--label COLUMN). There "
            f"are {columns_listed(columns, most=20)}."
        )
    if label not in columns:
        known = {column.lower(): column for column in columns}
        near = difflib.get_close_matches(label.lower(), list(known), n=1, cutoff=0.6)
        hint = f" Did you mean {text_of(known[near[0]])}?" if near else ""
        there = f"There are {columns_listed(columns, most=20)}."
        if len(columns) == 1:
            there = f"Its only column is {text_of(columns[0])}: is there another separator?"
        raise DataError(f"{path} has no column {text_of(label)}.{hint} {there}")
    _check_informative(path, table, label)
    classes = _classes(table[label], f"{path.name}: the column {text_of(label)}")
    return {"x": table.drop(columns=label), "y": classes}


def is_table_file(name: str) -> bool:
    """Return whether a data set is a table in a file."""
    return Path(name).suffix.lower() in SUFFIXES


def read_frame(path: Path, label: str | None = None) -> Any:
    """Read a table as pandas has it.

    Args:
        path: The file.
        label: Column whose values stay texts.

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
        if path.suffix.lower() == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                known, names = file.metadata, file.schema_arrow.names
            _check_size(path, known.num_columns, 8 * known.num_rows * known.num_columns, room)
            _check_header(path, names)
            table = pandas.read_parquet(path)
        else:
            separator, names = _header(path)
            _check_size(path, len(names), path.stat().st_size, room)
            _check_header(path, names)
            table = _read_csv(path, separator, names, label)
    except DataError:
        raise
    except UnicodeError as error:
        raise DataError(f"{path} is not in UTF-8. Save it anew in this encoding.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # What damaged files raise has no common base.
        text = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{path} cannot be read as a {path.suffix} file: {text}.") from error
    return table


def _header(path: Path) -> tuple[str, list[str]]:
    """Return what stands between the columns of a .csv file, and their names."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline(1 << 24)
    each = {
        separator: next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        for separator in SEPARATORS
    }
    separator = max(each, key=lambda separator: len(each[separator]))
    names = [name.strip() for name in each[separator]]
    return separator, names


def _read_csv(path: Path, separator: str, names: list[str], label: str | None) -> Any:
    """Read a .csv file; what a column of classes says is taken as it is written.

    Raises:
        DataError: Some lines have more columns than the first.
    """
    import pandas

    read = partial(
        pandas.read_csv,
        path,
        sep=separator,
        header=0,
        names=names,
        dtype={} if label is None else {label: str},
        skipinitialspace=True,
        index_col=False,
        low_memory=False,
        encoding="utf-8-sig",
    )

    def texts(table: Any) -> int:
        return sum(kind.kind not in "biuf" for kind in table.dtypes)

    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            table = read()
            if separator != "," and texts(table) > (label in names):
                # Where columns are not separated by commas, numbers may have them.
                table = min(table, read(decimal=","), key=texts)
            if label in names and table[label].isna().any():
                # Names such as NA are no gaps.
                table[label] = read(usecols=[label], keep_default_na=False)[label]
        except pandas.errors.ParserWarning as error:
            raise DataError(
                f"{path} has lines with more columns than its first line, which names "
                f"{len(names)}. Where the first column numbers the rows, leave it out, as "
                f"write.csv(..., row.names = FALSE) does in R."
            ) from error
    if names and not names[-1] and table.iloc[:, -1].isna().all():
        table = table.iloc[:, :-1]  # Lines end in a separator.
    return table


def _check_size(path: Path, columns: int, num_bytes: int, room: int) -> None:
    if columns > MOST_COLUMNS:
        raise DataError(
            f"{path} has {columns:,} columns, more than the {MOST_COLUMNS:,} that are taken."
        )
    if num_bytes > room:
        raise DataError(
            f"{path} takes {num_bytes / 1e9:,.1f} GB, and the memory here is {room / 1e9:,.1f} GB."
        )


def _check_header(path: Path, names: list[str]) -> None:
    """Refuse names of columns that are none."""
    numbers = [name for name in names if is_number(name)]
    # Columns may be called 0, 1, 2.
    if path.suffix.lower() != ".parquet" and (
        numbers and (len(numbers) == len(names) or any("." in name for name in numbers))
    ):
        raise DataError(
            f"{path} has numbers in its first line, such as {numbers[0]}, where names of columns "
            f"are needed. Add a line with the names."
        )
    check_names([name for name in names if name], str(path))


def _check_informative(path: Path, table: Any, label: str) -> None:
    """Refuse columns that tell nothing of new rows: those without a name, and numbers of rows."""
    names = [str(name) for name in table.columns]
    if any(not name or re.fullmatch(r"__index_level_\d+__", name) for name in names):
        raise DataError(
            f"{path} has a column without a name. If it numbers the rows, leave it out, as "
            f"table.to_csv(path, index=False) does in pandas: that tells nothing of new rows."
        )
    first = table.iloc[:, 0].to_numpy()
    is_counted = names[0] != label and first.dtype.kind in "iu" and len(first) >= FEWEST_COUNTED
    if is_counted and np.array_equal(np.sort(first), np.arange(len(first)) + first.min()):
        raise DataError(
            f"The first column of {path}, {text_of(names[0])}, numbers the rows, which tells "
            f"nothing of new ones. Leave it out."
        )


def _classes(column: Any, what: str) -> list[str]:
    """Return the classes of the rows as names.

    Raises:
        DataError: One is missing, or is no name or whole number.
    """
    values = column.tolist()
    names = []
    for row, value in enumerate(values):
        if is_missing(value) or not str(value).strip():
            raise DataError(
                f"{what} is empty in row {row}, counted from 0. Leave out rows without a class."
            )
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        value = value.strip() if isinstance(value, str) else value
        if not isinstance(value, str | bool | int | float):
            raise DataError(f"{what} holds {value!r} in row {row}. Classes are names or numbers.")
        names.append(str(value))
    if not all(map(is_number, names)):
        return names
    odd = [row for row, name in enumerate(names) if not float(name).is_integer()]
    if odd:
        raise DataError(
            f"{what} holds {names[odd[0]]} in row {odd[0]}, counted from 0. Classes are names or "
            f"whole numbers; numbers with fractions cannot be learned (regression is not offered)."
        )
    # As tables write whole numbers beside missing ones.
    return [name.removesuffix(".0") for name in names]
