"""Convolutions over graphs; what does not depend on their weights is done once, beforehand."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onward.batch import Tensors, parts
from onward.data import DataInfo
from onward.errors import DataError, SettingError
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


Means = Literal["gcn", "mean"]
"""Means over neighbors: of a node and its neighbors, weighted by degrees, or of these alone."""

KEPT = 4
"""Matrices of graphs that are kept."""


def mean_over(means: Means, edge_index: Int[Tensor, "2 edges"], x: Tensor) -> Tensor:
    """Return a weighted mean over the neighbors of each node, those that edges come from.

    Source:
        `gcn`: Kipf & Welling 2017, arXiv:1609.02907, equation 2. `mean`: Hamilton, Ying & Leskovec
        2017, arXiv:1706.02216.

    Example:
        >>> mean_over("mean", torch.tensor([[1, 2], [0, 0]]), torch.tensor([[0.0], [1.0], [3.0]]))
        tensor([[2.],
                [0.],
                [0.]])
    """
    if not x.is_cpu:
        # Sparse products of a GPU differ from call to call.
        (source, target), weights = weighted_edges(means, edge_index, len(x))
        return x.new_zeros(x.shape).index_add_(0, target, weights[:, None].to(x.dtype) * x[source])
    found: Tensor = SparseMean.apply(means, edge_index, x)  # type: ignore[no-untyped-call]
    return found


def weighted_edges(
    means: Means, edge_index: Int[Tensor, "2 edges"], nodes: int
) -> tuple[Int[Tensor, "2 weighted"], Float[Tensor, " weighted"]]:
    """Return edges, for `gcn` with one from each node to itself, and their weights."""
    if means == "gcn":
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        found: tuple[Tensor, Tensor] = gcn_norm(edge_index, num_nodes=nodes)
        return found
    target = edge_index[1]
    degree = torch.bincount(target, minlength=nodes)
    return edge_index, 1 / degree[target].float()


def mean_matrix(
    means: Means, edge_index: Int[Tensor, "2 edges"], nodes: int, *, is_transposed: bool = False
) -> Float[Tensor, "nodes nodes"]:
    """Return the matrix that takes the mean, or its transpose, row by row (CSR).

    Raises:
        DataError: These are no edges of so many nodes.
    """
    if edge_index.is_inference():
        # Whether it is changed in place is not known.
        return _mean_matrix(means, edge_index, nodes, is_transposed)
    return _kept_matrix(means, edge_index, edge_index._version, nodes, is_transposed)


@lru_cache(maxsize=KEPT)
def _kept_matrix(
    means: Means, edge_index: Tensor, version: int, nodes: int, is_transposed: bool
) -> Tensor:
    """Return a matrix; edges that are changed in place are another version, and another graph."""
    return _mean_matrix(means, edge_index, nodes, is_transposed)


def _mean_matrix(means: Means, edge_index: Tensor, nodes: int, is_transposed: bool) -> Tensor:
    is_known = edge_index.ndim == 2 and len(edge_index) == 2
    if not is_known or (
        edge_index.numel() and not 0 <= edge_index.min() <= edge_index.max() < nodes
    ):
        raise DataError(
            f"edge_index has the shape {tuple(edge_index.shape)}. It holds numbers of nodes, shape "
            f"(2, edges), and the {nodes} nodes are numbered from 0 to {nodes - 1}."
        )
    edges, weights = weighted_edges(means, edge_index, nodes)
    # A row for each node that edges lead to.
    places = edges if is_transposed else edges.flip(0)
    with warnings.catch_warnings():
        # Torch calls the format a prototype.
        warnings.simplefilter("ignore", UserWarning)
        matrix = torch.sparse_coo_tensor(places, weights, (nodes, nodes), check_invariants=False)
        return matrix.coalesce().to_sparse_csr()


class SparseMean(torch.autograd.Function):
    """The mean over neighbors as a sparse product, and so its gradient.

    Torch's own gradient brings the transposed matrix into order at each call, which takes longer
    than the product.
    """

    @staticmethod
    def forward(ctx: Any, means: Means, edge_index: Tensor, x: Tensor) -> Tensor:
        ctx.means, ctx.edge_index = means, edge_index
        product: Tensor = torch.sparse.mm(mean_matrix(means, edge_index, len(x)), x.float())
        return product.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        matrix = mean_matrix(ctx.means, ctx.edge_index, len(gradient), is_transposed=True)
        product: Tensor = torch.sparse.mm(matrix, gradient.float())
        return None, None, product.to(gradient.dtype)


class Convolution(nn.Module):
    """ReLU of any convolution of PyTorch Geometric, of vectors of length 1.

    Args:
        conv: Takes vectors of nodes and `edge_index`.

    Example:
        >>> class Neighbors(nn.Module):
        ...     def forward(self, x, edge_index):
        ...         return mean_over("mean", edge_index, x)
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
        return mean_over("gcn", edge_index, unit_length(inputs))


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
        x = unit_length(inputs)
        return {"own": x, "neighbors": mean_over("mean", edge_index, x)}


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
        self.kind, self.is_unit_length = kind, is_unit_length

    def forward(self, x: Tensor, edge_index: Int[Tensor, "2 edges"]) -> Tensor:
        for number, conv in enumerate(self.convs):
            x = x.relu() if number else x
            x = self._convolved(conv, unit_length(x) if self.is_unit_length else x, edge_index)
        return x

    def _convolved(self, conv: Any, x: Tensor, edge_index: Int[Tensor, "2 edges"]) -> Tensor:
        """Return what a convolution makes of nodes; sparse products are faster than its own way."""
        if self.kind == "gcn":
            found: Tensor = mean_over("gcn", edge_index, conv.lin(x)) + conv.bias
        elif self.kind == "sage":
            found = conv.lin_l(mean_over("mean", edge_index, x)) + conv.lin_r(x)
        else:
            found = conv(x, edge_index)
        return found


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
