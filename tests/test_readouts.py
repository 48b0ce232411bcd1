import re

import pytest
import torch
from torch import nn

import onward as ow
from onward.errors import SettingError
from onward.evaluation import Evaluation, evaluate
from onward.network.networks import Forward
from onward.network.readouts import GoodnessSweep, SoftmaxHead

ROWS, CLASSES = 11, 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(x, y):
    return ow.Batch(x, {"label": y})


def goodness_network(readout="goodness", *, image=False, widths=(8, 7, 6), **settings):
    """Make a network with a threshold in each block, and with a head that is not zero."""
    network = ow.mlp(
        (1, 3, 3) if image else (5,),
        num_classes=CLASSES,
        widths=widths,
        objective="threshold",
        negatives="hard",
        readout=readout,
        is_image=image,
        seed=1,
        **settings,
    )
    with torch.no_grad():
        network.head.module.weight.copy_(draw(*network.head.module.weight.shape, seed=2))
    return network


def heads_network(**settings):
    return ow.mlp((5,), num_classes=CLASSES, widths=(8, 7, 6), seed=1, **settings)


NETWORKS = {
    "goodness": goodness_network,
    "softmax": lambda: goodness_network("softmax"),
    "all heads": heads_network,
    "last head": lambda: heads_network(heads="last"),
    "backprop": lambda: heads_network(layers_per_block="all"),
}
every_readout = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


def activities_of(network, row):
    """Pass one sample through the blocks, the slow way."""
    found = []
    for block in network.line:
        row = block.module(row[None])[0]
        found.append(row)
    return found


def with_label(image_or_vector, label, *, image):
    flat, code = image_or_vector.flatten(), torch.zeros(CLASSES)
    code[label] = 1
    return torch.cat([code, flat[CLASSES:] if image else flat])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# Goodness


@torch.no_grad()
def slow_goodness(network, x, *, image):
    """Return the sum of squares of every sample, label and block, one at a time."""
    goodness = torch.zeros(len(network.line), len(x), CLASSES)
    for number, row in enumerate(x):
        for label in range(CLASSES):
            shown = with_label(row, label, image=image)
            for block, activities in enumerate(activities_of(network, shown)):
                goodness[block, number, label] = sum(a**2 for a in activities.tolist())
    return goodness


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("skip_first", [False, True])
def test_the_score_of_a_label_is_the_goodness_it_gathers(skip_first, image):
    network = goodness_network(image=image, skip_first=skip_first)
    x = draw(ROWS, 1, 3, 3) if image else draw(ROWS, 5)

    scores = network.scores(x)

    goodness = slow_goodness(network, x, image=image)
    close(scores.network, goodness[1 if skip_first else 0 :].sum(dim=0))


def test_the_predicted_label_is_the_one_that_gathers_most_goodness():
    network, x = goodness_network(), draw(ROWS, 5)

    predicted = network.predict(x)

    assert predicted.equal(slow_goodness(network, x, image=False)[1:].sum(dim=0).argmax(dim=1))


def test_the_score_of_a_block_is_its_own_goodness_and_the_first_has_one_too():
    network, x = goodness_network(), draw(ROWS, 5)

    scores = network.scores(x)

    close(torch.stack(scores.blocks), slow_goodness(network, x, image=False))


def test_a_single_block_counts_although_it_is_the_first():
    network, x = goodness_network(widths=(8,)), draw(ROWS, 5)

    scores = network.scores(x)

    assert scores.network.equal(scores.blocks[0])


def test_the_head_has_no_say_in_goodness():
    network, x = goodness_network(), draw(ROWS, 5)
    before = network.scores(x).network

    nn.init.zeros_(network.head.module.weight)

    assert network.scores(x).network.equal(before)


# Heads of the blocks


@torch.no_grad()
def slow_log_probabilities(network, x):
    found = torch.zeros(len(network.line), len(x), CLASSES)
    for number, row in enumerate(x):
        for k, activities in enumerate(activities_of(network, row)):
            p = (network.line[k].objective.head.weight @ activities).exp()
            found[k, number] = (p / p.sum()).log()
    return found


def test_heads_add_up_their_log_probabilities():
    network, x = heads_network(), draw(ROWS, 5)

    scores = network.scores(x)

    close(scores.network, slow_log_probabilities(network, x).sum(dim=0))


def test_the_last_head_may_decide_alone():
    network, x = heads_network(heads="last"), draw(ROWS, 5)

    scores = network.scores(x)

    close(scores.network, slow_log_probabilities(network, x)[-1])


