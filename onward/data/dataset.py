"""A data set as tensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Pairs

from onward.arguments import check_arguments
from onward.batch import Batch, named, parts
from onward.data.labels import (
    as_names,
    check_classes,
    check_label,
    read_labels,
    whole_numbers,
)
from onward.data.loaders import read_given
from onward.data.mapped import MappedSamples, mapped
from onward.data.numbers import Numbers, real
from onward.data.quoting import listed
from onward.data.splits import hold_out, warn_of_same
from onward.data.tables import (
    as_known,
    column_names,
    in_order,
    is_table,
    warn_of_rounding,
)
from onward.digests import tensors_sha256
from onward.errors import DataError
from onward.html import table

CHECKED = 1000
"""Samples that are looked at together, which may have to be read for it."""

LARGEST = 1e12
"""Largest value of a sample: the squares of many such can still be added up in float32."""


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a network is built for."""

    input_shape: tuple[int, ...]
    """Shape of a sample."""

    num_classes: int
    """Number of classes."""

    is_image: bool = False
    """Whether samples are images, channels first."""

    structure: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of what belongs to the training samples as a whole, by name, such as the edges of a
    graph."""

    @property
    def num_inputs(self) -> int:
        """Numbers of a sample."""
        return math.prod(self.input_shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Samples to learn from and samples to test with; `from_arrays` makes and checks it.

    Made directly, it takes batches of any kind: several inputs, token ids, graphs.
    """

    name: str = "samples"
    """What it is called in reports."""

    training: Batch
    """Training samples. Images are channels first."""

    test: Batch
    """Test samples."""

    validation: Batch | None = None
    """Validation samples of one's own; None: some of the training samples are held out."""

    num_classes: int = 0
    """How many classes there are, whether or not each has a sample; 0 without classes."""

    class_names: tuple[str, ...] | None = None
    """Name of each class; None where they have numbers only."""

    feature_names: tuple[str, ...] | None = None
    """Names of the columns, where samples are rows of a table."""

    is_image: bool = False
    """Whether an embedded label overwrites the first pixels. Otherwise it comes before them."""

    groups: Int[Tensor, " samples"] | None = None
    """Group of each training sample (patient, writer, machine), which no split cuts."""

    has_own_test: bool = False
    """Whether the test samples came with the data, and were not taken from the others."""

    digest: str | None = None
    """Digest of the training samples, where it is known; see `sha256`."""

    held_out_digest: str | None = None
    """Digest of the other samples, where it is known; see `held_out_sha256`."""

    def __post_init__(self) -> None:
        names = self.class_names
        if names is not None and len(names) != self.num_classes:
            raise DataError(
                f"{self.name}: there are {len(names)} class_names, and num_classes is "
                f"{self.num_classes}."
            )
        columns = self.feature_names
        if columns is not None and self.input_shape != (len(columns),):
            raise DataError(
                f"{self.name}: there are {len(columns)} feature_names, and samples have the shape "
                f"{self.input_shape}."
            )
        for part in ("training", "validation", "test"):
            self._check_part(part)
        if self.training.ids is None:
            ids = torch.arange(len(self.training))
            object.__setattr__(self, "training", self.training.replace(ids=ids))

    def _check_part(self, part: str) -> None:
        """Refuse samples that a network cannot take, or not after those of the training."""
        batch, known = getattr(self, part), named(self.training.inputs, "inputs")
        if batch is None:
            return
        inputs = named(batch.inputs, "inputs")
        if inputs.keys() != known.keys():
            raise DataError(
                f"{self.name}: training has {', '.join(known)}, and {part} {', '.join(inputs)}. "
                f"Give both the same inputs by name."
            )
        for name, x in inputs.items():
            what = f"{self.name}: {part}.{name}"
            if x.dtype is torch.float64:
                raise DataError(
                    f"{what} is of type float64, and networks take float32. Give x.float()."
                )
            alike = f"{self.name}: samples of training.{name}", f"{part}.{name}"
            _check_alike(known[name], x, *alike)
            # With a digest, they were looked at before, and may lie in a file that ranks share.
            if self.digest is None and not isinstance(x, MappedSamples):
                check_finite(x, what)
        if "label" in batch.targets:
            check_label(batch, self.num_classes, self.name, part)
        weights = batch.weights
        if weights is None or not len(weights):
            return
        weights = weights if batch.index is None else weights[batch.index]
        counts = part != "training" or weights.any()
        if not counts or not weights.isfinite().all() or weights.min() < 0:
            raise DataError(
                f"{self.name}: {part}.weights run from {weights.min():g} to {weights.max():g}. "
                f"Weights are finite and not negative, and one of training samples is above 0."
            )

    def __repr__(self) -> str:
        """Return it in a line."""
        sizes = [
            f"{self.training.num_counted:,} training",
            f"{self.test.num_counted:,} test samples",
        ]
        shapes = [tuple(part.shape[1:]) for part in parts(self.training.inputs)]
        text = f"{' and '.join(sizes)} of shape {', '.join(map(str, shapes))}"
        return f"<Dataset {self.name}: {text}, {self.num_classes} classes>"

    def _repr_html_(self) -> str:
        """Return it as a table, for notebooks."""
        inputs = parts(self.training.inputs)
        rows = {
            "training samples": f"{self.training.num_counted:,}",
            "validation samples": (
                "" if self.validation is None else f"{self.validation.num_counted:,}"
            ),
            "test samples": f"{self.test.num_counted:,}",
            "shape": ", ".join(str(tuple(part.shape[1:])) for part in inputs),
            "type": ", ".join(str(part.dtype).removeprefix("torch.") for part in inputs),
            "classes": str(self.num_classes) if self.num_classes else "",
            "names of classes": listed(self.class_names or ()),
            "columns": listed(self.feature_names or ()),
        }
        return table(self.name, {name: text for name, text in rows.items() if text})

    @property
    def x(self) -> Tensor:
        """Inputs of the training samples, where they are one tensor."""
        return self.training.tensor

    @property
    def y(self) -> Int[Tensor, " samples"]:
        """Class of each training sample."""
        return self.training.label

    @property
    def x_test(self) -> Tensor:
        """Inputs of the test samples, where they are one tensor."""
        return self.test.tensor

    @property
    def y_test(self) -> Int[Tensor, " samples"]:
        """Class of each test sample."""
        return self.test.label

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return len(self.training)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, where its inputs are one tensor."""
        return tuple(self.x.shape[1:])

    def sha256(self) -> str:
        """Return a digest of the samples that may be learned from, and of all known of them."""
        if self.digest is not None:
            return self.digest
        tensors = {n: t for n, t in self.training.tensors().items() if n != "ids"}
        if set(tensors) == {"inputs", "targets.label"}:
            # As version 0.1 called them, so that a digest of its runs is still known.
            tensors = {"x": tensors["inputs"], "y": tensors["targets.label"]}
        return tensors_sha256(tensors)

    def held_out_sha256(self) -> str:
        """Return a digest of the test samples, and of validation samples of one's own."""
        if self.held_out_digest is not None:
            return self.held_out_digest
        batches = {"test": self.test, "validation": self.validation}
        return tensors_sha256(
            {
                f"{part}.{name}": tensor
                for part, batch in batches.items()
                for name, tensor in (batch.tensors() if batch is not None else {}).items()
                if name != "ids"
            }
        )


