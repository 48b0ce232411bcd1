"""Units that each see a part of an image, with weights of their own: no convolution."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.network.layers import normalize_length

FEW_UNITS = 16
"""Units at a place below which products place by place take longer than a dense one."""


class LocalLinear(nn.Module):
    """A linear map of a square of the image at each place of a grid.

    With fewer than 16 units at a place it is computed as a dense map whose other weights are 0:
    about eight times the operations for fields of a third of the image, and six times faster on a
    processor. Counts of operations include the products with these zeros.

    Args:
        channels: Maps that come in.
        side: Positions of these along each axis.
        field: Side of the square that a unit sees.
        stride: Distance between squares.
        padding: Zeros around the image.
        units: Units at each place. They come out in a row, those of a channel together.

    Example:
        >>> LocalLinear(1, 28, field=10, stride=6, units=128)(torch.rand(2, 784)).shape
        torch.Size([2, 2048])
    """

    def __init__(
        self, channels: int, side: int, *, field: int, stride: int, units: int, padding: int = 0
    ) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        self.field, self.stride, self.padding = field, stride, padding
        places, self.units = ((side + 2 * padding - field) // stride + 1) ** 2, units
        inputs = channels * field**2
        self.weight = nn.Parameter(torch.randn(places, inputs, units) / math.sqrt(inputs))
        # One row, as outputs are: what has more dimensions counts as weights, which decay.
        self.bias = nn.Parameter(torch.zeros(units * places))

    def forward(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples units"]:
        if self.units < FEW_UNITS:
            return F.linear(x.flatten(1), self.dense().T, self.bias)
        images = x.reshape(-1, self.channels, self.side, self.side)
        fields = F.unfold(images, self.field, stride=self.stride, padding=self.padding)
        bias = self.bias.view(self.units, -1).T[:, None].to(fields.dtype)
        # A product at each place.
        found = torch.baddbmm(bias, fields.permute(2, 0, 1), self.weight)
        return found.permute(1, 2, 0).flatten(1)

    def dense(self) -> Float[Tensor, "inputs units"]:
        """Return the weights as those of a dense map, which are 0 outside of the fields."""
        shape = self.channels * self.side**2, self.bias.numel()
        geometry = self.channels, self.side, self.field, self.stride, self.padding, self.units
        # The last cell takes what would see the padding.
        cells = self.weight.new_zeros(math.prod(shape) + 1)
        index = _cells(*geometry, device=self.weight.device)
        return cells.scatter(0, index, self.weight.flatten())[:-1].view(shape)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # What is kept is used in training too.
def _cells(
    channels: int,
    side: int,
    field: int,
    stride: int,
    padding: int,
    units: int,
    *,
    device: torch.device,
) -> Tensor:
    """Return where each weight of a `LocalLinear` lies in the dense matrix of its map."""
    inputs = channels * side**2
    # From 1 on: 0 is the padding.
    numbers = torch.arange(1, inputs + 1, dtype=torch.float64).view(1, channels, side, side)
    seen = F.unfold(numbers, field, stride=stride, padding=padding)[0].T.long() - 1
    places = len(seen)
    columns = torch.arange(units) * places + torch.arange(places)[:, None]
    cells = seen[:, :, None] * (places * units) + columns[:, None]
    return cells.where(seen[:, :, None] >= 0, inputs * places * units).flatten().to(device)


class LocalFields(nn.Module):
    """Length normalization, a linear map of a square at each place of a grid, ReLU.

    Args:
        linear: The map.

    Source:
        Hinton 2022, arXiv:2212.13345, section 3.2.
    """

    def __init__(self, linear: LocalLinear) -> None:
        super().__init__()
        self.linear = linear

    def pre_activations(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples units"]:
        """Return what goes into the ReLU."""
        found: Tensor = self.linear(normalize_length(x))
        return found

    def forward(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples units"]:
        return self.pre_activations(x).relu()