@pytest.mark.parametrize("heads", ["all", "last"])
def test_the_scores_of_a_block_with_a_head_are_its_log_probabilities(heads):
    network, x = heads_network(heads=heads), draw(ROWS, 5)

    scores = network.scores(x)

    close(torch.stack(scores.blocks), slow_log_probabilities(network, x))


# The softmax head


@pytest.mark.parametrize("skip_first", [True, False])
@torch.no_grad()
def test_the_softmax_head_reads_the_normalized_activities_of_the_neutral_label(skip_first):
    network = goodness_network("softmax", skip_first=skip_first)
    x = draw(ROWS, 5)

    scores = network.scores(x)

    for row, found in zip(x, scores.network, strict=True):
        neutral = torch.cat([torch.full((CLASSES,), 1 / CLASSES), row])
        read = activities_of(network, neutral)[1 if skip_first else 0 :]
        normalized = torch.cat([a / a.square().mean().sqrt() for a in read])
        close(found, (network.head.module.weight @ normalized).log_softmax(dim=0))


def test_the_softmax_head_is_one_score_of_the_network_and_none_of_a_block():
    assert goodness_network("softmax").scores(draw(ROWS, 5)).blocks == ()


def test_a_network_can_be_read_in_another_way_than_its_own():
    x = draw(ROWS, 5)
    by_goodness, by_softmax = goodness_network("goodness"), goodness_network("softmax")

    assert by_goodness.scores(x, SoftmaxHead()).network.equal(by_softmax.scores(x).network)
    assert by_softmax.scores(x, GoodnessSweep()).network.equal(by_goodness.scores(x).network)


# No prediction depends on the rest of the batch


@every_readout
def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(make):
    network, x = make(), draw(ROWS, 5)
    beside = torch.cat([x[:4], 1e3 * draw(ROWS, 5, seed=3)])

    close(network.scores(beside).network[:4], network.scores(x).network[:4])


@every_readout
def test_a_sample_alone_is_scored_as_among_others(make):
    network, x = make(), draw(ROWS, 5)

    alone = torch.cat([network.scores(row[None]).network for row in x])

    close(network.scores(x).network, alone)


@every_readout
@pytest.mark.parametrize("size", [2, 4, 11])
def test_the_size_of_chunks_changes_rounding_only(monkeypatch, make, size):
    network, x = make(), draw(ROWS, 5)
    whole = network.scores(x)

    monkeypatch.setattr("onward.batch.CHUNK_SAMPLES", size)
    chunked = network.scores(x)

    close(chunked.network, whole.network)
    assert len(chunked.blocks) == len(whole.blocks)
    for part, expected in zip(chunked.blocks, whole.blocks, strict=True):
        close(part, expected)


@every_readout
def test_shuffled_samples_are_scored_alike(make):
    network, x = make(), draw(ROWS, 5)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))

    close(network.scores(x[order]).network, network.scores(x).network[order])


@pytest.mark.parametrize(
    "name",
    NETWORKS,
)
def test_no_samples_have_no_scores(name):
    scores = NETWORKS[name]().scores(draw(0, 5))

    assert scores.network.shape == (0, CLASSES)


@every_readout
def test_scoring_changes_nothing(make):
    network, x = make(), draw(ROWS, 5)
    before = {name: t.clone() for name, t in network.state_dict().items()}

    network.scores(x)

    assert all(t.equal(before[name]) for name, t in network.state_dict().items())


def test_dropout_is_for_training_only():
    network, x = heads_network(dropout=0.5), draw(ROWS, 5)
    network.train()

    first, second = network.scores(x).network, network.scores(x).network

    assert first.equal(second)
    close(first, heads_network().scores(x).network)


# No label enters


@every_readout
def test_no_block_and_no_sampler_is_shown_a_target(monkeypatch, make):
    network, x = make(), draw(ROWS, 5)
    shown = []

    def watch(part, name):
        asked = getattr(part, name)

        def watched(self, batch):
            shown.append(batch)
            return asked(self, batch)

        monkeypatch.setattr(part, name, watched)

    watch(ow.Block, "infer")
    watch(ow.Block, "scores")
    for name in ("neutral", "candidates"):
        watch(type(network.sampler), name)
    network.scores(labelled(x, torch.arange(ROWS) % CLASSES))

    assert shown
    assert all(not batch.targets and batch.weights is None for batch in shown)


