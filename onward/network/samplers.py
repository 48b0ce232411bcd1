"""Samplers: they make the views that blocks learn from, and what inference sees."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from onward.batch import Batch
from onward.errors import SettingError
from onward.network.negatives import (
    fixed_wrong_labels,
    gradually_likely_wrong_labels,
    likely_wrong_labels,
    nearest_wrong_labels,
    wrong_labels,
)
from onward.settings import Negatives

Views = Mapping[str, Batch]
"""The views of a batch by name, such as positive and negative."""

NEUTRAL = "neutral"
"""Name of the view that inference sees; it contains no label."""


class Sampler(ABC):
    """Makes the views of a batch, from a generator that is handed to it."""

    names: tuple[str, ...]
    """Names of the views that blocks learn from."""

    needs_hints: bool = False
    """Whether views are drawn with class scores of an earlier network."""

    draws_once: bool = False
    """Whether the same is drawn throughout the run."""

    mixes_labels: bool = False
    """Whether a view may show a mixture of labels."""

    takes_parts: bool = False
    """Whether views of a batch with a structure are parts of it, around the samples that count, so
    that it can be learned from in mini-batches. Otherwise it is one whole."""

    continues: Mapping[str, str] = {}
    """The view whose output is the next input of a view, where that is another one."""

    num_candidates: int = 1
    """How many labels a sweep tries."""

    @abstractmethod
    def views(
        self, batch: Batch, draw: torch.Generator, hints: Float[Tensor, "samples classes"] | None
    ) -> dict[str, Batch]:
        """Return the views that blocks learn from.

        Args:
            batch: Samples with their targets. A view may set other targets.
            draw: Draws whatever is random, on the device of the batch: give `device=batch.device`
                beside `generator=draw`. Where `draws_once` is true, it begins with the same seed
                for each batch of a run: draw for all ids, and take those of `batch.ids`.
            hints: Class scores of these samples, by an earlier network; None before there are any.
        """

    def neutral(self, batch: Batch) -> Batch:
        """Return the samples as a network sees them when it knows nothing of the label."""
        return batch

    def candidates(self, batch: Batch) -> Batch:
        """Return the samples with each label that a sweep tries, those of a sample in a row.

        Raises:
            SettingError: This sampler has none.
        """
        raise SettingError(
            f"A sweep tries every label, and the sampler {type(self).__name__} writes none into "
            f"the input. Use another readout, or ow.LabelEmbedding."
        )

    def view_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one sample of a view, given that of an input sample."""
        example = Batch(torch.zeros(1, *input_shape))
        return tuple(self.neutral(example).tensor.shape[1:])

    def label_inputs(self, input_shape: tuple[int, ...]) -> int:
        """Return how many leading inputs may differ between views of a sample; 0: any may."""
        return 0


@dataclass(frozen=True)
class Plain(Sampler):
    """One view: the samples as they are, for objectives that read the label themselves."""

    names = ("input",)

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        return {"input": batch}


