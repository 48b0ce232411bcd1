"""Unsupervised Forward-Forward: images against hybrids of two of them."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from onward.errors import SettingError
from onward.recipes.hinton import hinton
from onward.recipes.recipe import recipe
from onward.settings import (
    Count,
    Counts,
    NotNegative,
    OptimizerConfig,
    PlanConfig,
    Positive,
    Section,
    Share,
    TrainingConfig,
    Whole,
)


@dataclass(frozen=True, kw_only=True)
class HintonUnsupervisedConfig(Section):
    """Blocks that learn without labels, and the head that learns classes from them."""

    layers: Literal["dense", "local-fields"] = "dense"
    """Dense layers; or three of units that each see a part of the image, with weights of their
    own."""

    widths: Counts = (2000, 2000, 2000, 2000)
    """Units of each dense layer."""

    fields: Counts = (128, 220, 512)
    """Units at each position, of layers of local fields. The first has a grid of 4 x 4 positions,
    and each of the others sees squares of 2 x 2 positions of the one before."""

    smoothing: Whole = 6
    """How often the mask of a hybrid is blurred. The paper says "repeatedly"."""

    threshold: NotNegative = 1.0
    """Mean square of the activities at which a sample is a coin toss between image and hybrid."""

    slope: Positive | None = None
    """Steepness of the threshold, per mean square. None: the number of units, as
    Hinton's code has it."""

    peer: NotNegative = 0.03
    """Strength of peer normalization; 0 turns it off."""

    dropout: Share = 0.0
    """Share of each dense layer's inputs that is dropped in training."""

    skip_first: bool = True
    """Whether the head leaves the first block out, if there are others."""

    head_epochs: Count | None = None
    """Epochs of the head, which is trained after the blocks. None: training.epochs."""

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        if self.layers == "dense":
            return {"fields": "layers are dense (network.layers)"}
        reason = "layers are local fields (network.layers)"
        return dict.fromkeys(("widths", "dropout"), reason)


@recipe(
    name="hinton-unsupervised",
    source="Hinton 2022, arXiv:2212.13345, section 3.2; optimizer and peer normalization are those "
    "of his published Matlab code for section 3.3. The paper names peer normalization for local "
    "fields alone, and trains dense layers for 100 epochs",
    defaults={n: value for n, value in hinton.defaults.items() if not n.startswith("network.")},
)
def hinton_unsupervised(
    config: HintonUnsupervisedConfig,
    data: Any,
    *,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    plan: PlanConfig,
) -> Any:
    """Blocks tell images from hybrids of two, without labels; then a softmax classifier learns.

    The blocks learn from all training samples, and see no label. The second stage trains the
    softmax alone, from samples with labels: it reads the normalized activities of all blocks but
    the first. Early stopping applies to the second stage only.
    """
    # Lists of recipes and the help of the command do without torch.
    from torch import nn

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.objectives import Threshold
    from onward.network.readouts import SoftmaxHead
    from onward.network.samplers import Plain
    from onward.network.stages import Stage
    from onward.recipes.blocks import dense_layers, rules, softmax_head
    from onward.recipes.hybrids import Hybrids
    from onward.recipes.local_fields import LocalFields, LocalLinear

    if len(data.input_shape) < 2:
        raise SettingError(
            f"Hybrids are of images or signals, whose neighbours belong together; these samples "
            f"have shape {data.input_shape}. Use hinton or one-pass."
        )
    layers: list[nn.Module]
    if config.layers == "dense":
        widths = config.widths
        layers = [*dense_layers((data.num_inputs, *widths), dropout=config.dropout)]
    else:
        local = [
            LocalLinear(channels, side, field=field, stride=stride, units=units)
            for channels, side, field, stride, units in _geometry(config.fields, data.input_shape)
        ]
        widths = tuple(linear.bias.numel() for linear in local)
        layers = [LocalFields(linear) for linear in local]
    rule, head_rule = rules(optimizer)
    blocks = []
    for layer, width in zip(layers, widths, strict=True):
        slope = config.slope or float(width)
        objective = Threshold(width, threshold=config.threshold, slope=slope, peer=config.peer)
        blocks.append(Block(layer, objective, rule))
    head = softmax_head(widths, data.num_classes, head_rule, skip_first=config.skip_first)
    frozen = [Block(block.module, block.objective, None) for block in blocks]
    named = Network([*frozen, head], Plain(), SoftmaxHead(), num_classes=data.num_classes)
    unnamed = Network(blocks, Hybrids(config.smoothing), None, num_classes=0)
    return [
        Stage(network=unnamed, training=training, plan=plan, sees_labels=False),
        Stage(network=named, training=training, plan=plan).lasting(config.head_epochs),
    ]


def _geometry(
    fields: tuple[int, ...], input_shape: tuple[int, ...]
) -> list[tuple[int, int, int, int, int]]:
    """Return channels, side, side of a field, stride and units of each layer.

    For images of 28 pixels a side these are the paper's: fields of 10 pixels, 6 apart, then grids
    of 4, 3 and 2 positions a side.
    """
    channels, *sides = input_shape
    if len(sides) != 2 or sides[0] != sides[1] or sides[0] < 4 or not 1 <= len(fields) <= 4:
        raise SettingError(
            f"Local fields are one to four layers (network.fields, which lists {len(fields)}) on "
            f"square images of 4 pixels a side or more; these samples have shape {input_shape}, "
            f"channels first. Use --set network.layers=dense."
        )
    (side, _) = sides
    stride = max(1, min(round(side * 6 / 28), (side - 1) // 3))
    found = [(channels, side, side - 3 * stride, stride, fields[0])]
    for place, (before, units) in enumerate(pairwise(fields)):
        found.append((before, 4 - place, 2, 1, units))
    return found
