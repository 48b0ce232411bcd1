"""Supervised contrast, layer by layer."""

from dataclasses import dataclass
from typing import Any

from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Positive, Section, Share


@dataclass(frozen=True, kw_only=True)
class SupConConfig(Section):
    """Dense layers that learn which samples are of a class, and the head that predicts it."""

    widths: Counts = (2000, 2000, 2000, 2000)
    """Units of each block."""

    temperature: Positive = 0.1
    """What cosines are divided by."""

    dropout: Share = 0.0
    """Share of each block's inputs that is dropped in training."""

    skip_first: bool = False
    """Whether the head leaves the first block out, if there are others."""


@recipe(
    source="Khosla et al. 2020, arXiv:2004.11362 (SupCon), of each layer by itself as in local "
    "contrastive Forward-Forward (Aghagolzadeh & Ezoji 2025, arXiv:2502.00571); one view of each "
    "sample, where both papers have two augmented ones. Unlike the second, it has no margin "
    "that depends on depth and no transformer, and the head learns along with the layers",
    defaults={"training.epochs": 20, "training.schedule": "warmup", "plan.kind": "stream"},
)
def supcon(config: SupConConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Each layer brings samples of a class together, others apart; a head predicts the class.

    The loss compares the samples of a mini-batch with each other, so mini-batches are not cut into
    slices.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.readouts import SoftmaxHead
    from onward.network.samplers import Plain
    from onward.recipes.blocks import dense_layers, rules, softmax_head
    from onward.recipes.contrasts import SupervisedContrast

    layers = dense_layers((data.num_inputs, *config.widths), dropout=config.dropout, gain=2**0.5)
    rule, head_rule = rules(optimizer)
    blocks = [Block(layer, SupervisedContrast(config.temperature), rule) for layer in layers]
    head = softmax_head(config.widths, data.num_classes, head_rule, skip_first=config.skip_first)
    return Network([*blocks, head], Plain(), SoftmaxHead(), num_classes=data.num_classes)
