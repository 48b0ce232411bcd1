"""Goodness of maps: how active the channels of each class are."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


class ClassGoodness(nn.Module):
    """The goodness of each class: of its share of the channels, the first for the first class.

    Args:
        num_classes: How many classes share the channels, each as many.
        goodness: Mean square or mean of all places of the channels of a class.

    Example:
        >>> import torch
        >>> ClassGoodness(2, "square")(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]))
        tensor([[2.5000, 4.5000]])
    """

    def __init__(self, num_classes: int, goodness: Literal["square", "mean"]) -> None:
        super().__init__()
        self.num_classes, self.goodness = num_classes, goodness

    def forward(
        self, maps: Float[Tensor, "samples channels *size"]
    ) -> Float[Tensor, "samples classes"]:
        groups = maps.float().unflatten(1, (self.num_classes, -1)).flatten(2)
        found: Tensor = (groups.square() if self.goodness == "square" else groups).mean(dim=2)
        return found
