"""A run that has learned nothing says so; one that has says nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import onward as ow
from onward.cli.main import main
from onward.doubts import doubts
from onward.errors import SettingError
from onward.evaluation import Evaluation
from onward.results import Progress
from onward.runs import read_result
from onward.sharding import agree, describe, local_shards, split, weighted


def evaluation(correct=90, rows=(50, 50), named=(50, 50), by_chance=0.5, blocks=None):
    blocks = {0: (correct, by_chance)} if blocks is None else blocks
    return Evaluation(
        rows=sum(rows),
        correct=correct,
        correct_blocks={block: right for block, (right, _) in blocks.items()},
        class_rows=rows,
        class_correct=rows,
        named=named,
        by_chance=by_chance,
        by_chance_blocks={block: chance for block, (_, chance) in blocks.items()},
    )


def report(chapter, block=0, loss=0.1, dead=0.1, **figures):
    return Progress(chapter, block, {"loss": loss, "dead_fraction": dead, **figures})


FALLING = [report(0, loss=1.0), report(1, loss=0.5)]


def test_a_run_that_has_learned_leaves_no_doubts():
    assert doubts(FALLING, evaluation()) == []


def test_silent_units_are_named_with_their_block_and_setting():
    found = doubts([*FALLING, report(2, block=1, dead=0.97)], evaluation())

    assert len(found) == 1
    assert "97.0% of those of block 1" in found[0]
    assert "Lower optimizer.lr" in found[0]


@pytest.mark.parametrize(("correct", "is_doubted"), [(50, True), (59, True), (61, False)])
def test_a_block_is_held_against_what_the_same_answers_would_be_worth_in_any_order(
    correct, is_doubted
):
    blocks = {0: (90, 0.5), 1: (correct, 0.5)}

    found = doubts(FALLING, evaluation(blocks=blocks))

    # Two standard deviations of 100 answers are 10 of them.
    assert [f"block 1 right on {correct}.0%" in text for text in found] == [True] * is_doubted


def test_a_rare_class_that_is_found_is_no_chance_even_where_most_samples_are_of_another():
    # All of 990 and 5 of 10, against answers that name that class 5 times.
    by_chance = (990 * 995 + 10 * 5) / 1000**2
    found = evaluation(995, (990, 10), (995, 5), by_chance)

    assert doubts(FALLING, found) == []


def test_one_class_for_all_samples_is_doubted_however_large_the_class():
    found = doubts(FALLING, evaluation(990, (990, 10), (1000, 0), 0.99))

    assert any("All 1,000 test samples were classified as class 0" in text for text in found)
    assert any("No better than chance" in text for text in found)


@pytest.mark.parametrize(
    ("blocks", "accuracy", "is_doubted"),
    [
        pytest.param({}, None, True, id="nothing else is known"),
        pytest.param({}, 0.7, False, id="hard negatives are told apart"),
        pytest.param({0: (90, 0.5)}, None, False, id="classes are told apart"),
    ],
)
def test_a_loss_that_did_not_fall_is_doubted_where_nothing_shows_that_something_was_learned(
    blocks, accuracy, is_doubted
):
    rising = [report(0, loss=0.5, accuracy=accuracy), report(1, loss=0.6, accuracy=accuracy)]

    found = doubts(rising, evaluation(blocks=blocks))

    assert any("The loss of block 0 did not fall" in text for text in found) is is_doubted


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


def test_a_network_of_ones_own_that_learns_nothing_warns_from_python():
    draw = np.random.default_rng(0)
    dataset = ow.dataset(draw.normal(size=(400, 4)), draw.integers(2, size=400))
    network = ow.mlp((4,), num_classes=2, widths=(8,))

    with pytest.warns(ow.OnwardWarning, match="No better than chance: block 0 right on"):
        result = ow.train(network, dataset, training=ow.TrainingConfig(epochs=1))

    assert result.doubts


# Classes of other sizes


def uneven(rows=600):
    draw = np.random.default_rng(0)
    y = (np.arange(rows) % 20 == 0).astype(np.int64)
    return draw.normal(size=(rows, 6)) + 1.2 * y[:, None], y


def test_where_classes_are_of_other_sizes_the_table_shows_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = uneven()
    np.savez("own.npz", x=x, y=y)

    with pytest.raises(SystemExit):
        main(["train", "one-pass", "--data", "own.npz", "--widths", "20", "--out", "run"])

    said = capsys.readouterr().out
    assert "balanced test accuracy" in said
    assert "sensitivity, class 1 (6 rows)" in said
    found = json.loads(Path("run/result.json").read_text())
    assert found["class_rows"] == [114, 6]
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

    assert found.class_rows == (3, 2, 1)
    assert found.named == tuple(named.bincount(minlength=3).tolist())
    right = [int(((named == c) & (label == c)).sum()) for c in range(3)]
    assert found.class_correct == tuple(right)
    assert found.balanced_accuracy == pytest.approx(
        sum(r / n for r, n in zip(right, (3, 2, 1), strict=True)) / 3
    )
    expected = sum(n * m for n, m in zip(found.class_rows, found.named, strict=True)) / 36
    assert found.by_chance == pytest.approx(expected)


def test_balanced_class_weights_find_a_rare_class_that_is_missed_without(tmp_path):
    x, y = uneven()
    dataset = ow.dataset(x, y)
    training = ow.TrainingConfig(epochs=10)
    found = {}
    for weights in (None, "balanced"):
        network = ow.mlp((6,), num_classes=2, widths=(20,))
        result = ow.train(network, dataset, training=training, class_weights=weights, validation=0)
        found[weights] = result.test.sensitivity[1]

    assert found[None] < 0.5 < found["balanced"]


def test_balanced_class_weights_have_a_mean_of_1_over_all_shards():
    config = ow.RunConfig().with_settings(
        {"plan.shards": 3, "plan.shard_by": "class", "data.class_weights": "balanced"}
    )
    x, y = uneven()
    whole = split(config, ow.dataset(x, y))
    shards = local_shards(config, whole, 0)
    summary = agree(config, [describe(config, shards, whole)])

    batches = [weighted(config, shard, summary).training for shard in shards.values()]

    weights = torch.cat([batch.weights for batch in batches])
    label = torch.cat([batch.label for batch in batches])
    assert weights.mean().item() == pytest.approx(1)
    sums = [weights[label == c].sum().item() for c in (0, 1)]
    assert sums[0] == pytest.approx(sums[1])


def test_class_weights_take_the_place_of_no_others():
    x, y = uneven()
    dataset = ow.dataset(x, y)
    weights = torch.ones(len(dataset.training))
    dataset = replace(dataset, training=dataset.training.replace(weights=weights))

    with pytest.raises(SettingError, match="the training samples have weights of their own"):
        ow.train(ow.mlp((6,), num_classes=2, widths=(20,)), dataset, class_weights="balanced")
