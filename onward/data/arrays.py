"""Data of one's own: arrays in .npz and .npy files."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import psutil
from numpy.lib.format import (
    MAGIC_PREFIX,
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
)
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from onward.errors import DataError

NEEDED = {"x": "samples", "y": "labels"}
"""Members that a file must have, and what they are; see `from_arrays`."""

OPTIONAL = ("x_val", "y_val", "x_test", "y_test", "groups", "num_classes", "class_names")
"""Members that it may have."""


def read_npz(path: Path) -> dict[str, Any]:
    """Read the members of an .npz file, none of which is ever unpickled.

    Args:
        path: A file written by `numpy.savez` or `numpy.savez_compressed`.

    Returns:
        Arguments of `from_arrays`.

    Raises:
        DataError: The file is missing, damaged or of another kind, or a member is missing or holds
            Python objects.
    """
    members = read_members(path, tuple(NEEDED), OPTIONAL, is_ours=True)
    num_classes = members.get("num_classes")
    if num_classes is not None and (num_classes.size != 1 or num_classes.dtype.kind not in "iu"):
        raise DataError(
            f"{path}: num_classes must be one whole number; it is {num_classes.dtype} of shape "
            f"{num_classes.shape}."
        )
    names = members.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise DataError(
            f"{path}: class_names must be texts, one a class; it is {names.dtype} of shape "
            f"{names.shape}."
        )
    found: dict[str, Any] = dict(members)
    if num_classes is not None:
        found["num_classes"] = int(num_classes.item())
    if names is not None:
        found["class_names"] = names.tolist()
    return found


def read_npy_pair(path: Path, label: str | None) -> dict[str, Any]:
    """Read two .npy files, of samples and of their classes.

    Args:
        path: The file of the samples.
        label: The file of the classes, one a sample.

    Returns:
        Arguments of `from_arrays`.

    Raises:
        DataError: A file cannot be read.
    """
    if label is None:
        raise DataError(
            f"{path} has samples. Name the .npy file with their classes as label (--label FILE)."
        )
    return {"x": read_npy(path), "y": read_npy(Path(label).expanduser())}


def read_npy(path: Path) -> NDArray[Any]:
    """Read the array of an .npy file, which is never unpickled; its memory is that of the file.

    Raises:
        DataError: The file is missing, damaged, or holds Python objects.
    """
    try:
        # What the header announces is held against the length of the file.
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # What damaged files raise has no common base.
        raise DataError(
            f"{path} cannot be read as an .npy file ({error}). It must be an array of numbers or "
            f"texts, as numpy.save writes it; Python objects are never unpickled."
        ) from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} is no .npy file. Save one array with numpy.save.")
    return found


def read_members(
    path: Path,
    needed: tuple[str, ...],
    optional: tuple[str, ...] = (),
    *,
    is_ours: bool = False,
) -> dict[str, NDArray[Any]]:
    """Read arrays of an .npz file, none of which is ever unpickled.

    Args:
        path: The file.
        needed: Members that it must have.
        optional: Members that it may have.
        is_ours: Whether it may have no others.

    Raises:
        DataError: The file is missing, damaged or of another kind, a member is missing or holds
            Python objects.
    """
    try:
        return _read_members(path, needed, optional, is_ours=is_ours)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _read_members(
    path: Path, needed: tuple[str, ...], optional: tuple[str, ...], *, is_ours: bool
) -> dict[str, NDArray[Any]]:
    with path.open("rb") as stream:
        try:
            file = np.load(stream, allow_pickle=False)
        except Exception:  # What damaged archives raise has no common base.
            file = None
        if not isinstance(file, NpzFile):
            raise DataError(
                f"{path} is damaged, or another kind of file with the name of an .npz file. "
                f"Save it anew with numpy.savez."
            )
        missing = [name for name in needed if name not in file.files]
        if missing:
            text = [f"{name} ({NEEDED[name]})" if name in NEEDED else name for name in needed]
            raise DataError(
                f"{path} lacks {' and '.join(missing)}; it has "
                f"{', '.join(file.files) or 'no members'}. Needed: {', '.join(text)}."
            )
        if is_ours:
            _check_known(path, file.files, needed, optional)
        names = [name for name in (*needed, *optional) if name in file.files]
        return {name: _read_member(file, name, path) for name in names}


def _check_known(
    path: Path, members: Sequence[str], needed: Sequence[str], optional: Sequence[str]
) -> None:
    """Refuse members that nobody would read: groups of another name would leak into the test."""
    known = [*needed, *optional]
    unknown = [member for member in members if member not in known]
    if unknown:
        meant = difflib.get_close_matches(unknown[0].lower(), known, n=1, cutoff=0.75)
        guess = f" Did you mean {meant[0]}?" if meant else ""
        raise DataError(
            f"{path} has members that are not read: {', '.join(unknown)}.{guess} Known are "
            f"{', '.join(known)}; save the file without others."
        )


def row_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape of a sample of an .npz or .npy file, from its header; None without one."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return _announced(file)[0][1:]
        with ZipFile(path) as archive, archive.open("x.npy") as member:
            return _announced(member)[0][1:]
    except Exception:  # What damaged archives raise has no common base; loading says what it is.
        return None


def _announced(member: Any) -> tuple[tuple[int, ...], int]:
    """Return shape and bytes of a number, from the header of an array."""
    version = read_magic(member)
    read_header = read_array_header_1_0 if version == (1, 0) else read_array_header_2_0
    shape, _, dtype = read_header(member)
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save texts as y.astype(str)")
    return tuple(shape), dtype.itemsize


def _check_size(file: NpzFile, name: str) -> None:
    """Hold what a member announces against the file before memory is taken for it."""
    archive = file.zip
    assert archive is not None
    entry = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    room = int(psutil.virtual_memory().total)
    if entry.file_size > room:
        raise ValueError(f"it would unpack to {entry.file_size} bytes, and there are {room}")
    with archive.open(entry) as member:
        if member.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            return
    with archive.open(entry) as member:
        shape, itemsize = _announced(member)
        announced, held = math.prod(shape) * itemsize, entry.file_size - member.tell()
    if announced != held:
        raise ValueError(f"its header announces {announced} bytes, and {held} follow")


def _read_member(file: NpzFile, name: str, path: Path) -> NDArray[Any]:
    try:
        _check_size(file, name)
        member = file[name]
    except Exception as error:
        raise DataError(
            f"{path}: the member {name} cannot be read ({error}). It must be an undamaged array "
            f"of numbers; Python objects are never unpickled. Save it anew with numpy.savez."
        ) from error
    if not isinstance(member, np.ndarray):
        raise DataError(f"{path}: the member {name} is no array. Save it with numpy.savez.")
    return member
