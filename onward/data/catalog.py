"""The data sets known by name, and where they are found."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onward.data import cifar, download, idx, mitbih
from onward.data.arrays import read_npz
from onward.data.dataset import Dataset, from_arrays
from onward.errors import DataError


@dataclass(frozen=True, slots=True)
class Listing:
    """What is known about a data set before it is loaded."""

    name: str
    """What `load` calls it."""

    shape: tuple[int, ...]
    """Shape of one row; images are channels first."""

    num_classes: int
    """Number of classes."""

    num_rows: int
    """Number of training rows, some of which may become validation rows."""

    num_test_rows: int
    """Number of test rows."""

    where: str
    """Where it is found, or that it will be downloaded."""


@dataclass(frozen=True, slots=True)
class _Published:
    """A data set that lies in a folder, as its authors published it."""

    shape: tuple[int, ...]
    num_classes: int
    num_rows: int
    num_test_rows: int
    is_complete: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


_PUBLISHED = {
    "mnist": _Published(
        (1, 28, 28), 10, 60_000, 10_000, idx.is_complete, partial(idx.read_mnist, name="mnist")
    ),
    "fashion-mnist": _Published(
        (1, 28, 28),
        10,
        60_000,
        10_000,
        idx.is_complete,
        partial(idx.read_mnist, name="fashion-mnist"),
    ),
    "cifar10": _Published((3, 32, 32), 10, 50_000, 10_000, cifar.is_complete, cifar.read_cifar10),
    "mitbih": _Published((256,), 5, 51_000, 49_691, mitbih.is_complete, mitbih.read_mitbih),
}

NAMES = ("digits", *_PUBLISHED)
"""Names that `load` knows."""


def load(
    name: str,
    *,
    data_dir: Path | str | None = None,
    split_seed: int = 0,
    test: float | int = 0.2,
    allow_one_class: bool = False,
) -> Dataset:
    """Load a data set.

    Published data sets are looked for in `data_dir`, in the folder that the environment variable
    ONWARD_DATA names, and in the cache; then they are downloaded into the cache.

    Args:
        name: digits, mnist, fashion-mnist, cifar10, mitbih, or a path that ends in .npz.
        data_dir: Folder that holds published data sets.
        split_seed: Decides which rows are test rows where the data bring none of their own.
        test: Share of the rows, or number, that are test rows there.
        allow_one_class: Whether all rows of an .npz file may have the same class.

    Raises:
        DataError: There is no such data set, it cannot be found or fetched, or it cannot be
            learned from.

    Example:
        >>> digits = load("digits")
        >>> digits.num_rows, len(digits.x_test), digits.input_shape
        (1437, 360, (1, 8, 8))
    """
    if name == "digits":
        from sklearn.datasets import load_digits  # Takes a second.

        digits = load_digits()
        return from_arrays(
            digits.images[:, None] / 16,
            digits.target,
            name=name,
            test=test,
            split_seed=split_seed,
        )
    if name in _PUBLISHED:
        return _PUBLISHED[name].read(_locate(name, _folders(data_dir)))
    path = Path(name).expanduser()
    if path.suffix:
        return read_npz(path, test=test, split_seed=split_seed, allow_one_class=allow_one_class)
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.7)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DataError(
        f'There is no data set "{name}".{hint} Known are {", ".join(NAMES)}, and paths that end '
        f"in .npz."
    )


def available(data_dir: Path | str | None = None) -> list[Listing]:
    """List the data sets known by name; nothing is loaded or downloaded.

    Raises:
        DataError: A data folder that was named does not exist.

    Example:
        >>> available()[0].shape, available()[0].where
        ((1, 8, 8), 'comes with scikit-learn')
    """
    digits = Listing("digits", (1, 8, 8), 10, 1437, 360, "comes with scikit-learn")
    folders = _folders(data_dir)
    return [digits] + [
        Listing(
            name,
            known.shape,
            known.num_classes,
            known.num_rows,
            known.num_test_rows,
            _where(name, folders),
        )
        for name, known in _PUBLISHED.items()
    ]


def _where(name: str, folders: list[Path]) -> str:
    try:
        found = _find(name, folders)
    except DataError as error:
        return str(error)
    if found:
        return str(found)
    if name not in download.REMOTES:
        return f"to be made: DIR/{name}/{mitbih.FILE}"
    return f"will be downloaded ({download.REMOTES[name].num_bytes / 1e6:.0f} MB)"


def _locate(name: str, folders: list[Path]) -> Path:
    found = _find(name, folders)
    if found is None and name not in download.REMOTES:
        raise DataError(
            f"{name} is nowhere to be found, and is not fetched: its beats are cut from records of "
            f"PhysioNet. Make DIR/{name}/{mitbih.FILE} with the members that onward.data.mitbih "
            f"describes, and name that folder by --data-dir DIR or ONWARD_DATA=DIR."
        )
    if found is None:
        download.fetch(name)
        found = _find(name, [download.cache()])
    assert found is not None
    return found


def _find(name: str, folders: list[Path]) -> Path | None:
    for folder in folders:
        for layout in download.REMOTES[name].layouts if name in download.REMOTES else (name,):
            if _PUBLISHED[name].is_complete(folder / layout):
                return folder / layout
    if name == "cifar10":
        for folder in folders:
            cifar.refuse_pickles(folder)
    return None


def _folders(data_dir: Path | str | None) -> list[Path]:
    """Return the folders to look in, in order: those named by the user, then the cache."""
    folders = []
    for origin, named in (("data_dir", data_dir), ("ONWARD_DATA", os.environ.get("ONWARD_DATA"))):
        if named:
            folder = Path(named).expanduser()
            if not folder.is_dir():
                raise DataError(
                    f"The data folder {folder}, named by {origin}, does not exist. Correct the "
                    f"name or leave it out."
                )
            folders.append(folder)
    return [*folders, download.cache()]
