"""Parts of a graph: some nodes, and neighbors that are drawn for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from onward.batch import Batch
from onward.network.samplers import Sampler


def in_edges(
    edge_index: Int[Tensor, "2 edges"],
    nodes: Int[Tensor, " nodes"],
    most: int,
    draw: torch.Generator,
) -> Int[Tensor, "2 drawn"]:
    """Return edges that lead to some nodes: all of a node, or so many of them, drawn.

    Args:
        edge_index: Edges in order of the nodes they go to.
        nodes: These nodes, each once.
        most: Edges of a node, at most.
        draw: Draws them.

    Example:
        >>> edges = torch.tensor([[1, 2, 3, 0], [0, 0, 0, 2]])
        >>> in_edges(edges, torch.tensor([0, 2]), 2, torch.Generator()).shape
        torch.Size([2, 3])
    """
    target = edge_index[1].contiguous()
    first = torch.searchsorted(target, nodes)
    degree = torch.searchsorted(target, nodes, right=True) - first
    # A row for each edge of these nodes: which node, and which of its edges.
    device = nodes.device
    owner = torch.arange(len(nodes), device=device).repeat_interleave(degree)
    start = degree.cumsum(0) - degree
    edge = torch.arange(len(owner), device=device) - start[owner] + first[owner]
    # In random order within each node, of which the first are taken.
    drawn = torch.rand(len(owner), generator=draw, dtype=torch.float64, device=device)
    order = drawn.add_(owner).argsort()
    place = torch.arange(len(owner), device=device) - start[owner]
    return edge_index[:, edge[order[place < most]].sort().values]


def neighborhood(batch: Batch, neighbors: Sequence[int], draw: torch.Generator) -> Batch:
    """Return the part of a graph around the nodes that count.

    Args:
        batch: A graph; its structure has `edge_index`, in order of the nodes that edges go to.
        neighbors: Edges drawn for each of these nodes, then for each node that was reached, and so
            on.
        draw: Draws them.

    Returns:
        Nodes that count, first, and others that were reached; edges between them that were drawn.
        What is known of labels is that of nodes that count and of their neighbors: nodes further
        away lack neighbors of their own, and the last layer would read something else from them
        than in the whole graph.

    Source:
        Hamilton, Ying & Leskovec 2017, arXiv:1706.02216, section 3.1, without replacement.
    """
    edges = batch.structure["edge_index"]
    if edges.shape[1] > 1 and bool((edges[1, 1:] < edges[1, :-1]).any()):
        edges = edges[:, edges[1].argsort(stable=True)]
    device, seeds = batch.device, batch.index
    seeds = torch.arange(len(batch), device=device) if seeds is None else seeds
    place = torch.full((len(batch),), -1, device=device)
    place[seeds] = torch.arange(len(seeds), device=device)
    reached, fresh, drawn = [seeds], seeds, []
    for most in neighbors:
        drawn.append(in_edges(edges, fresh, most, draw))
        fresh = drawn[-1][0].unique()
        fresh = fresh[place[fresh] < 0]
        place[fresh] = sum(map(len, reached)) + torch.arange(len(fresh), device=device)
        reached.append(fresh)
    nodes = torch.cat(reached)
    structure = {"edge_index": place[torch.cat(drawn, dim=1)]}
    if "known" in batch.structure:
        known = place[batch.structure["known"]]
        is_near = (known >= 0) & (known < len(seeds) + len(reached[1]))
        structure["known"] = known[is_near]
        structure["known_label"] = batch.structure["known_label"][is_near]
    whole = batch.replace(structure={}, index=None)
    return whole.take(nodes).replace(structure=structure, index=place[seeds])


@dataclass(frozen=True)
class Neighborhoods(Sampler):
    """One view: nodes of a mini-batch and neighbors that are drawn for them."""

    neighbors: tuple[int, ...]
    """See `neighborhood`."""

    names = ("input",)
    takes_parts = True

    def views(self, batch: Batch, draw: torch.Generator, hints: Tensor | None) -> dict[str, Batch]:
        return {"input": neighborhood(batch, self.neighbors, draw)}
