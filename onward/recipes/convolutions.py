"""Layers of convolutions in blocks, which the recipes for images and signals share."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onward.data import DataInfo
from onward.data.preprocessing import Whitening
from onward.errors import SettingError
from onward.network.blocks import Block
from onward.network.networks import Network
from onward.network.objectives import CrossEntropy, Objective
from onward.network.optimizers import Optimizer
from onward.network.optimizers import optimizer as torch_rule
from onward.network.readouts import Readout, SumOfHeads
from onward.network.samplers import Plain
from onward.recipes.blocks import rules
from onward.recipes.convolution_config import ConvolutionConfig
from onward.settings import OptimizerConfig
from onward.values import written

T = TypeVar("T")

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS: tuple[type[nn.Module], ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES: tuple[Callable[..., Tensor], ...] = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)


class Maps(NamedTuple):
    """What a layer puts out for a sample."""

    channels: int
    """How many maps."""

    size: tuple[int, ...]
    """Positions of each along its axes."""


def convolution(before: Maps, channels: int, *, bias: bool = False) -> nn.Module:
    """Return a convolution with kernels of size 3, which leaves the size of maps as it is."""
    kind = CONVOLUTIONS[len(before.size) - 1]
    return kind(before.channels, channels, kernel_size=3, padding=1, bias=bias)


def convolution_network(
    config: ConvolutionConfig,
    data: DataInfo,
    objective: Callable[[Maps], Objective],
    readout: Readout,
    optimizer: OptimizerConfig,
) -> Network:
    """Build layers of convolutions, as many in a block as settings say.

    Args:
        config: Settings.
        data: What for.
        objective: Returns the objective of a block that puts out such maps.
        readout: Names classes.
        optimizer: How all but filters follow their gradients.

    Raises:
        SettingError: Samples are no images or signals, or smaller than the pooling.
    """
    maps = maps_of(config, data)
    layers = [
        _layer(before, after, is_pooled=before.size != after.size)
        for before, after in pairwise(maps)
    ]
    rules = rules_of(config, optimizer)
    blocks = [
        Block(nn.Sequential(*own), objective(put_out[-1]), rules)
        for own, put_out in zip(in_blocks(config, layers), in_blocks(config, maps[1:]), strict=True)
    ]
    return Network(
        blocks,
        Plain(),
        readout,
        num_classes=data.num_classes,
        preprocessing=whitening_of(config, data),
    )


def backpropagation(
    config: ConvolutionConfig, data: DataInfo, optimizer: OptimizerConfig
) -> Network:
    """Build the layers in one block, with a linear classifier on averages over a grid of 4 x 4."""

    def objective(maps: Maps) -> Objective:
        return CrossEntropy(pooled_head(maps, data.num_classes, grid=4))

    return convolution_network(config, data, objective, SumOfHeads("last"), optimizer)


def in_blocks(config: ConvolutionConfig, layers: Sequence[T]) -> list[Sequence[T]]:
    """Return what there is for each layer, grouped into blocks."""
    size = len(layers) if config.layers_per_block == "all" else config.layers_per_block
    return [layers[first : first + size] for first in range(0, len(layers), size)]


def whitening_of(config: ConvolutionConfig, data: DataInfo) -> Whitening | None:
    """Return what whitens samples, if settings say so."""
    channels, *axes = data.input_shape
    return Whitening(channels, len(axes)) if config.whitening else None


def pooled_head(maps: Maps, num_classes: int, *, grid: int, units: int = 0) -> nn.Module:
    """Return class scores from averages over a grid; at first they are all zero.

    Args:
        maps: What it reads.
        num_classes: How many scores.
        grid: Cells per side of the grid; in smaller maps, every position.
        units: Hidden units, with batch normalization and GELU; 0 for a linear map.
    """
    size = [min(grid, places) for places in maps.size]
    features = maps.channels * math.prod(size)
    hidden: list[nn.Module] = []
    if units:
        hidden = [nn.Linear(features, units, bias=False), nn.BatchNorm1d(units), nn.GELU()]
    last = nn.Linear(units or features, num_classes)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(GridAverage(tuple(size)), nn.Flatten(), *hidden, last)


class GridAverage(nn.Module):
    """Averages over the cells of a grid, as torch's `AdaptiveAvgPool2d` and its like.

    Their derivative differs from call to call on a GPU, where this is a product for each axis.

    Args:
        size: Cells along each axis.

    Example:
        >>> GridAverage((2, 2))(torch.ones(5, 3, 7, 7)).shape
        torch.Size([5, 3, 2, 2])
    """

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return AVERAGES[len(self.size) - 1](x, self.size) if x.is_cpu else averaged(x, self.size)

    def extra_repr(self) -> str:
        return " x ".join(map(str, self.size))


def averaged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return averages over the cells of a grid, axis by axis, by products."""
    for axis, cells in enumerate(size, start=2):
        places = x.shape[axis]
        cell = torch.arange(cells, device=x.device)[:, None]
        place = torch.arange(places, device=x.device)
        # Cells of torch's averages: as many places as fit, and they may overlap by one.
        first, last = cell * places // cells, (cell + 1) * places
        is_inside = (place >= first) & (place * cells < last)
        shares = is_inside / is_inside.sum(dim=1, keepdim=True)
        x = (x.movedim(axis, -1) @ shares.T.to(x.dtype)).movedim(-1, axis)
    return x


