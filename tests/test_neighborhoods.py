"""Graphs in mini-batches: nodes, and neighbors that are drawn for them."""

import numpy as np
import pytest
import torch
from commands import assert_two_processes_end_as_one
from prepared import assert_same_weights, assert_two_ranks_end_as_one
from test_graphs import NODES, arrays, config_of, graph

import onward as ow
from onward.errors import OnwardWarning, SettingError
from onward.recipes.class_nodes import ClassNodes, with_class_nodes
from onward.recipes.neighborhoods import Neighborhoods, in_edges, neighborhood
from onward.runtime.chapters import ChapterWorker
from onward.runtime.workers import spread_out

pytest.importorskip("torch_geometric")

from onward.recipes.graph_layers import SAGE, Convolution, convolution

pytestmark = pytest.mark.usefixtures("unchecked_module")

PARTS = {"network.neighbors": (3, 2), "training.batch_size": 20, "network.convolution": "sage"}


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(recipe, dataset=None, **changes):
    usual = {"training.epochs": 6} | PARTS
    return ow.run(config_of(recipe, **usual | changes), dataset=dataset or graph())


def test_so_many_edges_of_each_node_are_drawn_and_each_as_often():
    edges = graph().training.structure["edge_index"]
    degree = edges[1].bincount(minlength=NODES)
    nodes = degree.argsort(descending=True)[[4, 0, 30]]

    every = in_edges(edges, nodes, 1000, drawn())
    some = in_edges(edges, nodes, 2, drawn())

    expected = edges[:, torch.isin(edges[1], nodes)]
    assert every.equal(expected)
    assert some[1].bincount(minlength=NODES)[nodes].equal(degree[nodes].clamp(max=2))
    assert some.unique(dim=1).shape == some.shape
    assert set(map(tuple, some.T.tolist())) <= set(map(tuple, expected.T.tolist()))
    # Of a node with d edges, each is among two in 2 of d cases.
    times, most = 3000, nodes[1]
    draw = drawn()
    sources = torch.cat([in_edges(edges, nodes[1:2], 2, draw)[0] for _ in range(times)])
    often = sources.bincount(minlength=NODES)[edges[0, edges[1] == most]]
    share = 2 / int(degree[most])
    assert share < 0.5
    assert (often / times - share).abs().max() < 4 * (share * (1 - share) / times) ** 0.5


def test_nodes_without_edges_have_none_drawn():
    edges = torch.tensor([[1], [0]])

    assert in_edges(edges, torch.tensor([1, 2]), 5, drawn()).shape == (2, 0)


@pytest.mark.parametrize("kind", ["sage", "gat"])
def test_with_all_neighbors_of_all_hops_nodes_are_what_they_are_in_the_graph(kind):
    batch = graph().training.take(torch.tensor([5, 20, 33, 41]))
    torch.manual_seed(0)
    layers = [Convolution(convolution(kind, *sizes)) for sizes in ((8, 16), (16, 8))]

    def put_out(view):
        x = view.tensor
        for layer in layers:
            x = layer(x, view.structure["edge_index"])
        return x

    part = neighborhood(batch, (1000, 1000), drawn())

    assert len(part) < NODES
    assert part.label[part.index].equal(batch.label[batch.index])
    assert put_out(part)[part.index].allclose(put_out(batch)[batch.index], atol=1e-6)
    # What is known is known of the same nodes.
    known = {int(node): int(y) for node, y in zip(*known_in(batch), strict=True)}
    here = dict(
        zip(
            part.ids[part.structure["known"]].tolist(),
            part.structure["known_label"].tolist(),
            strict=True,
        )
    )
    assert known.items() >= here.items()
    assert set(batch.index.tolist()) & set(known) <= set(here)
    # Class nodes become what they become in the graph, linked to the same nodes.
    chosen = torch.tensor(sorted(here))
    label = torch.tensor([here[node] for node in chosen.tolist()])
    alike = batch.replace(structure=batch.structure | {"known": chosen, "known_label": label})
    found, expected = (put_out(with_class_nodes(b, 3, "to-classes"))[-3:] for b in (part, alike))
    assert found.allclose(expected, atol=1e-6)


def known_in(batch):
    return batch.structure["known"], batch.structure["known_label"]


