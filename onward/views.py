"""What a block sees of a batch: views, and the samplers that make them from rows and labels."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class View:
    """Rows as a block sees them.

    What a later batch needs besides rows (the edges of a graph, an index of the rows that count)
    becomes a field here; blocks and objectives pass views on whole.
    """

    x: Tensor | tuple[Tensor, ...]
    """Activities, rows first; a tuple where a block reads several others."""

    labels: Int[Tensor, " rows"]
    """True class of each row. Objectives read it in training; inference has none."""

    def rows(self, index: Int[Tensor, " chosen"]) -> "View":
        """Return the chosen rows."""
        if isinstance(self.x, tuple):
            return View(tuple(part[index] for part in self.x), self.labels[index])
        return View(self.x[index], self.labels[index])


Views = Mapping[str, View]
"""Views of the same batch by name, such as positive and negative."""


class Negatives(StrEnum):
    """How the wrong label of a negative is chosen."""

    FIXED = "fixed"
    """Uniform, once for the run."""
    RANDOM = "random"
    """Uniform, anew each time they are drawn."""
    ADAPTIVE = "adaptive"
    """The wrong label that the network finds most likely."""
    HARD = "hard"
    """Sampled from what the network finds likely, the true label left out."""

    @property
    def needs_hints(self) -> bool:
        """Whether they are drawn with the class scores of an earlier network."""
        return self in (Negatives.ADAPTIVE, Negatives.HARD)


def wrong_labels(
    labels: Int[Tensor, " rows"], *, num_classes: int, generator: torch.Generator
) -> Int[Tensor, " rows"]:
    """Draw uniformly among the classes that a row does not have.

    Example:
        >>> wrong_labels(torch.tensor([0, 1]), num_classes=2, generator=torch.Generator())
        tensor([1, 0])
    """
    step = torch.randint(1, num_classes, labels.shape, generator=generator)
    return (labels + step) % num_classes


def likely_wrong_labels(
    labels: Int[Tensor, " rows"],
    hints: Float[Tensor, "rows classes"],
    *,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " rows"]:
    """Choose wrong labels by class scores: the most likely one, or a sample.

    Args:
        labels: True classes, which are never chosen.
        hints: Class scores, as log-probabilities up to a constant a row.
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
    uniform = torch.rand(allowed.shape, generator=generator).clamp_min(1e-20)
    return (allowed - (-uniform.log()).log()).argmax(dim=1)


class Sampler(ABC):
    """Makes the views of a batch."""

    names: tuple[str, ...]
    """Names of the views that blocks learn from."""

    negatives: Negatives | None = None
    """How negatives are drawn; None where there are none."""

    @abstractmethod
    def views(
        self,
        x: Float[Tensor, "rows ..."],
        labels: Int[Tensor, " rows"],
        negative_labels: Int[Tensor, " rows"] | None = None,
    ) -> dict[str, View]:
        """Return the views that blocks learn from."""

    @abstractmethod
    def width(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a row of a view, for rows of a shape."""

    def neutral(self, x: Float[Tensor, "rows ..."]) -> Tensor:
        """Return the rows as a network sees them that is told nothing about the label."""
        return x


@dataclass(frozen=True)
class Plain(Sampler):
    """One view: the rows as they are, for objectives that read the label themselves."""

    names = ("input",)

    def views(
        self,
        x: Float[Tensor, "rows ..."],
        labels: Int[Tensor, " rows"],
        negative_labels: Int[Tensor, " rows"] | None = None,
    ) -> dict[str, View]:
        return {"input": View(x, labels)}

    def width(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return input_shape


@dataclass(frozen=True)
class LabelEmbedding(Sampler):
    """Writes a label into the input: the true one, a wrong one, or none in particular.

    Source:
        Hinton 2022, section 3.3. The neutral label (0.1 each for ten classes) is that of his
        published Matlab code.

    Example:
        >>> sampler = LabelEmbedding(num_classes=2, overwrite=False, negatives=Negatives.RANDOM)
        >>> views = sampler.views(torch.tensor([[0.5]]), torch.tensor([1]), torch.tensor([0]))
        >>> views["positive"].x, views["negative"].x
        (tensor([[0.0000, 1.0000, 0.5000]]), tensor([[1.0000, 0.0000, 0.5000]]))
    """

    num_classes: int
    """Classes, and inputs that carry the label."""

    overwrite: bool
    """Whether the label takes the place of the first inputs, as for images with a dark border,
    or comes before them."""

    negatives: Negatives
    """How the wrong label is chosen."""

    strength: float = 1.0
    """Input value of the label that is shown."""

    names = ("positive", "negative")

    def embed(
        self, x: Float[Tensor, "rows ..."], codes: Float[Tensor, "rows classes"]
    ) -> Float[Tensor, "rows width"]:
        """Write label codes into flattened rows."""
        inputs = x.flatten(1)
        if self.overwrite:
            inputs = inputs[:, self.num_classes :]
        return torch.cat([codes.to(x.dtype), inputs], dim=1)

    def with_label(
        self, x: Float[Tensor, "rows ..."], labels: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows width"]:
        """Write one class into each row."""
        return self.embed(x, F.one_hot(labels, self.num_classes) * self.strength)

    def views(
        self,
        x: Float[Tensor, "rows ..."],
        labels: Int[Tensor, " rows"],
        negative_labels: Int[Tensor, " rows"] | None = None,
    ) -> dict[str, View]:
        assert negative_labels is not None
        return {
            "positive": View(self.with_label(x, labels), labels),
            "negative": View(self.with_label(x, negative_labels), labels),
        }

    def neutral(self, x: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows width"]:
        neutral = torch.full((x.shape[0], self.num_classes), self.strength / self.num_classes)
        return self.embed(x, neutral)

    def width(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        inputs = torch.Size(input_shape).numel()
        return (inputs if self.overwrite else inputs + self.num_classes,)


def shift_images(x: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to some pixels each way, with zeros coming in.

    Args:
        x: Images, shape (rows, channels, height, width).
        largest: Largest shift in pixels.
        generator: Draws the shifts, uniformly.
    """
    size = 2 * largest + 1
    drawn = torch.randint(size * size, (len(x),), generator=generator)
    padded = F.pad(x, (largest,) * 4)
    shifted = torch.empty_like(x)
    for choice in range(size * size):
        rows = (drawn == choice).nonzero().squeeze(1)
        down, right = divmod(choice, size)
        height, width = x.shape[2:]
        shifted[rows] = padded[rows, :, down : down + height, right : right + width]
    return shifted
