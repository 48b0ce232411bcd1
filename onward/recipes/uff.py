"""Unsupervised Forward-Forward: a chain of autoencoders, and a classifier on their latents."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from onward.errors import SettingError
from onward.recipes.recipe import recipe
from onward.settings import (
    Count,
    Counts,
    NotNegative,
    OptimizerConfig,
    PlanConfig,
    Section,
    Share,
    TrainingConfig,
    Whole,
)


@dataclass(frozen=True, kw_only=True)
class UFFConfig(Section):
    """Cells that learn without labels, and the classifier on their latents."""

    cell: Literal["autoencoder", "denoising", "convolutional", "gan"] = "autoencoder"
    """What a cell is: an autoencoder of one dense layer; one that sees part of its input; one of
    one convolution; or a dense one whose reconstructions a discriminator is not to tell from true
    inputs."""

    widths: Counts = (1000, 1000, 1000)
    """Units of each dense cell."""

    channels: Counts = (32, 64, 128)
    """Filters of each convolutional cell, which halves each axis."""

    dropped: Share = 0.3
    """Share of its inputs that a denoising cell does not see in training."""

    adversarial: NotNegative = 0.01
    """How much fooling the discriminator counts beside the squared error."""

    head_units: Whole = 500
    """Hidden units of the classifier; 0: it is linear."""

    head_epochs: Count | None = None
    """Epochs of the classifier, which is trained after the cells. None: training.epochs."""

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        reason = f"cells are of the kind {self.cell} (network.cell)"
        names = ["widths" if self.cell == "convolutional" else "channels"]
        names += [] if self.cell == "denoising" else ["dropped"]
        names += [] if self.cell == "gan" else ["adversarial"]
        return dict.fromkeys(names, reason)


@recipe(
    source="Hwang, Seo & Jung 2024, arXiv:2404.14664 (UFF), later Applied Sciences 15(15), 8207 "
    "(local back-propagation). We did not have access to the paper's full text: sizes, "
    "learning rate, what a block (the paper calls it a cell) reconstructs and how its adversary "
    "learns are inferred",
    defaults={
        "training.epochs": 20,
        "training.schedule": "warmup",
        "optimizer.weight_decay": 0.01,
        "optimizer.head_weight_decay": 0.01,
    },
    is_twin_alike=False,
)
def uff(
    config: UFFConfig,
    data: Any,
    training: TrainingConfig,
    plan: PlanConfig,
    *,
    optimizer: OptimizerConfig,
) -> Any:
    """Each block is an autoencoder that learns without labels; then a classifier reads all latents.

    The cells learn from all training samples, and see no label. The second stage trains the
    classifier alone, from samples with labels; early stopping applies to it only. Decoders and
    discriminators are trained beside the encoders, and are not part of the model.
    """
    # Lists of recipes and the help of the command do without torch.
    from torch import nn

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.objectives import CrossEntropy
    from onward.network.readouts import SoftmaxHead
    from onward.network.samplers import NEUTRAL, Plain
    from onward.network.stages import Stage
    from onward.recipes.blocks import rules
    from onward.recipes.cells import (
        AdversarialReconstruction,
        Latents,
        Reconstruction,
        convolutional_decoder,
        convolutional_encoder,
        dense_decoder,
        dense_encoder,
    )
    from onward.recipes.convolutions import Maps

    if config.cell != "convolutional" and 1 in (math.prod(data.input_shape), *config.widths):
        raise SettingError(
            f"Dense cells normalize what they read, of which one number alone becomes 0: samples "
            f"and cells have two or more. These samples have shape {tuple(data.input_shape)}, and "
            f"network.widths is {list(config.widths)}."
        )
    if config.cell == "denoising" and config.dropped and plan.kind == "stream":
        raise SettingError(
            "A stream plan hands on outputs made in training, when a denoising cell drops part of "
            "its input. Use --plan chapters, or another network.cell."
        )
    rule, head_rule = rules(optimizer)
    shape, blocks, features = tuple(data.input_shape), [], 0
    if config.cell == "convolutional":
        _check_size(config.channels, shape)
        for channels in config.channels:
            before = Maps(shape[0], shape[1:])
            objective = Reconstruction(convolutional_decoder(before, channels))
            blocks.append(Block(convolutional_encoder(before, channels), objective, rule))
            shape = (channels, *(places // 2 for places in before.size))
            features += math.prod(shape)
    else:
        for units in config.widths:
            inputs, decoder = math.prod(shape), dense_decoder(shape, units)
            objective = Reconstruction(decoder)
            if config.cell == "gan":
                hidden = nn.Linear(inputs, units)
                judge = nn.Sequential(nn.Flatten(), hidden, nn.LeakyReLU(0.2), nn.Linear(units, 1))
                objective = AdversarialReconstruction(decoder, judge, weight=config.adversarial)
            dropped = config.dropped if config.cell == "denoising" else 0.0
            blocks.append(Block(dense_encoder(inputs, units, dropped), objective, rule))
            shape = (units,)
            features += units
    layers: list[nn.Module] = [nn.Linear(config.head_units or features, data.num_classes)]
    if config.head_units:
        layers = [nn.Linear(features, config.head_units), nn.ReLU(), *layers]
    head = Block(
        nn.Sequential(Latents(), *layers),
        CrossEntropy(nn.Identity(), views=(NEUTRAL,)),
        head_rule,
        reads=tuple(range(len(blocks))),
    )
    frozen = [Block(cell.module, cell.objective, None) for cell in blocks]
    named = Network([*frozen, head], Plain(), SoftmaxHead(), num_classes=data.num_classes)
    cells = Network(blocks, Plain(), None, num_classes=0)
    return [
        Stage(network=cells, training=training, plan=plan, sees_labels=False),
        Stage(network=named, training=training, plan=plan).lasting(config.head_epochs),
    ]


def _check_size(channels: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse samples that cannot be halved as often as there are convolutional cells."""
    axes = shape[1:]
    if len(axes) not in (1, 2, 3) or min(axes) < 2 ** len(channels):
        raise SettingError(
            f"{len(channels)} convolutional cells halve each axis as often, and need images or "
            f"signals of {2 ** len(channels)} pixels a side or more; these samples have shape "
            f"{shape}, channels first. Use fewer network.channels, or network.cell=autoencoder."
        )
    latents = [
        filters * math.prod(axis >> halvings for axis in axes)
        for halvings, filters in enumerate(channels, 1)
    ]
    if 1 in latents:
        raise SettingError(
            f"Cells normalize their inputs, and a single number would become 0: cell "
            f"{latents.index(1)} puts out one number a sample. Raise network.channels."
        )
