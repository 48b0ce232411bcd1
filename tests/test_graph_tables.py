"""Whole graphs as samples: tables with a row for each node."""

import numpy as np
import pytest
import torch
from prepared import assert_two_ranks_end_as_one

import onward as ow
from onward.errors import DataError, SettingError
from onward.recipes.table_layers import GraphThreshold, LabelAtNodes, TableGCN, aggregated

pytestmark = pytest.mark.usefixtures("unchecked_module")

CLASSES = 3


def made(count=90, seed=0):
    """Rings, stars and random graphs; a node knows how many edges it has."""
    draw = np.random.default_rng(seed)
    graphs, classes = [], []
    for number in range(count):
        nodes, kind = int(draw.integers(5, 10)), number % CLASSES
        around = np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes])
        star = np.stack([np.zeros(nodes - 1, dtype=int), np.arange(1, nodes)])
        edges = [around, star, draw.integers(nodes, size=(2, 2 * nodes))][kind]
        degree = np.bincount(edges.ravel(), minlength=nodes).clip(max=7)
        graphs.append((np.eye(8)[degree] + 0.01 * draw.normal(size=(nodes, 8)), edges))
        classes.append(kind)
    return graphs, classes


def dataset(**more):
    return ow.graphs(*made(), undirected=True, **more)


def trained(**changes):
    usual = {"network.widths": (16, 12), "training.epochs": 40, "training.batch_size": 20}
    config = ow.RunConfig(recipe="gff").with_settings(usual | changes)
    return ow.run(config, dataset=dataset())


def test_a_table_has_features_and_edges_of_each_node():
    (table,) = ow.graph_tables([([[5.0], [6.0]], [[0, 1], [1, 0]])], nodes=3)

    assert table.tolist() == [[5, 1, 1, 0], [6, 1, 1, 0], [0, 0, 0, 0]]


def test_graphs_of_pytorch_geometric_bring_their_class():
    data = pytest.importorskip("torch_geometric.data")
    graphs, classes = made()
    theirs = [
        data.Data(torch.as_tensor(x), torch.as_tensor(edges), y=torch.tensor([kind]))
        for (x, edges), kind in zip(graphs, classes, strict=True)
    ]

    assert ow.graphs(theirs, undirected=True).sha256() == dataset().sha256()


@pytest.mark.parametrize(
    ("graphs", "more", "message"),
    [
        ([], {}, "There are no graphs"),
        ([(np.ones((2, 1)), [[0], [1]])], {}, "There is no y, and graph 0 does not bring"),
        ([(np.ones((2, 1)), [[0], [2]])], {"y": [0]}, "graph 0: 1 of 1 edges are of nodes that do"),
        (
            [(np.ones((2, 1)), [[0], [1]]), (np.ones((2, 3)), [[0], [1]])],
            {"y": [0, 1]},
            "graph 1 has 3 features a node, and graph 0 has 1",
        ),
        ([(np.ones((4, 1)), [[0], [1]])], {"y": [0], "nodes": 3}, "has 4 nodes, and tables have 3"),
        (
            [(np.ones((2, 1)),)],
            {"y": [0]},
            "graph 0 is a tuple of 1. A graph is a pair of features",
        ),
        ([(np.full((2, 1), np.nan), [[0], [1]])], {"y": [0]}, "graph 0: x holds .* NaN"),
    ],
)
def test_graphs_that_do_not_fit_are_refused(graphs, more, message):
    with pytest.raises(DataError, match=message):
        ow.graphs(graphs, **more)


def test_one_graph_and_classes_that_are_no_numbers_are_refused():
    data = pytest.importorskip("torch_geometric.data")
    x, edges = torch.ones(2, 1), torch.tensor([[0], [1]])

    with pytest.raises(DataError, match=r"This is one graph\. Give a list of graphs"):
        ow.graphs(data.Data(x, edges))
    for y, told in ((torch.tensor([0.5]), r"\[0.5\]"), (torch.tensor([[1, 2]]), r"\[\[1, 2\]\]")):
        with pytest.raises(DataError, match=f"The y of graph 0 is {told}"):
            ow.graphs([data.Data(x, edges, y=y)])
    with pytest.raises(DataError, match=r"these are several graphs\. For those, see ow\.graphs"):
        ow.graph([data.Data(x, edges)])


def test_tables_whose_edges_were_scaled_are_refused():
    with pytest.raises(SettingError, match="Edges in tables of graphs are 0 or 1, and these"):
        trained(**{"data.standardize": "feature"})


