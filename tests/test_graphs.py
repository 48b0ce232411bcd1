"""Graphs: what they are read from, what is refused, and what is learned of them."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from commands import assert_two_processes_end_as_one
from prepared import assert_same_weights, assert_two_ranks_end_as_one

import onward as ow
from onward.batch import Batch
from onward.data.graphs import node_split
from onward.errors import DataError, SettingError
from onward.recipes.class_nodes import (
    ClassNodes,
    ClassNodesBelowLabels,
    NearestClassNode,
    with_class_nodes,
)
from onward.recipes.graph_worlds import ShownLabels, SumOfSquares

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from onward.recipes.graph_layers import GCN, SAGE, Convolution, GraphLayers, layer, unit_length

pytestmark = pytest.mark.usefixtures("unchecked_module")

CLASSES, NODES = 3, 60
RECIPES = ("forwardgnn-sf", "forwardgnn-ff", "gnn-backprop")


def arrays(seed=0):
    """A graph whose nodes mostly have neighbors of their own class, and faint features of it."""
    draw = np.random.default_rng(seed)
    y = np.arange(NODES) % CLASSES
    x = np.eye(CLASSES)[y] @ draw.random((CLASSES, 8)) + 0.5 * draw.random((NODES, 8))
    alike = [draw.choice(np.flatnonzero(y == c), (2, 30)) for c in range(CLASSES)]
    edges = np.concatenate([*alike, draw.integers(NODES, size=(2, 10))], axis=1)
    order = draw.permutation(NODES)
    return x, edges, y, {"train": order[:24], "validation": order[24:36], "test": order[36:]}


def graph(**changes):
    x, edges, y, sets = arrays()
    return ow.graph(**{"x": x, "edge_index": edges, "y": y, "undirected": True} | sets | changes)


def config_of(recipe, **changes):
    widths = (16, 12)
    return ow.RunConfig(recipe=recipe).with_settings(
        {"network.widths": widths, "training.epochs": 20, "optimizer.lr": 0.01} | changes
    )


def trained(recipe, dataset=None, **changes):
    return ow.run(config_of(recipe, **changes), dataset=dataset or graph())


# What graphs are read from


def test_a_graph_is_one_batch_of_which_some_nodes_count():
    x, _, y, sets = arrays()

    dataset = graph()

    for batch, part in (
        (dataset.training, "train"),
        (dataset.validation, "validation"),
        (dataset.test, "test"),
    ):
        assert batch.index.tolist() == sorted(sets[part].tolist())
        assert batch.inputs.shape == x.shape
    known = dataset.training.structure
    assert (y[known["known"].numpy()] == known["known_label"].numpy()).all()
    assert "24 training and 24 test samples" in repr(dataset)


def test_undirected_edges_go_both_ways_once():
    edges = [[0, 1, 1, 2], [1, 0, 2, 1]]
    found = graph(edge_index=edges).training.structure["edge_index"]
    one_way = graph(edge_index=[[0, 1], [1, 2]]).training.structure["edge_index"]

    assert found.tolist() == one_way.tolist() == [[1, 0, 2, 1], [0, 1, 1, 2]]
    directed = graph(edge_index=[[0, 1], [1, 2]], undirected=False)
    assert directed.training.structure["edge_index"].tolist() == [[0, 1], [1, 2]]


def test_a_graph_of_pytorch_geometric_brings_all_of_it():
    x, edges, y, sets = arrays()
    masks = {part: torch.zeros(NODES, dtype=torch.bool) for part in sets}
    for part, nodes in sets.items():
        masks[part][torch.as_tensor(nodes)] = True
    data = Data(
        torch.as_tensor(x, dtype=torch.float32),
        torch.as_tensor(edges),
        y=torch.as_tensor(y),
        train_mask=masks["train"],
        val_mask=masks["validation"],
        test_mask=masks["test"],
    )

    theirs, ours = ow.graph(data, undirected=True), graph()

    assert theirs.sha256() == ours.sha256()
    assert theirs.test.index.equal(ours.test.index)


def test_a_file_of_plain_arrays_is_a_graph(tmp_path):
    x, edges, y, sets = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y, **sets)

    found = ow.load_data(tmp_path / "own.npz")

    assert found.sha256() == graph(undirected=False).sha256()


def test_a_file_without_sets_is_split_by_the_split_seed(tmp_path):
    x, edges, y, _ = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y)

    found = ow.load_data(tmp_path / "own.npz", split_seed=2)

    assert found.test.index.tolist() == node_split(NODES, 2)["test"].tolist()
    with pytest.raises(DataError, match=r"split in one of 5 ways, by data.split_seed from 0 to 4"):
        ow.load_data(tmp_path / "own.npz", split_seed=5)
    with pytest.raises(DataError, match=r"5 nodes or more, .*; got 4 nodes"):
        node_split(4, 0)


def test_splits_of_the_paper_stay_as_they_are():
    found = hashlib.sha256()
    for nodes in (4230, 7650):
        for number in range(5):
            for part in node_split(nodes, number).values():
                found.update(part.astype("<i8").tobytes())

    assert found.hexdigest() == SPLITS_SHA256


SPLITS_SHA256 = "1b8e2e750ebdb658afc2feffa5e9d9f3daf3fff589d64df9960e92b8bb5d967b"

# What is refused

X, EDGES, Y, SETS = arrays()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": [[0, 60], [1, 2]]}, "1 of 2 edges are of nodes that do not exist; the fir"),
        ({"edge_index": [[0, -1], [1, 2]]}, "edge 1, goes from -1 to 2. There are 60 nodes"),
        ({"edge_index": EDGES.T}, r"shape \(100, 2\), and \(2, edges\) is needed, and this looks"),
        ({"edge_index": EDGES + 0.5}, "of type float64, and holds numbers of nodes"),
        ({"edge_index": None}, "there is no edge_index"),
        ({"x": np.zeros((0, 3))}, r"x has the shape \(0, 3\)"),
        ({"x": np.full((NODES, 3), np.nan)}, "180 values that are NaN"),
        ({"x": X[:, :, None]}, "Nodes have vectors of features"),
        ({"y": Y[:5]}, r"y has the shape \(5,\), but there are 60 nodes"),
        ({"y": None}, "there is no y"),
        ({"train": None}, "no nodes are given as train"),
        ({"train": SETS["train"][Y[SETS["train"]] != 1]}, "no node in train has the class 1, whi"),
        ({"train": [60]}, "train has node 60, and there are 60, counted from 0"),
        ({"train": [1, 1]}, "train has node 1 more than once"),
        ({"train": np.ones(5, dtype=bool)}, "a mask of 5 nodes, and there are 60"),
        ({"train": np.ones((60, 2), dtype=bool)}, "looks like several splits: choose one"),
        ({"test": []}, "test has no nodes"),
        ({"test": SETS["train"]}, "24 nodes are in train and in test, the first of them"),
    ],
    ids=str,
)
def test_graphs_that_cannot_be_learned_from_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        graph(**changes)


def test_classes_of_nodes_in_no_set_are_not_looked_at():
    y = Y.copy()
    y[SETS["test"][0]] = -1

    found = graph(y=y, test=SETS["test"][1:])

    assert found.num_classes == CLASSES


@pytest.mark.parametrize("recipe", RECIPES)
def test_data_without_edges_are_refused(recipe):
    with pytest.raises(SettingError, match=f"{recipe} learns from a graph, and these data have no"):
        ow.run(ow.RunConfig(recipe=recipe), dataset=ow.dataset(X, Y))


def test_a_graph_is_not_cut_into_mini_batches():
    with pytest.raises(SettingError, match=r"Set training.batch_size to 60; it is 20"):
        trained("forwardgnn-sf", **{"training.batch_size": 20})


# Layers


@pytest.mark.parametrize(("kind", "conv"), [(GCN, GCNConv), (SAGE, SAGEConv)])
def test_what_is_aggregated_beforehand_is_what_the_layer_aggregates(kind, conv):
    batch, conv = graph().training, conv(8, 5).double()
    x, edges = batch.inputs.double(), batch.structure["edge_index"]

    found = kind(conv)(kind.prepare(x, edges))

    torch.testing.assert_close(found, Convolution(conv)(x, edges))


def test_isolated_nodes_and_loops_are_handled_as_pytorch_geometric_does():
    x, edges = torch.randn(4, 3), torch.tensor([[0, 1, 1], [1, 0, 1]])
    for kind, conv in ((GCN, GCNConv(3, 2)), (SAGE, SAGEConv(3, 2))):
        found = kind(conv)(kind.prepare(x, edges))

        assert found.isfinite().all()
        torch.testing.assert_close(found, conv(unit_length(x), edges).relu())


def test_attention_needs_units_for_each_head():
    assert isinstance(layer("gat", 8, 12)[0].conv, GATConv)
    with pytest.raises(SettingError, match="4 attention heads side by side, and 10 units"):
        layer("gat", 8, 10)


# Nodes of classes


def test_a_node_for_each_class_is_linked_to_training_nodes_of_the_class():
    batch = graph().training
    edges = batch.structure["edge_index"].shape[1]

    one_way, both = (with_class_nodes(batch, CLASSES, way) for way in ("to-classes", "both"))

    added = one_way.structure["edge_index"][:, edges:]
    assert len(one_way) == NODES + CLASSES
    assert added[0].tolist() == batch.structure["known"].tolist()
    assert (added[1] - NODES).tolist() == batch.structure["known_label"].tolist()
    assert both.structure["edge_index"][:, edges + added.shape[1] :].equal(added.flip(0))
    assert set(one_way.structure) == {"edge_index"}


def test_the_nearest_class_node_names_the_class():
    outputs = torch.tensor([[2.0, 0.0], [0.5, 1.0], [1.0, 0.0], [0.0, 1.0]])
    batch = Batch(outputs, {"label": torch.tensor([0, 0, 0, 0])}, index=torch.tensor([0, 1]))
    objective = NearestClassNode(2)

    loss = objective.loss({}, {"graph": batch}, torch.Generator())

    expected = torch.stack([torch.tensor([2.0, 0.0]), torch.tensor([0.5, 1.0])])
    torch.testing.assert_close(objective.scores(batch)[:2], expected.softmax(dim=1))
    torch.testing.assert_close(loss, -expected.log_softmax(dim=1)[:, 0].mean())
    assert objective.metrics({"graph": batch})["accuracy"] == (1, 2)


def test_a_graph_that_does_not_say_what_is_known_is_refused():
    batch = graph().training

    for sampler in (ClassNodes(CLASSES), ShownLabels(CLASSES)):
        with pytest.raises(SettingError, match=r"structure: known, known_label\). Make the data"):
            sampler.neutral(batch.replace(structure={"edge_index": EDGES}))


def test_a_graph_in_which_a_class_has_no_known_node_is_refused():
    less = graph(y=np.arange(NODES) % 2, num_classes=2).test

    for sampler in (ClassNodes(CLASSES), ClassNodesBelowLabels(CLASSES), ShownLabels(CLASSES)):
        with pytest.raises(DataError, match=r"3 classes .* no known node has class 2\. Put nodes"):
            sampler.neutral(less)
    with pytest.raises(DataError, match="no known node has class 2"):
        ShownLabels(CLASSES).candidates(less)


def test_a_graph_without_a_recipe_is_for_the_single_forward(tmp_path):
    np.savez(tmp_path / "own.npz", x=X, edge_index=EDGES, y=Y)

    assert ow.RunConfig(data=ow.DataConfig(name=str(tmp_path / "own.npz"))).recipe == (
        "forwardgnn-sf"
    )


# Labels that are shown


@pytest.mark.parametrize("place", ["features", "nodes"])
def test_worlds_are_the_same_graph_with_other_labels(place):
    batch, worlds = graph().training, CLASSES - 1
    edges = batch.structure["edge_index"]

    views = ShownLabels(CLASSES, place).views(batch, torch.Generator().manual_seed(0), None)

    negative = views["negative"]
    for world in range(worlds):
        inside = (negative.structure["edge_index"] % worlds == world).all(dim=0)
        own = negative.structure["edge_index"][:, inside & True] // worlds
        own = own[:, (own < NODES).all(dim=0)][:, : edges.shape[1]]
        assert set(map(tuple, own.T.tolist())) >= set(map(tuple, edges.T.tolist()))
    assert (negative.index // worlds).tolist() == batch.index.repeat_interleave(worlds).tolist()


def test_negatives_have_each_wrong_label_once():
    batch = graph().training

    views = ShownLabels(CLASSES).views(batch, torch.Generator().manual_seed(0), None)

    shown = {name: view.tensor[view.index, -CLASSES:] for name, view in views.items()}
    own = shown["positive"].argmax(dim=1)
    others = shown["negative"].argmax(dim=1).view(len(own), CLASSES - 1)
    assert own.tolist() == batch.structure["known_label"].tolist()
    every = torch.cat([own[:, None], others], dim=1).sort(dim=1).values
    assert (every == torch.arange(CLASSES)).all()
    rest = torch.ones(NODES, dtype=torch.bool)
    rest[batch.index] = False
    torch.testing.assert_close(
        views["positive"].tensor[rest, -CLASSES:], torch.full((NODES - 24, CLASSES), 1 / CLASSES)
    )


def test_a_sweep_tries_labels_at_the_nodes_that_are_asked():
    batch = graph().test

    seen = ShownLabels(CLASSES).candidates(Batch(batch.inputs, structure=batch.structure))

    shown = seen.tensor[:, -CLASSES:].view(NODES, CLASSES, CLASSES)
    asked, known = batch.index, batch.structure["known"]
    assert shown[asked].equal(torch.eye(CLASSES).expand(len(asked), -1, -1))
    own = torch.eye(CLASSES)[batch.structure["known_label"]]
    assert shown[known].equal(own[:, None].expand(-1, CLASSES, -1))
    rest = graph().validation.index
    torch.testing.assert_close(shown[rest], torch.full_like(shown[rest], 1 / CLASSES))


def test_the_losses_are_those_of_the_papers():
    own, others = torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0]] * 4)
    outputs = {
        "positive": Batch(own, index=torch.arange(2)),
        "negative": Batch(others, index=torch.arange(4)),
    }

    def loss(kind):
        return SumOfSquares(kind).loss({}, outputs, torch.Generator())

    softplus = torch.nn.functional.softplus
    lead = torch.tensor([1.0, 1.0, 3.0, 3.0])
    torch.testing.assert_close(loss("symba"), softplus(-4 * lead).mean())
    expected = softplus(2 - torch.tensor([2.0, 4.0])).mean() + softplus(torch.tensor(-1.0))
    torch.testing.assert_close(loss("threshold"), expected)


# What is learned


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("forwardgnn-sf", {}),
        ("forwardgnn-sf", {"network.convolution": "sage"}),
        ("forwardgnn-sf", {"network.convolution": "gat"}),
        ("forwardgnn-sf", {"network.direction": "both"}),
        ("forwardgnn-ff", {}),
        ("forwardgnn-ff", {"network.labels": "nodes", "network.convolution": "sage"}),
        ("forwardgnn-ff", {"network.loss": "symba"}),
        ("gnn-backprop", {}),
        ("gnn-backprop", {"network.unit_length": False}),
    ],
    ids=str,
)
def test_a_graph_is_learned_and_read_back(recipe, changes, tmp_path):
    dataset = graph()
    epochs = {"training.epochs": 400 if recipe == "forwardgnn-ff" else 60}

    result = ow.run(config_of(recipe, **epochs | changes), dataset=dataset, folder=tmp_path / "run")

    assert result.accuracy > 0.8
    loaded = ow.load(tmp_path / "run" / "model.safetensors")
    scores = [n.scores_of(dataset.test).network for n in (loaded, result.network)]
    assert scores[0].equal(scores[1])
    assert ow.evaluate(tmp_path / "run", dataset.test).correct == result.test.correct


def test_nodes_whose_label_is_known_are_asked_like_others():
    dataset = graph()

    network = trained("forwardgnn-ff", **{"training.epochs": 400}).network

    assert ow.evaluate(network, dataset.training).accuracy > 0.6


def test_known_labels_are_those_of_the_same_names():
    names = np.array(["a", "b", "c"])[np.arange(NODES) % CLASSES]
    dataset, other = graph(y=names), graph(y=names, class_names=["c", "a", "b"])

    network = trained("forwardgnn-sf", dataset).network

    assert ow.evaluate(network, other).correct == ow.evaluate(network, dataset).correct


@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_layers_of_backpropagation_are_those_of_pytorch_geometric(kind):
    edges = torch.randint(NODES, (2, 200), generator=torch.Generator().manual_seed(0))
    layers = GraphLayers(kind, (8, 6, 3), is_unit_length=False)
    theirs = copy.deepcopy(layers.convs)
    x = torch.randn(NODES, 8, generator=torch.Generator().manual_seed(1))

    ours = layers(x, edges)
    ours.square().sum().backward()
    expected = theirs[1](theirs[0](x, edges).relu(), edges)
    expected.square().sum().backward()

    assert ours.allclose(expected, atol=1e-5)
    for one, other in zip(layers.parameters(), theirs.parameters(), strict=True):
        assert one.grad.allclose(other.grad, atol=1e-4)
    # Edges that are changed in place are another graph.
    edges[0] = edges[0].roll(1)
    assert layers(x, edges).allclose(theirs[1](theirs[0](x, edges).relu(), edges), atol=1e-5)


@pytest.mark.parametrize("recipe", ["forwardgnn-sf", "forwardgnn-ff"])
def test_labels_of_the_test_do_not_matter(recipe):
    dataset, network = graph(), trained(recipe).network
    other = dataset.test.replace(targets={"label": dataset.test.label.roll(1)})

    assert network.scores_of(dataset.test).network.equal(network.scores_of(other).network)


@pytest.mark.parametrize("recipe", ["forwardgnn-sf", "forwardgnn-ff"])
def test_classes_of_validation_and_test_nodes_teach_nothing(recipe):
    y = Y.copy()
    y[SETS["test"]] = (y[SETS["test"]] + 1) % CLASSES

    one, other = (trained(recipe, graph(y=each)) for each in (Y, y))

    assert_same_weights(one.network, other.network)


@pytest.mark.parametrize("recipe", ["forwardgnn-ff", "gnn-backprop"])
def test_two_ranks_end_in_the_weights_of_one(recipe, tmp_path):
    x, edges, y, sets = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y, **sets)
    changes = {"data.name": str(tmp_path / "own.npz"), "network.widths": (12, 12)}
    changes |= {"plan.kind": "chapters", "plan.chapters": 2}
    changes |= {"training.epochs": 4, "training.batch_size": 60}

    assert_two_ranks_end_as_one(recipe, changes)


@pytest.mark.parametrize(
    "recipe", ["forwardgnn-sf", pytest.param("forwardgnn-ff", marks=pytest.mark.slow)]
)
def test_two_processes_end_in_the_weights_of_one(recipe, tmp_path):
    x, edges, y, sets = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y, **sets)
    given = [recipe, "--data", tmp_path / "own.npz", "--widths", "16,12"]
    given += ["--epochs", "8", "--chapters", "2"]

    assert_two_processes_end_as_one(tmp_path, *given)
