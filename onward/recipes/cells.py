"""Cells: an encoder that is handed on, and what is trained beside it to rebuild its input."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.network.objectives import Metrics, Objective
from onward.network.samplers import Views
from onward.recipes.convolutions import POOLS, Maps, convolution


class Encoder(nn.Module):
    """Normalizes a sample, drops some of it if asked to, and encodes the rest.

    Args:
        layers: What encodes.
        dropped: Share of the inputs set to zero in training.
    """

    def __init__(self, layers: nn.Module, dropped: float = 0.0) -> None:
        super().__init__()
        self.corrupt = nn.Dropout(dropped)
        self.layers = layers

    def forward(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples ..."]:
        # Dropout scales what it keeps, and a corrupted input is to be like one that is not.
        kept = self.corrupt(normalized(x)) * (1 - self.corrupt.p if self.training else 1)
        latent: Tensor = self.layers(kept)
        return latent


def normalized(x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples ..."]:
    """Return samples with a mean of 0 and a variance of 1 each."""
    return F.layer_norm(x, x.shape[1:])


def dense_encoder(inputs: int, units: int, dropped: float = 0.0) -> Encoder:
    """Return a dense ReLU layer that encodes."""
    return Encoder(nn.Sequential(nn.Flatten(), nn.Linear(inputs, units), nn.ReLU()), dropped)


def dense_decoder(shape: tuple[int, ...], units: int) -> nn.Module:
    """Return a linear map from units back to inputs."""
    return nn.Sequential(nn.Linear(units, math.prod(shape)), nn.Unflatten(1, shape))


def convolutional_encoder(before: Maps, channels: int) -> Encoder:
    """Return a convolution with a kernel of size 3, ReLU, and pooling to half the size."""
    filters = convolution(before, channels, bias=True)
    return Encoder(nn.Sequential(filters, nn.ReLU(), POOLS[len(before.size) - 1](2)))


def convolutional_decoder(before: Maps, channels: int) -> nn.Module:
    """Return a convolution of maps that were first brought back to their size."""
    filters = convolution(Maps(channels, before.size), before.channels, bias=True)
    return nn.Sequential(nn.Upsample(size=before.size), filters)


class Reconstruction(Objective):
    """The input, normalized, is to be rebuilt from the latent; mean squared error.

    Args:
        decoder: Rebuilds it. Trained along, and not part of the model.

    Source:
        Hwang, Seo & Jung 2024, arXiv:2404.14664. That a cell rebuilds its own input, and not that
        of the network, is inferred.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def rebuilt(self, inputs: Views, outputs: Views) -> tuple[Tensor, Tensor]:
        """Return inputs of the block, normalized, and what is made of its outputs."""
        (view,), (latent,) = inputs.values(), outputs.values()
        made = self.decoder(latent.counted.tensor).float()
        return normalized(view.counted.tensor.float()).view_as(made), made

    def loss(
        self, inputs: Views, outputs: Views, draw: torch.Generator
    ) -> Tensor | dict[str, Tensor]:
        true, made = self.rebuilt(inputs, outputs)
        return F.mse_loss(made, true)


class AdversarialReconstruction(Reconstruction):
    """A reconstruction that a discriminator is not to tell from true inputs.

    Args:
        decoder: Rebuilds the input.
        discriminator: Says how likely an input is a true one, as a logit.
        weight: How much fooling the discriminator counts beside the squared error.

    Source:
        Hwang, Seo & Jung 2024, arXiv:2404.14664 (GAN-FF); the losses, those of Goodfellow et al.
        2014, arXiv:1406.2661, in the form that does not saturate, and the weight are inferred.
    """

    metric_names = ("error",)

    def __init__(self, decoder: nn.Module, discriminator: nn.Module, *, weight: float) -> None:
        super().__init__(decoder)
        self.discriminator = discriminator
        self.weight = weight
        self._error = torch.zeros(())
        """Mean squared error of the last loss."""

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> dict[str, Tensor]:
        true, made = self.rebuilt(inputs, outputs)
        error = F.mse_loss(made, true)
        self._error = error.detach()
        # softplus(-z) is -log sigmoid(z): what is true is to have a high logit, what is made a low
        # one; and those that make it want the opposite. Under autocast logits are bf16.
        of_true, of_made = (self.discriminator(x).float() for x in (true, made.detach()))
        told = F.softplus(-of_true) + F.softplus(of_made)
        fooled = F.softplus(-self.discriminator(made).float())
        return {"discriminator": told.mean(), "generator": error + self.weight * fooled.mean()}

    def metrics(self, outputs: Views) -> Metrics:
        """Return the squared error, of a variance of 1."""
        (latent,) = outputs.values()
        samples = len(latent.counted)
        return {"error": (self._error * samples, samples)}

    def group(self, loss: str) -> tuple[str, ...]:
        return {
            "discriminator": ("objective.discriminator",),
            "generator": ("module", "objective.decoder"),
        }[loss]


class Latents(nn.Module):
    """The latents of all cells, each normalized, side by side."""

    def forward(self, several: Tensor | dict[str, Tensor]) -> Float[Tensor, "samples features"]:
        each = [several] if isinstance(several, Tensor) else list(several.values())
        return torch.cat([normalized(latent.flatten(1)) for latent in each], dim=1)
