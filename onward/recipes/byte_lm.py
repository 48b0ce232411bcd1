"""A model of the next byte in blocks of transformer layers."""

from dataclasses import dataclass
from typing import Any

from onward.recipes.recipe import ONE_BLOCK, recipe
from onward.recipes.transformer_config import DEFAULTS, TransformerConfig
from onward.settings import Count, OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class ByteLMConfig(TransformerConfig):
    """Layers of a transformer over bytes, and what each block predicts."""

    multi_token: bool = False
    """Whether the first of several blocks also learns to predict the byte after the next."""

    head_rank: Count | None = None
    """Rank of the matrix of each block's head. None: full."""

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        if not self.is_backpropagation:
            return {}
        return {"multi_token": "one block learns from the next byte alone (layers_per_block)"}


@recipe(
    name="byte-lm",
    source="arXiv:2610.04867 (blocks of several layers, cross-entropy at each, two targets at the "
    "first: network.multi_token); layers normalized first, as in GPT-2, with rotary positions; "
    "sizes, first weights and optimizer are ours",
    defaults=DEFAULTS | {"optimizer.lr": 3e-3},
    twin=ONE_BLOCK,
)
def byte_lm(config: ByteLMConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """A transformer over bytes; each block predicts the next byte with a head of its own.

    The last block is read; `onward sample` may stop at an earlier one that is sure.
    """
    # Lists of recipes and the help of the command do without torch.
    from onward.data.text import BYTES
    from onward.errors import SettingError
    from onward.recipes.blocks import rules
    from onward.recipes.transformer import Embedded, NextByte, transformer

    if len(data.input_shape) != 1 or data.num_classes != BYTES:
        raise SettingError(
            f"byte-lm is for text: windows of bytes, of which one of {BYTES} follows. These "
            f"samples have shape {data.input_shape} and {data.num_classes} classes. Give "
            f"--data a path that ends in .txt."
        )
    if config.head_rank is not None and config.head_rank > config.dim:
        raise SettingError(
            f"network.head_rank = {config.head_rank} is more than network.dim = {config.dim}, the "
            f"full rank of a head. Set it lower, or leave it out."
        )

    def objective(number: int) -> NextByte:
        is_multi_token = config.multi_token and number == 0 and not config.is_backpropagation
        return NextByte(config.dim, rank=config.head_rank, is_multi_token=is_multi_token)

    rule, _ = rules(optimizer)
    return transformer(
        config, Embedded(config.dim), objective, rule, num_classes=BYTES, is_causal=True
    )
