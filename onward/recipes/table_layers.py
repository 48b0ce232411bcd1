"""Layers of graphs that are tables: a row for each node, its features and then its edges."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onward.batch import Batch
from onward.errors import SettingError
from onward.network.layers import normalize_length
from onward.network.objectives import Threshold
from onward.network.samplers import LabelEmbedding


def parts_of(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features of tables, and their edges: a column for each row, at the end."""
    nodes = table.shape[1]
    return table[:, :, :-nodes], table[:, :, -nodes:]


def nodes_in(edges: Float[Tensor, "graphs nodes nodes"]) -> Float[Tensor, "graphs nodes 1"]:
    """Return 1 for each node, and 0 for rows after them: nodes have an edge to themselves."""
    return edges.diagonal(dim1=1, dim2=2)[:, :, None]


def aggregated(table: Tensor) -> Tensor:
    """Return tables whose features are the mean over each node and its neighbors, by degrees.

    Of vectors of a mean square of 1, so that nothing is read off their length.

    Source:
        Kipf & Welling 2017, arXiv:1609.02907, equation 2.
    """
    x, edges = parts_of(table)
    if not bool(((edges == 0) | (edges == 1)).all()):
        raise SettingError(
            "Edges in tables of graphs are 0 or 1, and these are not. Leave out data.standardize, "
            "and augmentations."
        )
    scale = edges.sum(dim=2).clamp(min=1).rsqrt()
    x = normalize_length(x.flatten(0, 1)).view(x.shape)
    found = scale[:, :, None] * (edges @ (scale[:, :, None] * x))
    return torch.cat([found, edges], dim=2)


class TableGCN(nn.Module):
    """ReLU of a linear map of what `aggregated` has put into tables; edges are handed on.

    Args:
        inputs: Features of a node.
        units: Units of the layer.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units)

    def forward(self, table: Tensor) -> Tensor:
        x, edges = parts_of(table)
        return torch.cat([self.linear(x).relu() * nodes_in(edges), edges], dim=2)


class Aggregated(nn.Module):
    """A layer that reads what has been aggregated, inside a block of several."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, table: Tensor) -> Tensor:
        found: Tensor = self.layer(aggregated(table))
        return found


class MeanOfNodes(nn.Module):
    """Class scores of graphs: a linear map of the mean over their nodes."""

    def __init__(self, units: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(units, num_classes)

    def forward(self, table: Tensor) -> Tensor:
        x, edges = parts_of(table)
        found: Tensor = self.linear(x.sum(dim=1) / nodes_in(edges).sum(dim=1))
        return found


@dataclass(frozen=True)
class LabelAtNodes(LabelEmbedding):
    """Shows a label to every node of a graph, in columns before its features."""

    place: str = "prepend"  # type: ignore[assignment]

    def embed(self, x: Tensor, codes: Tensor) -> Tensor:
        _, edges = parts_of(x)
        return torch.cat([codes.to(x.dtype)[:, None] * nodes_in(edges), x], dim=2)

    def label_inputs(self, input_shape: tuple[int, ...]) -> int:
        return 0


class GraphThreshold(Threshold):
    """Goodness of a graph, the mean square over its nodes, above a threshold for its own label."""

    def activities(self, outputs: Tensor) -> Tensor:
        # Units before nodes.
        return parts_of(outputs)[0].transpose(1, 2)

    def goodness(self, activities: Tensor) -> Float[Tensor, " samples"]:
        x, edges = parts_of(activities)
        squares = x.float().square().mean(dim=2).sum(dim=1)
        return squares / nodes_in(edges).float().sum(dim=(1, 2))

    def scores(self, outputs: Batch) -> Float[Tensor, " samples"]:
        return self.slope * self.goodness(outputs.tensor)
