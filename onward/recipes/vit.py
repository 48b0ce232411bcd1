"""A vision transformer in blocks of layers."""

from dataclasses import dataclass
from typing import Any

from onward.recipes.recipe import ONE_BLOCK, recipe
from onward.recipes.transformer_config import DEFAULTS, TransformerConfig
from onward.settings import Count, OptimizerConfig, Share


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """Layers of a transformer over patches of images."""

    patch: Count = 4
    """Side of a patch, in pixels."""

    label_smoothing: Share = 0.1
    """Share of each target that all classes get alike."""


@recipe(
    source="Dosovitskiy et al. 2021, arXiv:2010.11929, with a head on the mean of tokens at each "
    "block; sizes and optimizer are ours",
    defaults=DEFAULTS
    | {"data.shift": "auto", "data.shift_fill": "reflect", "data.flip": "auto"}
    | {"training.epochs": 20},
    twin=ONE_BLOCK,
)
def vit(config: ViTConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """A transformer over patches of images; each block classifies the mean of its tokens.

    The last block predicts the class.
    """
    # Lists of recipes and the help of the command do without torch.
    from torch import nn

    from onward.errors import SettingError
    from onward.network.objectives import CrossEntropy
    from onward.recipes.blocks import rules
    from onward.recipes.transformer import Patches, TokenMean, transformer

    if len(data.input_shape) != 3:
        raise SettingError(
            f"vit is for images of shape (channels, height, width); these samples have shape "
            f"{data.input_shape}. Use one-pass, or reshape them."
        )
    channels, *size = data.input_shape
    if any(side % config.patch for side in size):
        fits = [n for n in range(1, min(size) + 1) if not any(side % n for side in size)]
        raise SettingError(
            f"Images of {size[0]} x {size[1]} pixels cannot be cut into patches of "
            f"network.patch = {config.patch} pixels a side. Set it to one of "
            f"{', '.join(map(str, fits))}, or give images of other sizes."
        )

    def objective(number: int) -> CrossEntropy:
        head = nn.Sequential(
            nn.LayerNorm(config.dim), TokenMean(), nn.Linear(config.dim, data.num_classes)
        )
        return CrossEntropy(head, label_smoothing=config.label_smoothing)

    return transformer(
        config,
        Patches(channels, size, config.patch, config.dim),
        objective,
        rules(optimizer)[0],
        num_classes=data.num_classes,
        is_causal=False,
    )
