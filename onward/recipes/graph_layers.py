"""Convolutions over graphs; what does not depend on their weights is done once, beforehand."""

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onward.batch import Tensors, parts
from onward.data import DataInfo
from onward.errors import SettingError
from onward.network.blocks import Block
from onward.network.objectives import Objective
from onward.network.optimizers import Optimizer
from onward.network.optimizers import optimizer as torch_rule
from onward.recipes.blocks import rules
from onward.settings import OptimizerConfig

EPSILON = 1e-8
"""Added to the length of a vector before it is divided by it."""


def unit_length(inputs: Tensors) -> Float[Tensor, "nodes features"]:
    """Return vectors of length 1, so that nothing is read off their length; several side by side.

    Source:
        Hinton 2022, section 2; Park et al. 2024, arXiv:2403.11004, which does so before each layer.

    Example:
        >>> unit_length(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    each = [x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPSILON) for x in parts(inputs)]
    return each[0] if len(each) == 1 else torch.cat(each, dim=1)


def summed_over(
    edge_index: Int[Tensor, "2 edges"], weights: Float[Tensor, " edges"], x: Tensor
) -> Tensor:
    """Return the weighted sum over the edges that lead to each node."""
    source, target = edge_index
    if not x.is_cpu:
        # Sparse products of a GPU differ from call to call.
        return x.new_zeros(x.shape).index_add_(0, target, weights[:, None].to(x.dtype) * x[source])
    shape = (len(x), len(x))
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        matrix = torch.sparse_coo_tensor(torch.stack([target, source]), weights, shape)
        found: Tensor = torch.sparse.mm(matrix.coalesce(), x)
    return found


class Convolution(nn.Module):
    """ReLU of any convolution of PyTorch Geometric, of vectors of length 1.

    Args:
        conv: Takes vectors of nodes and `edge_index`.

    Example:
        >>> class Neighbors(nn.Module):
        ...     def forward(self, x, edge_index):
        ...         return summed_over(edge_index, torch.ones(edge_index.shape[1]), x)
        >>> Convolution(Neighbors())(torch.eye(2), torch.tensor([[0], [1]]))
        tensor([[0., 0.],
                [1., 0.]])
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, inputs: Tensors, edge_index: Int[Tensor, "2 edges"]) -> Tensor:
        found: Tensor = self.conv(unit_length(inputs), edge_index)
        return found.relu()


class GCN(nn.Module):
    """ReLU of a linear map of the weighted mean over neighbors, which `prepare` has taken before.

    The same function as `Convolution(conv)`, up to rounding.

    Args:
        conv: A `GCNConv` of PyTorch Geometric.

    Source:
        Kipf & Welling 2017, arXiv:1609.02907, equation 2.
    """

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, aggregated: Float[Tensor, "nodes features"]) -> Float[Tensor, "nodes units"]:
        found: Tensor = self.conv.lin(aggregated) + self.conv.bias
        return found.relu()

    @staticmethod
    def prepare(inputs: Tensors, edge_index: Int[Tensor, "2 edges"]) -> Tensor:
        """Return the mean over each node and its neighbors, weighted by degrees."""
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        x = unit_length(inputs)
        edges, weights = gcn_norm(edge_index, num_nodes=len(x), dtype=x.dtype)
        return summed_over(edges, weights, x)


class SAGE(nn.Module):
    """ReLU of a linear map of a node and of the mean over its neighbors, taken before.

    The same function as `Convolution(conv)`, up to rounding.

    Args:
        conv: A `SAGEConv` of PyTorch Geometric.

    Source:
        Hamilton, Ying & Leskovec 2017, arXiv:1706.02216, with the mean.
    """

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, read: dict[str, Tensor]) -> Float[Tensor, "nodes units"]:
        found: Tensor = self.conv.lin_l(read["neighbors"]) + self.conv.lin_r(read["own"])
        return found.relu()

    @staticmethod
    def prepare(inputs: Tensors, edge_index: Int[Tensor, "2 edges"]) -> Tensors:
        """Return the vectors of the nodes, and the mean over the neighbors of each."""
        x, target = unit_length(inputs), edge_index[1]
        degree = torch.bincount(target, minlength=len(x)).clamp(min=1)
        return {"own": x, "neighbors": summed_over(edge_index, 1 / degree[target].to(x.dtype), x)}


class GraphLayers(nn.Module):
    """Convolutions one after the other, with ReLU between them.

    Args:
        kind: gcn, sage or gat.
        widths: Features of a node, and units of each layer.
        is_unit_length: Whether each layer reads vectors of length 1.
    """

    def __init__(self, kind: str, widths: Sequence[int], *, is_unit_length: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            convolution(kind, inputs, units, is_last=len(widths) - 2 == number)
            for number, (inputs, units) in enumerate(pairwise(widths))
        )
        self.is_unit_length = is_unit_length

    def forward(self, x: Tensor, edge_index: Int[Tensor, "2 edges"]) -> Tensor:
        for number, conv in enumerate(self.convs):
            x = x.relu() if number else x
            x = conv(unit_length(x) if self.is_unit_length else x, edge_index)
        return x


