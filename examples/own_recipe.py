"""Three methods of one's own, each a recipe: a file like this is all that a method needs.

    onward train examples/own_recipe.py:conv --data digits
    onward train examples/own_recipe.py:pairs --data digits --processes 2
    onward train examples/own_recipe.py:staged --data digits --processes 2

`conv` trains blocks of convolutions, each with a head of its own. `pairs` trains blocks to tell
samples of one class from others, in pairs, and a head on top. `staged` trains layers three times:
in pairs, each by itself and then all together, and at last to name classes.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

import onward as ow


@dataclass(frozen=True, kw_only=True)
class ConvSettings:
    """Settings of `conv`."""

    channels: tuple[int, ...] = (32, 64, 64)
    """Channels of each block."""

    lr: float = 2e-3
    """Learning rate."""


@ow.recipe(
    source="Nokland and Eidnes 2019, arXiv:1901.06656, the loss 'pred' of each layer",
    defaults={"training.epochs": 8, "training.batch_size": 50, "training.schedule": "cosine"},
)
def conv(settings: ConvSettings, data: ow.DataInfo) -> ow.Network:
    """Blocks of convolutions, each with a linear head of its own; the heads vote."""

    def block(inputs: int, outputs: int) -> ow.Block:
        layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * outputs, data.num_classes)
        )
        return ow.Block(
            layers, ow.CrossEntropy(head), ow.optimizer(torch.optim.AdamW, lr=settings.lr)
        )

    blocks = [block(*sizes) for sizes in pairwise((data.input_shape[0], *settings.channels))]
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=data.num_classes)


@dataclass(frozen=True, kw_only=True)
class PairsSettings:
    """Settings of `pairs`."""

    widths: tuple[int, ...] = (128, 128)
    """Units of each block."""

    margin: float = 0.5
    """Cosine below which pairs of different classes are left alone."""

    lr: float = 1e-3
    """Learning rate."""


class Pairs(ow.Sampler):
    """A batch, and the same samples in another order; the target says whether classes agree."""

    names = ("first", "second")

    def views(
        self, batch: ow.Batch, draw: torch.Generator, hints: torch.Tensor | None
    ) -> dict[str, ow.Batch]:
        other = batch.take(torch.randperm(len(batch), generator=draw))
        agree = (batch.label == other.label).float()
        return {"first": batch.with_targets(agree=agree), "second": other}


class Contrast(ow.Objective):
    """Lets the two samples of a pair point one way if their classes agree, and else apart."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def loss(self, inputs: ow.Views, outputs: ow.Views, draw: torch.Generator) -> torch.Tensor:
        first, second = (outputs[name].tensor for name in ("first", "second"))
        cosine = nn.functional.cosine_similarity(first, second)
        agree = inputs["first"].targets["agree"]
        return (agree * (1 - cosine) + (1 - agree) * (cosine - self.margin).relu()).mean()


@ow.recipe(
    source="contrastive pairs, as in Ahamed et al. 2023 (FFCL), local stage",
    defaults={"training.epochs": 10, "training.batch_size": 50},
)
def pairs(settings: PairsSettings, data: ow.DataInfo) -> ow.Network:
    """Blocks learn from pairs whether classes agree; a head reads them all."""
    adam = ow.optimizer(torch.optim.AdamW, lr=settings.lr)

    def block(inputs: int, outputs: int) -> ow.Block:
        layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.Tanh())
        return ow.Block(layers, Contrast(settings.margin), adam)

    blocks = [block(*sizes) for sizes in pairwise((data.num_inputs, *settings.widths))]
    head = ow.Block(
        ow.ReadoutLayer(settings.widths, data.num_classes),
        ow.CrossEntropy(nn.Identity(), views=("neutral",)),
        adam,
        reads=tuple(range(len(blocks))),
    )
    return ow.Network([*blocks, head], Pairs(), ow.SoftmaxHead(), num_classes=data.num_classes)


@dataclass(frozen=True, kw_only=True)
class StagedSettings(PairsSettings):
    """Settings of `staged`."""

    class_epochs: int = 5
    """Epochs of the last stage."""


@ow.recipe(
    source="Ahamed et al. 2023 (FFCL), all three stages, with dense layers",
    defaults={"training.epochs": 5, "training.batch_size": 50},
)
def staged(
    settings: StagedSettings, data: ow.DataInfo, training: ow.TrainingConfig, plan: ow.PlanConfig
) -> list[ow.Stage]:
    """Layers learn from pairs, each by itself and then all together; then they learn classes."""
    sizes = pairwise((data.num_inputs, *settings.widths))
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(*size), nn.Tanh()) for size in sizes]

    def block(module: nn.Module, objective: ow.Objective) -> ow.Block:
        return ow.Block(module, objective, ow.optimizer(torch.optim.AdamW, lr=settings.lr))

    each = [block(layer, Contrast(settings.margin)) for layer in layers]
    whole = nn.Sequential(*layers)
    head = ow.CrossEntropy(nn.Linear(settings.widths[-1], data.num_classes))
    networks = [
        ow.Network(each, Pairs(), None, num_classes=0),
        ow.Network([block(whole, Contrast(settings.margin))], Pairs(), None, num_classes=0),
        ow.Network([block(whole, head)], ow.Plain(), ow.SumOfHeads(), num_classes=data.num_classes),
    ]
    last = replace(training, epochs=settings.class_epochs)
    return [
        ow.Stage(network=network, training=own, plan=plan)
        for network, own in zip(networks, (training, training, last), strict=True)
    ]
