"""Graphs whose layers look at the layers above: in what they read, or in their loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import assert_two_processes_end_as_one
from prepared import assert_same_weights, assert_two_ranks_end_as_one
from test_graphs import NODES, arrays, config_of, graph

import onward as ow
from onward.batch import Batch
from onward.engine.slices import check_cut
from onward.engine.stretches import Training, make_step
from onward.errors import SettingError
from onward.network.layers import Dense
from onward.recipes.class_nodes import (
    ClassNodesBelowLabels,
    NearestClassNode,
    NearestClassNodeFromAbove,
    with_class_nodes,
)
from onward.recipes.graph_layers import unit_length

pytest.importorskip("torch_geometric")

pytestmark = pytest.mark.usefixtures("unchecked_module")

TO_INPUT, TO_LOSS = "forwardgnn-top-to-input", "forwardgnn-top-to-loss"
RECIPES = (TO_INPUT, TO_LOSS)


def trained(recipe, dataset, epochs=1, **changes):
    """Return what comes of a run, the last weights and not the best."""
    usual = {"network.widths": (12, 12), "plan.keep_best": False, "plan.patience": None}
    usual |= {"plan.chapters": None, "training.epochs": epochs}
    return ow.run(config_of(recipe, **usual | changes), dataset=dataset)


def test_known_labels_are_beside_the_graph_for_the_top_layer():
    dataset = graph()

    view = ClassNodesBelowLabels(3).neutral(dataset.test)

    labels, known = view.inputs["labels"], dataset.test.structure["known"]
    assert labels.shape == (NODES + 3, 3)
    assert labels[known].argmax(dim=1).equal(dataset.test.structure["known_label"])
    others = [node for node in range(NODES) if node not in known.tolist()]
    assert labels[others].eq(1 / 3).all()
    assert labels[NODES:].equal(torch.eye(3))


def test_layers_read_those_above_as_they_were_a_tick_before():
    dataset = graph()
    changes = {"network.widths": (6, 5, 4), "network.ticks": 3, "network.counted": (1, 2)}
    network = trained(TO_INPUT, dataset, **changes).network
    view = ClassNodesBelowLabels(3, "both").neutral(network.transformed(dataset.test))
    first, third, second = (block.module.conv for block in network.all_blocks)
    edges = view.structure["edge_index"]

    def put_out(conv, *read):
        return conv(torch.cat([unit_length(each) for each in read], dim=1), edges).relu()

    x, labels = view.inputs["features"], view.inputs["labels"]
    one, two, three = (torch.zeros(NODES + 3, units) for units in (6, 5, 4))
    total = 0
    with torch.no_grad():
        for tick in range(3):
            one, three = put_out(first, x, two), put_out(third, two, labels)
            two = put_out(second, one, three)
            if tick:
                total = total + sum((h @ h[-3:].T).softmax(dim=1) for h in (one, two, three))

    found = network.scores_of(dataset.test).network
    assert found.allclose(total[:NODES], atol=1e-5)


def test_the_loss_is_of_the_mean_with_the_layers_above():
    batch = with_class_nodes(graph().training, 3, "both")
    draw = torch.Generator().manual_seed(0)
    h, above = (torch.rand(NODES + 3, 4, generator=draw) for _ in range(2))
    view = batch.replace(inputs=h, context={"above 1": above})
    own, other = NearestClassNode(3), NearestClassNodeFromAbove(3)

    found = other.loss({"graph": batch}, {"graph": view}, draw)

    mean = (h + F.normalize(above)) / 2
    logits = (mean @ mean[-3:].T)[batch.index]
    assert found.item() == pytest.approx(F.cross_entropy(logits, batch.label[batch.index]).item())
    # What names classes is the layer itself.
    assert other.scores(view).equal(own.scores(view))


def test_layers_above_are_those_of_the_epoch_before():
    dataset, lr = graph(), 0.5
    plain = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0}
    start = trained(TO_LOSS, dataset, **plain, **{"optimizer.lr": 1e-30}).network
    one, two = (
        trained(TO_LOSS, dataset, epochs, **plain, **{"optimizer.lr": lr}).network
        for epochs in (1, 2)
    )
    view = with_class_nodes(start.transformed(dataset.training), 3, "both")
    first, last = start.all_blocks
    above = last.infer(first.infer(view)).tensor
    lower = one.all_blocks[0]
    batch = lower.prepared(view)

    def gradient(context):
        outputs = batch.replace(inputs=lower(batch), context={"above 1": context})
        loss = lower.objective.loss({"graph": batch}, {"graph": outputs}, torch.Generator())
        found = torch.autograd.grad(loss, list(lower.parameters()))
        length = torch.cat([each.flatten() for each in found]).norm()
        return torch.cat([each.flatten() for each in found]) / length.clamp(min=1)

    before, after = (
        torch.cat([p.detach().flatten() for p in n.all_blocks[0].parameters()]) for n in (one, two)
    )
    seen = (before - after) / lr

    assert seen.allclose(gradient(above), atol=1e-5)
    assert not seen.allclose(gradient(torch.zeros_like(above)), atol=1e-3)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (TO_INPUT, {}),
        (TO_INPUT, {"network.widths": (16,)}),
        (TO_INPUT, {"network.convolution": "gat"}),
        (TO_LOSS, {}),
        (TO_LOSS, {"network.convolution": "sage", "network.direction": "to-classes"}),
    ],
    ids=str,
)
def test_a_graph_is_learned_and_read_back(recipe, changes, tmp_path):
    dataset = graph()
    usual = {"network.widths": (16, 16), "training.epochs": 10 if recipe == TO_INPUT else 100}
    usual |= {"plan.chapters": usual["training.epochs"] // 2}

    result = ow.run(config_of(recipe, **usual | changes), dataset=dataset, folder=tmp_path / "run")

    assert result.accuracy > 0.8
    loaded = ow.load(tmp_path / "run" / "model.safetensors")
    scores = [n.scores_of(dataset.test).network for n in (loaded, result.network)]
    assert scores[0].equal(scores[1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_classes_of_validation_and_test_nodes_teach_nothing(recipe):
    _, _, y, sets = arrays()
    other = y.copy()
    other[sets["test"]] = (other[sets["test"]] + 1) % 3

    one, two = (trained(recipe, graph(y=each), epochs=3) for each in (y, other))

    assert_same_weights(one.network, two.network)
    batch = graph().test
    moved = batch.replace(targets={"label": batch.label.roll(1)})
    scores = [one.network.scores_of(each).network for each in (batch, moved)]
    assert scores[0].equal(scores[1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_ranks_end_in_the_weights_of_one(recipe, tmp_path):
    x, edges, y, sets = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y, **sets)
    changes = {"data.name": str(tmp_path / "own.npz"), "network.widths": (12, 12)}
    changes |= {"training.epochs": 4, "training.batch_size": NODES}

    assert_two_ranks_end_as_one(recipe, changes, "stream")


@pytest.mark.slow
def test_two_processes_end_in_the_weights_of_one(tmp_path):
    x, edges, y, sets = arrays()
    np.savez(tmp_path / "own.npz", x=x, edge_index=edges, y=y, **sets)
    given = [RECIPES[0], "--data", tmp_path / "own.npz", "--widths", "12,12", "--epochs", "4"]

    assert_two_processes_end_as_one(tmp_path, *given, "--chapters", "4")


def test_layers_that_are_averaged_have_the_same_units():
    with pytest.raises(SettingError, match=r"same number of units; got network.widths \[8, 4\]"):
        trained(TO_LOSS, graph(), **{"network.widths": (8, 4)})


# What these needed of blocks


@pytest.mark.parametrize("closed_form", [True, False])
def test_a_gradient_is_clipped_as_torch_does(closed_form):
    def block(clip):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = ow.CrossEntropy(torch.nn.Linear(3, 2, bias=False))
            layer = Dense(4, 3, generator=torch.default_generator)
            return ow.Block(layer, head, ow.SGD(lr=1.0, momentum=0.0), clip=clip)

    views = {"input": Batch(torch.ones(5, 4), {"label": torch.tensor([0, 1, 0, 0, 0])})}

    def step(clip):
        """Return how far a step goes for each parameter."""
        learner = block(clip)
        before = [p.detach().clone() for p in learner.parameters()]
        step = make_step(learner, Training(seed=0, closed_form=closed_form), views)
        step(views, seed=0, lr_scale=1.0)
        return [a - b.detach() for a, b in zip(before, learner.parameters(), strict=True)]

    free = [gradient.requires_grad_() for gradient in step(None)]
    for parameter in free:
        parameter.grad = parameter.detach().clone()
    torch.nn.utils.clip_grad_norm_(free, 0.01)

    for own, wanted, whole in zip(step(0.01), free, step(1e6), strict=True):
        assert own.allclose(wanted.grad, atol=1e-7)
        assert whole.allclose(wanted, atol=1e-7)
    assert sum(own.square().sum() for own in step(0.01)).sqrt().item() == pytest.approx(
        0.01, rel=1e-3
    )


def test_a_clip_of_nothing_is_refused_and_so_are_slices():
    def block(clip):
        head = ow.CrossEntropy(torch.nn.Linear(3, 2))
        return ow.Block(torch.nn.Linear(4, 3), head, ow.SGD(), clip=clip)

    with pytest.raises(SettingError, match="clip is a norm of the gradient above 0; got 0"):
        block(0.0)
    with pytest.raises(SettingError, match="clips the gradient of the whole mini-batch"):
        check_cut(block(1.0), closed_form=False, slices=2, cut="samples")
