"""Layers of a recurrent network that settle tick by tick, with the label at the top."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from onward.batch import Batch
from onward.network.blocks import Edge
from onward.network.layers import normalize_length
from onward.network.negatives import wrong_labels
from onward.network.samplers import Sampler


@dataclass(frozen=True)
class LabelAtTheTop(Sampler):
    """Shows a label beside the image, so that a network can have it at its other end.

    Source:
        Hinton 2022, arXiv:2212.13345, section 3.4.
    """

    num_classes: int
    """Classes, of which one is shown."""

    names = ("positive", "negative")

    @property
    def num_candidates(self) -> int:  # type: ignore[override]
        return self.num_classes

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        label = batch.label
        wrong = wrong_labels(label, num_classes=self.num_classes, generator=draw)
        return {"positive": self.shown(batch, label), "negative": self.shown(batch, wrong)}

    def shown(self, batch: Batch, labels: Tensor) -> Batch:
        """Return samples with a class beside each."""
        codes = F.one_hot(labels, self.num_classes).to(batch.tensor.dtype)
        return batch.replace(inputs={"image": batch.tensor, "label": codes})

    def neutral(self, batch: Batch) -> Batch:
        x = batch.tensor
        codes = x.new_full((len(x), self.num_classes), 1 / self.num_classes)
        return batch.replace(inputs={"image": x, "label": codes})

    def candidates(self, batch: Batch) -> Batch:
        x = batch.tensor
        labels = torch.arange(self.num_classes, device=x.device).repeat(len(x))
        return self.shown(Batch(x.repeat_interleave(self.num_classes, dim=0)), labels)


def tick_order(
    widths: Sequence[int], *, alternates: bool = True
) -> tuple[list[int], Callable[[int, int, str], Edge]]:
    """Return the order in which layers are updated in a tick, and how one sees another or itself.

    Each sees the others as they were a tick before. Where they alternate, the first, third and so
    on come first, and then the second, fourth and so on, which see those as they are now.
    """
    numbers = list(range(len(widths)))
    if alternates:
        numbers = numbers[::2] + numbers[1::2]
    place = {number: position for position, number in enumerate(numbers)}

    def seen(source: int, reader: int, name: str) -> Edge:
        if alternates and place[source] < place[reader]:
            return Edge(place[source], name=name)
        return Edge(place[source], delay=1, name=name, shape=(widths[source],))

    return numbers, seen


class Settling(nn.Module):
    """A layer that is driven from below and from above, and keeps some of what it was.

    Args:
        below: Makes of what lies below what drives the units.
        above: The same of what lies above.
        damping: Share of the state before that is kept.
        reads: Names of what lies below and above among the inputs.

    Source:
        Hinton 2022, arXiv:2212.13345, section 3.4.
    """

    def __init__(
        self, below: nn.Module, above: nn.Module, *, damping: float, reads: tuple[str, str]
    ) -> None:
        super().__init__()
        self.below = below
        self.above = above
        self.damping = damping
        self.reads = reads

    def pre_activations(self, inputs: dict[str, Tensor]) -> Float[Tensor, "samples units"]:
        """Return what drives the units."""
        under, over = (normalize_length(inputs[name].flatten(1)) for name in self.reads)
        found: Tensor = self.below(under) + self.above(over)
        return found

    def from_pre_activations(
        self, inputs: dict[str, Tensor], found: Float[Tensor, "samples units"]
    ) -> Float[Tensor, "samples units"]:
        """Return the new state."""
        return self.damping * inputs["before"] + (1 - self.damping) * found.relu()

    def forward(self, inputs: dict[str, Tensor]) -> Float[Tensor, "samples units"]:
        return self.from_pre_activations(inputs, self.pre_activations(inputs))
