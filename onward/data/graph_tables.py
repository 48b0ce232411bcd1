"""Many graphs as a data set, each of a class: a graph is a table with a row for each node."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from onward.data.dataset import Dataset, from_arrays
from onward.data.graphs import edges_of, features_of, warn_of_edge_features
from onward.data.numbers import Numbers
from onward.errors import DataError

Graph = Any
"""Features and edges of a graph, `(x, edge_index)`; or a `Data` of PyTorch Geometric."""


def graphs(
    given: Sequence[Graph],
    y: Numbers = None,
    *,
    nodes: int | None = None,
    undirected: bool = False,
    **more: Any,
) -> Dataset:
    """Make a data set of graphs, each of a class, and check that it can be learned from.

    Args:
        given: The graphs: features of the nodes, shape (nodes, features), and edges, shape
            (2, edges), of each; or `Data` of PyTorch Geometric, which brings the class as well.
        y: Class of each graph, by number or name.
        nodes: Rows of a table, see `graph_tables`.
        undirected: Whether each edge is also added the other way round, where it is missing.
        more: What else `onward.dataset` takes but the samples: `test`, `groups`, `class_names` and
            so on.

    Returns:
        A data set whose samples are tables, see `graph_tables`.

    Raises:
        DataError: Graphs or classes do not fit, or cannot be learned from.

    Example:
        >>> pairs = [(torch.eye(3), torch.tensor([[0, 1], [1, 2]]))] * 20
        >>> dataset = graphs(pairs, [0, 1] * 10)
        >>> dataset.input_shape, dataset.num_samples
        ((3, 6), 16)
    """
    if hasattr(given, "edge_index"):
        raise DataError("This is one graph. Give a list of graphs; for nodes of one, see ow.graph.")
    given = list(given)
    if y is None:
        y = [_class(number, each) for number, each in enumerate(given)]
    tables = graph_tables(given, nodes=nodes, undirected=undirected)
    return from_arrays(tables, y, is_image=False, **{"name": "graphs", **more})


def _class(number: int, graph: Graph) -> int:
    """Return the class that a graph brings."""
    own = getattr(graph, "y", None)
    if own is None:
        raise DataError(f"There is no y, and graph {number} does not bring its class.")
    found = torch.as_tensor(own)
    if found.numel() != 1 or float(found) != int(found):
        raise DataError(
            f"The y of graph {number} is {found.tolist()}. A class is one whole number for a graph."
        )
    return int(found)


def graph_tables(
    given: Sequence[Graph], *, nodes: int | None = None, undirected: bool = False
) -> Float[Tensor, "graphs nodes columns"]:
    """Return graphs as tables of the same size, as `graphs` makes them.

    A node has a row: its features, and then a column for each node: 1 where an edge comes from
    there, and for itself. Rows after the nodes are zeros.

    Args:
        given: See `graphs`.
        nodes: Rows of a table. None: as many as the largest of these graphs has nodes.
        undirected: See `graphs`.

    Raises:
        DataError: A graph has more nodes than that, none, or other features than the first; or its
            edges do not fit.

    Example:
        >>> graph_tables([(torch.ones(2, 1), torch.tensor([[0], [1]]))], nodes=3)
        tensor([[[1., 1., 0., 0.],
                 [1., 1., 1., 0.],
                 [0., 0., 0., 0.]]])
    """
    if not len(given):
        raise DataError("There are no graphs.")
    each = []
    for number, graph in enumerate(given):
        name = f"graph {number}"
        if not hasattr(graph, "edge_index") and len(graph) != 2:
            raise DataError(
                f"{name} is a {type(graph).__name__} of {len(graph)}. A graph is a pair of "
                f"features and edges, or a Data of PyTorch Geometric."
            )
        is_data = hasattr(graph, "edge_index")
        if is_data and number == 0:
            warn_of_edge_features(graph, name)
        x, edge_index = (graph.x, graph.edge_index) if is_data else graph
        features = features_of(x, name)
        each.append((features, edges_of(edge_index, len(features), name, undirected=undirected)))
        if features.shape[1] != each[0][0].shape[1]:
            raise DataError(
                f"{name} has {features.shape[1]} features a node, and graph 0 has "
                f"{each[0][0].shape[1]}. All have the same."
            )
    sizes = [len(features) for features, _ in each]
    most = max(sizes) if nodes is None else nodes
    if max(sizes) > most:
        raise DataError(
            f"graph {sizes.index(max(sizes))} has {max(sizes)} nodes, and tables have {most} rows. "
            f"Make the data set with nodes={max(sizes)} or more."
        )
    width = each[0][0].shape[1]
    tables = torch.zeros(len(each), most, width + most)
    for table, (features, edges) in zip(tables, each, strict=True):
        count = len(features)
        table[:count, :width] = features
        table[edges[1], width + edges[0]] = 1
        table[range(count), range(width, width + count)] = 1
    return tables