@dataclass(frozen=True)
class LabelEmbedding(Sampler):
    """Writes a label into the input: the true one, a wrong one, or none in particular.

    In vectors the label overwrites the first features or is put in front of them. In images it
    overwrites the first pixels of all channels, row by row, or comes as one more plane per class.

    Source:
        Hinton 2022, section 3.3. The neutral label (0.1 each for ten classes) is that of his
        published Matlab code.

    Example:
        >>> sampler = LabelEmbedding(2, place="prepend")
        >>> batch = Batch(torch.tensor([[0.5]]), {"label": torch.tensor([1])})
        >>> views = sampler.views(batch, torch.Generator(), None)
        >>> views["positive"].inputs, views["negative"].inputs
        (tensor([[0.0000, 1.0000, 0.5000]]), tensor([[1.0000, 0.0000, 0.5000]]))
    """

    num_classes: int
    """Number of classes, and of inputs per channel that carry the label."""

    place: Literal["overwrite", "prepend"] = "overwrite"
    """Whether the label takes the place of inputs, as for dark borders of images, or is put in
    front of them."""

    negatives: Negatives = "random"
    """How the wrong label is chosen."""

    strength: float = 1.0
    """Input value of the label that is shown."""

    flattens: bool = False
    """Whether images are flattened into vectors, as dense networks expect."""

    names = ("positive", "negative")

    def __post_init__(self) -> None:
        for name, kind in (("place", Literal["overwrite", "prepend"]), ("negatives", Negatives)):
            if getattr(self, name) not in get_args(kind):
                raise SettingError(
                    f"{name} is one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}."
                )

    @property
    def needs_hints(self) -> bool:  # type: ignore[override]
        return self.negatives in ("adaptive", "hard", "gradual")

    @property
    def mixes_labels(self) -> bool:  # type: ignore[override]
        return self.negatives == "mixed"

    @property
    def draws_once(self) -> bool:  # type: ignore[override]
        return self.negatives == "fixed"

    @property
    def num_candidates(self) -> int:  # type: ignore[override]
        return self.num_classes

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        if self.negatives == "mixed":
            return self._mixed(batch, draw)
        wrong = self.wrong_labels(batch, draw, hints)
        return {
            "positive": self.with_label(batch, batch.label),
            "negative": self.with_label(batch, wrong),
        }

    def _mixed(self, batch: Batch, draw: torch.Generator) -> dict[str, Batch]:
        """Return samples mixed two by two, with the mixture of their labels, and of wrong ones.

        A wrong label is one that neither of the two has. Of two classes there is none, so there
        samples of the same class alone are mixed.
        """
        x, labels = batch.tensor, batch.label
        other = torch.randperm(len(batch), generator=draw, device=x.device)
        # Half the samples stay as inference sees them.
        share = 1 - 0.5 * torch.rand(len(batch), generator=draw, device=x.device)
        is_mixed = torch.rand(len(batch), generator=draw, device=x.device) < 0.5
        if self.num_classes == 2:
            is_mixed &= labels == labels[other]
        share = share.where(is_mixed, 1.0)[:, None]
        mixed = x.lerp(x[other], (1 - share).view(-1, *[1] * (x.ndim - 1)).to(x.dtype))
        pair = torch.stack([labels, labels[other].where(is_mixed, labels)])
        found = {}
        for name, (own, theirs) in (("positive", pair), ("negative", self._of_neither(pair, draw))):
            first, second = (F.one_hot(each, self.num_classes) for each in (own, theirs))
            code = share * first + (1 - share) * second
            found[name] = batch.replace(inputs=self.embed(mixed, self.strength * code))
        return found

    def _of_neither(
        self, pair: Int[Tensor, "2 samples"], draw: torch.Generator
    ) -> Int[Tensor, "2 samples"]:
        """Draw two labels among the classes that neither of two samples has."""
        shape = (2, pair.shape[1], self.num_classes)
        chances = torch.rand(shape, generator=draw, device=pair.device)
        return chances.scatter(2, pair.T.expand(2, -1, -1), -1.0).argmax(dim=2)

    def wrong_labels(
        self, batch: Batch, draw: torch.Generator, hints: Tensor | None
    ) -> Int[Tensor, " samples"]:
        """Return a label for each sample that is not its own."""
        if self.negatives == "fixed":
            return fixed_wrong_labels(batch, num_classes=self.num_classes, seed=draw.initial_seed())
        if self.negatives == "nearest":
            return nearest_wrong_labels(batch, num_classes=self.num_classes, generator=draw)
        if hints is None:
            return wrong_labels(batch.label, num_classes=self.num_classes, generator=draw)
        if self.negatives == "gradual":
            return gradually_likely_wrong_labels(batch.label, hints, generator=draw)
        sampled = self.negatives == "hard"
        return likely_wrong_labels(batch.label, hints, generator=draw if sampled else None)

    def neutral(self, batch: Batch) -> Batch:
        x = batch.tensor
        codes = x.new_full((x.shape[0], self.num_classes), self.strength / self.num_classes)
        return batch.replace(inputs=self.embed(x, codes))

    def candidates(self, batch: Batch) -> Batch:
        x = batch.tensor
        labels = torch.arange(self.num_classes, device=x.device).repeat(x.shape[0])
        every = Batch(x.repeat_interleave(self.num_classes, dim=0))
        return self.with_label(every, labels)

    def with_label(self, batch: Batch, labels: Int[Tensor, " samples"]) -> Batch:
        """Return the samples with one class written into each."""
        codes = F.one_hot(labels, self.num_classes) * self.strength
        return batch.replace(inputs=self.embed(batch.tensor, codes))

    def embed(
        self, x: Float[Tensor, "samples ..."], codes: Float[Tensor, "samples classes"]
    ) -> Float[Tensor, "samples ..."]:
        """Write label codes into inputs."""
        codes = codes.to(x.dtype)
        x = x.flatten(1) if self.flattens else x
        if x.ndim == 2:
            rest = x[:, self.num_classes :] if self.place == "overwrite" else x
            return torch.cat([codes, rest], dim=1)
        samples, channels = x.shape[:2]
        if self.place == "prepend":
            planes = codes.view(samples, self.num_classes, *[1] * (x.ndim - 2))
            return torch.cat([planes.expand(-1, -1, *x.shape[2:]), x], dim=1)
        pixels = x.flatten(2)[:, :, self.num_classes :]
        codes = codes[:, None].expand(-1, channels, -1)
        return torch.cat([codes, pixels], dim=2).view(x.shape)

    def view_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.flattens:
            input_shape = (torch.Size(input_shape).numel(),)
        if len(input_shape) > 1 and self.place == "overwrite":
            pixels = torch.Size(input_shape[1:]).numel()
            if self.num_classes > pixels:
                raise SettingError(
                    f"{self.num_classes} labels cannot overwrite the first pixels of images that "
                    f"have {pixels} a channel. Give vectors, and the label comes before them; or "
                    f"use a recipe that writes none, such as one-pass. In a network of your own, "
                    f'place="prepend" puts the label into planes of its own.'
                )
        elif self.place == "overwrite" and self.num_classes > input_shape[0]:
            raise SettingError(
                f"{self.num_classes} labels cannot overwrite the first of {input_shape[0]} "
                f'features. In a network of your own, place="prepend" puts the label before them.'
            )
        return super().view_shape(input_shape)

    def label_inputs(self, input_shape: tuple[int, ...]) -> int:
        is_plane = input_shape[0] == 1 and self.place == "overwrite"
        is_leading = self.flattens or len(input_shape) == 1 or is_plane
        return self.num_classes if is_leading else 0
