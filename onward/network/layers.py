"""Layers that are made for local learning: a length-normalised dense ReLU layer."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

TINY = 1e-8


def normalize_length(x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples ..."]:
    """Scale every row to a mean square of 1, so that its length says nothing.

    Without this a layer could read off the goodness of the layer below. No mean is subtracted and
    nothing is learned. A sample of zeros stays zero.

    Source:
        Hinton 2022, arXiv:2212.13345, section 2; the scale (mean square 1, not length 1) is that
        of his published Matlab code.

    Example:
        >>> normalize_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.8485, 1.1314],
                [0.0000, 0.0000]])
    """
    flat = x.flatten(1)
    # In bf16 the length is rounded to bf16 once, as the scale would be anyway.
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    normalized: Tensor = (flat * (flat.shape[1] ** 0.5 / (length + TINY))).view_as(x)
    return normalized


def keep_mask(
    shape: torch.Size, dropout: float, *, generator: torch.Generator | None, like: Tensor
) -> Tensor:
    """Draw what dropout multiplies by: 0 for a share of the places, 1 / (1 - share) elsewhere.

    The same as `torch.nn.functional.dropout` with a generator of one's own, and three times as
    fast: 16 random bits decide a place, so the share is met to 1/65536.

    Args:
        shape: Shape of the mask.
        dropout: Share of zeros, below 1.
        generator: Draws them. None: torch's global generator of the device.
        like: Has the type and the device of the mask.

    Example:
        >>> keep_mask(torch.Size((6,)), 0.5, generator=torch.Generator(), like=torch.zeros(0))
        tensor([2., 2., 2., 0., 2., 0.])
    """
    size = shape.numel()
    words = torch.empty(-(-size // 4), dtype=torch.int64, device=like.device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:size]
    kept = bits >= min(round(dropout * 2**16), 2**16 - 1) - 2**15
    return kept.to(like.dtype).mul_(1 / (1 - dropout)).view(shape)


class Dense(nn.Module):
    """Length normalisation, dropout, a linear map, ReLU.

    It is an ordinary module; what is special is that `closed_form` can train it without autograd.

    Args:
        in_features: Inputs a sample; an input with more axes is flattened.
        out_features: Units.
        dropout: Share of the normalised inputs that is set to zero in training.
        generator: Draws the weights: normal with standard deviation `gain` / sqrt(in_features).
            None: torch's default generator.
        gain: 1 as Hinton's code does it, sqrt(2) for He initialisation.
        held: Whether it has weights; otherwise they are to come from elsewhere, and are in no
            memory until then.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        generator: torch.Generator | None = None,
        dropout: float = 0.0,
        gain: float = 1.0,
        held: bool = True,
    ) -> None:
        super().__init__()
        if not held:
            weight = torch.full((), math.nan).expand(out_features, in_features)
        else:
            weight = torch.randn(out_features, in_features, generator=generator)
            weight.mul_(gain / in_features**0.5)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.dropout = dropout

    def pre_activations(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples units"]:
        """Return what goes into the ReLU."""
        x = normalize_length(x.flatten(1))
        if self.training and self.dropout:
            x = x * keep_mask(x.shape, self.dropout, generator=None, like=x)
        return F.linear(x, self.weight, self.bias)

    def forward(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples units"]:
        return self.pre_activations(x).relu()

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, dropout={self.dropout}"


class ReadoutLayer(nn.Module):
    """A linear map of the length-normalised activities of several blocks, without bias.

    Args:
        widths: Units of each block that is read.
        num_classes: Outputs. The weights start at zero.

    Source:
        The softmax of Hinton 2022, section 3.3; zero weights and no bias as in his Matlab code.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.widths = widths
        self.weight = nn.Parameter(torch.zeros(num_classes, sum(widths)))

    def forward(self, activities: Tensor | dict[str, Tensor]) -> Float[Tensor, "samples classes"]:
        each = [activities] if isinstance(activities, Tensor) else activities.values()
        x = torch.cat([normalize_length(a.flatten(1)) for a in each], dim=1)
        return F.linear(x, self.weight)

    def part(self, place: int, activities: Tensor) -> Float[Tensor, "samples classes"]:
        """Return what one of the blocks adds to the outputs.

        Args:
            place: Which of those that are read, from 0.
            activities: What that block puts out.
        """
        (columns,) = self.weights_of(place)
        return F.linear(normalize_length(activities.flatten(1)), columns)

    def weights_of(self, place: int) -> list[Tensor]:
        """Return the weights with which one of the blocks is read, of shape (classes, units)."""
        return [self.weight.split(self.widths, dim=1)[place]]
