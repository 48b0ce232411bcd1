"""Nodes that stand for classes: they are linked to training nodes, and what they become is learned.

One such node for each class follows the nodes of the graph.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from onward.batch import Batch
from onward.errors import DataError, SettingError
from onward.network.objectives import Losses, Metrics, Objective, classified
from onward.network.samplers import Sampler, Views
from onward.recipes.graph_layers import unit_length
from onward.recipes.neighborhoods import neighborhood

Direction = Literal["to-classes", "both"]
"""Which way messages go between training nodes and those that stand for classes."""

FEATURES_SEED = 0
"""Draws the features of class nodes, which are the same in every run."""


def known_labels(batch: Batch, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the nodes of a graph whose labels are known, and these labels.

    Args:
        batch: A graph.
        num_classes: Number of classes, each of which needs a known node; None for parts of a graph.

    Raises:
        SettingError: The graph does not say so.
        DataError: A class has no known node.
    """
    if "known" not in batch.structure or "known_label" not in batch.structure:
        raise SettingError(
            "This method shows known labels to a graph, and these samples do not say which are "
            "known (structure: known, known_label). Make the data set with ow.graph."
        )
    known, label = batch.structure["known"], batch.structure["known_label"]
    # A GPU would be waited for.
    missing = None
    if num_classes is not None and label.device.type == "cpu":
        missing = sorted(set(range(num_classes)) - set(label.tolist()))
    if missing:
        raise DataError(
            f"The network tells {num_classes} classes apart by known nodes of each, and in this "
            f"graph no known node has class {missing[0]}. Put nodes of all classes into train."
        )
    return known, label


def class_features(num_classes: int, like: Tensor) -> Float[Tensor, "classes features"]:
    """Return features of nodes that stand for classes, as wide as those of other nodes."""
    draw = torch.Generator().manual_seed(FEATURES_SEED)
    # The same on all devices.
    return torch.randn(num_classes, like.shape[1], generator=draw).to(like)


def with_class_nodes(batch: Batch, num_classes: int, direction: Direction) -> Batch:
    """Return a graph with a node for each class, linked to the training nodes of that class.

    Args:
        batch: A graph; its structure has `edge_index`, `known` and `known_label`.
        num_classes: How many nodes are added.
        direction: `to-classes`: messages go from training nodes to class nodes. `both`: and back.

    Returns:
        The graph without what is known of labels, but for the edges. Features of the new nodes are
        drawn from a standard normal distribution.
    """
    nodes, x = len(batch), batch.tensor
    known, label = known_labels(batch)
    links = torch.stack([known, nodes + label])
    edges = [batch.structure["edge_index"], links, *([links.flip(0)] * (direction == "both"))]
    return batch.replace(
        inputs=torch.cat([x, class_features(num_classes, x)]),
        targets={
            name: F.pad(target, (0, 0) * (target.ndim - 1) + (0, num_classes))
            for name, target in batch.targets.items()
        },
        ids=None,
        weights=None if batch.weights is None else F.pad(batch.weights, (0, num_classes)),
        structure={"edge_index": torch.cat(edges, dim=1)},
        index=torch.arange(nodes, device=x.device) if batch.index is None else batch.index,
    )


@dataclass(frozen=True)
class ClassNodes(Sampler):
    """One view: the graph with a node for each class, in training and in inference alike.

    Source:
        Park et al. 2024, arXiv:2403.11004, section 3.2 ("single forward"). There the features of
        class nodes are drawn anew in each run.
    """

    num_classes: int
    """Nodes that are added."""

    direction: Direction = "to-classes"
    """Which way messages go between training nodes and class nodes. `both` shows each training node
    its own label, which test nodes do not have."""

    neighbors: tuple[int, ...] | None = None
    """Edges drawn for each node of a mini-batch, then for each that was reached, and so on. None:
    the graph is one mini-batch, with all its edges."""

    names = ("graph",)

    @property
    def takes_parts(self) -> bool:  # type: ignore[override]
        return self.neighbors is not None

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        if self.neighbors is not None:
            batch = neighborhood(batch, self.neighbors, draw)
        return {"graph": self.linked(batch)}

    def neutral(self, batch: Batch) -> Batch:
        known_labels(batch, self.num_classes)
        return self.linked(batch)

    def linked(self, batch: Batch) -> Batch:
        """Return a graph, or a part that may lack some classes, with a node for each class."""
        return with_class_nodes(batch, self.num_classes, self.direction)


@dataclass(frozen=True)
class ClassNodesBelowLabels(ClassNodes):
    """The graph with a node for each class, and beside it a label at each node, for the top layer.

    Training nodes and class nodes have their class, all others an equal share of each.

    Source:
        Park et al. 2024, arXiv:2403.11004, section 3.3 (equation 7).
    """

    def linked(self, batch: Batch) -> Batch:
        x, (known, label) = batch.tensor, known_labels(batch)
        labels = x.new_full((len(x), self.num_classes), 1 / self.num_classes)
        labels[known] = F.one_hot(label, self.num_classes).to(x.dtype)
        own = torch.eye(self.num_classes, dtype=x.dtype, device=x.device)
        labels = torch.cat([labels, own])
        graph = super().linked(batch)
        return graph.replace(inputs={"features": graph.tensor, "labels": labels})


class NearestClassNode(Objective):
    """Nodes become more like the node of their class than like those of other classes.

    The loss is the cross-entropy of the softmax over dot products with the class nodes, which are
    the last nodes of a graph.

    Args:
        num_classes: How many class nodes there are.
        temperature: What dot products are divided by.

    Source:
        Park et al. 2024, arXiv:2403.11004, equation 6.
    """

    views = ("graph",)
    metric_names = ("accuracy",)
    uses_weights = True

    def __init__(self, num_classes: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.num_classes, self.temperature = num_classes, temperature

    def logits(self, outputs: Batch) -> Float[Tensor, "nodes classes"]:
        """Return dot products of all nodes with the class nodes."""
        h = outputs.tensor.float()
        return h @ h[-self.num_classes :].T / self.temperature

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Losses:
        (view,) = outputs.values()
        return self._loss(view, self.logits(view))

    def _loss(self, view: Batch, logits: Float[Tensor, "nodes classes"]) -> Tensor:
        index = view.index
        losses = F.cross_entropy(logits[index], view.label[index], reduction="none")
        return (losses if view.weights is None else losses * view.weights[index]).mean()

    def scores(self, outputs: Batch) -> Float[Tensor, "nodes classes"]:
        """Return probabilities of the classes, which the readout adds up."""
        return self.logits(outputs).softmax(dim=1)

    def metrics(self, outputs: Views) -> Metrics:
        (view,) = outputs.values()
        index = view.index
        return classified(self.logits(view)[index], view.label[index])


class NearestClassNodeFromAbove(NearestClassNode):
    """Nodes become like the node of their class where layers above are averaged in.

    The loss is that of `NearestClassNode`, of the mean over a layer and, in unit length, the layers
    above it as they were an epoch before. Classes are named by the layer itself.

    Source:
        Park et al. 2024, arXiv:2403.11004, section 3.3 (equation 8).
    """

    def loss(self, inputs: Views, outputs: Views, draw: torch.Generator) -> Losses:
        (view,) = outputs.values()
        above = [unit_length(tensor) for tensor in view.context.values()]
        mean = torch.stack([view.tensor, *above]).mean(dim=0)
        return self._loss(view, self.logits(view.replace(inputs=mean)))
