"""The input transformation: samples as they are read become samples as blocks see them."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from onward.arguments import fits
from onward.batch import Batch, parts
from onward.data.dataset import check_finite
from onward.data.numbers import Numbers, real
from onward.data.tables import in_order
from onward.errors import DataError, OnwardWarning, SettingError
from onward.settings import Standardize

By = Literal["feature", "channel", "none"]
"""What has moments of its own."""

Kind = Literal["pixels", "numbers", "kept", "older", "unknown"]
"""What samples are: uint8, which is divided by 255; other numbers, which are taken for float32; or
what stays as it is, such as token ids, or several inputs. Unknown before training. Of an older file
it is known only that uint8 is divided by 255."""

CHUNK = 1000
"""Samples whose moments are computed at once."""

MUCH = 10.0
"""How many times as large as the median the largest standard deviation of features is, from which
on they differ in scale."""

FAR = 3.0
"""How many times farther from the mean than any training sample one is that is warned of."""

AWAY = 3.0
"""How many times as far as from each other samples are from 0, from which on they all have nearly
the same direction, which is all that dense blocks see of them."""


@dataclass(frozen=True)
class Moments:
    """What is known of samples without looking at any one of them.

    Example:
        >>> moments = Moments.of(torch.tensor([[1.0, 10.0], [3.0, 10.0]]), "feature")
        >>> moments.mean, moments.deviation
        (array([ 2., 10.]), array([2., 0.]))
    """

    count: int
    """Numbers that each mean is over."""

    mean: Float64[np.ndarray, " columns"]
    """Mean of each feature or channel, of pixels as shares of 255."""

    deviation: Float64[np.ndarray, " columns"]
    """Sum of squared deviations from the mean."""

    low: float
    """Smallest number."""

    high: float
    """Largest number."""

    lows: Float64[np.ndarray, " columns"]
    """Smallest number of each feature or channel."""

    highs: Float64[np.ndarray, " columns"]
    """Largest number of each feature or channel."""

    @staticmethod
    def of(x: Tensor, by: By) -> "Moments":
        """Return the moments of samples.

        Args:
            x: Samples, shape (samples, ...).
            by: What has a mean of its own: each feature, each channel (the first axis of a sample),
                or nothing.
        """
        found = []
        for chunk in x.split(CHUNK):
            scaled = as_floats(chunk)
            check_finite(scaled, "A training sample")
            low, high = scaled.aminmax()
            # In numpy, where sums do not depend on the number of threads.
            columns = _columns(scaled.double(), by).numpy()
            mean = columns.mean(axis=0)
            deviation = np.square(columns - mean).sum(axis=0)
            span = (float(low), float(high), columns.min(axis=0), columns.max(axis=0))
            found.append(Moments(len(columns), mean, deviation, *span))
        return Moments.merged(found)

    @staticmethod
    def merged(several: Sequence["Moments"]) -> "Moments":
        """Return the moments of all samples from those of some and of others, in this order.

        Source:
            Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
        """
        total, *others = several
        for other in others:
            count = total.count + other.count
            apart, share = other.mean - total.mean, other.count / max(count, 1)
            total = Moments(
                count,
                total.mean + apart * share,
                total.deviation + other.deviation + apart**2 * total.count * share,
                min(total.low, other.low),
                max(total.high, other.high),
                np.minimum(total.lows, other.lows),
                np.maximum(total.highs, other.highs),
            )
        return total

    @property
    def std(self) -> Float64[np.ndarray, " columns"]:
        """Standard deviation of each feature or channel."""
        found: Float64[np.ndarray, " columns"] = np.sqrt(self.deviation / max(self.count, 1))
        return found

    @property
    def differ_in_scale(self) -> bool:
        """Whether some features are so large, or so far from 0, that others count for nothing."""
        varied = self.std[self.std > 0]
        if not len(varied):
            return False
        away = np.square(self.mean).sum() / np.square(varied).sum()
        return bool(varied.max() > MUCH * np.median(varied) or away > AWAY**2)

    def to_json(self) -> list[Any]:
        """Return them as plain data."""
        arrays = (self.mean, self.deviation, self.lows, self.highs)
        return [self.count, self.low, self.high, *(array.tolist() for array in arrays)]

    @staticmethod
    def from_json(found: Sequence[Any]) -> "Moments":
        count, low, high, *lists = found
        mean, deviation, lows, highs = (np.array(numbers, float) for numbers in lists)
        return Moments(count, mean, deviation, low, high, lows, highs)


def _columns(x: Tensor, by: By) -> Tensor:
    """Return samples as rows of what has moments of its own."""
    if by == "none":
        return x.new_zeros(len(x), 0)
    return x.flatten(1) if by == "feature" else x.flatten(2).movedim(1, 2).flatten(0, 1)


class InputTransformation(nn.Module):
    """Samples as they are read become samples as samplers and blocks see them.

    Pixels (uint8) are divided by 255. Then each feature or channel is standardized, where that was
    fitted. It is part of a network: saved and exported with it, and applied wherever it is asked.

    Args:
        kind: What samples are.
        shape: Shape of a sample; None where there are several inputs, or it is not known.
        span: Smallest and largest number of the training samples, of pixels as shares of 255; None
            where they are not known.
        mean: What is subtracted, of a shape that fits samples; None for nothing.
        std: What it is then divided by.
        reach: The most standard deviations that a training sample was from the mean.
        feature_names: Names of the columns, where samples were rows of a table.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        kind: Kind = "unknown",
        shape: tuple[int, ...] | None = None,
        span: tuple[float, float] | None = None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        reach: float | None = None,
        feature_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.shape, self.span, self.reach = kind, shape, span, reach
        self.feature_names = feature_names
        # Saved by `get_extra_state`, since a network that is built does not know their shapes.
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @staticmethod
    def fitted(
        standardize: Standardize, kind: Kind, shape: tuple[int, ...], by: By, moments: Moments
    ) -> "InputTransformation":
        """Return the transformation for samples with these moments.

        Args:
            standardize: The setting; with `auto`, features are left alone unless they differ in
                scale.
            kind: What samples are.
            shape: Shape of a sample.
            by: What has moments of its own.
            moments: Of all training samples.
        """
        span = (moments.low, moments.high)
        is_needless = standardize == "auto" and by == "feature" and not moments.differ_in_scale
        if by == "none" or is_needless:
            return InputTransformation(kind, shape, span)
        target = (shape[0], *[1] * (len(shape) - 1)) if by == "channel" else shape
        # Constant features are only centered.
        std = np.where(moments.std > 0, moments.std, 1.0)
        mean, scale = (torch.from_numpy(a).float().view(target) for a in (moments.mean, std))
        ends = np.maximum(moments.highs - moments.mean, moments.mean - moments.lows) / std
        return InputTransformation(kind, shape, span, mean, scale, float(ends.max()))

    @property
    def is_fitted(self) -> bool:
        """Whether it is known what samples are."""
        return self.kind != "unknown"

    @property
    def arrays(self) -> dict[str, Tensor]:
        """What was fitted, by name."""
        both = {"mean": self.mean, "std": self.std}
        return {name: array for name, array in both.items() if array is not None}

    def get_extra_state(self) -> Tensor:
        """Return all of it for a `state_dict`, as the bytes of JSON."""
        arrays = {n: [list(a.shape), a.flatten().tolist()] for n, a in self.arrays.items()}
        return torch.tensor(list(json.dumps(self.to_json() | arrays).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Become what `get_extra_state` has returned."""
        found, device = json.loads(bytes(state.tolist())), state.device
        if self.mean is not None:
            device = self.mean.device
        arrays = [found.get(name) for name in ("mean", "std")]
        tensors = [
            None if a is None else torch.tensor(a[1], device=device).view(a[0]) for a in arrays
        ]
        other = InputTransformation.from_json(found, *tensors)
        for name in (*self.to_json(), "mean", "std"):
            setattr(self, name, getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """Return it without the arrays, as plain data."""
        return {
            "kind": self.kind,
            "shape": self.shape,
            "span": self.span,
            "reach": self.reach,
            "feature_names": self.feature_names,
        }

    @staticmethod
    def from_json(
        found: Mapping[str, Any], mean: Tensor | None, std: Tensor | None
    ) -> "InputTransformation":
        """Return what `to_json` has taken apart.

        Raises:
            LookupError, TypeError, ValueError, ArithmeticError: It is something else.
        """
        kind, shape, span = found["kind"], found["shape"], found["span"]
        if kind not in get_args(Kind):
            raise ValueError(f"samples are of no kind {kind!r}")
        shape = None if shape is None else tuple(int(n) for n in shape)
        if shape is not None and not all(n > 0 for n in shape):
            raise ValueError(f"samples have no shape {shape}")
        span = None if span is None else (float(span[0]), float(span[1]))
        arrays = [array for array in (mean, std) if array is not None]
        if len(arrays) == 1 or (arrays and shape is None):
            raise ValueError("mean and std go together, with the shape of a sample")
        for array in arrays:
            is_alike = len(array.shape) == len(shape or ()) and all(
                n in (1, m) for n, m in zip(array.shape, shape or (), strict=True)
            )
            if not is_alike or array.dtype != torch.float32 or not array.isfinite().all():
                raise ValueError("mean and std are no float32 for the shape of a sample")
        if std is not None and not (std > 0).all():
            raise ValueError("a std is not above 0")
        reach = found.get("reach")
        reach = None if reach is None else float(reach)
        names = found.get("feature_names")
        if names is not None and (not fits(names, list[str]) or shape != (len(names),)):
            raise ValueError(f"feature_names is {names!r}, for samples of shape {shape}")
        names = None if names is None else tuple(names)
        return InputTransformation(kind, shape, span, mean, std, reach, names)

    def extra_repr(self) -> str:
        """Return what it is, but for the arrays."""
        return f"kind={self.kind!r}, shape={self.shape}, span={self.span}"

    def forward(self, x: Tensor) -> Tensor:
        """Return samples as blocks see them."""
        if self.kind in ("kept", "unknown") or (self.kind == "older" and x.dtype != torch.uint8):
            return x
        is_numbers = self.kind == "numbers" and not x.is_floating_point()
        found = x.to(torch.float32) if is_numbers else as_floats(x)
        if self.mean is None or self.std is None:
            return found
        # In the memory of the copy, where there is one.
        centered = found - self.mean if found is x else found.sub_(self.mean)
        return centered.div_(self.std)

    def changes(self, dtype: torch.dtype) -> bool:
        """Return whether samples of a type are copied, rather than used as they are."""
        is_other = not dtype.is_floating_point or self.mean is not None
        return is_other and self.kind in ("pixels", "numbers")

    def checked(
        self,
        x: Numbers | Batch,
        what: str = "x",
        *,
        is_exact: bool = True,
        built_for: tuple[int, ...] | None = None,
    ) -> Batch:
        """Return samples that a user asks about as a batch, not transformed yet.

        Args:
            x: The samples; one alone becomes a batch of one.
            what: What they are called in errors.
            is_exact: Whether they must have the shape of the training samples; otherwise their
                channels must agree, as in networks that take images of any size.
            built_for: Shape of a sample that counts where the network was not trained yet.

        Raises:
            DataError: They are not like the training samples: another type or shape, or values that
                are not finite.
        """
        batch = x if isinstance(x, Batch) else Batch(self._tensor(x, what))
        for tensor in parts(batch.inputs):
            check_finite(tensor, what)
        is_one = isinstance(batch.inputs, Tensor)
        if self.kind == "kept" and is_one is (self.shape is None):
            wanted = "one tensor" if self.shape else "an ow.Batch of several inputs by name"
            raise DataError(f"The network was trained on samples of {wanted}; give {wanted}.")
        if is_one and self.shape is not None:
            self._check_shape(tuple(batch.tensor.shape[1:]), what, is_exact=is_exact)
            self._check_span(batch.tensor)
        if self.shape is None and built_for is not None:
            return as_built_for(batch, built_for, what)
        return batch

    def _tensor(self, x: Numbers, what: str) -> Tensor:
        """Return an array as a tensor: integers stay what they are where the network needs that."""
        array = real(in_order(x, self.feature_names, what), what)
        # A copy where the array is read-only, as that of a data frame may be.
        found = torch.from_numpy(array if array.flags.writeable else array.copy())
        if tuple(found.shape) == self.shape:
            found = found[None]
        # Integers may be token ids, and pixels are divided by 255.
        stays = self.kind == "kept" or (
            self.kind in ("pixels", "older") and found.dtype is torch.uint8
        )
        return found if stays else found.to(torch.float32)

    def _check_shape(self, shape: tuple[int, ...], what: str, *, is_exact: bool) -> None:
        assert self.shape is not None
        is_alike = len(shape) == len(self.shape) and shape[:1] == self.shape[:1]
        may_differ = not is_exact and (len(self.shape) > 1 or self.kind == "kept")
        if self.mean is not None and self.mean.numel() > self.shape[0]:
            may_differ = False  # Each feature was standardized.
        if len(self.shape) == 1 and self.kind == "kept":
            is_alike = len(shape) == 1
        if shape == self.shape or (may_differ and is_alike):
            return
        advice = "Give samples like those it was trained on."
        if len(shape) == 3 and (shape[2], *shape[:2]) == self.shape:
            advice = "Put channels first: x.transpose(0, 3, 1, 2) in numpy."
        elif math.prod(shape) == math.prod(self.shape):
            advice = f"Reshape them: x.reshape(-1, {', '.join(map(str, self.shape))})."
        raise DataError(
            f"{what} has samples of shape {shape}, and the network was trained on samples of shape "
            f"{self.shape}. {advice}"
        )

    def _check_span(self, x: Tensor) -> None:
        """Warn of values that are far from those of the training."""
        if self.span is None or not x.numel():
            return
        # Of each number of a sample; the transformation keeps their order.
        ends = torch.stack(x.aminmax(dim=0))
        unit = 255 if x.dtype is torch.uint8 and self.kind == "pixels" else 1
        low, high = (float(value) / unit for value in ends.aminmax())
        least, most = self.span
        room = most - least
        text = ""
        is_beyond = low < least - room / 2 or high > most + room / 2
        if is_beyond or 0 < high - low < room / 50:
            text = (
                f"The samples have values from {low:.4g} to {high:.4g}, and the network was "
                f"trained on values from {least:.4g} to {most:.4g}. Scale them as the training "
                f"samples were."
            )
        elif self.reach is not None:
            if self.mean is not None:
                ends = ends.to(self.mean.device)
            away = self(ends)[..., None].abs()
            if float(away.max()) > FAR * self.reach:
                kind = "Feature" if x.ndim == 2 else "Channel"
                which = int(away.flatten(2).amax(dim=2).amax(dim=0).argmax())
                text = (
                    f"{kind} {which} of the samples is up to {float(away.max()):.3g} standard "
                    f"deviations from its mean in training, where the most was {self.reach:.3g}. "
                    f"Give samples in the units of the training samples."
                )
        if text:
            warnings.warn(text, OnwardWarning, stacklevel=2)


def as_floats(x: Tensor) -> Tensor:
    """Return integers as float32, uint8 divided by 255, and floating numbers as they are."""
    if x.is_floating_point():
        return x
    return x.to(torch.float32).div_(255) if x.dtype is torch.uint8 else x.to(torch.float32)


def kind_of(batch: Batch) -> Kind:
    """Return what samples are, by the type of their inputs."""
    if not isinstance(batch.inputs, Tensor):
        return "kept"
    kinds: dict[torch.dtype, Kind] = {torch.uint8: "pixels", torch.float32: "numbers"}
    return kinds.get(batch.inputs.dtype, "kept")


def granularity(standardize: Standardize, batch: Batch, *, is_image: bool) -> By:
    """Return what has moments of its own.

    Args:
        standardize: The setting.
        batch: Training samples.
        is_image: Whether they are images, channels first.

    Raises:
        SettingError: These samples cannot be standardized so.
    """
    kind = kind_of(batch)
    if standardize in ("feature", "channel") and kind == "kept":
        raise SettingError(
            f"data.standardize = {standardize} is for one input of type float32 or uint8. Set it "
            f"to none, and give samples as they are to be seen."
        )
    if kind == "kept" or standardize == "none":
        return "none"
    shape = tuple(batch.tensor.shape[1:])
    if standardize == "channel" and len(shape) < 2:
        raise SettingError(
            f"data.standardize = channel is for samples of shape (channels, ...), such as images; "
            f"these have shape {shape}. Use feature."
        )
    if standardize != "auto":
        return standardize
    if is_image and shape[0] > 1:
        return "channel"
    is_vector = len(shape) == 1 and kind == "numbers" and not batch.structure
    return "feature" if is_vector else "none"


def as_built_for(batch: Batch, shape: tuple[int, ...], what: str) -> Batch:
    """Return samples of a shape as a batch; one alone becomes a batch of one.

    Raises:
        DataError: They have another shape.
    """
    found = batch.tensor
    if tuple(found.shape) == shape:
        return batch.replace(inputs=found[None])
    if tuple(found.shape[1:]) != shape:
        raise DataError(
            f"{what} has samples of shape {tuple(found.shape[1:])}, and the network was built for "
            f"samples of shape {shape}."
        )
    return batch
