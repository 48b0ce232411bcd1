"""A run that has learned nothing says so; one that has says nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

import onward as ow
from onward.cli.main import main
from onward.errors import SettingError
from onward.evaluation import Evaluation, Tally
from onward.runs.doubts import doubts
from onward.runs.folders import read_result
from onward.runs.results import Progress
from onward.runs.sharding import agree, describe, local_shards, split, weighted


def tally(right, samples=50):
    """Answers to as many samples of two classes, of each class as many right."""
    return Tally(samples=(samples, samples), named=(samples, samples), right=(right, right))


def evaluation(**blocks):
    """The answers of a network that gets 90 of 100 right, and those of its blocks."""
    tallies = {int(name[1:]): each for name, each in blocks.items()} or {0: tally(45)}
    correct = {block: sum(each.right) for block, each in tallies.items()}
    return Evaluation(100, 90, correct, tally(45), tallies)


def report(chapter, block=0, loss=0.1, dead=0.1, **figures):
    return Progress(chapter, block, {"loss": loss, "dead_fraction": dead, **figures})


FALLING = [report(0, loss=1.0), report(1, loss=0.5)]


def test_a_run_that_has_learned_leaves_no_doubts():
    assert doubts(FALLING, evaluation()) == []


def test_silent_units_are_named_with_their_block_and_setting():
    found = doubts([*FALLING, report(2, block=1, dead=0.97)], evaluation())

    assert len(found) == 1
    assert "97.0% of the units of block 1" in found[0]
    assert "Lower the learning rate" in found[0]


@pytest.mark.parametrize(("right", "sign"), [(20, "Check the learning"), (2, "the wrong sign")])
def test_far_below_chance_the_scores_may_have_the_wrong_sign(right, sign):
    (found,) = doubts(FALLING, whole(tally(right)))

    assert sign in found


@pytest.mark.parametrize(("right", "is_doubted"), [(25, True), (27, True), (28, False)])
def test_a_block_is_held_against_what_the_same_answers_would_be_worth_in_any_order(
    right, is_doubted
):
    found = doubts(FALLING, evaluation(_0=tally(45), _1=tally(right)))

    # A standard deviation of 100 answers is 5 of them.
    assert [f"block 1, with an accuracy of {2 * right}.0%" in text for text in found] == [
        True
    ] * is_doubted


def whole(each):
    return Evaluation(sum(each.samples), sum(each.right), {}, each, {})


@pytest.mark.parametrize(
    ("samples", "alone", "is_doubted"),
    [(5000, 4900, True), (5000, 4500, False), (50, 47, False), (50, 50, True)],
)
def test_a_network_that_is_worse_than_one_of_its_blocks_is_doubted(samples, alone, is_doubted):
    whole = tally(round(0.86 * samples), samples)
    blocks = {0: tally(alone, samples), 1: tally(round(0.8 * samples), samples)}
    right = {block: sum(each.right) for block, each in blocks.items()}

    test = Evaluation(2 * samples, sum(whole.right), right, whole, blocks)
    found = doubts(FALLING, test)
    with_hints = doubts(FALLING, test, follows_scores=True)

    assert bool(found) is is_doubted
    if is_doubted:
        assert re.search(r"Block 0 alone is better .* \d+\.0% .* the network 86\.0%", found[0])
        assert "negatives" not in found[0]
        assert "try other network.negatives" in with_hints[0]


def test_a_block_that_never_names_a_rare_class_is_not_better_than_a_network_that_does():
    whole = Tally(samples=(950, 50), named=(807, 193), right=(807, 43))
    common = Tally(samples=(950, 50), named=(1000, 0), right=(950, 0))
    test = Evaluation(1000, 850, {0: 950, 1: 850}, whole, {0: common, 1: whole})

    # By chance alone, as is said of it.
    assert ["No better than chance" in sign for sign in doubts(FALLING, test)] == [True]


def test_of_few_test_samples_no_block_is_said_to_be_better():
    whole, alone = tally(0, 1), tally(1, 1)
    test = Evaluation(2, 0, {0: 2}, whole, {0: alone})

    assert doubts(FALLING, test) == []


def test_a_rare_class_that_is_found_is_no_chance_even_where_most_samples_are_of_another():
    assert doubts(FALLING, whole(Tally((990, 10), named=(995, 5), right=(990, 5)))) == []


def test_balanced_accuracy_counts_where_accuracy_says_little():
    # In accuracy no better than chance: 81 % right, and 79.4 % in any order.
    rare = Tally((990, 10), named=(800, 200), right=(800, 10))

    assert rare.accuracy == pytest.approx(0.81)
    assert rare.by_chance == pytest.approx(0.794)
    assert doubts(FALLING, whole(rare)) == []


def test_one_class_for_all_samples_is_doubted_however_large_the_class():
    found = doubts(FALLING, whole(Tally((990, 10), named=(1000, 0), right=(990, 0))))

    assert any("All 1,000 test samples were classified as class 0" in text for text in found)
    assert any("No better than chance: the network" in text for text in found)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([2] * 9 + [0], r"Class 'dog' has 9 test samples and no training samples, so the network"),
        ([2, 3, 0], r"Classes 'dog', 'bird' have 2 test samples and no training samples"),
        ([1], None),
    ],
)
def test_classes_that_are_tested_and_not_learned_are_named_when_a_run_starts(label, said, recwarn):
    y = torch.arange(40) % 2
    dataset = ow.Dataset(
        training=ow.Batch(torch.eye(40), {"label": y}),
        test=ow.Batch(torch.eye(40)[: len(label)], {"label": torch.tensor(label)}),
        num_classes=4,
        class_names=("cat", "dgo", "dog", "bird"),
    )
    network = ow.mlp((40,), num_classes=4, widths=(8,))

    ow.train(network, dataset, training=ow.TrainingConfig(epochs=1, batch_size=10), validation=0)

    found = [str(each.message) for each in recwarn if "no training samples" in str(each.message)]
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])


def test_where_all_test_samples_are_of_one_class_there_is_nothing_to_doubt():
    assert doubts(FALLING, whole(Tally((0, 50), named=(0, 50), right=(0, 50)))) == []


@pytest.mark.parametrize(
    ("blocks", "told_apart", "is_doubted"),
    [
        pytest.param({"_1": tally(45)}, None, True, id="nothing else is known"),
        pytest.param({"_1": tally(45)}, 0.7, False, id="hard negatives are told apart"),
        pytest.param({"_0": tally(45)}, None, False, id="classes are told apart"),
    ],
)
def test_a_loss_that_did_not_fall_is_doubted_where_nothing_shows_that_something_was_learned(
    blocks, told_apart, is_doubted
):
    rising = [report(n, loss=0.5 + n / 10, told_apart=told_apart) for n in (0, 1)]

    found = doubts(rising, evaluation(**blocks))

    assert any("The loss of block 0 did not fall" in text for text in found) is is_doubted


def test_the_loss_of_a_block_that_is_frozen_has_no_need_to_fall():
    level = [report(0, loss=0.5), report(1, loss=0.5)]

    assert doubts(level, evaluation(_1=tally(45))) != []
    assert doubts(level, evaluation(_1=tally(45)), frozen=[0]) == []


@pytest.mark.parametrize(("paired", "is_doubted"), [(0.0, True), (0.09, True), (0.5, False)])
def test_samples_that_are_alone_with_their_class_are_doubted_and_how_to_mend_it(paired, is_doubted):
    level = [report(0, loss=0.0, paired=paired), report(1, loss=0.0, paired=paired)]

    found = doubts(level, evaluation(_1=tally(45)))

    assert len(found) == 1
    said = f"only {paired:.1%} of the samples had another of their class, .*Raise training.batch_s"
    assert bool(re.search(said, found[0])) is is_doubted


def test_without_test_samples_with_classes_there_is_nothing_to_doubt():
    assert doubts(FALLING, Evaluation(0, 0, {})) == []


# Whole runs


def test_a_learning_rate_of_1000_ends_with_warnings_and_in_the_result(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as ended:
        main(["train", "one-pass", "--epochs", "2", "--lr", "1000", "--out", "run"])

    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert "onward: warning: Silent units: " in said
    assert "onward: warning: All 360 test samples were classified as class " in said
    assert len(read_result(Path("run"))["doubts"]) >= 3


def test_supervised_contrast_of_classes_that_are_alone_in_their_mini_batches_warns():
    x = np.random.default_rng(0).normal(size=(300, 4))
    dataset = ow.dataset(x, np.arange(300) % 150)
    changes = {"training.epochs": 1, "training.batch_size": 2, "network.widths": (8, 8)}
    config = ow.RunConfig(recipe="supcon").with_settings(changes)

    with pytest.warns(ow.OnwardWarning, match=r"Nothing to compare: .* blocks 0, 1 can learn"):
        result = ow.run(config, dataset=dataset)

    assert result.progress[0].figures["paired"] < 0.1


def test_a_network_of_ones_own_that_learns_nothing_warns_from_python():
    draw = np.random.default_rng(0)
    # Nothing tells the classes apart.
    dataset = ow.dataset(np.ones((400, 4)), draw.integers(2, size=400))
    network = ow.mlp((4,), num_classes=2, widths=(8,))

    with pytest.warns(
        ow.OnwardWarning, match="No better than chance: block 0, with an accuracy of"
    ):
        result = ow.train(network, dataset, training=ow.TrainingConfig(epochs=1))

    assert result.doubts


# Classes of other sizes


def uneven(samples=600):
    draw = np.random.default_rng(0)
    y = (np.arange(samples) % 20 == 0).astype(np.int64)
    return draw.normal(size=(samples, 6)) + 1.2 * y[:, None], y


def test_where_classes_are_of_other_sizes_the_table_shows_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = uneven()
    np.savez("own.npz", x=x, y=y)

    with pytest.raises(SystemExit):
        main(["train", "one-pass", "--data", "own.npz", "--widths", "20", "--out", "run"])

    said = capsys.readouterr().out
    assert "balanced test accuracy" in said
    assert "sensitivity, class 1 (6 samples)" in said
    found = json.loads(Path("run/result.json").read_text())
    assert found["class_samples"] == [114, 6]
    shares = found["accuracy"]["sensitivity"]
    assert found["accuracy"]["balanced"] == pytest.approx(sum(shares) / 2)


def test_where_classes_are_alike_it_does_not(finished, capsys):
    with pytest.raises(SystemExit):
        main(["train", "one-pass", "--epochs", "1", "--widths", "8", "--out", str(finished) + "2"])

    assert "sensitivity" not in capsys.readouterr().out


def test_what_is_evaluated_is_counted_by_class():
    x = torch.eye(3).repeat(2, 1)
    network = ow.mlp((3,), num_classes=3, widths=(8,))
    named = network.predict(x)
    label = torch.tensor([0, 0, 0, 1, 1, 2])

    found = ow.evaluate(network, ow.Batch(x, {"label": label}))

    assert found.tally.samples == (3, 2, 1)
    assert found.tally.named == tuple(named.bincount(minlength=3).tolist())
    right = [int(((named == c) & (label == c)).sum()) for c in range(3)]
    assert found.tally.right == tuple(right)
    assert found.tally.macro_f1 == pytest.approx(f1_score(label, named, average="macro"))
    shares = [r / n for r, n in zip(right, (3, 2, 1), strict=True)]
    assert found.tally.balanced_accuracy == pytest.approx(sum(shares) / 3)
    expected = sum(n * m for n, m in zip((3, 2, 1), found.tally.named, strict=True)) / 36
    assert found.tally.by_chance == pytest.approx(expected)
    assert found.tally_blocks[0] == found.tally


def test_balanced_class_weights_find_a_rare_class_that_is_missed_without(tmp_path):
    x, y = uneven()
    dataset = ow.dataset(x, y)
    training = ow.TrainingConfig(epochs=10)
    found = {}
    for weights in (None, "balanced"):
        network = ow.mlp((6,), num_classes=2, widths=(20,))
        result = ow.train(network, dataset, training=training, class_weights=weights, validation=0)
        found[weights] = result.test.tally.sensitivity[1]

    assert found[None] < 0.5 < found["balanced"]


@pytest.mark.parametrize(("given", "power"), [("balanced", 1.0), ("0.75", 0.75), (0.5, 0.5)])
def test_class_weights_have_a_mean_of_1_over_all_shards(given, power):
    config = ow.RunConfig().with_settings(
        {"plan.shards": 3, "plan.shard_by": "class", "data.class_weights": given}
    )
    x, y = uneven()
    whole = split(config, ow.dataset(x, y))
    shards = local_shards(config, whole, 0)
    summary = agree(config, [describe(config, shards, whole)])

    batches = [weighted(config, shard, summary).training for shard in shards.values()]

    weights = torch.cat([batch.weights for batch in batches])
    label = torch.cat([batch.label for batch in batches])
    assert weights.mean().item() == pytest.approx(1)
    (many, few), counts = label.unique(return_counts=True)
    ratio = (counts[many] / counts[few]).item() ** power
    assert weights[label == few].unique().item() == pytest.approx(
        ratio * weights[label == many].unique().item()
    )


@pytest.mark.parametrize("weights", [0.0, 1.0, -1.0])
def test_class_weights_that_are_no_power_between_0_and_1_are_refused(weights):
    with pytest.raises(SettingError, match=r"data\.class_weights"):
        ow.RunConfig().with_settings({"data.class_weights": weights})
    with pytest.raises(SettingError, match="class_weights"):
        ow.train(ow.mlp((6,), num_classes=2), ow.dataset(*uneven()), class_weights=weights)


def test_class_weights_take_the_place_of_no_others():
    x, y = uneven()
    dataset = ow.dataset(x, y)
    weights = torch.ones(len(dataset.training))
    dataset = replace(dataset, training=dataset.training.replace(weights=weights))

    with pytest.raises(SettingError, match="the training samples have weights of their own"):
        ow.train(ow.mlp((6,), num_classes=2, widths=(20,)), dataset, class_weights="balanced")


def test_of_few_test_samples_nothing_is_said():
    assert doubts(FALLING, whole(Tally((1, 2), named=(1, 2), right=(0, 1)))) == []


def test_class_weights_are_refused_where_an_objective_does_not_use_them():
    class Own(ow.CrossEntropy):
        uses_weights = False

    block = ow.Block(nn.Linear(6, 8), Own(nn.Linear(8, 2)), ow.Adam())
    network = ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=2)
    x, y = uneven()

    with pytest.raises(SettingError, match="the objective Own of block 0 does not use them"):
        ow.train(network, ow.dataset(x, y), class_weights="balanced")
