"""Random changes of training samples, from a generator that is handed to them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_images(x: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to some pixels each way, with zeros coming in.

    Args:
        x: Images, shape (samples, channels, height, width).
        largest: Largest shift in pixels.
        generator: Draws the shifts, uniformly.
    """
    size = 2 * largest + 1
    drawn = torch.randint(size * size, (len(x),), generator=generator)
    padded = F.pad(x, (largest,) * 4)
    shifted = torch.empty_like(x)
    for choice in range(size * size):
        rows = (drawn == choice).nonzero().squeeze(1)
        down, right = divmod(choice, size)
        height, width = x.shape[2:]
        shifted[rows] = padded[rows, :, down : down + height, right : right + width]
    return shifted