def from_arrays(
    x: Numbers | Pairs[Any] | DataLoader[Any],
    y: Numbers = None,
    *,
    x_val: Numbers | None = None,
    y_val: Numbers | None = None,
    x_test: Numbers | None = None,
    y_test: Numbers | None = None,
    groups: Numbers | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    is_image: bool | None = None,
    name: str = "arrays",
    test: float | int = 0.2,
    split_seed: int = 0,
    allow_one_class: bool = False,
) -> Dataset:
    """Make a data set of arrays or tensors, and check that it can be learned from.

    Args:
        x: Samples, of any further shape and any real type: an array, a tensor, nested lists, a
            table of pandas or polars, whose column names are kept, or a sparse matrix of scipy, of
            which the zeros are written out. Or a `Dataset` or `DataLoader` of torch, which is read
            through once, and brings the classes; so may `x_val` and `x_test`. Type uint8 is taken
            for pixels, which a network sees divided by 255; all other types become float32. Images
            are channels first.
        y: Class of each sample: whole numbers from 0, in any real type, or names.
        x_val: Validation samples, like `x`; columns of tables may come in another order. None: some
            training samples are held out, see `ow.train`.
        y_val: Class of each validation sample.
        x_test: Test samples, like `x`. None: test samples are taken from `x`, by class.
        y_test: Class of each test sample.
        groups: Group of each sample of `x`, as a whole number or a name. Splits never cut a group.
        num_classes: How many classes there are. None: one more than the largest label.
        class_names: Name of each class, in order. None: where `y` has names, these, sorted.
        is_image: See `Dataset`. None: whether samples are shaped as an image of 1 or 3 channels.
        name: What the data set is called in reports and errors.
        test: Share, or number, of samples taken for the test where `x_test` is None.
        split_seed: Decides which samples those are.
        allow_one_class: Whether all training samples may have the same class, as in one shard of
            many; see `check_classes`.

    Raises:
        DataError: The arrays do not fit together, or hold what cannot be learned from.

    Example:
        >>> dataset = from_arrays(np.eye(10), np.arange(10) % 2)
        >>> dataset.num_samples, dataset.input_shape, dataset.num_classes, len(dataset.x_test)
        (8, (10,), 2, 2)
    """
    # Names of classes, which a file may bring, are read with the labels.
    check_arguments(from_arrays, locals() | {"class_names": None}, called="dataset")
    x, y = read_given(x, y, f"{name}: x")
    x_val, y_val = read_given(x_val, y_val, f"{name}: x_val")
    x_test, y_test = read_given(x_test, y_test, f"{name}: x_test")
    if y is None:
        of_table = ', of a table x.drop(columns="kind") and x["kind"]' if is_table(x) else ""
        raise DataError(
            f"{name}: there is no y. Give the class of each sample, as a whole number or a "
            f"name{of_table}."
        )
    x = as_known(x)
    columns = column_names(x)
    array = real(x, f"{name}: x")
    warn_of_rounding(array, columns, f"{name}: x")
    inputs = samples(array, f"{name}: x")
    labels: dict[str, tuple[Numbers, int]] = {"y": (y, len(inputs))}
    group_of = None
    if groups is not None:
        group_names = as_names(groups, f"{name}: groups")
        if group_names is not None:
            groups = np.unique(group_names, return_inverse=True)[1]
        group_of = whole_numbers(groups, f"{name}: groups", len(inputs))
    others: dict[str, Tensor] = {}
    for part, x_part, y_part in (("val", x_val, y_val), ("test", x_test, y_test)):
        if (x_part is None) is not (y_part is None):
            given, lacking = ("y", "x") if x_part is None else ("x", "y")
            raise DataError(
                f"{name}: {given}_{part} is given without {lacking}_{part}. Give both, or neither "
                f"to have such samples taken from x."
            )
        if x_part is not None and y_part is not None:
            what = f"{name}: x_{part}"
            others[part] = samples(in_order(x_part, columns, what), what)
            _check_alike(inputs, others[part], f"{name}: samples of x", f"x_{part}")
            warn_of_same(inputs, others[part], "validation" if part == "val" else part, name)
            labels[f"y_{part}"] = (y_part, len(others[part]))
    all_labels, num_classes, class_names = read_labels(
        labels, num_classes, class_names, name, allow_one_class=allow_one_class
    )
    is_image = _is_image(tuple(inputs.shape[1:]), is_image, name)
    batches = {
        part: Batch(x_part, {"label": all_labels[f"y_{part}"]}) for part, x_part in others.items()
    }
    training = Batch(inputs, {"label": all_labels["y"]})
    if "test" not in batches:
        kept, held = hold_out(training.label, group_of, test, seed=split_seed, purpose="test")
        training, batches["test"] = training.take(kept), training.take(held)
        group_of = None if group_of is None else group_of[kept]
    if not allow_one_class:
        check_classes(training.label.bincount(minlength=num_classes).tolist())
    return Dataset(
        name=name,
        training=training,
        validation=batches.get("val"),
        test=batches["test"],
        num_classes=num_classes,
        class_names=class_names,
        feature_names=columns,
        is_image=is_image,
        groups=group_of,
        has_own_test="test" in others,
    )


