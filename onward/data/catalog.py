"""Data sets by name, loaded."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from onward.arguments import check_arguments
from onward.data import arrays, cifar, idx, mitbih, table_files
from onward.data.arrays import read_npy_pair, read_npz
from onward.data.dataset import Dataset, from_arrays
from onward.data.graphs import is_graph_file, read_graph
from onward.data.images import read_images, shape_of
from onward.data.links import read_links
from onward.data.published import GRAPHS, PUBLISHED, folders_to_search, locate
from onward.data.text import read_text
from onward.errors import DataError

_READERS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": partial(idx.read_mnist, name="mnist"),
    "fashion-mnist": partial(idx.read_mnist, name="fashion-mnist"),
    "cifar10": cifar.read_cifar10,
    "mitbih": mitbih.read_mitbih,
    "mitbih-intervals": partial(mitbih.read_mitbih, has_intervals=True),
}

NAMES = ("digits", *PUBLISHED)
"""Names that `load` knows."""

TAKES_LABEL = (".npy", *table_files.SUFFIXES)
"""Endings of files that do not say what the classes are."""

PATHS = "paths that end in .npz, .npy, .csv, .tsv, .parquet or .txt, or to a folder of images"
"""What else it knows."""


def load(
    name: str | Path,
    *,
    data_dir: Path | str | None = None,
    split_seed: int = 0,
    test: float | int = 0.2,
    allow_one_class: bool = False,
    context: int = 128,
    label: str | None = None,
    links: bool = False,
) -> Dataset:
    """Load a data set.

    Published data sets are looked for in `data_dir`, in the folder that the environment variable
    ONWARD_DATA names, and in the cache; then they are downloaded into the cache.

    Args:
        name: digits, mnist, fashion-mnist, cifar10, mitbih, mitbih-intervals, or a path that
            ends in .npz, .npy, .csv, .tsv, .parquet or .txt, or to a folder of images by class.
        data_dir: Folder that holds published data sets.
        split_seed: Decides which samples are test samples where the data bring none of their own.
        test: Share of the samples, or number, that are test samples there.
        allow_one_class: Whether all samples of a file may have the same class.
        context: Bytes of a window of a .txt file, see `onward.data.text.read_text`.
        label: Column of a table that has the classes; of an .npy file, the file that has them.
        links: Whether samples of a graph are pairs of nodes, see `onward.graph_links`.

    Raises:
        DataError: There is no such data set, it cannot be found or fetched, or it cannot be
            learned from.

    Example:
        >>> digits = load("digits")
        >>> digits.num_samples, len(digits.x_test), digits.input_shape
        (1437, 360, (1, 8, 8))
    """
    check_arguments(load, locals(), called="load_data")
    name = str(name)
    path = Path(name).expanduser()
    if label is not None and not takes_label(name):
        raise DataError(
            f"data.label = {label} is for files that end in {', '.join(TAKES_LABEL)}, and the data "
            f"set is {name}. Leave it out."
        )
    if links and not is_graph(name):
        raise DataError(
            f"data.links is for graphs, files with a member edge_index, and the data set is "
            f"{name}. Leave it out, or choose another recipe."
        )
    read = read_links if links else read_graph
    if name in PUBLISHED:
        folder = locate(name, folders_to_search(data_dir))
        if name in GRAPHS:
            return read(folder / f"{name}.npz", split_seed, name)
        return _READERS[name](folder)
    if path.suffix == ".txt":
        return read_text(path, context=context, test=test)
    if is_graph(name):
        return read(path, split_seed)
    return from_arrays(
        **_read(name, path, label),
        name=path.name or name,
        test=test,
        split_seed=split_seed,
        allow_one_class=allow_one_class,
    )


def _read(name: str, path: Path, label: str | None) -> dict[str, Any]:
    """Return arguments of `from_arrays`, from a file or a folder.

    Raises:
        DataError: There is nothing of this name that can be read.
    """
    if name == "digits":
        from sklearn.datasets import load_digits  # Takes a second.

        digits = load_digits()
        return {"x": digits.images[:, None] / 16, "y": digits.target}
    if table_files.is_table_file(name):
        return table_files.read_table(path, label)
    if path.suffix.lower() == ".npy":
        return read_npy_pair(path, label)
    if path.suffix == ".npz":
        return read_npz(path)
    if name and path.is_dir():
        return read_images(path)
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.7)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DataError(
        f'There is no data set "{name}".{hint} Known are {", ".join(NAMES)}, and {PATHS}. Data '
        f"that were in memory when a network was trained have no file: save samples in one, and "
        f"name it with --data, or call onward.calibrate(RUN, x, y), which does what `onward exits` "
        f"does."
    )


def is_graph(name: str) -> bool:
    """Return whether a data set is a graph, without loading it."""
    path = Path(name).expanduser()
    return name in GRAPHS or (path.suffix == ".npz" and is_graph_file(path))


def takes_label(name: str) -> bool:
    """Return whether a data set is a file that does not say what the classes are."""
    return Path(name).suffix.lower() in TAKES_LABEL


def row_shape(name: str) -> tuple[int, ...] | None:
    """Return the shape of a sample of a data set, without loading it; None where unknown."""
    if name in PUBLISHED:
        return PUBLISHED[name].shape
    path = Path(name).expanduser()
    if name and path.is_dir():
        return shape_of(path)
    return arrays.row_shape(path) if path.suffix in (".npz", ".npy") else None
