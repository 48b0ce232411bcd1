"""Augmentation: random changes of training mini-batches, from a generator that is handed to them.

An augmentation is any function of a batch and a generator that returns a batch of as many samples;
one with a parameter `epoch` is told how many epochs have learned from these samples before. It sees
samples after the input transformation.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from onward.arguments import said
from onward.batch import Batch, Tensors, named
from onward.data.dataset import is_channels_last
from onward.errors import OnwardError, SettingError, line_of, name_of, told
from onward.seeds import global_generators_seeded
from onward.settings import DataConfig, Fill

Augmentation = Callable[..., Batch]
"""Takes a batch and a generator, and the `epoch` where it has such a parameter."""


@dataclass(frozen=True)
class Translate:
    """Moves each image, or signal, by up to some pixels each way, drawn uniformly.

    Example:
        >>> batch = Batch(torch.arange(8.0).view(1, 1, 8))
        >>> Translate(2)(batch, torch.Generator().manual_seed(1)).inputs
        tensor([[[0., 0., 0., 1., 2., 3., 4., 5.]]])
    """

    pixels: int
    """Largest distance."""

    fill: Fill = "zeros"
    """What comes in at the border: zeros (after standardization, the mean), or the image mirrored
    there."""

    def __post_init__(self) -> None:
        _check_pixels(self, self.pixels, least=0)
        if self.fill not in get_args(Fill):
            raise SettingError(
                f"ow.Translate: fill is one of {', '.join(get_args(Fill))}; got {self.fill!r}."
            )

    def __call__(self, batch: Batch, draw: torch.Generator) -> Batch:
        x = _pixels(self, batch, dims=(1, 2))
        sizes = x.shape[2:]
        if self.pixels >= min(sizes):
            raise SettingError(
                f"ow.Translate moves samples by up to {self.pixels} pixels, and they are of "
                f"{' x '.join(map(str, sizes))}. Use fewer pixels than that."
            )
        steps = 2 * self.pixels + 1
        drawn = torch.randint(steps ** len(sizes), (len(x),), generator=draw, device=x.device)
        mode = "constant" if self.fill == "zeros" else self.fill
        windows = F.pad(x, (self.pixels,) * 2 * len(sizes), mode=mode)
        for dim, size in enumerate(sizes, start=2):
            windows = windows.unfold(dim, size, 1)
        # The window of each sample among all there are.
        rows = torch.arange(len(x), device=x.device)
        at = (drawn // steps, drawn % steps) if len(sizes) == 2 else (drawn,)
        return batch.replace(inputs=windows[(rows, slice(None), *at)].contiguous())


@dataclass(frozen=True)
class Flip:
    """Mirrors images left to right.

    Source:
        Alternating: Jordan 2024, arXiv:2404.00498, section 3.6.
    """

    alternating: bool = False
    """Whether an image turns with every epoch, from a first direction that its id decides, so that
    two epochs see both; otherwise a coin is tossed for each image and epoch."""

    def __call__(self, batch: Batch, draw: torch.Generator, epoch: int) -> Batch:
        x = _pixels(self, batch, dims=(2,))
        if not self.alternating:
            is_turned = torch.randint(2, (len(x),), generator=draw, device=x.device) == 1
        elif batch.ids is None:
            raise SettingError(
                "ow.Flip(alternating=True) turns images by their ids, and the batch has none. "
                "Give ow.Batch ids, or use ow.Flip()."
            )
        else:
            is_turned = (_mixed(batch.ids) + epoch) % 2 == 1
        return batch.replace(inputs=torch.where(is_turned.view(-1, 1, 1, 1), x.flip(3), x))


@dataclass(frozen=True)
class Cutout:
    """Puts zeros, after standardization the mean, into a square of each image.

    The center of the square is drawn uniformly, so that a part of it may lie outside.

    Source:
        DeVries & Taylor 2017, arXiv:1708.04552, section 3.2.
    """

    pixels: int
    """Side of the square."""

    def __post_init__(self) -> None:
        _check_pixels(self, self.pixels, least=1)

    def __call__(self, batch: Batch, draw: torch.Generator) -> Batch:
        x = _pixels(self, batch, dims=(2,))
        if self.pixels >= min(x.shape[2:]):
            raise SettingError(
                f"ow.Cutout cuts squares of {self.pixels} x {self.pixels} pixels, and samples are "
                f"of {' x '.join(map(str, x.shape[2:]))}. Cut smaller ones."
            )

        def inside(size: int) -> Tensor:
            middle = torch.randint(size, (len(x), 1), generator=draw, device=x.device)
            first = middle - self.pixels // 2
            place = torch.arange(size, device=x.device)
            return (place >= first) & (place < first + self.pixels)

        rows, columns = (inside(size) for size in x.shape[2:])
        is_cut = rows[:, None, :, None] & columns[:, None, None, :]
        return batch.replace(inputs=x.masked_fill(is_cut, 0))


def with_augmentation(config: DataConfig, shape: tuple[int, ...]) -> DataConfig:
    """Return the settings of the data in which `auto` has become what fits samples of a shape.

    Args:
        config: The settings.
        shape: Shape of a sample; () where there are several inputs.

    Raises:
        SettingError: An augmentation is not for samples like these.

    Example:
        >>> found = with_augmentation(DataConfig(shift="auto", flip="auto"), (3, 32, 32))
        >>> found.shift, found.flip
        (2, 'alternating')
    """
    is_image = len(shape) == 3 and not is_channels_last(shape)
    sixteenth = round(min(shape[1:]) / 16) if len(shape) in (2, 3) else 0
    shift = config.shift if isinstance(config.shift, int) else sixteenth
    flip = config.flip
    if flip == "auto":
        flip = "alternating" if is_image and shape[0] == 3 else "none"
    what = f"the samples have shape {shape}" if shape else "the samples have several inputs"
    images = "images, of shape (channels, height, width)"
    signals = f"{images}, or signals, of shape (channels, length)"
    if shift and (not (is_image or len(shape) == 2) or shift >= min(shape[1:])):
        raise SettingError(
            f"data.shift is {shift} pixels, but {what}. It is for {signals}, and smaller than they "
            f"are."
        )
    if config.cutout and (not is_image or config.cutout >= min(shape[1:])):
        raise SettingError(
            f"data.cutout is {config.cutout} pixels, but {what}. It is for {images}, and smaller "
            f"than they are."
        )
    if flip != "none" and not is_image:
        raise SettingError(f"data.flip is {flip}, but {what}. It is for {images}.")
    return replace(config, shift=shift, flip=flip)


def of_data(config: DataConfig) -> tuple[Augmentation, ...]:
    """Return the augmentations that settings of the data ask for, in order."""
    found: list[Augmentation] = []
    if config.shift:
        assert isinstance(config.shift, int)
        found.append(Translate(config.shift, config.shift_fill))
    if config.flip != "none":
        found.append(Flip(alternating=config.flip == "alternating"))
    if config.cutout:
        found.append(Cutout(config.cutout))
    return tuple(found)


def augmented(
    batch: Batch, augmentations: Sequence[Augmentation], draw: torch.Generator, epoch: int
) -> Batch:
    """Return a mini-batch of training samples after all augmentations, in order.

    Args:
        batch: A copy of samples of the data set, after the input transformation.
        augmentations: What is done to them.
        draw: Draws whatever is random. What draws from global generators gets its seed there.
        epoch: How many epochs have learned from these samples before.

    Raises:
        SettingError: One fails, or returns something else than as many samples of the same shape.
    """
    with global_generators_seeded(draw.initial_seed()):
        for each in augmentations:
            batch = _applied(each, batch, draw, epoch)
    return batch


def _applied(augment: Augmentation, batch: Batch, draw: torch.Generator, epoch: int) -> Batch:
    fixed = {n: t for n, t in batch.tensors().items() if not n.startswith("inputs")}
    versions = [_version(tensor) for tensor in fixed.values()]
    try:
        found = augment(batch, draw, epoch=epoch) if _has_epoch(augment) else augment(batch, draw)
    except OnwardError:
        raise
    except Exception as error:
        raise SettingError(f"The augmentation {name_of(augment)} fails at {told(error)}") from error
    wrong = _wrong(found, batch)
    for name, tensor, version in zip(fixed, fixed.values(), versions, strict=True):
        if _version(tensor) != version:
            wrong = f"changes {name.partition('.')[2] or name} of the batch in place; return others"
    if wrong is not None:
        place = line_of(augment)
        raise SettingError(
            f"The augmentation {name_of(augment)}{f' ({place})' if place else ''} {wrong}."
        )
    return found


def _are_alike(before: Tensor | None, after: Tensor | None) -> bool:
    """Return whether what there was is there still."""
    if before is None or after is before:
        return True
    return after is not None and after.equal(before)


def _wrong(found: object, batch: Batch) -> str | None:
    """Say what is wrong with what an augmentation has made of a batch; None for nothing."""
    if not isinstance(found, Batch):
        return f"returns {said(found)}; an augmentation returns an ow.Batch"
    if len(found) != len(batch):
        return f"returns {len(found)} samples of {len(batch)}; it returns as many as it gets"
    # A GPU is not asked about what is the same tensor.
    if not _are_alike(batch.ids, found.ids):
        return "returns samples with other ids; it returns each sample in its place"
    if not _are_alike(batch.targets.get("label"), found.targets.get("label")):
        return (
            "changes label, the classes of the data; give what an objective is to learn instead "
            "as a target of another name"
        )
    layouts = _layout(batch.inputs), _layout(found.inputs)
    if layouts[0] != layouts[1]:
        return (
            f"makes inputs of {_described(layouts[1])} from {_described(layouts[0])}; blocks take "
            f"samples of the same shape and type in training and inference"
        )
    return None


def _layout(inputs: Tensors) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {n: (tuple(t.shape[1:]), t.dtype) for n, t in named(inputs, "inputs").items()}


def _described(layout: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    each = [f"{shape} {str(dtype).removeprefix('torch.')}" for shape, dtype in layout.values()]
    return ", ".join(each)


def _version(tensor: Tensor) -> int | None:
    """Return how often a tensor was changed; those of torch.inference_mode do not count it."""
    return None if tensor.is_inference() else tensor._version


def _has_epoch(augment: Augmentation) -> bool:
    try:
        return "epoch" in inspect.signature(augment).parameters
    except ValueError:  # Some functions that are not written in Python have none.
        return False


def _check_pixels(augment: object, pixels: object, *, least: Literal[0, 1]) -> None:
    if not isinstance(pixels, int) or isinstance(pixels, bool) or pixels < least:
        raise SettingError(
            f"ow.{type(augment).__name__}: pixels is a whole number of {least} or more; got "
            f"{said(pixels)}."
        )


def _pixels(augment: object, batch: Batch, dims: tuple[int, ...]) -> Tensor:
    """Return the inputs of a batch of images, or of signals where these are taken too."""
    name = f"ow.{type(augment).__name__}"
    takes = "images of shape (channels, height, width)"
    if 1 in dims:
        takes += " or signals of shape (channels, length)"
    if not isinstance(batch.inputs, Tensor):
        raise SettingError(
            f"{name} takes {takes}, and the samples have several inputs "
            f"({', '.join(batch.inputs)}). Write a function for them."
        )
    x = batch.inputs
    if x.ndim - 2 not in dims:
        raise SettingError(f"{name} takes {takes}; the samples have shape {tuple(x.shape[1:])}.")
    return x


def _mixed(ids: Tensor) -> Tensor:
    """Return a hash of each id, the same everywhere: the finalizer of MurmurHash3 for 64 bits."""
    for factor in (-0xAE502812AA7333, -0x3B314601E57A13AD):
        # Shifted without the sign.
        ids = (ids ^ ((ids >> 33) & 0x7FFFFFFF)) * factor
    return (ids ^ ((ids >> 33) & 0x7FFFFFFF)) & 1
