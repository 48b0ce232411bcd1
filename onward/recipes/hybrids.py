"""Hybrids of two images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onward.batch import Batch
from onward.errors import SettingError
from onward.samplers import Sampler


@dataclass(frozen=True)
class Hybrids(Sampler):
    """Images against mixtures of two of them, which look right from near and wrong from afar.

    A mask of smooth patches, drawn for each negative, decides pixel by pixel which of the two is
    seen. No label is asked for.

    Source:
        Hinton 2022, arXiv:2212.13345, section 3.2.

    Example:
        >>> batch = Batch(torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]))
        >>> views = Hybrids(smoothing=2).views(batch, torch.Generator().manual_seed(0), None)
        >>> sorted(views), views["negative"].tensor.unique().tolist()
        (['negative', 'positive'], [0.0, 1.0])
    """

    smoothing: int = 6
    """How often the mask is blurred: patches are as wide as its square root, in pixels."""

    names = ("positive", "negative")

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        images = batch.tensor
        if len(images) < 2:
            raise SettingError(
                "A mini-batch of one sample has no other to be mixed with. Use --set "
                "training.drop_last=true, or another training.batch_size."
            )
        # Each with the one that follows it in a random order, which is never the same one.
        order = torch.randperm(len(images), generator=draw)
        others = torch.empty_like(images)
        others[order] = images[order.roll(-1)]
        shows = masks(len(images), images.shape[2:], smoothing=self.smoothing, draw=draw)
        negative = torch.where(shows[:, None], images, others)
        return {"positive": batch, "negative": batch.replace(inputs=negative)}


def masks(samples: int, size: torch.Size, *, smoothing: int, draw: torch.Generator) -> Tensor:
    """Draw masks: random bits, blurred with [1/4, 1/2, 1/4] along each axis, and cut at 1/2.

    Args:
        samples: How many.
        size: Places along each axis.
        smoothing: How often they are blurred.
        draw: Draws the bits.

    Returns:
        Booleans, samples first.
    """
    bits = torch.randint(2, (samples, *size), generator=draw).float()
    for _ in range(smoothing):
        for axis in range(1, bits.ndim):
            length = bits.shape[axis]
            before = torch.cat([bits.narrow(axis, 0, 1), bits.narrow(axis, 0, length - 1)], axis)
            after = torch.cat([bits.narrow(axis, 1, length - 1), bits.narrow(axis, -1, 1)], axis)
            bits = (before + 2 * bits + after) / 4
    return bits > 0.5
