"""One graph as a data set of pairs of nodes, some of which are linked."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from onward.batch import Batch
from onward.data.dataset import Dataset
from onward.data.graphs import (
    edges_of,
    features_of,
    read_members_of_graph,
    warn_of_edge_features,
)
from onward.data.numbers import Numbers
from onward.errors import DataError

LINKED = ("no edge", "edge")
"""Names of the two classes of pairs."""


def graph_links(
    x: Any,
    edge_index: Numbers = None,
    *,
    validation: float = 0.16,
    test: float = 0.2,
    undirected: bool = False,
    split_seed: int = 0,
    name: str = "graph",
) -> Dataset:
    """Make a data set of pairs of nodes of one graph: those with an edge, and as many without.

    A sample is a pair, of class 1 where there is an edge. Some edges are held out; along the others
    messages go: those to learn from, and for the test also those of the validation. Loops are left
    out.

    Args:
        x: Features of the nodes, shape (nodes, features). Or a `Data` of PyTorch Geometric.
        edge_index: Edges, shape (2, edges), each both ways.
        validation: Share of the edges for validation; 0: none.
        test: Share of the edges for the test.
        undirected: Whether each edge is also added the other way round, where it is missing.
        split_seed: Decides which edges are held out, and which pairs without an edge are taken.
        name: What the data set is called in reports and errors.

    Returns:
        A data set whose inputs are pairs of numbers of nodes, shape (pairs, 2). Its `structure` has
        the features, `x`, and `edge_index`.

    Raises:
        DataError: Edges go one way only, are too few to split, or leave too few pairs without one.

    Source:
        Park et al. 2024, arXiv:2403.11004, section 3.4, whose shares these are.

    Example:
        >>> ring = torch.stack([torch.arange(40), torch.arange(40).roll(1)])
        >>> dataset = graph_links(torch.eye(40), ring, undirected=True)
        >>> len(dataset.training), len(dataset.validation), len(dataset.test)
        (52, 12, 16)
    """
    if hasattr(x, "edge_index"):
        edge_index = x.edge_index if edge_index is None else edge_index
        warn_of_edge_features(x, name)
        x = x.x
    if not (0 <= validation < 1 and 0 < test < 1 and validation + test < 1):
        raise DataError(
            f"{name}: {validation:g} of the edges are for validation and {test:g} for the test. "
            f"These are shares, and some edges are left to learn from; validation may be 0."
        )
    features = features_of(x, name)
    nodes = len(features)
    edges = edges_of(edge_index, nodes, name, undirected=undirected)
    edges = edges[:, edges[0] != edges[1]].unique(dim=1)
    linked = edges[:, edges[0] < edges[1]]
    if 2 * linked.shape[1] != edges.shape[1]:
        back = {tuple(edge) for edge in edges.flip(0).T.tolist()}
        first = next(edge for edge in edges.T.tolist() if tuple(edge) not in back)
        raise DataError(
            f"{name}: there is an edge from {first[0]} to {first[1]}, and none back. A link is of "
            f"two nodes, whichever comes first: say undirected=True to add the edges back."
        )
    count = linked.shape[1]
    held = {"validation": int(validation * count), "test": int(test * count)}
    held["train"] = count - sum(held.values())
    few = [
        p for p in ("train", "validation", "test") if held[p] < 1 and (validation or p[0] != "v")
    ]
    if few:
        raise DataError(
            f"{name}: of {count:,} edges, loops left out, none would be for {few[0]}. It takes "
            f"more edges, or a larger share."
        )
    draw = np.random.default_rng(split_seed)
    apart = _without_edge(linked.numpy(), nodes, count, draw, name)
    order = torch.from_numpy(draw.permutation(count))
    sizes = [held[part] for part in ("train", "validation", "test")]
    both = [each.split(sizes) for each in (order, torch.arange(count))]
    sets = dict(zip(("train", "validation", "test"), zip(*both, strict=True), strict=True))

    def pairs(part: str, *along: str) -> Batch:
        """Return the pairs of a part, and the graph with the edges of some parts."""
        own, others = sets[part]
        message = linked[:, torch.cat([sets[each][0] for each in along]).sort().values]
        return Batch(
            torch.cat([linked[:, own], apart[:, others]], dim=1).T.contiguous(),
            {"label": torch.tensor([1, 0]).repeat_interleave(len(own))},
            structure={"x": features, "edge_index": torch.cat([message, message.flip(0)], dim=1)},
        )

    return Dataset(
        name=name,
        training=pairs("train", "train"),
        validation=pairs("validation", "train") if validation else None,
        test=pairs("test", "train", "validation"),
        num_classes=2,
        class_names=LINKED,
        has_own_test=True,
    )


def _without_edge(
    linked: NDArray[np.int64], nodes: int, count: int, draw: np.random.Generator, name: str
) -> Int[Tensor, "2 pairs"]:
    """Return that many pairs of nodes without an edge, each once, in random order."""
    free = nodes * (nodes - 1) // 2 - linked.shape[1]
    if free < count:
        raise DataError(
            f"{name}: {linked.shape[1]:,} of {nodes * (nodes - 1) // 2:,} pairs of nodes have an "
            f"edge, and as many without one are needed; there are {free:,}."
        )
    taken = linked[0] * nodes + linked[1]
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        pairs = np.sort(draw.integers(nodes, size=(2, 2 * count)), axis=0)
        codes = (pairs[0] * nodes + pairs[1])[pairs[0] != pairs[1]]
        fresh = codes[~np.isin(codes, taken)]
        # Each once, in the order in which they were drawn.
        found = np.concatenate([found, fresh])
        found = found[np.sort(np.unique(found, return_index=True)[1])]
    return torch.from_numpy(np.stack(np.divmod(found[:count], nodes)))


def read_links(path: Path, split_seed: int, name: str | None = None) -> Dataset:
    """Read a graph as pairs of nodes from an .npz file.

    Edges are taken to go both ways.

    Args:
        path: See `onward.data.graphs.read_graph`; classes and sets of nodes are not looked at.
        split_seed: See `graph_links`.
        name: What it is called; None: as the file.

    Raises:
        DataError: The file is missing or damaged, or its members do not fit.
    """
    members = read_members_of_graph(path)
    return graph_links(
        members["x"],
        members["edge_index"],
        undirected=True,
        split_seed=split_seed,
        name=name or path.name,
    )
