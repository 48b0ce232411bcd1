"""Samples to be classified, read from a file or a folder."""

from pathlib import Path

from onward.data import images, table_files
from onward.data.arrays import read_members, read_npy
from onward.data.dataset import samples
from onward.data.numbers import Numbers
from onward.errors import DataError


def read_asked(path: Path, *, channels: int = 3) -> tuple[Numbers, list[str] | None]:
    """Return samples, and the names of their files where each has one of its own.

    Args:
        path: An .npz file with the samples as its member `x`, an .npy file, a table, an image, or
            a folder of images.
        channels: Those of the images: 1 for shades of grey, or 3.

    Raises:
        DataError: It cannot be read, or is none of these.
    """
    if path.is_dir() or path.suffix.lower() in images.SUFFIXES:
        files = images.images_in(path) if path.is_dir() else [path]
        return images.read_pixels(files, channels), [file.name for file in files]
    if table_files.is_table_file(path.name):
        return table_files.read_frame(path), None
    if path.suffix == ".npy":
        return samples(read_npy(path), str(path)), None
    if path.suffix != ".npz":
        raise DataError(
            f"{path} cannot be read. Give a file that ends in .npz, with the samples as its member "
            f"x, or in .npy, .csv or .parquet, an image, or a folder of images."
        )
    return samples(read_members(path, ("x",))["x"], f"{path}: x"), None
