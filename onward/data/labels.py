"""Labels of one's own: classes by number, or by name."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from onward.batch import Batch
from onward.data.numbers import Numbers, check_no_mask, real
from onward.data.quoting import listed, text_of
from onward.data.tables import is_table
from onward.errors import DataError, OnwardWarning

MOST_CLASSES = 1_000_000
"""A number that is larger is taken for a mistake, before memory is asked for it."""

NO_VALUE = ("", "?", "n/a", "na", "nan", "none", "null")
"""What people write, in any case, where they have no value."""


def read_labels(
    given: Mapping[str, tuple[Numbers, int]],
    num_classes: int | None,
    class_names: Sequence[str] | None,
    name: str,
    *,
    allow_one_class: bool,
) -> tuple[dict[str, Tensor], int, tuple[str, ...] | None]:
    """Return labels as numbers of classes, the number of classes, and their names.

    Args:
        given: Labels of each part, and the number of its samples.
        num_classes: How many classes there are. None: as many as labels say.
        class_names: Their names, in order. None: where labels are names, these, sorted.
        name: What the data set is called in errors.
        allow_one_class: Whether numbers may be left out, as in one shard of many.

    Raises:
        DataError: Labels do not fit samples, or each other.
    """
    names = None if class_names is None else _checked_names(class_names, num_classes, name)
    given = {part: (column(labels), size) for part, (labels, size) in given.items()}
    named = {part: as_names(labels, f"{name}: {part}") for part, (labels, _) in given.items()}
    if any(each is not None for each in named.values()):
        lacking = next((part for part, each in named.items() if each is None), None)
        if lacking is not None:
            there = next(part for part, each in named.items() if each is not None)
            raise DataError(
                f"{name}: {there} has names of classes, and {lacking} has numbers. Give both as "
                f"names, or both as numbers."
            )
        every = {part: each for part, each in named.items() if each is not None}
        for part, each in every.items():
            check_shape(each.shape, f"{name}: {part}", given[part][1])
        if names is None:
            names = _names_in(list(every.values()), name)
            _warn_of_no_value(names, list(every.values()), name)
        found = {part: numbers_of(names, each, f"{name}: {part}") for part, each in every.items()}
        return found, len(names), names
    found = {
        part: whole_numbers(labels, f"{name}: {part}", samples)
        for part, (labels, samples) in given.items()
    }
    num_classes = num_classes if names is None else len(names)
    if num_classes is None and not allow_one_class:
        _check_numbering(found, name)
    return found, _count_classes(found, num_classes, name), names


def column(labels: Any) -> Any:
    """Return the only column of a table, and all else as it is."""
    is_one = is_table(labels) and len(labels.columns) == 1
    return labels[next(iter(labels.columns))] if is_one else labels


def as_names(labels: Numbers, what: str) -> NDArray[Any] | None:
    """Return labels that are names as an array of texts; None where they are no texts.

    Raises:
        DataError: Some are texts, and others are not.
    """
    if isinstance(labels, Tensor):
        return None
    check_no_mask(labels, what)
    try:
        array = np.asarray(labels)
    except ValueError:  # Samples of several lengths are no labels of any kind.
        return None
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if array.dtype.kind == "T":
        return array.astype(np.str_)
    if array.dtype.kind == "U":
        # A list of texts and numbers becomes texts without a word.
        given = labels if isinstance(labels, list | tuple) and array.ndim == 1 else ()
        odd = next((n for n, each in enumerate(given) if not isinstance(each, str)), None)
        if odd is None:
            return array
        raise DataError(_mixed(what, odd, given[odd]))
    if array.dtype.kind != "O" or not array.size or array.ndim != 1:
        return None
    is_text = [isinstance(each, str) for each in array.tolist()]
    if not any(is_text):
        return None
    if not all(is_text):
        odd = is_text.index(False)
        raise DataError(_mixed(what, odd, array[odd]))
    return array.astype(np.str_)


def _mixed(what: str, number: int, found: object) -> str:
    return (
        f"{what} has names of classes, and {found!r} in row {number}. Each sample needs a name: "
        f"leave out samples without one."
    )


def numbers_of(names: Sequence[str], labels: NDArray[Any], what: str) -> Int[Tensor, " samples"]:
    """Return the numbers of classes that are named.

    Raises:
        DataError: There is no class of such a name.
    """
    known, places = np.unique(labels, return_inverse=True)
    number = {name: n for n, name in enumerate(names)}
    unknown = [str(each) for each in known if str(each) not in number]
    if unknown:
        raise DataError(
            f"{what} has the name {text_of(unknown[0])}, and the classes are {listed(names)}."
        )
    table = torch.tensor([number[str(each)] for each in known], dtype=torch.int64)
    return table[torch.from_numpy(places.reshape(-1))]


def _names_in(labels: Sequence[NDArray[Any]], name: str) -> tuple[str, ...]:
    """Return the names of classes, sorted.

    Raises:
        DataError: Each sample has a name of its own.
    """
    names = tuple(map(str, np.unique(np.concatenate(labels))))
    if all(name.isdecimal() for name in names):
        names = tuple(sorted(names, key=int))
    samples = sum(map(len, labels))
    if len(names) == samples and samples > 2:
        raise DataError(
            f"{name}: the {samples} samples have a name each ({listed(names, 3)}), and learning "
            f"takes several samples of a class. Are these names of samples?"
        )
    return names


def _warn_of_no_value(names: Sequence[str], labels: Sequence[NDArray[Any]], name: str) -> None:
    """Warn of classes that are called like a value that is missing."""
    for each in names:
        if each.strip().lower() in NO_VALUE:
            count = sum(int((part == each).sum()) for part in labels)
            warnings.warn(
                f"{name}: {text_of(each)} is a class like others, of {count} samples. If it says "
                f"that the class is not known, leave out these samples; if it is a class, give it "
                f"another name.",
                OnwardWarning,
                stacklevel=4,
            )


def _checked_names(
    class_names: Sequence[str], num_classes: int | None, name: str
) -> tuple[str, ...]:
    is_list = isinstance(class_names, list | tuple | np.ndarray)
    if not is_list or not len(class_names) or not all(isinstance(n, str) for n in class_names):
        raise DataError(
            f"{name}: class_names are texts in a list, one a class, in order; got {class_names!r}."
        )
    names = tuple(map(str, class_names))
    if len(set(names)) < len(names):
        twice = next(each for each in names if names.count(each) > 1)
        raise DataError(f"{name}: two classes have the name {text_of(twice)}.")
    if num_classes not in (None, len(names)):
        raise DataError(
            f"{name}: there are {len(names)} class_names, and num_classes is {num_classes}. Leave "
            f"num_classes out."
        )
    return names


def check_shape(shape: tuple[int, ...], what: str, samples: int) -> None:
    """Refuse names that are not one a sample.

    Raises:
        DataError: They have another shape.
    """
    if shape != (samples,):
        raise DataError(
            f"{what} has the shape {shape}, but there are {samples} samples and each needs one "
            f"name: the shape must be ({samples},)."
        )


def check_classes(counts: Sequence[int]) -> None:
    """Check that there is something to tell apart.

    Args:
        counts: Training samples of each class; over all shards where there are several.

    Raises:
        DataError: Fewer than two classes have samples.
    """
    present = [label for label, count in enumerate(counts) if count]
    if len(present) < 2:
        raise DataError(
            f"The classes of the {sum(counts)} training samples are {present}, and learning takes "
            f"two at least. Add samples of another class."
        )


def check_label(batch: Batch, num_classes: int, name: str, part: str) -> None:
    """Refuse a target `label` that is no number of a class for each sample that counts.

    Args:
        batch: Some samples.
        num_classes: How many classes there are; 0 where it is not known.
        name: What the data set is called in errors.
        part: What the samples are called in it.

    Raises:
        DataError: It is of another shape or type, or of no such class.
    """
    label, what = batch.targets["label"], f"{part}.label"
    found = whole_numbers(label, f"{name}: {what}", len(batch))
    if label.dtype is not torch.int64:
        raise DataError(
            f"{name}: {what} is of type {str(label.dtype).removeprefix('torch.')}, and classes are "
            f"numbers of type int64. Give label.long()."
        )
    if batch.index is not None:
        found = torch.zeros_like(found).index_put((batch.index,), found[batch.index])
    _count_classes({what: found}, num_classes or MOST_CLASSES, name)


def whole_numbers(values: Numbers, what: str, num_samples: int) -> Int[Tensor, " samples"]:
    """Return whole numbers, one a sample.

    Raises:
        DataError: They are something else.
    """
    array = real(values, what)
    if array.shape != (num_samples,):
        raise DataError(
            f"{what} has the shape {array.shape}, but there are {num_samples} samples and each "
            f"needs one number: the shape must be ({num_samples},).{_reshaped(array.shape, what)}"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        broken = np.flatnonzero((array != np.rint(array)) | ~(np.abs(array) <= 2**53))
        if len(broken):
            raise DataError(
                f"{what} holds {array[broken[0]]} in row {broken[0]}. It needs classes, as whole "
                f"numbers or names; numbers to predict (regression) are not supported."
            )
    return torch.from_numpy(array.astype(np.int64))


def _reshaped(shape: tuple[int, ...], what: str) -> str:
    """Return how numbers of a usual shape become one a sample."""
    name = what.rpartition(" ")[2]
    if len(shape) != 2:
        return ""
    return (
        f" Give {name}.ravel()."
        if shape[1] == 1
        else (f" Of a column for each class: {name}.argmax(1). A sample has one class.")
    )


def _check_numbering(labels: dict[str, Tensor], name: str) -> None:
    """Refuse labels that leave numbers out, which are mostly mistakes: from 1, or tens."""
    known = torch.cat(list(labels.values())).unique()
    largest = int(known[-1]) if len(known) else 0
    if len(known) > 1 and int(known[0]) >= 0 and len(known) <= largest < MOST_CLASSES:
        missing = sorted(set(range(largest + 1)) - set(known.tolist()))
        text = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{name}: labels number the classes from 0, and no sample has {text}; the largest is "
            f"{largest}. Number them anew, as numpy.unique(y, return_inverse=True)[1] does, or "
            f"give the number of classes as num_classes (in an .npz file, a member)."
        )


def _count_classes(labels: dict[str, Tensor], num_classes: int | None, name: str) -> int:
    """Return the number of classes, once every label is known to fit it."""
    if num_classes is None:
        num_samples = sum(len(part) for part in labels.values())
        num_classes = 1 + max(0, *(int(part.max()) for part in labels.values()))
        if num_classes > num_samples:
            raise DataError(
                f"{name}: the largest label is {num_classes - 1}, but there are only {num_samples} "
                f"samples. Labels number the classes from 0. If some classes have no samples, give "
                f"their number as num_classes (in an .npz file, a member)."
            )
    if num_classes > MOST_CLASSES:
        raise DataError(
            f"{name}: {num_classes:,} classes are more than the {MOST_CLASSES:,} that are taken. "
            f"Number the classes from 0."
        )
    for what, part in labels.items():
        wrong = ((part < 0) | (part >= num_classes)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            advice = (
                f"With {num_classes} classes, labels run from 0 to {num_classes - 1}."
                if part[row] >= 0
                else "Labels start at 0: number them anew, as numpy.unique(y, return_inverse=True)"
                "[1] does."
            )
            raise DataError(f"{name}: {what} holds the label {part[row]} in row {row}. {advice}")
    return num_classes
