"""Prediction and similarity matching, as one objective."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.network.objectives import CrossEntropy
from onward.network.samplers import Views


class PredictionAndSimilarity(CrossEntropy):
    """Cross-entropy of a head, and samples as alike as their classes are.

    A layer that is for the training alone makes other maps, or units, of those of the block. The
    standard deviations of maps, or units themselves, are the features of a sample, and how alike
    samples are is the cosine of their features. The loss is the squared difference from how alike
    their classes are, a mean over all pairs of a mini-batch.

    Args:
        head: Maps activities to class scores.
        compared: Makes the maps, or units, that are compared: a layer without bias.
        similarity: Share of this in the loss; the rest is cross-entropy.

    Source:
        Nøkland & Eidnes 2019, arXiv:1901.06656, section 2 ("predsim"). Its text was not at hand:
        that cosines are of features less their mean, that features are standard deviations, and
        the share of 0.99 are inferred from descriptions of public implementations.
    """

    is_mean = False
    uses_weights = False
    helpers = ("compared",)

    def __init__(self, head: nn.Module, compared: nn.Module, *, similarity: float) -> None:
        super().__init__(head)
        self.compared = compared
        self.similarity = similarity

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Tensor:
        view = outputs["input"].counted
        logits = self.logits(view.tensor)
        features = deviations(self.compared(view.tensor).float())
        classes = F.one_hot(view.label, logits.shape[1]).to(features.dtype)
        difference = cosines(features) - cosines(classes)
        prediction = F.cross_entropy(logits, view.label)
        return (1 - self.similarity) * prediction + self.similarity * difference.square().mean()


def deviations(maps: Float[Tensor, "samples channels *size"]) -> Float[Tensor, "samples features"]:
    """Return the standard deviation of each map; of a unit, or a map of one place, its value.

    Example:
        >>> deviations(torch.tensor([[[1.0, 1.0], [0.0, 2.0]]]))
        tensor([[0.0000, 1.4142]])
    """
    flat = maps.flatten(2) if maps.ndim > 2 else maps[:, :, None]
    return flat.std(dim=2) if flat.shape[2] > 1 else flat.squeeze(2)


def cosines(features: Float[Tensor, "samples features"]) -> Float[Tensor, "samples samples"]:
    """Return the cosine of every two samples, each less the mean of its features.

    Example:
        >>> cosines(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])).round()
        tensor([[ 1., -1.,  1.],
                [-1.,  1., -1.],
                [ 1., -1.,  1.]])
    """
    centered = F.normalize(features - features.mean(dim=1, keepdim=True), dim=1)
    return centered @ centered.T
