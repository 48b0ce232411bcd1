"""The published data sets: what is known of each, and where its files are found."""

import os
from dataclasses import dataclass
from pathlib import Path

from onward.data import download
from onward.errors import DataError

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""Training images, training labels, test images and test labels of MNIST and Fashion-MNIST."""

CIFAR_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
"""Files of training samples of CIFAR-10, in order."""

CIFAR_TEST_FILE = "test_batch.bin"
"""File of its test samples."""

CIFAR_PICKLED = "cifar-10-batches-py"
"""Folder of its Python version."""

GRAPHS = {
    "planetoid-cora": ((1433,), 7, 140, 1000),
    "planetoid-citeseer": ((3703,), 6, 120, 1000),
    "citeseer-full": ((602,), 6, 2707, 846),
    "cora-ml": ((2879,), 7, 1916, 599),
    "pubmed-full": ((500,), 3, 12618, 3944),
    "amazon-photo": ((745,), 8, 4896, 1530),
}
"""Graphs by name: features, classes, training and test nodes. Each is a file of plain arrays, which
benchmarks/convert_graphs.py makes of what was published."""

MITBIH_FILE = "mitbih_beats.npz"
"""Beats of the MIT-BIH Arrhythmia Database; `onward.data.mitbih` says which arrays it holds."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What is known about a data set before it is loaded."""

    name: str
    """What `load` calls it."""

    shape: tuple[int, ...]
    """Shape of one sample; images are channels first."""

    num_classes: int
    """Number of classes."""

    num_samples: int
    """Number of training samples, some of which may become validation samples."""

    num_test_samples: int
    """Number of test samples."""

    where: str
    """Where it is found, or that it will be downloaded."""


@dataclass(frozen=True, slots=True)
class _Published:
    """A data set that lies in a folder, as its authors published it."""

    shape: tuple[int, ...]
    num_classes: int
    num_samples: int
    num_test_samples: int
    files: tuple[str, ...]
    may_be_gzipped: bool = False
    folder: str | None = None
    """What the folder is called; None: as the data set is."""

    def is_complete(self, folder: Path) -> bool:
        """Return whether a folder has all files."""
        if self.may_be_gzipped:
            return all(plain_or_gzipped(folder, file).is_file() for file in self.files)
        return all((folder / file).is_file() for file in self.files)


PUBLISHED = {
    "mnist": _Published((1, 28, 28), 10, 60_000, 10_000, IDX_FILES, may_be_gzipped=True),
    "fashion-mnist": _Published((1, 28, 28), 10, 60_000, 10_000, IDX_FILES, may_be_gzipped=True),
    "cifar10": _Published((3, 32, 32), 10, 50_000, 10_000, (*CIFAR_TRAIN_FILES, CIFAR_TEST_FILE)),
    "mitbih": _Published((256,), 5, 51_000, 49_691, (MITBIH_FILE,)),
    "mitbih-intervals": _Published((5, 256), 5, 51_000, 49_691, (MITBIH_FILE,), folder="mitbih"),
    **{
        name: _Published(*known, (f"{name}.npz",), folder="graphs")
        for name, known in GRAPHS.items()
    },
}
"""Data sets that lie in folders, by name."""


def plain_or_gzipped(folder: Path, file: str) -> Path:
    """Return the path of a file, or of its gzipped form where it is not there."""
    plain = folder / file
    return plain if plain.is_file() else folder / f"{file}.gz"


def available(data_dir: Path | str | None = None) -> list[Listing]:
    """List the data sets known by name; nothing is loaded or downloaded.

    Raises:
        DataError: A data folder that was named does not exist.

    Example:
        >>> available()[0].shape, available()[0].where
        ((1, 8, 8), 'comes with scikit-learn')
    """
    digits = Listing("digits", (1, 8, 8), 10, 1437, 360, "comes with scikit-learn")
    folders = folders_to_search(data_dir)
    return [digits] + [
        Listing(
            name,
            known.shape,
            known.num_classes,
            known.num_samples,
            known.num_test_samples,
            _where(name, folders),
        )
        for name, known in PUBLISHED.items()
    ]


def _where(name: str, folders: list[Path]) -> str:
    try:
        found = _find(name, folders)
    except DataError as error:
        return str(error)
    if found:
        return str(found)
    if name not in download.REMOTES:
        return f"to be made: DIR/{_folder(name)}/{PUBLISHED[name].files[0]}"
    return f"will be downloaded ({download.REMOTES[name].num_bytes / 1e6:.0f} MB)"


def locate(name: str, folders: list[Path]) -> Path:
    """Return the folder that holds a data set, which is fetched into the cache where none does.

    Raises:
        DataError: It cannot be found or fetched.
    """
    found = _find(name, folders)
    if found is None and name not in download.REMOTES:
        made = (
            "its files are published in several forms, some of them pickles, which can run code "
            "and are not read. benchmarks/convert_graphs.py makes plain arrays of them, as"
            if name in GRAPHS
            else "its beats are cut from records of PhysioNet. Make, with the members that "
            "onward.data.mitbih describes,"
        )
        raise DataError(
            f"{name} is nowhere to be found, and is not fetched: {made} "
            f"DIR/{_folder(name)}/{PUBLISHED[name].files[0]}. Then name that folder by --data-dir "
            f"DIR or ONWARD_DATA=DIR."
        )
    if found is None:
        download.fetch(name)
        found = _find(name, [download.cache()])
    assert found is not None
    return found


def _folder(name: str) -> str:
    """Return what the folder of a data set is called that is not downloaded."""
    return PUBLISHED[name].folder or name


def _find(name: str, folders: list[Path]) -> Path | None:
    remote = download.REMOTES.get(name)
    for folder in folders:
        for layout in remote.layouts if remote else (_folder(name),):
            if PUBLISHED[name].is_complete(folder / layout):
                return folder / layout
    if name == "cifar10":
        for folder in folders:
            _refuse_pickles(folder)
    return None


def folders_to_search(data_dir: Path | str | None) -> list[Path]:
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


def _refuse_pickles(data_dir: Path) -> None:
    """Raise where a data folder has CIFAR-10, but in the form that must not be read.

    Raises:
        DataError: There is a folder cifar-10-batches-py.
    """
    for pickled in (data_dir / CIFAR_PICKLED, data_dir / "cifar10" / CIFAR_PICKLED):
        if pickled.is_dir():
            raise DataError(
                f"{pickled} is the Python version of CIFAR-10, made of pickles, which can run "
                f"code and are never read. Get the binary version (cifar-10-binary.tar.gz, 170 MB) "
                f"and unpack it next to it, as {pickled.with_name('cifar-10-batches-bin')}."
            )
