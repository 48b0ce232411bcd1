"""Hybrids of two images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onward.batch import Batch
from onward.errors import SettingError
from onward.network.samplers import Sampler
from onward.recipes.contrasts import check_has_others

TRIES = 100
"""How often masks are drawn before they are given up."""


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
        if images.ndim < 3:
            raise SettingError(
                f"Hybrids are of images or signals, channels first, whose neighbours belong "
                f"together; these samples have shape {tuple(images.shape[1:])}."
            )
        check_has_others(len(images))
        # Each with the one that follows it in a random order, which is never the same one.
        order = torch.randperm(len(images), generator=draw, device=images.device)
        others = torch.empty_like(images)
        others[order] = images[order.roll(-1)]
        shows = self._masks(len(images), images.shape[2:], draw)
        negative = torch.where(shows[:, None], images, others)
        return {"positive": batch, "negative": batch.replace(inputs=negative)}

    def _masks(self, samples: int, size: torch.Size, draw: torch.Generator) -> Tensor:
        """Draw masks that show some of both samples: others would make no hybrid."""
        shows = masks(samples, size, smoothing=self.smoothing, draw=draw)
        for _ in range(TRIES):
            flat = shows.flatten(1)
            is_whole = flat.all(dim=1) | ~flat.any(dim=1)
            if not is_whole.any():
                return shows
            again = int(is_whole.sum())
            shows[is_whole] = masks(again, size, smoothing=self.smoothing, draw=draw)
        raise SettingError(
            f"Masks that are blurred {self.smoothing} times show all of one sample or of the other "
            f"where samples have {' x '.join(map(str, size))} pixels. Blur them less often, with "
            f"--set network.smoothing=1, or give larger samples."
        )


def masks(samples: int, size: torch.Size, *, smoothing: int, draw: torch.Generator) -> Tensor:
    """Draw masks: random bits, blurred with [1/4, 1/2, 1/4] along each axis, and cut at 1/2.

    Args:
        samples: How many.
        size: Pixels along each axis.
        smoothing: How often they are blurred.
        draw: Draws the bits.

    Returns:
        Booleans, samples first.
    """
    bits = torch.randint(2, (samples, *size), generator=draw, device=draw.device).float()
    for _ in range(smoothing):
        for axis in range(1, bits.ndim):
            length = bits.shape[axis]
            before = torch.cat([bits.narrow(axis, 0, 1), bits.narrow(axis, 0, length - 1)], axis)
            after = torch.cat([bits.narrow(axis, 1, length - 1), bits.narrow(axis, -1, 1)], axis)
            bits = (before + 2 * bits + after) / 4
    return bits > 0.5
