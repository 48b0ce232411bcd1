"""Files fetched from where they were published, checked and kept in a cache."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch

from onward.errors import DataError


@dataclass(frozen=True, slots=True)
class Remote:
    """The published files of one data set."""

    url: str
    """Where they lie; ends in a slash."""

    md5: Mapping[str, str]
    """MD5 of each file, by name."""

    num_bytes: int
    """Size of all files together."""

    layouts: tuple[str, ...]
    """Folders within a data folder that may hold the unpacked files; the cache uses one of them."""


REMOTES = {
    "mnist": Remote(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        num_bytes=11_594_722,
        layouts=("mnist", "MNIST/raw"),
    ),
    "fashion-mnist": Remote(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        num_bytes=30_878_645,
        layouts=("fashion-mnist", "FashionMNIST/raw"),
    ),
    "cifar10": Remote(
        url="https://www.cs.toronto.edu/~kriz/",
        md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        num_bytes=170_052_171,
        layouts=("cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"),
    ),
}
"""Data sets that can be fetched, by name."""


def cache() -> Path:
    """Return the folder that fetched files are kept in."""
    return Path(pooch.os_cache("onward"))


def fetch(name: str) -> None:
    """Fetch what the cache lacks of a data set, and check it against the published MD5.

    Raises:
        DataError: A file could not be fetched, or is not the published one.
    """
    remote = REMOTES[name]
    for file, md5 in remote.md5.items():
        try:
            pooch.retrieve(
                remote.url + file,
                known_hash=f"md5:{md5}",
                fname=file,
                path=cache() / name,
                processor=pooch.Untar(extract_dir=".") if file.endswith(".tar.gz") else None,
                progressbar=sys.stderr.isatty(),
            )
        except OSError as error:
            problem = f"could not be fetched ({error.strerror or type(error).__name__})"
            raise DataError(_advise(name, file, problem)) from error
        except ValueError as error:
            problem = f"was fetched, but its MD5 is not the published {md5}"
            raise DataError(_advise(name, file, problem)) from error


def _advise(name: str, file: str, problem: str) -> str:
    remote = REMOTES[name]
    return (
        f"{remote.url}{file} {problem}. If you have the files of {name} already, or can copy them "
        f"to this machine, put them into {' or '.join(f'DIR/{part}' for part in remote.layouts)} "
        f"and name that folder by --data-dir DIR or the environment variable ONWARD_DATA=DIR."
    )
