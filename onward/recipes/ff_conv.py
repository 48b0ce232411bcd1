"""Forward-Forward with convolutions."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onward.recipes.convolution_config import DEFAULTS, ConvolutionConfig
from onward.recipes.recipe import ONE_BLOCK, recipe
from onward.settings import NotNegative, OptimizerConfig, Positive


@dataclass(frozen=True, kw_only=True)
class FFConvConfig(ConvolutionConfig):
    """Layers of convolutions, and how they tell true labels from wrong ones."""

    negatives: Literal["random", "hard"] = "random"
    """How the wrong label of a negative is chosen: any, or in proportion to what a softmax head
    finds likely."""

    threshold: NotNegative = 1.0
    """Mean square of the activities at which a sample is a coin toss."""

    slope: Positive | None = None
    """Steepness of the threshold, per mean square. None: the channels of the block."""

    readout: Literal["goodness", "softmax"] = "goodness"
    """How classes are read off: by the goodness of each label, without that of the first block; or
    by one softmax head on the neutral label."""

    local: ClassVar = ("negatives", "threshold", "slope", "readout")


@recipe(
    name="ff-conv",
    source="Hinton 2022, arXiv:2212.13345, section 3.3, on maps of convolutions. That every layer "
    "sees the label, and how maps are normalized, are ours; whitening and optimizers are those of "
    "the recipe conv",
    defaults=DEFAULTS,
    twin=ONE_BLOCK,
)
def ff_conv(config: FFConvConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Forward-Forward with convolutions: a label in planes of the input, which every layer sees.

    The goodness of a sample with a label is the mean square of all maps of a block.
    """
    # Lists of recipes and the help of the command do without torch.
    from itertools import pairwise

    from torch import nn

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.objectives import CrossEntropy
    from onward.network.readouts import GoodnessSweep, Readout, SoftmaxHead
    from onward.network.samplers import NEUTRAL, LabelEmbedding
    from onward.recipes.blocks import rules
    from onward.recipes.convolutions import (
        backpropagation,
        in_blocks,
        maps_of,
        rules_of,
        whitening_of,
    )
    from onward.recipes.labelled import LabelledLayer, LabelledLayers, MapsHead, MapThreshold

    if config.is_backpropagation:
        return backpropagation(config, data, optimizer)
    classes, maps = data.num_classes, maps_of(config, data)
    layers = [
        LabelledLayer(before, after, classes, is_pooled=before.size != after.size)
        for before, after in pairwise(maps)
    ]
    outputs = [own[-1] for own in in_blocks(config, maps[1:])]
    blocks = []
    for own, out in zip(in_blocks(config, layers), outputs, strict=True):
        slope = config.slope or float(out.channels)
        objective = MapThreshold(classes, out, threshold=config.threshold, slope=slope)
        blocks.append(Block(LabelledLayers(own, classes), objective, rules_of(config, optimizer)))
    readouts: dict[str, Readout] = {"goodness": GoodnessSweep()}
    if config.negatives == "hard" or config.readout == "softmax":
        head = MapsHead(outputs, classes)
        goal = CrossEntropy(nn.Identity(), views=(NEUTRAL,))
        _, head_rule = rules(optimizer)
        blocks.append(Block(head, goal, head_rule, reads=tuple(range(len(outputs)))))
        readouts["softmax"] = SoftmaxHead()
    return Network(
        blocks,
        LabelEmbedding(classes, place="prepend", negatives=config.negatives),
        readouts[config.readout],
        num_classes=classes,
        readouts=readouts,
        preprocessing=whitening_of(config, data),
    )
