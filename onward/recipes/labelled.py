"""Layers of convolutions that each see a label, and learn from how active they are with it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onward.batch import Batch
from onward.network.layers import normalize_length
from onward.network.objectives import Threshold
from onward.recipes.convolutions import NORMS, POOLS, Maps, convolution, pooled_head


class LabelledLayer(nn.Module):
    """Convolution, pooling, two normalizations, the label, ReLU.

    Maps are normalized over the mini-batch, each by itself, and then all of a sample together, to a
    mean of 0 and a mean square of 1. How active a sample is then depends on how its label fits, and
    not on the sample alone, nor on the goodness of the block before. A label adds a number to each
    map that is learned for it, the same at all positions.

    Args:
        before: What goes in.
        after: What comes out.
        num_classes: How many labels there are.
        is_pooled: Whether each axis is halved.
    """

    def __init__(self, before: Maps, after: Maps, num_classes: int, *, is_pooled: bool) -> None:
        super().__init__()
        kind = len(after.size) - 1
        self.convolution = convolution(before, after.channels)
        self.pool = POOLS[kind](2) if is_pooled else nn.Identity()
        self.norm = nn.Sequential(
            NORMS[kind](after.channels, affine=False), nn.GroupNorm(1, after.channels)
        )
        self.label = nn.Linear(num_classes, after.channels, bias=False)
        nn.init.normal_(self.label.weight, std=0.5)

    def forward(
        self,
        maps: Float[Tensor, "samples channels *size"],
        codes: Float[Tensor, "samples classes"],
    ) -> Float[Tensor, "samples filters *places"]:
        seen = self.norm(self.pool(self.convolution(normalize_length(maps))))
        added = self.label(codes)
        found: Tensor = (seen + added.view(*added.shape, *[1] * (seen.ndim - 2))).relu()
        return found


class LabelledLayers(nn.Module):
    """Some of these layers, one after the other: the module of a block.

    The label comes in planes before the channels, as the sampler puts it there, and is handed on in
    the same way, so that the next block sees it too.
    """

    def __init__(self, layers: Sequence[LabelledLayer], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.num_classes = num_classes

    def forward(
        self, x: Float[Tensor, "samples channels *size"]
    ) -> Float[Tensor, "samples filters *places"]:
        planes, maps = x.tensor_split([self.num_classes], dim=1)
        codes = planes.flatten(2)[:, :, 0]
        for layer in self.layers:
            maps = layer(maps, codes)
        planes = codes.view(*codes.shape, *[1] * (maps.ndim - 2)).expand(-1, -1, *maps.shape[2:])
        return torch.cat([planes.to(maps.dtype), maps], dim=1)


class MapThreshold(Threshold):
    """A threshold for the mean square of the maps of a sample, without the planes of the label.

    Its scores are the slope times the mean square: how much more likely than with no activity it
    thinks the label, as a logit. So blocks with many positions do not outvote those with few.
    """

    def __init__(self, num_classes: int, maps: Maps, *, threshold: float, slope: float) -> None:
        super().__init__(num_classes + maps.channels, threshold=threshold, slope=slope)
        self.num_classes = num_classes

    def activities(self, outputs: Tensor) -> Tensor:
        return outputs[:, self.num_classes :]

    def goodness(self, activities: Tensor) -> Float[Tensor, " samples"]:
        return super().goodness(self.activities(activities))

    def scores(self, outputs: Batch) -> Float[Tensor, " samples"]:
        return self.slope * self.goodness(outputs.tensor)


class MapsHead(nn.Module):
    """Class scores from the maps of several blocks: a sum over linear functions of averages.

    Args:
        several: The maps of each block, in the order in which they are read.
        num_classes: How many scores.
    """

    def __init__(self, several: Sequence[Maps], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.heads = nn.ModuleList(pooled_head(maps, num_classes, grid=4) for maps in several)

    def forward(self, x: Tensor | dict[str, Tensor]) -> Float[Tensor, "samples classes"]:
        each = [x] if isinstance(x, Tensor) else list(x.values())
        return torch.stack([self.part(k, maps) for k, maps in enumerate(each)]).sum(dim=0)

    def part(self, place: int, maps: Tensor) -> Float[Tensor, "samples classes"]:
        """Return what one of the blocks adds to the scores, see `onward.network.readouts.Sum`."""
        scores: Tensor = self.heads[place](normalize_length(maps[:, self.num_classes :]))
        return scores

    def weights_of(self, place: int) -> list[Tensor]:
        return [*self.heads[place].parameters()]
