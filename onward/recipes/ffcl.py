"""Forward-Forward contrastive learning: three stages over the same layers."""

from dataclasses import dataclass
from typing import Any

from onward.errors import SettingError
from onward.recipes.recipe import recipe
from onward.settings import (
    Counts,
    OptimizerConfig,
    PlanConfig,
    Section,
    Share,
    TrainingConfig,
    Whole,
)


@dataclass(frozen=True, kw_only=True)
class FFCLConfig(Section):
    """A residual network, and how long each stage trains it."""

    channels: Counts = (16, 32, 64)
    """Channels of each pair of layers, whose second adds what went into the first. All pairs but
    the first halve both axes."""

    margin: Share = 0.0
    """Cosine below which pairs of different classes are left alone."""

    local_epochs: Whole | None = None
    """Epochs of the first stage, in which each layer learns by itself. None: training.epochs."""

    global_epochs: Whole | None = None
    """Epochs of the second stage, in which all layers learn together from pairs: backpropagation.
    None: training.epochs."""

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        is_alone = self.local_epochs == self.global_epochs == 0
        reason = "no stage learns from pairs (network.local_epochs, network.global_epochs)"
        return {"margin": reason} if is_alone else {}


@recipe(
    source="Ahamed, Chen & Imran 2023, arXiv:2305.02927; stages and pairs as in the authors' "
    "published notebook. Its first stage leaves residual connections out, and trains convolutions "
    "and batch normalizations one by one; here they stay, and a convolution, its normalization and "
    "ReLU are one block. Network, cross-entropy in the last stage (the authors': focal loss), "
    "AdamW at 0.001 (Adam at 0.0001), mini-batches of 50 (10) and epochs are ours. Layers start "
    "from random weights (the authors': trained on ImageNet); no weights are chosen by validation",
    defaults={
        "training.epochs": 5,
        "training.schedule": "cosine",
        "training.batch_size": 50,
        "optimizer.weight_decay": 1e-5,
    },
)
def ffcl(
    config: FFCLConfig,
    data: Any,
    training: TrainingConfig,
    plan: PlanConfig,
    *,
    optimizer: OptimizerConfig,
) -> Any:
    """Layers learn from pairs, each by itself; then all together; then all learn classes.

    The first stage is local. The second and the third are backpropagation through the whole
    network. Stages of 0 epochs are left out: with both, what remains is the twin to compare with.
    Early stopping applies to the third stage only.
    """
    # Lists of recipes and the help of the command do without torch.
    from torch import nn

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.objectives import CrossEntropy
    from onward.network.readouts import SumOfHeads
    from onward.network.samplers import Plain
    from onward.network.stages import Stage
    from onward.recipes.blocks import rules
    from onward.recipes.contrasts import PairContrast, Pairs
    from onward.recipes.residual import Whole, residual_layers

    if len(data.input_shape) != 3:
        raise SettingError(
            f"ffcl is for images; these samples have shape {data.input_shape}, channels first."
        )
    layers = residual_layers(data.input_shape[0], config.channels)
    rule, _ = rules(optimizer)
    contrast, whole = PairContrast(config.margin), Whole(layers)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Sequential(*pool, nn.Linear(config.channels[-1], data.num_classes))
    local = [
        Block(layer.module, PairContrast(config.margin), rule, reads=layer.reads)
        for layer in layers
    ]
    stages = [
        (config.local_epochs, Network(local, Pairs(), None, num_classes=0)),
        (
            config.global_epochs,
            Network([Block(whole, contrast, rule)], Pairs(), None, num_classes=0),
        ),
    ]
    named = Network(
        [Block(whole, CrossEntropy(head), rule)],
        Plain(),
        SumOfHeads(),
        num_classes=data.num_classes,
    )
    return [
        *(
            Stage(network=network, training=training, plan=plan).lasting(epochs)
            for epochs, network in stages
            if epochs != 0
        ),
        Stage(network=named, training=training, plan=plan),
    ]
