"""Pairs of nodes of a graph, and which of them are linked."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from onward.batch import Batch
from onward.data import DataInfo
from onward.errors import SettingError
from onward.network.objectives import Losses, Metrics, Objective, classified
from onward.network.samplers import Sampler, Views

PairLoss = Literal["cross-entropy", "goodness"]
"""What a layer learns of pairs."""


def check_pairs(data: DataInfo, recipe: str) -> int:
    """Refuse data that are no pairs of nodes; return the features of a node.

    Raises:
        SettingError: They are not.
    """
    if not {"edge_index", "x"} <= set(data.structure):
        raise SettingError(
            f"{recipe} learns which nodes of a graph are linked, and these samples are no pairs of "
            f"nodes. Make the data set with ow.graph_links, or say data.links=true of a graph."
        )
    return data.structure["x"][1]


@dataclass(frozen=True)
class PairsOfNodes(Sampler):
    """One view: the nodes of the graph; its structure has the pairs, and in training the answers.

    Source:
        Park et al. 2024, arXiv:2403.11004, section 3.4: pairs are not shown to the layers, so that
        one pass serves all of them.
    """

    names = ("nodes",)

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        nodes = self.neutral(batch)
        return {"nodes": nodes.replace(structure={**nodes.structure, "linked": batch.label})}

    def neutral(self, batch: Batch) -> Batch:
        if "x" not in batch.structure:
            raise SettingError(
                "Pairs of nodes need the graph they are of (structure: x, edge_index). Make the "
                "data set with ow.graph_links."
            )
        graph, x, pairs = dict(batch.structure), batch.structure["x"], batch.tensor
        if pairs.is_floating_point() or pairs.shape[1:] != (2,):
            raise SettingError(
                f"Pairs are whole numbers, of shape (pairs, 2); got {pairs.dtype} of shape "
                f"{tuple(pairs.shape)}."
            )
        if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= len(x)):
            raise SettingError(
                f"Pairs are of nodes from 0 to {len(x) - 1}; got {int(pairs.min())} to "
                f"{int(pairs.max())}."
            )
        del graph["x"]
        return Batch(x, structure={**graph, "pairs": pairs})


class Likeness(Objective):
    """Linked nodes become like each other, others unlike.

    The elements of two nodes are multiplied. Their sum is the logit of a link (`cross-entropy`); or
    the sum of their squares is a goodness, above a threshold for linked nodes (`goodness`).

    The probability of a link is the sigmoid of that. All are above 1/2 where outputs are, so that
    classes are told apart at the middle between the mean probabilities of linked and of other pairs
    in training, before its last step. It changes no order, and so no area under a curve.

    Args:
        loss: What is learned.
        threshold: Goodness at which a pair is a coin toss.

    Source:
        Park et al. 2024, arXiv:2403.11004, equation 9, where answers are judged by the area under
        the ROC curve, and no pair is told to be linked.
    """

    middle: Tensor

    views = ("nodes",)
    metric_names = ("accuracy",)

    def __init__(self, loss: PairLoss = "cross-entropy", *, threshold: float = 2.0) -> None:
        super().__init__()
        self.kind, self.threshold = loss, threshold
        self.register_buffer("middle", torch.tensor(0.5))

    def logits(self, outputs: Batch) -> Float[Tensor, " pairs"]:
        """Return the logit of a link of each pair."""
        h = outputs.tensor.float()
        first, second = outputs.structure["pairs"].unbind(dim=1)
        product = h[first] * h[second]
        if self.kind == "cross-entropy":
            return product.sum(dim=1)
        return product.square().sum(dim=1) - self.threshold

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Losses:
        (view,) = outputs.values()
        logits, linked = self.logits(view), view.structure["linked"].bool()
        with torch.no_grad():
            means = [logits[each].sigmoid().mean() for each in (linked, ~linked)]
            self.middle.copy_(torch.stack(means).mean())
        # With goodness g, the mean of softplus(threshold - g), and that of softplus(g - threshold).
        loss = F.binary_cross_entropy_with_logits(logits, linked.float())
        return loss if self.kind == "cross-entropy" else 2 * loss

    def scores(self, outputs: Batch) -> Float[Tensor, "pairs classes"]:
        """Return how far the probability of a link is below the middle, and how far above."""
        above = self.logits(outputs).sigmoid() - self.middle
        return torch.stack([-above, above], dim=1)

    def metrics(self, outputs: Views) -> Metrics:
        (view,) = outputs.values()
        return classified(self.scores(view), view.structure["linked"])
