"""Units that each see a part of an image, with weights of their own: no convolution."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.network.layers import normalize_length


class LocalLinear(nn.Module):
    """A linear map of a square of the image at each place of a grid.

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
        places = ((side + 2 * padding - field) // stride + 1) ** 2
        inputs = channels * field**2
        self.weight = nn.Parameter(torch.randn(places, inputs, units) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(places, 1, units))

    def forward(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples units"]:
        images = x.reshape(-1, self.channels, self.side, self.side)
        fields = F.unfold(images, self.field, stride=self.stride, padding=self.padding)
        # A product at each place.
        found = torch.baddbmm(self.bias.to(fields.dtype), fields.permute(2, 0, 1), self.weight)
        return found.permute(1, 2, 0).flatten(1)


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
