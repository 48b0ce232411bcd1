"""TinyFoA: layers that learn from fixed random heads, for small devices."""

from dataclasses import dataclass
from typing import Any, Literal

from onward.errors import SettingError
from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Section


@dataclass(frozen=True, kw_only=True)
class TinyFoAConfig(Section):
    """Dense layers, and heads that are drawn once."""

    widths: Counts = (2000, 2000, 2000, 2000)
    """Units of each block."""

    binary: bool = True
    """Whether weights count by their sign alone and units are 0 or 1, in training as in inference;
    otherwise both are ordinary numbers."""

    heads: Literal["all", "last"] = "all"
    """Whose heads count."""


@recipe(
    source="Huang & Aminifar 2025, AAAI (TinyFoA), but for its slices of a layer that are trained "
    "in turn. Here all layers learn an epoch in each chapter; the paper trains one after the "
    "other, 100 epochs each. That units are 0 or 1 is inferred; length normalization, how products "
    "are scaled, the warm-up and the sum of all heads are ours",
    defaults={"training.epochs": 30, "training.schedule": "warmup", "optimizer.lr": 1e-4},
    is_twin_alike=False,
)
def tinyfoa(config: TinyFoAConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Each layer learns from a random head of its own, which is never trained.

    Weights and units are binary unless `network.binary` is false. Its learning rate is small, for
    many steps.
    """
    # Lists of recipes and the help of the command do without torch.
    from itertools import pairwise

    import torch
    from torch import nn

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.objectives import CrossEntropy
    from onward.network.optimizers import optimizer as torch_rule
    from onward.network.readouts import SumOfHeads
    from onward.network.samplers import Plain
    from onward.recipes.binary import BinaryDense, clamp_weights, fixed_head
    from onward.recipes.blocks import dense_layers, rules

    if config.binary and (optimizer.name != "adam" or optimizer.weight_decay):
        raise SettingError(
            f"Binary weights learn by Adam without decay; optimizer.name is {optimizer.name} and "
            f"optimizer.weight_decay is {optimizer.weight_decay}. Leave both as they are, or set "
            f"network.binary=false."
        )
    widths = (data.num_inputs, *config.widths)
    layers: list[nn.Module] = (
        [BinaryDense(*sizes) for sizes in pairwise(widths)]
        if config.binary
        else [*dense_layers(widths, gain=2**0.5)]
    )
    rule = (
        torch_rule(torch.optim.Adam, project=clamp_weights, lr=optimizer.lr, fused=True)
        if config.binary
        else rules(optimizer)[0]
    )
    blocks = [
        Block(layer, CrossEntropy(fixed_head(width, data.num_classes)), rule)
        for layer, width in zip(layers, config.widths, strict=True)
    ]
    return Network(blocks, Plain(), SumOfHeads(config.heads), num_classes=data.num_classes)
