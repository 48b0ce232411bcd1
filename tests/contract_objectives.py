"""Samplers and objectives as a user would write them, each with its network."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from contract_blocks import UNITS, dense, head_over, seeded
from contract_data import (
    CLASSES,
    FEATURES,
)
from torch import nn

import onward as ow

# Forward-Forward on convolutions


class Convolution(nn.Module):
    """Convolves images of equal length, so that no block reads the goodness of the one before."""

    def __init__(self, channels, units):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, units, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)
        )

    def forward(self, images):
        length = images.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return self.layers(images / (length + 1e-6))


class Symba(ow.Objective):
    """More goodness for the positive than for the negative of the same sample."""

    views = ("positive", "negative")
    metric_names = ("accuracy",)

    def scores(self, outputs):
        return outputs.tensor.flatten(1).square().mean(dim=1)

    def lead(self, outputs):
        return self.scores(outputs["positive"]) - self.scores(outputs["negative"])

    def loss(self, inputs, outputs, draw):
        return F.softplus(-4 * self.lead(outputs)).mean()

    def metrics(self, outputs):
        lead = self.lead(outputs)
        return {"accuracy": ((lead > 0).sum(), len(lead))}


@seeded
def convolutions_overwritten():
    """With the objective of the library, which also keeps a running mean a channel."""

    def block(channels, units):
        objective = ow.Threshold(units, threshold=0.1, slope=8.0, peer=0.03)
        return ow.Block(Convolution(channels, units), objective, ow.Adam(lr=0.01))

    sampler = ow.LabelEmbedding(CLASSES, place="overwrite")
    blocks = [block(3, 8), block(8, 12), block(12, 8)]
    return [ow.Network(blocks, sampler, ow.GoodnessSweep(), num_classes=CLASSES)]


@seeded
def convolutions_appended():
    """With an objective of one's own."""
    blocks = [
        ow.Block(Convolution(3 + CLASSES, 8), Symba(), ow.Adam(lr=0.01)),
        ow.Block(Convolution(8, 12), Symba(), ow.SGD(lr=0.1)),
    ]
    sampler = ow.LabelEmbedding(CLASSES, place="prepend", negatives="fixed")
    readout = ow.GoodnessSweep(skip_first=False)
    return [ow.Network(blocks, sampler, readout, num_classes=CLASSES)]


# Contrastive pairs


class Pairs(ow.Sampler):
    """Every sample with another one of the batch, and whether the two are of one class."""

    names = ("first", "second")

    def views(self, batch, draw, hints):
        order = torch.randperm(len(batch), generator=draw, device=batch.device)
        second = batch.take(order)
        sign = torch.where(batch.label == second.label, 1, -1)
        return {"first": batch.with_targets(sign=sign), "second": second.with_targets(sign=sign)}


class Contrast(ow.Objective):
    """Outputs point the same way for a pair of one class, and to different ones otherwise."""

    def loss(self, inputs, outputs, draw):
        first, second = outputs["first"], outputs["second"]
        sign = first.targets["sign"]
        return F.cosine_embedding_loss(first.tensor, second.tensor, sign, margin=0.2)


@seeded
def pairs():
    blocks = [
        ow.Block(dense(FEATURES), Contrast(), ow.Adam(lr=0.01)),
        ow.Block(dense(UNITS), Contrast(), ow.Adam(lr=0.01)),
        head_over(0, 1),
    ]
    return [ow.Network(blocks, Pairs(), ow.SoftmaxHead(), num_classes=CLASSES)]


# Denoising autoencoders


class Corrupted(ow.Sampler):
    """The samples as they are and with noise; after the first block both go on without it."""

    names = ("clean", "noisy")
    continues: ClassVar = {"noisy": "clean"}

    def views(self, batch, draw, hints):
        noise = torch.randn(batch.tensor.shape, generator=draw, device=batch.device)
        return {"clean": batch, "noisy": batch.replace(inputs=batch.tensor + 0.3 * noise)}


class Denoising(ow.Objective):
    """What the block was given, clean, from the output for the noisy view, parts of it lost."""

    def __init__(self, inputs, units):
        super().__init__()
        self.decoder = nn.Linear(units, inputs)

    def loss(self, inputs, outputs, draw):
        code = outputs["noisy"].tensor
        kept = torch.rand(code.shape, generator=draw, device=code.device) < 0.8
        return F.mse_loss(self.decoder(code * kept), inputs["clean"].tensor)


def denoising_blocks(objective=Denoising):
    return [
        ow.Block(dense(inputs), objective(inputs, UNITS), ow.Adam(lr=0.01))
        for inputs in (FEATURES, UNITS)
    ]


@seeded
def denoising():
    blocks = [*denoising_blocks(), head_over(0, 1)]
    return [ow.Network(blocks, Corrupted(), ow.SoftmaxHead(), num_classes=CLASSES)]


@seeded
def denoising_alone():
    return [ow.Network(denoising_blocks(), Corrupted(), None, num_classes=0)]


# Adversarial autoencoders


class Adversarial(ow.Objective):
    """A decoder that restores the input, and fools a discriminator that learns along with it."""

    def __init__(self, inputs, units):
        super().__init__()
        self.decoder = nn.Linear(units, inputs)
        self.discriminator = nn.Sequential(
            nn.Linear(inputs, UNITS), nn.LeakyReLU(), nn.Linear(UNITS, 1)
        )

    def loss(self, inputs, outputs, draw):
        real, code = inputs["input"].tensor, outputs["input"].tensor
        noise = torch.randn(code.shape, generator=draw, device=code.device)
        made = self.decoder(code + 0.1 * noise)
        # softplus(-z) is -log(sigmoid(z)).
        found = F.softplus(-self.discriminator(real)) + F.softplus(
            self.discriminator(made.detach())
        )
        missed = F.softplus(-self.discriminator(made))
        return {
            "discriminator": found.mean(),
            "generator": F.mse_loss(made, real) + 0.1 * missed.mean(),
        }

    def group(self, loss):
        groups = {
            "discriminator": ("objective.discriminator",),
            "generator": ("module", "objective.decoder"),
        }
        return groups[loss]


def adversarial_network(objective):
    blocks = [
        ow.Block(dense(inputs), objective(inputs, UNITS), ow.Adam(lr=0.01))
        for inputs in (FEATURES, UNITS)
    ]
    blocks.append(head_over(0, 1))
    return ow.Network(blocks, ow.Plain(), ow.SoftmaxHead(), num_classes=CLASSES)


@seeded
def adversarial():
    return [adversarial_network(Adversarial)]


# Two towers


class Towers(nn.Module):
    """A layer for each of two inputs, with an output for each."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = dense(left), dense(right)

    def forward(self, inputs):
        return {"left": self.left(inputs["left"]), "right": self.right(inputs["right"])}


class Agreement(ow.Objective):
    """Both outputs of a sample are more alike than those of different samples of the batch."""

    is_mean = False

    def loss(self, inputs, outputs, draw):
        sides = outputs["input"].inputs
        left, right = F.normalize(sides["left"]), F.normalize(sides["right"])
        return F.cross_entropy(5 * left @ right.T, torch.arange(len(left), device=left.device))


@seeded
def towers():
    """With a head that learns from the view of the sampler, as a block like any other."""
    blocks = [
        ow.Block(Towers(FEATURES, 8), Agreement(), ow.Adam(lr=0.01)),
        ow.Block(Towers(UNITS, UNITS), Agreement(), ow.Adam(lr=0.01)),
        # Of each block it reads two outputs.
        head_over(0, 1, width=2 * UNITS, views=("input",)),
    ]
    return [ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)]