def test_other_samples_are_refused():
    with pytest.raises(SettingError, match=r"these samples have the shape \(1, 8, 8\)"):
        ow.run(ow.RunConfig(recipe="gff"))


def test_a_layer_is_that_of_pytorch_geometric():
    nn = pytest.importorskip("torch_geometric.nn")
    (x, edges), table = made(3)[0][2], ow.graph_tables([made(3)[0][2]], nodes=12, undirected=True)
    torch.manual_seed(0)
    theirs, ours = nn.GCNConv(8, 5), TableGCN(8, 5)
    ours.linear.weight.data, ours.linear.bias.data = theirs.lin.weight.data, theirs.bias.data
    both = torch.as_tensor(np.concatenate([edges, edges[::-1]], axis=1)).unique(dim=1)
    # Without loops, which both add.
    both = both[:, both[0] != both[1]]
    x = torch.as_tensor(x, dtype=torch.float32)
    x = x / x.square().mean(dim=1, keepdim=True).sqrt()

    with torch.no_grad():
        expected, found = theirs(x, both).relu(), ours(aggregated(table))[0]

    assert found[: len(x), :5].allclose(expected, atol=1e-6)
    assert found[len(x) :].eq(0).all()
    assert found[:, 5:].equal(table[0, :, 8:])


def test_goodness_is_of_the_nodes_that_there_are():
    table = torch.zeros(1, 4, 2 + 4)
    table[0, :2, :2] = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    table[0, range(2), range(2, 4)] = 1
    objective = GraphThreshold(2, threshold=1.0, slope=2.0)

    assert objective.goodness(table).tolist() == [(1 + 9 + 4) / 4]
    assert objective.scores(ow.Batch(table)).tolist() == [7.0]
    assert objective.activities(table).shape == (1, 2, 4)


def test_a_label_is_shown_at_nodes_alone():
    (table,) = ow.graph_tables([made(1)[0][0]], nodes=12, undirected=True)
    nodes = int(table[:, 8:].diagonal().sum())

    shown = LabelAtNodes(CLASSES).candidates(ow.Batch(table[None])).tensor

    assert shown.shape == (CLASSES, 12, CLASSES + 8 + 12)
    for label in range(CLASSES):
        assert shown[label, :, :CLASSES].nonzero().tolist() == [[n, label] for n in range(nodes)]


def test_more_rows_than_nodes_change_nothing():
    network = trained().network
    graphs, _ = made(6, seed=1)

    few, many = (ow.graph_tables(graphs, nodes=n, undirected=True) for n in (9, 14))

    assert few.shape != many.shape
    inside = network.sampler, network.all_blocks
    scores = []
    for tables in (few, many):
        view = inside[0].candidates(ow.Batch(tables))
        for block in inside[1]:
            view = block.infer(view)
        scores.append(inside[1][-1].scores(view))
    assert scores[0].allclose(scores[1], rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network.negatives": "adaptive", "plan.hint_age": 1},
        {"network.layers_per_block": "all"},
        {"plan.kind": "stream"},
    ],
    ids=str,
)
def test_graphs_are_classified(changes, tmp_path):
    result = trained(**changes)

    assert result.accuracy > 0.8
    ow.save(result.network, tmp_path / "model.safetensors")
    new, classes = made(30, seed=2)
    tables = ow.graph_tables(new, nodes=9, undirected=True)
    found = ow.load(tmp_path / "model.safetensors").predict(tables)
    assert (found == torch.tensor(classes)).double().mean() > 0.8


def test_a_graph_leaves_early():
    network, tables = trained().network, dataset().test

    calibrated = ow.calibrate(network, tables, max_error_increase=0.1)
    answers = ow.answer(network, tables, calibrated.policy)

    assert calibrated.mean_macs < calibrated.full_macs
    assert (answers.exits == 0).any()


def test_ranks_of_a_stream_end_in_the_weights_of_one(tmp_path):
    data = dataset()
    parts = {"x": data.x, "y": data.y, "x_test": data.x_test, "y_test": data.y_test}
    np.savez(tmp_path / "own.npz", **parts)
    changes = {"data.name": str(tmp_path / "own.npz"), "network.widths": (12, 12)}
    changes |= {"training.epochs": 3, "training.batch_size": 20, "plan.kind": "stream"}

    assert_two_ranks_end_as_one("gff", changes, "stream")