HEADS = 4
"""Attention heads of a GAT layer, side by side."""


def convolution(kind: str, inputs: int, units: int, *, is_last: bool = False) -> nn.Module:
    """Return a convolution of PyTorch Geometric: gcn, sage or gat.

    Args:
        kind: gcn, sage or gat.
        inputs: Features of a node.
        units: Units of the layer.
        is_last: Whether these are scores of classes, of which attention has one head.

    Raises:
        SettingError: PyTorch Geometric is not installed, or units do not fit the attention heads.
    """
    try:
        with warnings.catch_warnings():
            # It scripts functions, which is deprecated in torch.
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch_geometric.nn import GATConv, GCNConv, SAGEConv
    except ImportError as error:
        raise SettingError(
            "Graph convolutions are those of PyTorch Geometric, which is not installed:\n"
            '    pip install "onward[graph]"'
        ) from error
    if kind != "gat":
        found: nn.Module = {"gcn": GCNConv, "sage": SAGEConv}[kind](inputs, units)
        return found
    heads = 1 if is_last else HEADS
    if units % heads:
        raise SettingError(
            f"A gat layer has {heads} attention heads side by side, and {units} units are not a "
            f"multiple of that (network.widths)."
        )
    attention: nn.Module = GATConv(inputs, units // heads, heads=heads)
    return attention


def layer(kind: str, inputs: int, units: int) -> tuple[nn.Module, Callable[..., Tensors] | None]:
    """Return a layer, and what is done once for each view; None where nothing can be.

    Args:
        kind: gcn, sage or gat.
        inputs: Features of a node.
        units: Units of the layer.

    Raises:
        SettingError: See `convolution`.
    """
    conv = convolution(kind, inputs, units)
    if kind == "gcn":
        return GCN(conv), GCN.prepare
    return (SAGE(conv), SAGE.prepare) if kind == "sage" else (Convolution(conv), None)


def layer_blocks(
    kind: str, widths: Sequence[int], objective: Callable[[], Objective], optimizer: OptimizerConfig
) -> list[Block]:
    """Return a block for each layer.

    Args:
        kind: gcn, sage or gat.
        widths: Features of a node, and units of each layer.
        objective: Makes the objective of a block.
        optimizer: How weights follow their gradients.
    """
    blocks = []
    for inputs, units in pairwise(widths):
        module, prepare = layer(kind, inputs, units)
        made = objective()
        edges = ("edge_index",)
        blocks.append(Block(module, made, rule(optimizer), structure=edges, prepare=prepare))
    return blocks


class Reading(nn.Module):
    """A layer that reads some of the tensors it is given, in this order, side by side.

    Args:
        names: Which.
        layer: What they go to.
    """

    def __init__(self, names: tuple[str, ...], layer: nn.Module) -> None:
        super().__init__()
        self.names, self.layer = names, layer

    def forward(self, inputs: dict[str, Tensor], edge_index: Int[Tensor, "2 edges"]) -> Tensor:
        found: Tensor = self.layer({name: inputs[name] for name in self.names}, edge_index)
        return found


def prepared(
    names: tuple[str, ...],
    prepare: Callable[..., Tensors],
    inputs: dict[str, Tensor],
    edge_index: Int[Tensor, "2 edges"],
) -> Tensors:
    """Return what `prepare` makes of some of several tensors, in this order."""
    return prepare({name: inputs[name] for name in names}, edge_index)


def check_graph(data: DataInfo, recipe: str) -> None:
    """Refuse data without edges.

    Raises:
        SettingError: There are none.
    """
    if "edge_index" not in data.structure:
        raise SettingError(
            f"{recipe} learns from a graph, and these data have no edges. Give a graph "
            f"(ow.graph), or a file with the member edge_index; or choose another recipe."
        )


def check_hops(neighbors: Sequence[int] | None, layers: int) -> None:
    """Refuse neighbors that are drawn over other hops than layers read.

    Raises:
        SettingError: They are.
    """
    if neighbors is not None and len(neighbors) != layers:
        raise SettingError(
            f"network.neighbors is drawn hop by hop, one for each layer: there are {layers} layers "
            f"(network.widths), and it has {len(neighbors)} numbers."
        )


def rule(optimizer: OptimizerConfig) -> Optimizer:
    """Return Adam with the decay added to the gradient, as ForwardGNN has it; or SGD."""
    if optimizer.name != "adam":
        return rules(optimizer)[0]
    return torch_rule(torch.optim.Adam, lr=optimizer.lr, weight_decay=optimizer.weight_decay)
