"""Goodness of maps: how active the channels of each class are."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


class ClassGoodness(nn.Module):
    """The goodness of each class, as a logit: that of its share of the channels.

    The first channels are those of the first class, and so on.

    Args:
        num_classes: How many classes share the channels, each as many.
        goodness: Mean square or mean of all positions of the channels of a class.
        slope: What goodness is multiplied by, to be a logit.

    Source:
        Papachristodoulou et al. 2024, arXiv:2312.12668 (mean square); Sun et al. 2025, ICLR (mean).
        Inferred from their published code, not from the papers; the slope is ours.

    Example:
        >>> import torch
        >>> ClassGoodness(2, "square", slope=2.0)(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]))
        tensor([[5., 9.]])
    """

    def __init__(
        self, num_classes: int, goodness: Literal["square", "mean"], *, slope: float
    ) -> None:
        super().__init__()
        self.num_classes, self.goodness, self.slope = num_classes, goodness, slope

    def forward(
        self, maps: Float[Tensor, "samples channels *size"]
    ) -> Float[Tensor, "samples classes"]:
        groups = maps.float().unflatten(1, (self.num_classes, -1)).flatten(2)
        each = groups.square() if self.goodness == "square" else groups
        logits: Tensor = self.slope * each.mean(dim=2)
        return logits