def maps_of(config: ConvolutionConfig, data: DataInfo) -> list[Maps]:
    """Return what goes into the first layer, and what each puts out."""
    axes = len(data.input_shape) - 1
    if axes not in (1, 2, 3):
        raise SettingError(
            f"Convolutions are for images of shape (channels, height, width) and signals of shape "
            f"(channels, length); these samples have shape {data.input_shape}. "
            + ("Use one-pass, or " if axes == 0 else "Reshape them: ")
            + "x.reshape(len(x), 1, -1) makes a signal of one channel of each."
        )
    odd = sorted({n for n in config.pooled or () if n > len(config.channels)})
    if odd:
        raise SettingError(
            f"network.pooled names layer {odd[0]}, and there are {len(config.channels)} layers "
            f"(network.channels). Leave it out, or name layers from 1 to {len(config.channels)}."
        )
    channels, *sizes = data.input_shape
    if config.whitening:
        if min(sizes) < 2:
            advice = "Use --set network.whitening=false, or give larger samples."
            if axes == 1 and channels > 1:
                advice = (
                    "Samples are (channels, length): if these are (length, channels), give "
                    "x.transpose(0, 2, 1)."
                )
            raise SettingError(
                f"Samples of shape {data.input_shape}, channels first, are too small for "
                f"whitening, which takes patches of 2 pixels along each axis. {advice}"
            )
        channels, sizes = 2 * channels * 2**axes, [places - 1 for places in sizes]
    found = [Maps(channels, tuple(sizes))]
    for number, width in enumerate(config.channels, start=1):
        if config.pools(number, sizes):
            sizes = [places // 2 for places in sizes]
        if min(sizes) < 1:
            fits = written(tuple(n for n in config.pooled or () if n < number) or (0,))
            raise SettingError(
                f"Samples of shape {data.input_shape}, channels first, are too small to be pooled "
                f"in layer {number}: nothing would be left. Pool fewer layers, such as --set "
                f"network.pooled={fits}, or give larger samples."
            )
        found.append(Maps(width, tuple(sizes)))
    return found


def _layer(before: Maps, after: Maps, *, is_pooled: bool) -> nn.Module:
    """Return a layer: convolution, pooling, batch normalization, GELU."""
    kind = len(after.size) - 1
    pool = [POOLS[kind](2)] if is_pooled else []
    filters = convolution(before, after.channels)
    return nn.Sequential(filters, *pool, NORMS[kind](after.channels), nn.GELU())


def rules_of(
    config: ConvolutionConfig, optimizer: OptimizerConfig
) -> Optimizer | dict[str | Callable[..., bool], Optimizer]:
    """Return what updates filters of the module, and what updates the rest."""
    rule, _ = rules(optimizer)
    if not config.muon:
        return rule
    muon = torch_rule(
        torch.optim.Muon,
        flatten=True,
        project=keep_length,
        lr=config.filter_lr,
        momentum=config.filter_momentum,
        ns_steps=3,
        weight_decay=0.0,
    )
    return {is_filter: muon, "": rule}


def is_filter(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is the filters of a layer."""
    return name.startswith("module.") and parameter.ndim > 2


def keep_length(filters: Tensor) -> None:
    """Scale filters to a mean length of 1, as the norm that follows them allows.

    Source:
        Jordan 2024, the code of airbench94_muon.
    """
    filters.mul_(len(filters) ** 0.5 / filters.norm())
