"""What people give as graphs, and what they are told."""

import numpy as np
import pytest
import torch
from test_graphs import NODES, arrays, graph

import onward as ow
from onward.data.catalog import load
from onward.errors import DataError, OnwardWarning

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data

from onward.recipes.graph_layers import mean_over

pytestmark = pytest.mark.usefixtures("unchecked_module")


def data_of(**more):
    x, edges, y, sets = arrays()
    masks = {}
    for part, mask in (("train", "train_mask"), ("validation", "val_mask"), ("test", "test_mask")):
        masks[mask] = torch.zeros(NODES, dtype=torch.bool)
        masks[mask][torch.as_tensor(sets[part])] = True
    x = torch.as_tensor(x, dtype=torch.float32)
    return Data(x, torch.as_tensor(edges), y=torch.as_tensor(y), **masks | more)


def test_features_of_small_whole_numbers_are_counts_and_no_pixels():
    x = (arrays()[0] > 0.5).astype(np.uint8)

    assert graph(x=x).training.tensor.equal(graph(x=x.astype(np.float32)).training.tensor)


def test_weights_of_edges_are_said_to_have_no_effect():
    data = data_of(edge_weight=torch.ones(100))

    with pytest.warns(OnwardWarning, match="edge_weight of the graph have no effect"):
        ow.graph(data, undirected=True)
    with pytest.warns(OnwardWarning, match="edge_weight of the graph have no effect"):
        ow.graph_links(data, undirected=True)


def test_edges_that_go_one_way_are_told_unless_it_is_said_that_they_do(recwarn):
    with pytest.warns(OnwardWarning, match="edges go one way only, .* in a file must hold both"):
        graph(undirected=None)
    recwarn.clear()

    graph(undirected=False)
    graph(undirected=True)

    assert not recwarn.list


def test_masks_that_are_not_given_are_those_of_the_data():
    mine = ow.graph(data_of(), train=arrays()[3]["train"][:20], undirected=True)

    assert (mine.training.num_counted, mine.test.num_counted) == (20, 24)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x": None}, "nodes have no features.*degrees"),
        ({"y": arrays()[2][:, None]}, r"Give y\[:, 0\]"),
        ({"train": np.isin(np.arange(NODES), range(10)).astype(int)}, r"mask.astype\(bool\)"),
        ({"num_classes": 5}, "has the class 3, and no other has"),
    ],
    ids=["features", "classes", "mask", "number"],
)
def test_what_is_wrong_is_told_with_what_to_do(changes, text):
    with pytest.raises(DataError, match=text):
        graph(**changes)


def test_numbers_of_nodes_may_be_a_range_and_edges_whole_floats():
    edges = arrays()[1].astype(float)

    found = graph(edge_index=edges, validation=range(40, 45), train=range(30), test=range(50, 60))

    assert found.validation.index.tolist() == [40, 41, 42, 43, 44]
    edges[0, 0] = 0.5
    with pytest.raises(DataError, match="holds numbers of nodes"):
        graph(edge_index=edges)


def test_a_file_may_say_how_many_classes_there_are_and_which_nodes_are_in_which_set(tmp_path):
    x, edges, y, sets = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y, num_classes=3, **sets)

    with pytest.warns(OnwardWarning, match="data.split_seed = 2 has no effect"):
        found = load(str(tmp_path / "own.npz"), split_seed=2)

    assert found.num_classes == 3


@pytest.mark.parametrize("edges", [[[0, 1], [2, 3], [4, 5]], [[0], [6]]], ids=["turned", "beyond"])
def test_edges_of_a_batch_that_cannot_be_are_refused(edges):
    with pytest.raises(DataError, match="numbered from 0 to 5"):
        mean_over("mean", torch.tensor(edges), torch.eye(6))