@every_readout
def test_permuted_labels_change_no_score(monkeypatch, make):
    network, x = make(), draw(ROWS, 5)
    labels = torch.arange(ROWS) % CLASSES
    seen = []
    scores = network.scores_of

    def watched(*asked):
        seen.append(scores(*asked))
        return seen[-1]

    monkeypatch.setattr(network, "scores_of", watched)
    for truth in (labels, labels.roll(1), labels.flip(0), torch.zeros_like(labels)):
        evaluate(network, labelled(x, truth))

    assert len(seen) == 4
    assert all(found.network.equal(seen[0].network) for found in seen)


# How many are right


def test_samples_are_counted_whose_class_the_network_and_each_block_names():
    network, x = heads_network(), draw(ROWS, 5)
    y = torch.arange(ROWS) % CLASSES

    found = evaluate(network, labelled(x, y))

    scores = network.scores(x)
    each = [int((s.argmax(dim=1) == y).sum()) for s in scores.blocks]
    assert (found.samples, found.correct) == (ROWS, int((network.predict(x) == y).sum()))
    assert found.correct_blocks == dict(enumerate(each))


def test_a_network_gets_all_of_its_own_predictions_right():
    network, x = goodness_network(), draw(ROWS, 5)

    assert evaluate(network, labelled(x, network.predict(x))).accuracy == 1


def test_accuracy_is_a_share_of_the_samples():
    found = Evaluation(samples=8, correct=6, correct_blocks={0: 2, 1: 8})

    assert (found.accuracy, found.block_accuracy) == (0.75, [0.25, 1.0])


def test_there_is_no_accuracy_without_samples():
    found = evaluate(heads_network(), labelled(draw(0, 5), torch.zeros(0, dtype=torch.long)))

    assert (found.samples, found.accuracy, found.block_accuracy) == (0, None, [])


def test_samples_can_be_counted_by_another_readout():
    network, x = goodness_network(), draw(ROWS, 5)
    y = network.scores(x, SoftmaxHead()).network.argmax(dim=1)

    assert evaluate(network, labelled(x, y), SoftmaxHead()).correct == ROWS
    assert evaluate(network, labelled(x, y)).correct < ROWS


def goodness_by_tick(network, x):
    """Return the goodness of each block at each tick, for each label, by passing on by hand."""
    batch = network.sampler.candidates(network.transformed(ow.Batch(x)))
    before, found = {}, []
    for _ in range(network.ticks):
        now = {}
        for number, block in enumerate(network.all_blocks):
            reads = {}
            for edge in network.edges[number]:
                if edge.to != "module":
                    continue
                if edge.source == "input":
                    reads |= {f"input.{name}": part for name, part in batch.inputs.items()}
                elif edge.delay:
                    reads[edge.key] = before.get(edge.source, edge.zeros(batch))
                else:
                    reads[edge.key] = now[edge.source]
            outputs = block.infer(ow.Batch(reads))
            now[number] = outputs.inputs
            found.append(block.scores(outputs).reshape(len(x), -1))
        before = now
    return torch.stack(found).unflatten(0, (network.ticks, -1))


def test_ticks_that_do_not_count_are_not_read_and_not_computed():
    info = ow.DataInfo(input_shape=(1, 8, 8), num_classes=3, is_image=True)
    recipe = ow.RECIPES["hinton-recurrent"]
    settings = recipe.settings(widths=(9, 7), ticks=5, counted=(1, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = recipe(settings, info, optimizer=ow.OptimizerConfig())
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    expected = goodness_by_tick(network, x)[1:3].sum(dim=(0, 1))

    assert network.scores(x).network.allclose(expected, atol=1e-5)
    assert network.fold().exits == (2, 3, 4, 5)
    # Nothing is computed after the last tick that counts.
    assert Forward(network, network.checked(x)).num_visits == 6


@pytest.mark.parametrize("counted", [(0, 3), (), (-1,), (0, 0)])
def test_ticks_that_never_come_or_come_twice_are_refused(counted):
    with pytest.raises(SettingError, match=r"counts the ticks .* has 1, counted"):
        goodness_network().fold(ow.GoodnessSweep(ticks=counted))


def test_scores_and_evaluations_are_told_in_a_line():
    dataset = ow.load_data("digits")
    network = ow.mlp(dataset.input_shape, num_classes=10, widths=(8, 8))

    assert repr(network.scores(dataset.x_test)) == (
        "<Scores: 360 samples, 10 classes, and of 2 blocks on their own>"
    )
    assert re.fullmatch(
        r"<Evaluation: \d+ of 360 samples are right, \d+\.\d\d%>",
        repr(evaluate(network, dataset.test)),
    )
