"""Pairs of nodes of a graph: how they are split, what is refused, and what is learned of them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import assert_two_processes_end_as_one, onward
from prepared import assert_same_weights, assert_two_ranks_end_as_one
from sklearn.metrics import roc_auc_score

import onward as ow
from onward.batch import Batch
from onward.errors import DataError, OnwardWarning, SettingError
from onward.recipes.pairs import Likeness, PairsOfNodes

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data

from onward.recipes.graph_layers import unit_length

pytestmark = pytest.mark.usefixtures("unchecked_module")

NODES, GROUPS = 60, 3
LINKS, TOP, TWIN = "forwardgnn-links", "forwardgnn-links-top-to-input", "gnn-backprop"


def arrays(seed=0):
    """A graph whose nodes are mostly linked within their group, and whose features tell it."""
    draw = np.random.default_rng(seed)
    group = np.arange(NODES) % GROUPS
    x = np.eye(GROUPS)[group] @ draw.random((GROUPS, 8)) + 0.2 * draw.random((NODES, 8))
    inside = [draw.choice(np.flatnonzero(group == g), (2, 120)) for g in range(GROUPS)]
    return x, np.concatenate([*inside, draw.integers(NODES, size=(2, 10))], axis=1)


def links(**changes):
    x, edges = arrays()
    return ow.graph_links(**{"x": x, "edge_index": edges, "undirected": True} | changes)


def trained(recipe, dataset=None, **changes):
    usual = {"network.widths": (16, 12), "training.epochs": 20, "optimizer.lr": 0.01}
    config = ow.RunConfig(recipe=recipe).with_settings(usual | changes)
    return ow.run(config, dataset=dataset or links())


def rows(pairs):
    return set(map(tuple, pairs.tolist()))


# How pairs are split


def test_every_edge_is_in_one_part_and_has_a_pair_without_beside_it():
    dataset, edges = links(), arrays()[1]
    linked = {(min(e), max(e)) for e in edges.T.tolist() if e[0] != e[1]}
    parts = [dataset.training, dataset.validation, dataset.test]

    own = [rows(part.tensor[part.label == 1]) for part in parts]
    others = [rows(part.tensor[part.label == 0]) for part in parts]

    assert set().union(*own) == linked
    assert sum(map(len, own)) == sum(map(len, others)) == len(linked)
    assert len(set().union(*others)) == len(linked)
    assert not set().union(*others) & linked
    assert [len(each) for each in own[1:]] == [int(0.16 * len(linked)), int(0.2 * len(linked))]
    assert all(a < b for a, b in set().union(*own, *others))


def test_messages_go_along_edges_that_are_known():
    dataset = links()
    train, held = (
        rows(part.tensor[part.label == 1]) for part in (dataset.training, dataset.validation)
    )

    for part, known in (
        (dataset.training, train),
        (dataset.validation, train),
        (dataset.test, train | held),
    ):
        edges = rows(part.structure["edge_index"].T)
        assert edges == known | {(b, a) for a, b in known}
        assert part.structure["edge_index"].shape[1] == 2 * len(known)


def test_the_split_seed_decides():
    one, same, other = (links(split_seed=seed) for seed in (0, 0, 1))

    assert one.sha256() == same.sha256() != other.sha256()


def test_a_graph_of_pytorch_geometric_and_a_file_are_read(tmp_path):
    x, edges = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges)
    data = Data(torch.as_tensor(x), torch.as_tensor(edges))

    assert ow.graph_links(data, undirected=True).sha256() == links().sha256()
    assert ow.load_data(tmp_path / "own.npz", links=True).sha256() == links().sha256()
    with pytest.raises(DataError, match=r"own.npz lacks y, the class of each node. Without"):
        ow.load_data(tmp_path / "own.npz")
    with pytest.raises(DataError, match=r"data.links is for graphs"):
        ow.load_data("digits", links=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"undirected": False}, r"there is an edge from \d+ to \d+, and none back"),
        ({"edge_index": [[0, 1], [1, 2]]}, "of 2 edges, loops left out, none would be for valid"),
        ({"edge_index": [[0], [0]]}, "of 0 edges, loops left out, none would be for train"),
        (
            {"x": np.ones((6, 2)), "edge_index": np.stack(np.triu_indices(6, 1))},
            "15 of 15 pairs of nodes have an edge, and as many without one are needed; there are 0",
        ),
        (
            {"test": 20},
            "0.16 of the edges are for validation and 20 for the test. These are shares",
        ),
        ({"test": 0.9, "validation": 0.2}, "some edges are left to learn from"),
        ({"edge_index": [[0], [NODES]]}, "1 of 1 edges are of nodes that do not exist"),
        ({"x": np.full((NODES, 2), np.nan)}, "NaN or infinite"),
    ],
)
def test_graphs_without_enough_pairs_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        links(**changes)


def test_validation_pairs_may_be_left_out():
    dataset = links(validation=0)

    assert dataset.validation is None
    assert len(dataset.training) + len(dataset.test) == 2 * 271


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0.0, 1.0]], r"Pairs are whole numbers, of shape \(pairs, 2\); got torch.float32"),
        ([[0, 1, 2]], r"Pairs are whole numbers, of shape \(pairs, 2\); got .* of shape \(1, 3\)"),
        ([[0, NODES]], "Pairs are of nodes from 0 to 59; got 0 to 60"),
        ([[-1, 3]], "Pairs are of nodes from 0 to 59; got -1 to 3"),
    ],
)
def test_pairs_that_are_none_are_refused(pairs, message):
    batch = Batch(torch.tensor(pairs), structure=links().test.structure)

    with pytest.raises(SettingError, match=message):
        PairsOfNodes().neutral(batch)


def test_an_area_under_a_curve_takes_samples_of_both_classes():
    dataset = links()
    ones = dataset.validation.replace(targets={"label": torch.ones_like(dataset.validation.label)})
    odd = ow.Dataset(training=dataset.training, validation=ones, test=dataset.test, num_classes=2)

    for recipe in (LINKS, TOP):
        with pytest.raises(DataError, match="all validation samples are of one class"):
            trained(recipe, odd)


def test_data_that_are_no_pairs_are_refused():
    with pytest.raises(SettingError, match="these samples are no pairs of nodes"):
        ow.run(ow.RunConfig(recipe=LINKS).with_settings({"data.links": False}))
    with pytest.raises(SettingError, match="Pairs of nodes need the graph they are of"):
        PairsOfNodes().neutral(Batch(torch.zeros(3, 2)))


# What is learned


@pytest.mark.parametrize("kind", ["cross-entropy", "goodness"])
def test_the_losses_are_those_of_the_paper(kind):
    draw = torch.Generator().manual_seed(0)
    batch = links().training
    h = torch.rand(NODES, 5, generator=draw)
    view = PairsOfNodes().views(batch, draw, None)["nodes"].replace(inputs=h)
    objective = Likeness(kind, threshold=2.0)

    found = objective.loss({"nodes": view}, {"nodes": view}, draw)

    a, b = h[batch.tensor[:, 0]], h[batch.tensor[:, 1]]
    positive = batch.label == 1
    if kind == "cross-entropy":
        score = (a * b).sum(dim=1)
        each = -torch.where(positive, score.sigmoid(), 1 - score.sigmoid()).log()
        expected = each.mean()
    else:
        score = ((a * b) ** 2).sum(dim=1) - 2.0
        expected = F.softplus(-score[positive]).mean() + F.softplus(score[~positive]).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    # A pair is told to be linked above the middle of the means, and order is that of the score.
    p = score.sigmoid()
    middle = (p[positive].mean() + p[~positive].mean()) / 2
    scores = objective.scores(view)
    assert scores.argmax(dim=1).equal((p > middle).long())
    assert roc_auc_score(batch.label, scores[:, 1]) == roc_auc_score(batch.label, score)


def test_layers_that_read_those_above_do_so_without_labels():
    dataset = links()
    changes = {"network.widths": (6, 5), "network.ticks": 3, "network.counted": (2,)}
    network = trained(TOP, dataset, **{"training.epochs": 1} | changes).network
    first, last = (block.module.conv for block in network.all_blocks)
    x, edges = dataset.test.structure["x"], dataset.test.structure["edge_index"]
    one, two = torch.zeros(NODES, 6), torch.zeros(NODES, 5)
    with torch.no_grad():
        for _ in range(3):
            one = first(torch.cat([unit_length(x), unit_length(two)], dim=1), edges).relu()
            two = last(unit_length(one), edges).relu()

    found = network.scores_of(dataset.test).network

    a, b = dataset.test.tensor.unbind(dim=1)
    middles = [block.objective.middle for block in network.all_blocks]
    each = [
        (h[a] * h[b]).sum(dim=1).sigmoid() - m for h, m in zip((one, two), middles, strict=True)
    ]
    assert found[:, 1].allclose(sum(each), atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (LINKS, {}),
        (LINKS, {"network.loss": "goodness", "network.convolution": "sage"}),
        (LINKS, {"network.convolution": "gat"}),
        (TOP, {}),
        (TWIN, {"data.links": True}),
    ],
    ids=str,
)
def test_links_are_learned_and_read_back(recipe, changes, tmp_path):
    dataset = links()
    usual = {"network.widths": (16, 16), "optimizer.lr": 0.01}
    usual["training.epochs"] = 5 if recipe == TOP else 60
    config = ow.RunConfig(recipe=recipe).with_settings(usual | changes)

    result = ow.run(config, dataset=dataset, folder=tmp_path / "run")

    scores = result.network.scores_of(dataset.test).network
    area = roc_auc_score(dataset.test.label, scores[:, 1] - scores[:, 0])
    assert result.test.roc_auc == pytest.approx(area)
    assert area > 0.8
    assert result.accuracy > 0.7
    loaded = ow.load(tmp_path / "run" / "model.safetensors")
    scores = [n.scores_of(dataset.test).network for n in (loaded, result.network)]
    assert scores[0].equal(scores[1])
    assert set(loaded.predict(dataset.test)) == {"edge", "no edge"}


def test_what_is_monitored_decides_which_weights_are_kept():
    dataset = links()

    def areas(recipe, monitor):
        """Return the share right of validation pairs, and the area under their curve."""
        changes = {"plan.monitor": monitor, "training.epochs": 40, "network.widths": (16,)}
        if recipe == LINKS:
            changes |= {"plan.block_validate_every": 1}
        found = ow.evaluate(trained(recipe, dataset, **changes).network, dataset.validation)
        return found.accuracy, found.roc_auc

    for recipe in (LINKS, TOP):
        by_accuracy, by_area = areas(recipe, "accuracy"), areas(recipe, "roc-auc")
        assert by_accuracy[0] >= by_area[0]
        assert by_accuracy[1] < by_area[1]


def test_a_monitor_that_decides_nothing_is_told():
    changes = {"data.links": True, "plan.monitor": "roc-auc", "plan.block_patience": None}

    with pytest.warns(OnwardWarning, match="plan.monitor = roc-auc has no effect: no validation"):
        trained(TWIN, **changes)


def test_an_area_under_a_curve_takes_two_classes():
    with pytest.raises(SettingError, match="two classes, and there are 10"):
        ow.run(ow.RunConfig(recipe="one-pass").with_settings({"plan.monitor": "roc-auc"}))


@pytest.mark.parametrize("recipe", [LINKS, TOP])
def test_answers_to_validation_and_test_pairs_teach_nothing(recipe):
    dataset = links()
    other = dataset.test.replace(targets={"label": 1 - dataset.test.label})
    moved = ow.Dataset(
        training=dataset.training, validation=dataset.validation, test=other, num_classes=2
    )

    one, two = (trained(recipe, each, **{"training.epochs": 3}) for each in (dataset, moved))

    assert_same_weights(one.network, two.network)
    assert one.test.samples == two.test.samples
    assert one.accuracy == pytest.approx(1 - two.accuracy)


def test_two_ranks_end_in_the_weights_of_one(tmp_path):
    x, edges = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges)
    changes = {"data.name": str(tmp_path / "own.npz"), "network.widths": (12, 12)}
    changes |= {"training.epochs": 4, "training.batch_size": 348}

    assert_two_ranks_end_as_one(TOP, changes, "stream")


@pytest.mark.parametrize("recipe", [LINKS, pytest.param(TOP, marks=pytest.mark.slow)])
def test_two_processes_end_in_the_weights_of_one(recipe, tmp_path):
    x, edges = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges)
    given = [recipe, "--data", tmp_path / "own.npz", "--widths", "12,12", "--epochs", "4"]
    given += ["--chapters", "2"]

    assert_two_processes_end_as_one(tmp_path, *given)


def test_the_command_compares_with_the_twin(tmp_path, capsys):
    x, edges = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges)
    data = ["--data", tmp_path / "own.npz", "--set", "network.widths=16,12", "--epochs", "20"]

    assert onward("compare", LINKS, *data, "--seeds", 1, "--out", tmp_path / "both") == 0

    found = json.loads((tmp_path / "both" / "compare.json").read_text())
    assert [entry["recipe"] for entry in found["entries"]] == [LINKS, TWIN]
    areas = [entry["runs"][0]["roc_auc"] for entry in found["entries"]]
    said = capsys.readouterr().out
    assert "ROC curve, %" in said
    assert all(f"{100 * area:.2f}" in said for area in areas)
    assert onward("evaluate", tmp_path / "both" / "forwardgnn-links-0") == 0
    twin = (tmp_path / "both" / "gnn-backprop-0" / "config.toml").read_text()
    assert 'monitor = "roc-auc"' in twin
    assert onward("predict", tmp_path / "both" / "forwardgnn-links-0", tmp_path / "own.npz") == 2
    assert "onward predict reads each by itself" in capsys.readouterr().err
