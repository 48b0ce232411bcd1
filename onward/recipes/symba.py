"""Forward-Forward without a threshold."""

from dataclasses import dataclass
from typing import Any, Literal

from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Positive, Section, Share


@dataclass(frozen=True, kw_only=True)
class SymbaConfig(Section):
    """Dense layers that learn from a positive and a negative of each sample."""

    widths: Counts = (2000, 2000, 2000, 2000)
    """Units of each block."""

    negatives: Literal["fixed", "random"] = "random"
    """How the wrong label of a negative is chosen: once for the run, or anew each time."""

    slope: Positive = 40.0
    """Steepness of the loss, per mean square. The paper has 4, with which wide blocks learn far
    more slowly."""

    readout: Literal["goodness", "softmax"] = "goodness"
    """How classes are read off: by the goodness of each label, or by a softmax head on the neutral
    label."""

    skip_first: bool = True
    """Whether the first block is left out of that (if there are others)."""

    label_strength: Positive | None = None
    """Input value of an embedded label. None: 1; for images of several channels a tenth of the
    square root of the number of inputs."""

    dropout: Share = 0.0
    """Share of each block's inputs that is dropped in training."""


@recipe(
    source="Lee & Song 2023, arXiv:2303.08418 (SymBa). The label in the input, not in a plane of "
    "its own, and the slope are ours",
    defaults={
        "training.epochs": 30,
        "training.schedule": "cooldown",
        "plan.kind": "stream",
    },
)
def symba(config: SymbaConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Forward-Forward with no threshold: a positive is to have more goodness than its negative."""
    # Lists of recipes and the help of the command do without torch.
    import math

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.readouts import GoodnessSweep, Readout, SoftmaxHead
    from onward.recipes.blocks import dense_layers, label_sampler, rules, softmax_head
    from onward.recipes.contrasts import Symba

    sampler = label_sampler(data, config.negatives, config.label_strength)
    inputs = math.prod(sampler.view_shape(data.input_shape))
    layers = dense_layers((inputs, *config.widths), dropout=config.dropout)
    rule, head_rule = rules(optimizer)
    blocks = [Block(layer, Symba(config.slope), rule) for layer in layers]
    readout: Readout = GoodnessSweep(config.skip_first)
    if config.readout == "softmax":
        readout, skips = SoftmaxHead(), config.skip_first
        blocks.append(softmax_head(config.widths, data.num_classes, head_rule, skip_first=skips))
    return Network(blocks, sampler, readout, num_classes=data.num_classes)
