"""Images of one's own: files in folders, one a class."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from jaxtyping import UInt8

from onward.errors import DataError, OnwardWarning
from onward.watching import watched

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of files that are read as images."""

PARTS = {
    "": ("train", "training"),
    "_val": ("val", "valid", "validation"),
    "_test": ("test", "testing"),
}
"""What folders of samples of each kind are called, by the ending of arguments of `from_arrays`."""

MOST_PIXELS = 2**24
"""An image with more is refused before memory is taken for it."""

GREY = ("1", "L", "LA")
"""What pillow calls images without colours."""

DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
"""What it calls those with more than eight bits."""


def read_images(folder: Path) -> dict[str, Any]:
    """Read folders of images, whose names are those of the classes.

    All images have the same size. They have one channel where all files are stored in shades of
    grey, else three. Photos are turned as their camera says, and what is transparent becomes white.

    Args:
        folder: Has a folder for each class; or folders `train`, `test` and, where there are some,
            `val`, with these inside.

    Returns:
        Arguments of `from_arrays`.

    Raises:
        DataError: Files cannot be read, or images are of several sizes.
    """
    parts = _parts(folder)
    files = {part: _by_class(path) for part, path in parts.items()}
    every = [file for own in files.values() for _, file in own]
    _warn_of_others(folder, [file for path in parts.values() for file in path.glob("*/*")], every)
    channels = 1 if all(map(is_grey, watched(every, f"{folder.name}: colours", len(every)))) else 3
    found: dict[str, Any] = {}
    for part, own in files.items():
        found[f"x{part}"] = read_pixels([file for _, file in own], channels)
        found[f"y{part}"] = [name for name, _ in own]
    return found


def shape_of(folder: Path) -> tuple[int, int, int] | None:
    """Return the shape of the samples in a folder, as its first image has it; None without one."""
    try:
        _, file = _by_class(_parts(folder)[""])[0]
        pixels = _pixels(file, 1 if is_grey(file) else 3)
    except (DataError, OSError, LookupError):  # Loading says what it is.
        return None
    return pixels.shape[0], pixels.shape[1], pixels.shape[2]


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
    size = _pixels(files[0], channels).shape[1:]
    num_bytes, room = len(files) * channels * size[0] * size[1], psutil.virtual_memory().total
    if num_bytes > room:
        raise DataError(
            f"{len(files):,} images of {size[1]} x {size[0]} pixels take {num_bytes / 1e9:,.1f} "
            f"GB, and the memory here is {room / 1e9:,.1f} GB. Give smaller or fewer images."
        )
    found = np.empty((len(files), channels, *size), dtype=np.uint8)
    for number, file in enumerate(watched(files, f"{files[0].parent.name}: images", len(files))):
        pixels = _pixels(file, channels)
        if pixels.shape[1:] != size:
            raise DataError(
                f"{file} has {pixels.shape[2]} x {pixels.shape[1]} pixels, and {files[0]} has "
                f"{size[1]} x {size[0]}. Give all images the same size, as "
                f"image.resize({size[::-1]}) does in pillow."
            )
        found[number] = pixels
    return found


def _parts(folder: Path) -> dict[str, Path]:
    """Return the folder of each kind of samples, see `PARTS`.

    Raises:
        DataError: There are no folders of classes.
    """
    try:
        folders = _folders(folder)
        inside = {path: _folders(path) for path in folders}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from error
    if not folders:
        raise DataError(
            f"{folder} has no folders inside. A folder of images has one folder for each class, "
            f"with its images in it."
        )
    if not any(inside.values()):
        return {"": folder}
    kinds = {name: kind for kind, names in PARTS.items() for name in names}
    found = {kinds.get(path.name.lower(), path.name): path for path in folders}
    flat = [str(path) for path in folders if not inside[path]]
    if flat or len(found) < len(folders) or not {""} <= set(found) <= set(PARTS):
        shown = ", ".join(path.name for path in folders[:5])
        raise DataError(
            f"{folder} has the folders {shown}, and folders inside. Give a folder with one folder "
            f"for each class; or folders train, test and val with these inside each, and nothing "
            f"else."
        )
    return found


def _by_class(folder: Path) -> list[tuple[str, Path]]:
    """Return images beside the names of their classes, in the order of both."""
    return [(path.name, file) for path in _folders(folder) for file in images_in(path)]


def _folders(folder: Path) -> list[Path]:
    """Return the folders inside, but for those that programs make for themselves."""
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )


def _is_image(path: Path) -> bool:
    is_named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return is_named and path.is_file()


def _warn_of_others(folder: Path, there: Sequence[Path], read: Sequence[Path]) -> None:
    """Say which files are left out."""
    others = sorted(
        path
        for path in set(there) - set(read)
        if path.is_file() and not path.name.startswith(".") and not path.parent.name.startswith(".")
    )
    if others:
        number = f"{len(others):,} files" if len(others) > 1 else "A file"
        verb = "are no images, and are" if len(others) > 1 else "is no image, and is"
        warnings.warn(
            f"{number} in {folder} {verb} left out, such as {others[0]}.",
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


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open an image whose pixels can be read.

    Raises:
        DataError: It is no image, is too large, has several frames, or more than eight bits.
    """
    image_module = _pillow()
    try:
        with image_module.open(file) as image:
            (width, height), mode = image.size, image.mode
            if width * height > MOST_PIXELS:
                raise DataError(
                    f"{file} has {width:,} x {height:,} pixels, more than the {MOST_PIXELS:,} that "
                    f"are taken. Make it smaller."
                )
            if mode in DEEP:
                raise DataError(
                    f"{file} has more than eight bits a pixel (mode {mode} of pillow). Save it "
                    f"with eight."
                )
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise DataError(f"{file} has {frames} frames. Save each as an image of its own.")
            yield image
    except DataError:
        raise
    except Exception as error:  # What damaged images raise has no common base.
        raise DataError(f"{file} cannot be read as an image: {error}.") from error


def is_grey(file: Path) -> bool:
    """Return whether an image is stored in shades of grey.

    Raises:
        DataError: It cannot be read.
    """
    with _opened(file) as image:
        return image.mode in GREY


def _pixels(file: Path, channels: int) -> UInt8[np.ndarray, "channels height width"]:
    """Return the pixels of an image.

    Raises:
        DataError: It cannot be read, or has colours, and one channel is asked for.
    """
    from PIL import ImageOps

    with _opened(file) as image:
        turned = ImageOps.exif_transpose(image)
        if "A" in turned.mode or "transparency" in turned.info:
            seen = turned.convert("RGBA")
            white = _pillow().new("RGBA", seen.size, "white")
            turned = _pillow().alpha_composite(white, seen)
        pixels = np.asarray(turned.convert("RGB"))
    if channels == 3:
        return pixels.transpose(2, 0, 1)
    if (pixels != pixels[:, :, :1]).any():
        raise DataError(f"{file} has colours, and shades of grey are needed.")
    return pixels[None, :, :, 0]
