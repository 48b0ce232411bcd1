"""A small residual network of convolutions, as layers that can be trained one by one."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from onward.network.blocks import Edge


class Layer(NamedTuple):
    """A layer of a residual network, and what it reads."""

    module: nn.Module
    """A module from a tensor; or from a dict of two, `layer` and `skipped`."""

    reads: tuple[Edge, ...] | None
    """What it reads; None: the layer before it."""


class AddedTo(nn.Module):
    """What a layer makes of its input, added to what came in two layers before; then ReLU.

    Args:
        layer: Makes maps.
        shortcut: Brings what came in before to their shape.
    """

    def __init__(self, layer: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.shortcut = shortcut

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        added: Tensor = self.layer(inputs["layer"]) + self.shortcut(inputs["skipped"])
        return added.relu()


class Whole(nn.Module):
    """All layers of a residual network, one after the other.

    Args:
        layers: The layers, whose weights are those that they have by themselves.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.module for layer in layers)
        self.reads = [layer.reads for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for module, reads in zip(self.layers, self.reads, strict=True):
            if reads is None:
                x = module(x)
            else:
                x = module({e.key: outputs[int(e.source)] for e in reads})
            outputs.append(x)
        return x


def residual_layers(image_channels: int, channels: Sequence[int]) -> list[Layer]:
    """Return a first layer, and two for each number of channels, of which the second adds.

    All but the first of these pairs halve both axes.

    Args:
        image_channels: Channels of the images.
        channels: Channels of each pair.

    Source:
        He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    before = channels[0]
    first = nn.Sequential(_convolution(image_channels, before), nn.BatchNorm2d(before), nn.ReLU())
    layers = [Layer(first, None)]
    for number, after in enumerate(channels):
        stride = 2 if number else 1
        first = nn.Sequential(_convolution(before, after, stride), nn.BatchNorm2d(after), nn.ReLU())
        second = nn.Sequential(_convolution(after, after), nn.BatchNorm2d(after))
        shortcut: nn.Module = nn.Identity()
        if number:
            shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )
        skipped = len(layers) - 1
        layers.append(Layer(first, None))
        reads = (Edge(skipped + 1, name="layer"), Edge(skipped, name="skipped"))
        layers.append(Layer(AddedTo(second, shortcut), reads))
        before = after
    return layers


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
