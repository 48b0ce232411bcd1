"""Wrong labels: how the label of a negative is chosen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onward.batch import Batch
from onward.errors import SettingError

NEIGHBORS = 500
"""Samples among which `nearest_wrong_labels` looks, about as many as a mini-batch has."""


def wrong_labels(
    labels: Int[Tensor, " samples"], *, num_classes: int, generator: torch.Generator
) -> Int[Tensor, " samples"]:
    """Draw uniformly among the classes that a sample does not have.

    Example:
        >>> wrong_labels(torch.tensor([0, 1]), num_classes=2, generator=torch.Generator())
        tensor([1, 0])
    """
    _check_several(num_classes)
    step = torch.randint(1, num_classes, labels.shape, generator=generator, device=labels.device)
    return (labels + step) % num_classes


def _check_several(num_classes: int) -> None:
    if num_classes < 2:
        raise SettingError(
            f"A wrong label is one of several classes, and num_classes is {num_classes}."
        )


def fixed_wrong_labels(batch: Batch, *, num_classes: int, seed: int) -> Int[Tensor, " samples"]:
    """Draw uniformly among the classes that a sample does not have, by its id alone.

    Example:
        >>> batch = Batch(torch.zeros(2, 1), {"label": torch.tensor([0, 1])}, torch.tensor([7, 8]))
        >>> fixed_wrong_labels(batch, num_classes=2, seed=0)
        tensor([1, 0])
    """
    _check_several(num_classes)
    device = batch.device
    ids = torch.arange(len(batch), device=device) if batch.ids is None else batch.ids
    # One draw for every id up to the largest here, so that a sample's is the same in any batch.
    draw = torch.Generator(device).manual_seed(seed)
    most = int(ids.max()) + 1 if len(batch) else 0
    step = torch.randint(1, num_classes, (most,), generator=draw, device=device)
    return (batch.label + step[ids]) % num_classes


def likely_wrong_labels(
    labels: Int[Tensor, " samples"],
    hints: Float[Tensor, "samples classes"],
    *,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " samples"]:
    """Choose wrong labels by class scores: the most likely one, or a sample.

    Args:
        labels: True classes, which are never chosen.
        hints: Class scores, as log-probabilities up to a constant a sample.
        generator: Samples in proportion to the probabilities. None takes the most likely.

    Source:
        Sampling: Hinton 2022, section 3.3. Most likely: Aktemur et al. 2024, arXiv:2404.08573,
        section 5 (AdaptiveNEG).

    Example:
        >>> likely_wrong_labels(torch.tensor([0]), torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([2])
    """
    # Even the least likely class is likelier than the true one, which is out of the question.
    least = torch.finfo(torch.float32).min
    allowed = hints.float().clamp(min=least / 2).scatter(1, labels[:, None], float("-inf"))
    if generator is None:
        return allowed.argmax(dim=1)
    # The largest of scores with Gumbel noise, -log(-log u), is a sample of their softmax.
    uniform = torch.rand(allowed.shape, generator=generator, device=allowed.device)
    uniform = uniform.clamp_min(1e-20)
    return (allowed - (-uniform.log()).log()).argmax(dim=1)


def gradually_likely_wrong_labels(
    labels: Int[Tensor, " samples"],
    hints: Float[Tensor, "samples classes"],
    *,
    generator: torch.Generator,
) -> Int[Tensor, " samples"]:
    """Choose the most likely wrong label as often as the network is right, and any one otherwise.

    So negatives are random at first, and adaptive in the end.

    Args:
        labels: True classes, which are never chosen.
        hints: Class scores.
        generator: Draws.

    Example:
        >>> hints = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
        >>> gradually_likely_wrong_labels(
        ...     torch.tensor([0, 1]), hints, generator=torch.Generator().manual_seed(0)
        ... )
        tensor([2, 2])
    """
    right = (hints.argmax(dim=1) == labels).float().mean()
    uniform = wrong_labels(labels, num_classes=hints.shape[1], generator=generator)
    is_likely = torch.rand(labels.shape, generator=generator, device=labels.device) < right
    return torch.where(is_likely, likely_wrong_labels(labels, hints), uniform)


def nearest_wrong_labels(
    batch: Batch, *, num_classes: int, generator: torch.Generator
) -> Int[Tensor, " samples"]:
    """Choose the label of the nearest sample of another class.

    It is looked for among `NEIGHBORS` samples drawn at random, by Euclidean distance of the inputs.
    Where all of them are of one class, any wrong label is drawn.

    Example:
        >>> x, label = torch.tensor([[0.0], [9.0], [1.0]]), torch.tensor([0, 1, 2])
        >>> nearest_wrong_labels(
        ...     Batch(x, {"label": label}), num_classes=3, generator=torch.Generator()
        ... )
        tensor([2, 2, 0])
    """
    found = wrong_labels(batch.label, num_classes=num_classes, generator=generator)
    # In a random order, since samples may come sorted by class.
    order = torch.randperm(len(batch), generator=generator, device=batch.device)
    for some in order.split(NEIGHBORS):
        x, label = batch.tensor[some].flatten(1).float(), batch.label[some]
        distance = torch.cdist(x, x).masked_fill(label[:, None] == label, torch.inf)
        nearest, place = distance.min(dim=1)
        found[some] = torch.where(nearest.isfinite(), label[place], found[some])
    return found
