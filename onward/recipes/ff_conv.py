"""Forward-Forward with convolutions."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from onward.recipes.convolution_config import DEFAULTS, ConvolutionConfig
from onward.recipes.recipe import recipe
from onward.settings import Count, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class FFConvConfig(ConvolutionConfig):
    """Layers of convolutions, and how they tell true labels from wrong ones."""

    layers_per_block: Count | Literal["all"] = 1
    """Layers that learn together by backpropagation, from the goodness of the last. all: one block
    that sees no label, which is ordinary backpropagation of the cross-entropy of a linear
    classifier on averages over 4 places a side, to compare with."""

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

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        found = super().without_effect()
        if self.layers_per_block == "all":
            reason = "one block learns with a linear classifier (layers_per_block)"
            names = ("negatives", "threshold", "slope", "readout")
            found |= dict.fromkeys(names, reason)
        return found


@recipe(
    source="Hinton 2022, arXiv:2212.13345, section 3.3, on maps of convolutions. That every layer "
    "sees the label, and how maps are normalized, are ours; whitening and optimizers are those of "
    "the recipe conv",
    defaults=DEFAULTS,
)
def ff_conv(config: FFConvConfig, data: Any) -> Any:
    """Forward-Forward with convolutions: a label in planes of the input, which every layer sees.

    The goodness of a sample with a label is the mean square of all maps of a block.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.objectives import CrossEntropy
    from onward.readouts import SumOfHeads
    from onward.recipes.convolutions import Maps, convolution_network, pooled_head
    from onward.recipes.labelled import labelled_network
    from onward.samplers import Plain

    if config.layers_per_block == "all":

        def objective(maps: Maps) -> CrossEntropy:
            return CrossEntropy(pooled_head(maps, data.num_classes, grid=4))

        return convolution_network(config, data, objective, Plain(), SumOfHeads("last"))
    return labelled_network(
        config,
        data,
        negatives=config.negatives,
        threshold=config.threshold,
        slope=config.slope,
        readout=config.readout,
    )


ff_conv = replace(ff_conv, name="ff-conv")
