"""Images of one's own: files in folders, one a class."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from jaxtyping import UInt8

from onward.data.dataset import Dataset, from_arrays
from onward.data.loaders import watched
from onward.errors import DataError, OnwardWarning

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of files that are read as images."""

PARTS = {
    "training": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What folders of samples of each kind are called, where there are several."""

MOST_PIXELS = 2**24
"""An image with more is refused before memory is taken for it."""

GREY = ("1", "L", "LA")
"""What pillow calls images without colours."""

DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
"""What it calls those with more than eight bits."""


class Header(NamedTuple):
    """What is known of an image before its pixels are read."""

    size: tuple[int, int]
    """Height and width."""

    is_grey: bool
    """Whether it has no colours."""


def read_images(
    folder: Path,
    *,
    test: float | int = 0.2,
    split_seed: int = 0,
    allow_one_class: bool = False,
) -> Dataset:
    """Read a data set from folders of images, whose names are those of the classes.

    All images have the same size. They have one channel where none has colours, else three.

    Args:
        folder: Has a folder for each class; or folders `train`, `test` and, where there are some,
            `val`, with these inside.
        test: See `from_arrays`, as for the others.
        split_seed: Decides which images are test samples.
        allow_one_class: Whether all training samples may have the same class.

    Raises:
        DataError: Files cannot be read, or images are of several sizes.
    """
    parts = _parts(folder)
    files = {part: _by_class(path) for part, path in parts.items()}
    every = [file for own in files.values() for _, file in own]
    _warn_of_others(folder, [file for path in parts.values() for file in path.glob("*/*")], every)
    headers = [_header(file) for file in watched(every, f"{folder.name}: sizes", len(every))]
    channels = 1 if all(header.is_grey for header in headers) else 3
    x = {part: read_pixels([file for _, file in own], channels) for part, own in files.items()}
    y = {part: [name for name, _ in own] for part, own in files.items()}
    return from_arrays(
        x["training"],
        y["training"],
        x_val=x.get("val"),
        y_val=y.get("val"),
        x_test=x.get("test"),
        y_test=y.get("test"),
        is_image=True,
        name=folder.name,
        test=test,
        split_seed=split_seed,
        allow_one_class=allow_one_class,
    )


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder, in the order of their names.

    Raises:
        DataError: There are none.
    """
    found = sorted(file for file in folder.iterdir() if _is_image(file))
    if not found:
        raise DataError(f"{folder} has no images: no files that end in {', '.join(SUFFIXES)}.")
    return found


def read_pixels(
    files: Sequence[Path], channels: int
) -> UInt8[np.ndarray, "samples channels height width"]:
    """Return the pixels of images.

    Args:
        files: The images, all of one size.
        channels: 1 for shades of grey, 3 for red, green and blue.

    Raises:
        DataError: One cannot be read, is too large, or of another size than the first.
    """
    size = _header(files[0]).size
    num_bytes, room = len(files) * channels * size[0] * size[1], psutil.virtual_memory().total
    if num_bytes > room:
        raise DataError(
            f"{len(files):,} images of {size[1]} x {size[0]} pixels take {num_bytes / 1e9:,.1f} "
            f"GB, and the memory here is {room / 1e9:,.1f} GB. Give smaller or fewer images."
        )
    found = np.empty((len(files), channels, *size), dtype=np.uint8)
    for number, file in enumerate(watched(files, f"{files[0].parent.name}: images", len(files))):
        own = _header(file).size
        if own != size:
            raise DataError(
                f"{file} has {own[1]} x {own[0]} pixels, and {files[0]} has {size[1]} x {size[0]}. "
                f"Give all images the same size, as image.resize({size[::-1]}) does in pillow."
            )
        pixels = np.asarray(_opened(file, "L" if channels == 1 else "RGB"))
        found[number] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
    return found


def _parts(folder: Path) -> dict[str, Path]:
    """Return the folder of each kind of samples."""
    try:
        folders = sorted(path for path in folder.iterdir() if _is_folder(path))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from error
    kinds = {name: kind for kind, names in PARTS.items() for name in names}
    found: dict[str, Path] = {}
    for path in folders:
        kind = kinds.get(path.name.lower())
        if kind is None:
            break
        found[kind] = path
    else:
        if "training" in found and len(found) == len(folders):
            return found
    if not folders:
        raise DataError(
            f"{folder} has no folders inside. A folder of images has one folder for each class, "
            f"with its images in it."
        )
    return {"training": folder}


def _by_class(folder: Path) -> list[tuple[str, Path]]:
    """Return images beside the names of their classes, in the order of both."""
    classes = sorted(path for path in folder.iterdir() if _is_folder(path))
    return [(path.name, file) for path in classes for file in images_in(path)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _is_image(path: Path) -> bool:
    is_named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return is_named and path.is_file()


def _warn_of_others(folder: Path, there: Sequence[Path], read: Sequence[Path]) -> None:
    """Say which files are left out."""
    others = sorted(set(there) - set(read))
    others = [path for path in others if not path.name.startswith(".")]
    if others:
        warnings.warn(
            f"{len(others):,} files in {folder} are no images, and are left out, such as "
            f"{others[0]}.",
            OnwardWarning,
            stacklevel=2,
        )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "Images are read with pillow, which is not installed. Install it with:\n"
            '    pip install "onward[images]"'
        ) from error
    return Image


def _header(file: Path) -> Header:
    """Return what is known of an image before its pixels are read.

    Raises:
        DataError: It is no image, is too large, or has more than eight bits.
    """
    image_module = _pillow()
    try:
        with image_module.open(file) as image:
            (width, height), mode = image.size, image.mode
    except Exception as error:  # What damaged images raise has no common base.
        raise DataError(f"{file} cannot be read as an image: {error}.") from error
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{file} has {width:,} x {height:,} pixels, more than the {MOST_PIXELS:,} that are "
            f"taken. Make it smaller."
        )
    if mode in DEEP:
        raise DataError(
            f"{file} has more than eight bits a pixel (mode {mode} of pillow). Save it with eight."
        )
    return Header((height, width), mode in GREY)


def _opened(file: Path, mode: str) -> Any:
    image_module = _pillow()
    try:
        with image_module.open(file) as image:
            return image.convert(mode)
    except Exception as error:  # As above.
        raise DataError(f"{file} cannot be read as an image: {error}.") from error
