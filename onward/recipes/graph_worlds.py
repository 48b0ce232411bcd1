"""Graphs in several worlds, in each of which nodes have other labels; all worlds are one graph.

Node i of world w of W is node i W + w, and no edge leads from one world to another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from onward.batch import Batch
from onward.network.objectives import Losses, Metrics, Objective
from onward.network.samplers import Sampler, Views
from onward.recipes.class_nodes import class_features, known_labels

Place = Literal["features", "nodes"]
"""Where a label is shown: in features of the node, or by a link to the node of a class."""

UNKNOWN = -1
"""Label of a node of which none is shown."""


def shares_of_sum(x: Float[Tensor, "nodes features"]) -> Float[Tensor, "nodes features"]:
    """Return features as shares of their sum, where that is above 1; the smallest of all is 0.

    Source:
        What ForwardGNN does to all features, as PyTorch Geometric's `NormalizeFeatures`.

    Example:
        >>> shares_of_sum(torch.tensor([[0.0, 2.0, 2.0]]))
        tensor([[0.0000, 0.5000, 0.5000]])
    """
    x = x - x.min()
    return x / x.sum(dim=1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class ShownLabels(Sampler):
    """Shows labels to the nodes of a graph: true ones, and in other worlds wrong ones.

    Training nodes have a label each: their own in the positive view, and in each world of the
    negative view another wrong one, drawn once. A sweep shows nodes that it asks about the label
    that is tried, all the same, and other known nodes their own.

    Source:
        Park et al. 2024, arXiv:2403.11004, section 3.1: FF-LA (in features), FF-VN (by nodes).
        There the layers above the first read what the positive view has put out for negative
        views of FF-VN as well; here each world goes its own way.
    """

    num_classes: int
    """Number of classes."""

    place: Place = "features"
    """Where a label is shown."""

    names = ("positive", "negative")
    draws_once = True

    @property
    def num_candidates(self) -> int:  # type: ignore[override]
        return self.num_classes

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        known, true = known_labels(batch)
        index = known if batch.index is None else batch.index
        # A random order of the wrong classes for each node, a world for each place in it.
        shape, device = (len(known), self.num_classes - 1), batch.device
        order = torch.rand(shape, generator=draw, device=device).argsort(dim=1)
        wrong = (true[:, None] + 1 + order) % self.num_classes
        worlds = self.num_classes - 1
        every = (index[:, None] * worlds + torch.arange(worlds, device=device)).flatten()
        return {
            "positive": self._shown(batch, self._known(batch, true[:, None])).replace(index=index),
            "negative": self._shown(batch, self._known(batch, wrong)).replace(index=every),
        }

    def neutral(self, batch: Batch) -> Batch:
        """Return the graph in which known nodes alone are shown a label."""
        _, true = known_labels(batch, self.num_classes)
        return self._shown(batch, self._known(batch, true[:, None]))

    def candidates(self, batch: Batch) -> Batch:
        known, true = known_labels(batch, self.num_classes)
        labels = self._known(batch, true[:, None].expand(-1, self.num_classes))
        asked = batch.structure.get("asked")
        if asked is None:
            # Where nothing is said, all nodes without a known label are asked.
            every = torch.arange(len(batch), device=batch.device)
            asked = every[~torch.isin(every, known)]
        labels[asked] = torch.arange(self.num_classes, device=batch.device)
        return self._shown(batch, labels)

    def _known(self, batch: Batch, labels: Int[Tensor, "known worlds"]) -> Tensor:
        """Return labels of all nodes in each world, where the known ones have some."""
        found = torch.full((len(batch), labels.shape[1]), UNKNOWN, device=batch.device)
        found[batch.structure["known"]] = labels
        return found

    def _shown(self, batch: Batch, labels: Int[Tensor, "nodes worlds"]) -> Batch:
        """Return the worlds of a graph in which nodes have these labels."""
        worlds, every = labels.shape[1], labels.flatten()
        x = batch.tensor.repeat_interleave(worlds, dim=0)
        edges = batch.structure["edge_index"]
        world = torch.arange(worlds, device=edges.device)[:, None]
        edges = (edges[:, None] * worlds + world).flatten(1)
        if self.place == "features":
            codes = F.one_hot(every.clamp(min=0), self.num_classes).to(x.dtype)
            codes[every == UNKNOWN] = 1 / self.num_classes
            x = torch.cat([shares_of_sum(x), codes], dim=1)
            return Batch(x, structure={"edge_index": edges})
        node = (every != UNKNOWN).nonzero().flatten()
        # Class nodes come after all others, those of a world together.
        links = torch.stack([node, len(x) + (node % worlds) * self.num_classes + every[node]])
        return Batch(
            torch.cat([x, class_features(self.num_classes, x).repeat(worlds, 1)]),
            structure={"edge_index": torch.cat([edges, links, links.flip(0)], dim=1)},
        )


class SumOfSquares(Objective):
    """Nodes with their own label have more goodness, a sum of squares, than those with another.

    Args:
        loss: `threshold`: above a threshold for the own label, below it for others. `symba`: more
            than the same node with each wrong label, by softplus(-slope (g+ - g-)).
        threshold: Goodness at which a node is a coin toss.
        slope: Steepness of symba.

    Source:
        Park et al. 2024, arXiv:2403.11004, equation 4, with a threshold of 2; Lee & Song 2023,
        arXiv:2303.08418 (SymBa), with a slope of 4.
    """

    views = ("positive", "negative")
    metric_names = ("told_apart",)

    def __init__(
        self,
        loss: Literal["threshold", "symba"] = "threshold",
        *,
        threshold: float = 2.0,
        slope: float = 4.0,
    ) -> None:
        super().__init__()
        self.kind, self.threshold, self.slope = loss, threshold, slope

    def goodness(self, outputs: Views) -> Mapping[str, Tensor]:
        """Return the sums of squares of the nodes that count, shape (nodes, worlds), by view."""
        found = {n: view.tensor[view.index].float().square().sum(1) for n, view in outputs.items()}
        return {name: g.view(len(found["positive"]), -1) for name, g in found.items()}

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Losses:
        goodness = self.goodness(outputs)
        own, other = goodness["positive"], goodness["negative"]
        if self.kind == "symba":
            return F.softplus(-self.slope * (own - other)).mean()
        return F.softplus(self.threshold - own).mean() + F.softplus(other - self.threshold).mean()

    def scores(self, outputs: Batch) -> Float[Tensor, " nodes"]:
        """Return the mean square of each node."""
        return outputs.tensor.float().square().mean(dim=1)

    def metrics(self, outputs: Views) -> Metrics:
        """Return how many nodes have more goodness with their own label than with any other."""
        goodness = self.goodness(outputs)
        is_right = (goodness["positive"] > goodness["negative"]).all(dim=1)
        return {"told_apart": (is_right.sum(), len(is_right))}
