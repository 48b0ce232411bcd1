"""Settings that all recipes of transformers have."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from onward.settings import Count, Section

DEFAULTS = {
    "training.batch_size": 32,
    "training.schedule": "warmup",
    "plan.kind": "stream",
    "optimizer.weight_decay": 0.1,
}
"""What differs from the defaults of a run, for all of them."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Section):
    """Layers of a transformer, and how they are grouped into blocks."""

    layers: Count = 4
    """Layers of all blocks together."""

    layers_per_block: Count | Literal["all"] = 2
    """Layers that learn together by backpropagation, from one head at their end. all: one block,
    which is ordinary backpropagation, to compare with."""

    dim: Count = 128
    """Numbers that stand for a byte or a patch."""

    attention_heads: Count = 4
    """Attention heads of a layer; they share `dim` alike."""

    layer_sizes: ClassVar = ("layers", "dim")

    @property
    def is_backpropagation(self) -> bool:
        """Whether all layers learn together."""
        return self.layers_per_block == "all" or self.layers_per_block >= self.layers