def test_mini_batches_have_their_share_of_the_training_nodes_and_each_once(monkeypatch):
    seen = []
    views = ClassNodes.views

    def noted(self, batch, draw, hints):
        seen.append(batch.index)
        return views(self, batch, draw, hints)

    monkeypatch.setattr(ClassNodes, "views", noted)
    dataset = graph()
    settings = {"training.epochs": 2, "network.widths": (8,), "network.neighbors": (3,)}
    trained("forwardgnn-sf", dataset, **settings)

    epochs = [seen[-6:-3], seen[-3:]]
    for epoch in epochs:
        assert [len(index) for index in epoch] == [8, 8, 8]
        assert torch.cat(epoch).sort().values.equal(dataset.training.index)
    assert not epochs[0][0].equal(epochs[1][0])


@pytest.mark.parametrize(
    "recipe", ["forwardgnn-sf", pytest.param("gnn-backprop", marks=pytest.mark.slow)]
)
def test_parts_of_a_graph_teach_what_the_graph_does(recipe):
    result = trained(recipe, **{"training.epochs": 60, "optimizer.lr": 0.01})

    assert result.accuracy > 0.75
    again = trained(recipe, **{"training.epochs": 60, "optimizer.lr": 0.01})
    assert_same_weights(result.network, again.network)


def test_two_ranks_end_in_the_weights_of_one(tmp_path):
    x, edges, y, sets = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y, **sets)
    changes = {"data.name": str(tmp_path / "own.npz"), "network.widths": (12, 12)}
    changes |= {"network.neighbors": (3, 2), "training.batch_size": 20}
    changes |= {"training.epochs": 4, "plan.chapters": 2}

    assert_two_ranks_end_as_one("forwardgnn-sf", changes)


@pytest.mark.slow
def test_two_processes_end_in_the_weights_of_one(tmp_path):
    x, edges, y, sets = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y, **sets)
    given = ["forwardgnn-sf", "--data", tmp_path / "own.npz", "--widths", "12,12"]
    given += ["--set", "network.neighbors=3,2", "--batch-size", "20", "--epochs", "4"]

    assert_two_processes_end_as_one(tmp_path, *given, "--chapters", "2")


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("forwardgnn-sf", {"network.neighbors": None}, "ClassNodes takes them whole, so one mini"),
        ("forwardgnn-sf", {"training.batch_size": 2}, "Set training.batch_size to 3 or more"),
        ("forwardgnn-sf", {"plan.kind": "stream", "plan.block_patience": None}, "Use --plan chap"),
    ],
)
def test_parts_that_cannot_be_learned_from_are_refused(recipe, changes, message):
    with pytest.raises(SettingError, match=message):
        trained(recipe, **changes)


@pytest.mark.parametrize("size", [3, 5, 7, 20, 29, 59])
def test_no_mini_batch_is_without_a_node_that_counts(size):
    for number in range(200):
        draw = torch.Generator().manual_seed(number)
        nodes = int(torch.randint(size + 1, 61, (), generator=draw)) if size < 59 else 60
        least = -(-(nodes + 1) // size)
        order = torch.randperm(nodes, generator=draw)
        counted = torch.randperm(nodes, generator=draw)[:least]

        found = spread_out(order, counted)

        assert found.sort().values.equal(torch.arange(nodes))
        assert all(torch.isin(batch, counted).any() for batch in found.split(size))


def test_parts_are_not_held(monkeypatch):
    held = []
    learned = ChapterWorker._in_portions

    def noted(self, activities, block):
        held.append(sum(len(known) for each in self.activities.values() for known in each.known))
        return learned(self, activities, block)

    monkeypatch.setattr(ChapterWorker, "_in_portions", noted)
    with pytest.warns(OnwardWarning, match="one mini-batch holds all 60 nodes"):
        trained("forwardgnn-sf", **{"training.batch_size": NODES})

    assert held
    assert set(held) == {0}


def test_neighbors_are_drawn_over_as_many_hops_as_there_are_layers():
    with pytest.raises(SettingError, match=r"there are 2 layers \(network.widths\), and it has 1"):
        trained("forwardgnn-sf", **{"network.neighbors": (5,)})


def test_edges_that_no_block_reads_are_warned_of():
    with pytest.warns(OnwardWarning, match=r"belong together \(edge_index, known, .*no block"):
        ow.run(
            ow.RunConfig(recipe="one-pass").with_settings({"training.epochs": 1}), dataset=graph()
        )


def test_a_part_has_the_edges_that_were_drawn_and_no_other():
    view = Neighborhoods((2,)).views(graph().training, drawn(), None)["input"]

    edges = view.structure["edge_index"]
    assert edges[1].bincount().max() <= 2
    assert edges[1].max() < len(view.index)
    assert edges.max() < len(view)
    assert SAGE.prepare(view.tensor, edges)["own"].shape == (len(view), 8)
