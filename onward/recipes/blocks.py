"""Networks of dense blocks, as Hinton and Aktemur et al. build them."""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import nn

from onward import seeds
from onward.data import DataInfo
from onward.errors import SettingError
from onward.network.blocks import Block
from onward.network.layers import Dense, ReadoutLayer
from onward.network.networks import Network
from onward.network.objectives import CrossEntropy, Objective, Threshold
from onward.network.optimizers import SGD, Adam, Optimizer
from onward.network.readouts import GoodnessSweep, Readout, SoftmaxHead, SumOfHeads
from onward.network.samplers import NEUTRAL, LabelEmbedding, Plain, Sampler
from onward.settings import Negatives, NetworkConfig, OptimizerConfig


def dense_network(
    config: NetworkConfig,
    data: DataInfo,
    *,
    optimizer: OptimizerConfig,
    held: Collection[int] | None = None,
) -> Network:
    """Build a network of dense blocks from its settings.

    torch's seed decides the first weights, block by block.

    Args:
        config: What is trained.
        data: What for. An embedded label overwrites inputs of images, and comes before others.
        optimizer: How weights follow their gradients.
        held: Blocks that get weights, which others do not need; None for all.

    Raises:
        SettingError: Settings do not fit the data or each other.
    """
    check_network(config)
    seed, num_classes = torch.initial_seed(), data.num_classes
    sampler: Sampler = Plain()
    if config.negatives is not None:
        sampler = label_sampler(data, config.negatives, config.label_strength)
    inputs = torch.Size(sampler.view_shape(data.input_shape)).numel()
    widths = (inputs, *config.widths)

    def is_held(block: int) -> bool:
        return held is None or block in held

    depth = len(config.widths)
    layers = dense_layers(
        widths,
        dropout=config.dropout,
        gain=config.gain,
        held=[
            number for number in range(depth) if is_held(0 if config.is_backpropagation else number)
        ],
    )
    rule, head_rule = rules(optimizer)

    def objective(number: int) -> Objective:
        width = widths[number + 1]
        if config.objective == "threshold":
            slope = config.slope if config.slope is not None else float(width)
            return Threshold(width, threshold=config.threshold, slope=slope, peer=config.peer)
        # Without its own first weights, which torch's global generator would draw.
        head = nn.Linear(width, num_classes, bias=False, device="meta")
        head.weight = nn.Parameter(torch.empty(num_classes, width))
        draw = seeds.generator(seed, "head", number)
        nn.init.normal_(head.weight, std=width**-0.5, generator=draw)
        return CrossEntropy(head)

    blocks: list[Block] = []

    def add(block: Block) -> None:
        if not is_held(len(blocks)):
            block.release()
        blocks.append(block)

    if config.is_backpropagation:
        add(Block(nn.Sequential(*layers), objective(depth - 1), rule))
    else:
        for number in range(depth):
            add(Block(layers[number], objective(number), rule))
    has_head = config.negatives is not None and (
        config.readout == "softmax" or config.negatives in ("hard", "gradual")
    )
    if has_head:
        add(softmax_head(config.widths, num_classes, head_rule, skip_first=config.skip_first))
    readouts: dict[str, Readout] = {}
    if config.negatives is not None:
        readouts["goodness"] = GoodnessSweep(config.skip_first)
    if has_head:
        readouts["softmax"] = SoftmaxHead()
    return Network(
        blocks,
        sampler,
        readouts.get(config.readout, SumOfHeads(config.heads)),
        num_classes=num_classes,
        readouts=readouts,
    )


def dense_layers(
    widths: Sequence[int],
    *,
    dropout: float = 0.0,
    gain: float = 1.0,
    held: Collection[int] | None = None,
) -> list[Dense]:
    """Return dense layers, whose first weights follow from torch's seed and their number.

    Args:
        widths: Inputs of the first, and units of each.
        dropout: Share of a layer's inputs that is dropped in training.
        gain: Standard deviation of the first weights, times the square root of the inputs.
        held: Layers that get weights; None for all.

    Raises:
        SettingError: The machine has no room for them.
    """
    seed = torch.initial_seed()
    try:
        return [
            Dense(
                *sizes,
                generator=seeds.generator(seed, "weights", number),
                dropout=dropout,
                gain=gain,
                held=held is None or number in held,
            )
            for number, sizes in enumerate(pairwise(widths))
        ]
    except RuntimeError as error:
        inputs, *units = widths
        gigabytes = 4e-9 * sum(n * m for n, m in pairwise(widths))
        raise SettingError(
            f"network.widths = {units} with {inputs} inputs needs {gigabytes:,.0f} GB for its "
            f"weights alone, and this machine has no room for them."
        ) from error


def softmax_head(
    widths: Sequence[int], num_classes: int, rule: Optimizer, *, skip_first: bool
) -> Block:
    """Return a head that learns classes from the normalized activities of all blocks.

    Args:
        widths: Units of each block.
        num_classes: How many classes.
        rule: How its weights follow their gradients.
        skip_first: Whether it leaves the first block out, if there are others.
    """
    first = 1 if skip_first and len(widths) > 1 else 0
    return Block(
        ReadoutLayer(tuple(widths[first:]), num_classes),
        CrossEntropy(nn.Identity(), views=(NEUTRAL,)),
        rule,
        reads=tuple(range(first, len(widths))),
    )


def label_sampler(data: DataInfo, negatives: Negatives, strength: float | None) -> LabelEmbedding:
    """Return what writes a label into samples that dense blocks read.

    Args:
        data: What for. The label overwrites inputs of images, and comes before others.
        negatives: How wrong labels are chosen.
        strength: Input value of a label; None: as `label_strength` says.
    """
    return LabelEmbedding(
        data.num_classes,
        place="overwrite" if data.is_image else "prepend",
        negatives=negatives,
        strength=strength or label_strength(data),
        flattens=not data.is_image,
    )


def label_strength(data: DataInfo) -> float:
    """Return the input value of an embedded label, in proportion to the length of samples.

    Images of several channels are standardized, so that their length is the square root of the
    number of inputs. MNIST has a length of 9, where 1 is known to do.
    """
    has_channels = data.is_image and data.input_shape[0] > 1
    return max(1.0, 0.1 * math.sqrt(data.num_inputs)) if has_channels else 1.0


def check_network(config: NetworkConfig) -> None:
    """Raise a `SettingError` where network settings do not fit each other."""
    if (config.objective == "threshold") is (config.negatives is None):
        raise SettingError(
            f"network.objective = {config.objective} and network.negatives = {config.negatives} "
            f"do not fit: a threshold needs negatives, and cross-entropy has none."
        )
    if (config.readout == "heads") is (config.objective == "threshold"):
        raise SettingError(
            f"network.readout = {config.readout} does not fit network.objective = "
            f"{config.objective}: blocks with cross-entropy have heads to read, blocks with a "
            f"threshold are read by goodness or softmax."
        )
    if config.is_backpropagation and config.objective == "threshold":
        raise SettingError(
            "network.layers_per_block = all is backpropagation, and goes with cross-entropy."
        )


def rules(config: OptimizerConfig) -> tuple[Optimizer, Optimizer]:
    """Return the update rules of the blocks, and of a head that reads several."""
    if config.name == "adam":
        return (
            Adam(lr=config.lr, weight_decay=config.weight_decay),
            Adam(lr=config.head_lr, weight_decay=config.head_weight_decay),
        )
    return (
        SGD(lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay),
        SGD(lr=config.head_lr, momentum=config.momentum, weight_decay=config.head_weight_decay),
    )
