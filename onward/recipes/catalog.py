"""Named settings: each recipe is a paper's method as a choice of parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onward.config import RunConfig


@dataclass(frozen=True)
class Recipe:
    """A method: what differs from the defaults, and where it comes from."""

    name: str
    """What to type."""

    summary: str
    """What it does, in a sentence."""

    source: str
    """Paper and section."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings by full name."""

    @property
    def config(self) -> RunConfig:
        """A run with these settings."""
        return RunConfig(recipe=self.name).with_settings(self.settings)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "one-pass",
            "Each block learns to classify with a linear head of its own; the heads vote. No "
            "negatives. The choice for a good model.",
            "Aktemur et al. 2024, arXiv:2404.08573, section 4.4 (performance-optimized PFF)",
            {
                "network.gain": 2**0.5,
                "network.dropout": 0.2,
                "training.schedule": "warmup",
            },
        ),
        Recipe(
            "hinton",
            "Supervised Forward-Forward: labels in the input, hard negatives, every mini-batch "
            "updates every block.",
            "Hinton 2022, arXiv:2212.13345, section 3.3, and his published Matlab code",
            {
                "network.widths": (2000, 2000, 2000, 2000),
                "network.objective": "threshold",
                "network.negatives": "hard",
                "network.readout": "goodness",
                "network.peer": 0.03,
                "optimizer.name": "sgd",
                "optimizer.lr": 0.01,
                "optimizer.weight_decay": 0.001,
                "optimizer.head_lr": 0.1,
                "optimizer.head_weight_decay": 0.003,
                "training.epochs": 60,
                "training.schedule": "cooldown",
                "plan.kind": "stream",
            },
        ),
        Recipe(
            "pff",
            "Pipeline Forward-Forward: blocks take turns of a chapter, negatives are the "
            "network's likeliest mistakes.",
            "Aktemur et al. 2024, arXiv:2404.08573, sections 4 and 5; threshold, slope and "
            "learning rates are ours, those printed do not train deep blocks",
            {
                "network.widths": (2000, 2000, 2000, 2000),
                "network.objective": "threshold",
                "network.negatives": "adaptive",
                "network.readout": "goodness",
                "network.slope": 20.0,
                "optimizer.lr": 1e-3,
                "optimizer.head_lr": 1e-4,
                "training.epochs": 100,
                "training.batch_size": 64,
                "training.schedule": "cooldown",
            },
        ),
        Recipe(
            "backprop",
            "The same layers in one block, trained by backpropagation: what to compare with.",
            "the usual way; the twin of one-pass",
            {
                "network.one_block": True,
                "network.gain": 2**0.5,
                "network.dropout": 0.2,
                "training.schedule": "warmup",
                "training.gradients": "autograd",
            },
        ),
    )
}
"""All recipes by name."""