def _is_image(shape: tuple[int, ...], is_image: bool | None, name: str) -> bool:
    """Return whether samples are images, channels first.

    Raises:
        DataError: They are images with channels last.
    """
    if is_image is not False:
        check_channels(shape, name)
    return len(shape) == 3 and shape[0] in (1, 3) if is_image is None else is_image


def check_channels(shape: tuple[int, ...], name: str) -> None:
    """Refuse samples that look like images with channels last.

    Raises:
        DataError: They do.
    """
    if is_channels_last(shape):
        raise DataError(
            f"{name}: samples have the shape {shape}, which looks like height x width x channels, "
            f"and images are channels x height x width. Give x.transpose(0, 3, 1, 2). If these are "
            f"no images, say so to ow.dataset with is_image=False, or flatten them in the file, "
            f"x.reshape(len(x), -1)."
        )


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether samples look like images whose channels come last.

    Example:
        >>> is_channels_last((32, 32, 3)), is_channels_last((3, 32, 32))
        (True, False)
    """
    return len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3, 4)


def split_validation(
    dataset: Dataset, validation: float | int, *, seed: int
) -> tuple[Int[Tensor, " training"], Int[Tensor, " validation"]]:
    """Choose the training samples that are kept apart for validation, by class and never by group.

    Args:
        dataset: Its training samples are split.
        validation: A share of the samples between 0 and 1, a number of samples, or 0 for none.
        seed: Decides which samples.

    Returns:
        The numbers of the samples to train on, and of those for validation, in ascending order.

    Raises:
        DataError: One side would have no samples, or all samples belong to one group.

    Example:
        >>> dataset = from_arrays(np.eye(10), np.arange(10) % 2)
        >>> training, validation = split_validation(dataset, 2, seed=0)
        >>> dataset.y[training].bincount(), dataset.y[validation].bincount()
        (tensor([3, 3]), tensor([1, 1]))
    """
    if validation == 0:
        return torch.arange(dataset.num_samples), torch.arange(0)
    return hold_out(dataset.y, dataset.groups, validation, seed=seed, purpose="validation")


def samples(values: Numbers, what: str) -> Tensor:
    """Return samples as uint8, where they are that, else as float32; all must be finite.

    Args:
        values: Samples first, one axis more at least.
        what: What they are called in errors.
    """
    array = real(values, what)
    if array.ndim < 2 or array.size == 0:
        raise DataError(
            f"{what} has the shape {array.shape}. It needs one sample or more, samples first, and "
            f"one number or more in each."
        )
    if array.dtype in (np.uint8, np.float32) and (found := mapped(array)) is not None:
        check_finite(found, what)
        return found
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array, order="C"))
    with np.errstate(over="ignore"):
        found = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    check_finite(found, what)
    return found


def check_finite(x: Tensor, what: str) -> None:
    """Refuse samples with values that nothing can be computed with.

    Raises:
        DataError: One is NaN, infinite, or so large that its square is.
    """
    if not x.numel() or not x.is_floating_point():
        return
    # Both are NaN where one value is.
    spans = [chunk.aminmax() for chunk in x.split(CHECKED)]
    low = float(torch.stack([span.min for span in spans]).min())
    high = float(torch.stack([span.max for span in spans]).max())
    if not math.isfinite(low) or not math.isfinite(high):
        is_odd = ~x.isfinite()
        raise DataError(
            f"{what} holds {int(is_odd.sum())} values that are NaN or infinite in float32, "
            f"the first in row {int(is_odd.nonzero()[0, 0])}. Replace them or leave out "
            f"their samples."
        )
    if max(-low, high) > LARGEST:
        raise DataError(
            f"{what} holds values up to {max(-low, high):.3g}, whose squares are too large for "
            f"float32. Divide them by a constant, so that most lie between -10 and 10."
        )


def _check_alike(x: Tensor, other: Tensor, what: str, of: str) -> None:
    # Codes, such as those of a text, may be more or fewer.
    is_codes = not x.is_floating_point() and x.dtype is not torch.uint8
    if x.ndim != other.ndim or (x.shape[1:] != other.shape[1:] and not is_codes):
        raise DataError(
            f"{what} have the shape {tuple(x.shape[1:])} and samples of {of} "
            f"{tuple(other.shape[1:])}. They must have the same shape."
        )
    if x.dtype != other.dtype:
        is_pixels = torch.uint8 in (x.dtype, other.dtype)
        reason = ", but only uint8 is divided by 255" if is_pixels else ""
        raise DataError(
            f"{what} are of type {_type(x)} and samples of {of} of type {_type(other)}{reason}. "
            f"Give both in the same type."
        )


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
