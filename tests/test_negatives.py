"""Wrong labels: never the true one, and distributed as they should be."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_wrong

import onward as ow
from onward.batch import Batch
from onward.errors import SettingError
from onward.network.negatives import (
    NEIGHBORS,
    fixed_wrong_labels,
    gradually_likely_wrong_labels,
    likely_wrong_labels,
    nearest_wrong_labels,
    wrong_labels,
)
from onward.network.samplers import LabelEmbedding
from onward.settings import Negatives

several = settings(max_examples=60, deadline=None, derandomize=True)

any_seed = st.integers(0, 2**40)

LARGEST = torch.finfo(torch.float32).max

finite = st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30, LARGEST, -LARGEST]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)

anything = finite | st.just(math.inf) | st.just(math.nan)


@st.composite
def some_labels(draw, score=None, max_classes=12):
    """Draw labels, the number of classes, and class scores if wished."""
    num_classes = draw(st.integers(2, max_classes))
    labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=12))
    if score is None:
        return torch.tensor(labels), num_classes
    row = st.lists(score, min_size=num_classes, max_size=num_classes)
    scores = draw(st.lists(row, min_size=len(labels), max_size=len(labels)))
    return torch.tensor(labels), torch.tensor(scores, dtype=torch.float32)


# Negatives never carry the true label, however they are drawn


KINDS = get_args(Negatives)


@several
@given(some_labels(max_classes=200), any_seed)
def test_a_uniform_negative_never_carries_the_true_label(labelled, seed):
    labels, num_classes = labelled

    negatives = wrong_labels(
        labels, num_classes=num_classes, generator=torch.Generator().manual_seed(seed)
    )

    assert_wrong(negatives, labels, num_classes)


@several
@given(some_labels(max_classes=200), any_seed)
def test_a_fixed_negative_never_carries_the_true_label(labelled, seed):
    labels, num_classes = labelled
    batch = Batch(torch.zeros(len(labels)), {"label": labels}, ids=torch.arange(len(labels)))

    negatives = fixed_wrong_labels(batch, num_classes=num_classes, seed=seed)

    assert_wrong(negatives, labels, num_classes)


@several
@given(some_labels(anything))
def test_an_adaptive_negative_never_carries_the_true_label(labelled):
    labels, scores = labelled

    negatives = likely_wrong_labels(labels, scores)

    assert_wrong(negatives, labels, scores.shape[1])


@several
@given(some_labels(anything), any_seed)
def test_a_hard_negative_never_carries_the_true_label(labelled, seed):
    labels, scores = labelled

    negatives = likely_wrong_labels(labels, scores, generator=torch.Generator().manual_seed(seed))

    assert_wrong(negatives, labels, scores.shape[1])


@pytest.mark.parametrize("sampled", [False, True])
def test_a_negative_is_wrong_even_where_all_wrong_labels_are_impossible(sampled):
    labels = torch.tensor([0, 1, 2])
    scores = torch.full((3, 3), -math.inf)
    draw = torch.Generator().manual_seed(0) if sampled else None

    negatives = likely_wrong_labels(labels, scores, generator=draw)

    assert_wrong(negatives, labels, 3)


@pytest.mark.parametrize("sampled", [False, True])
def test_an_impossible_wrong_label_is_left_out_while_there_are_others(sampled):
    labels = torch.zeros(100, dtype=torch.long)
    scores = torch.tensor([[-math.inf, -math.inf, -1e30, -math.inf]]).expand(100, 4)
    draw = torch.Generator().manual_seed(0) if sampled else None

    negatives = likely_wrong_labels(labels, scores, generator=draw)

    assert (negatives == 2).all()


# How they are distributed


@pytest.mark.parametrize("is_fixed", [False, True])
def test_every_wrong_label_is_equally_likely(is_fixed):
    labels = torch.full((90_000,), 3)

    if is_fixed:
        batch = Batch(torch.zeros(90_000), {"label": labels}, ids=torch.arange(90_000))
        wrong = fixed_wrong_labels(batch, num_classes=10, seed=0)
    else:
        wrong = wrong_labels(labels, num_classes=10, generator=torch.Generator().manual_seed(0))

    counts = wrong.bincount(minlength=10)
    assert counts[3] == 0
    others = counts[counts > 0]
    assert len(others) == 9
    # 10,000 expected each; five standard deviations of the binomial is about 470.
    assert ((others - 10_000).abs() < 470).all()


def test_a_hard_negative_is_sampled_in_proportion_to_its_probability():
    samples = 60_000
    labels = torch.zeros(samples, dtype=torch.long)
    scores = torch.tensor([[9.0, 1.0, 0.0, -2.0]])

    negatives = likely_wrong_labels(
        labels, scores.expand(samples, 4), generator=torch.Generator().manual_seed(0)
    )

    share = negatives.bincount(minlength=4)[1:] / samples
    expected = scores[0, 1:].softmax(dim=0)
    # Five standard deviations of each share.
    bound = 5 * (expected * (1 - expected) / samples).sqrt()
    assert ((share - expected).abs() < bound).all()


def test_a_constant_added_to_the_scores_of_a_sample_changes_no_hard_negative():
    labels = torch.arange(600) % 3
    scores = torch.randint(-64, 64, (600, 3), generator=torch.Generator().manual_seed(0)) / 32

    first, second = (
        likely_wrong_labels(labels, scores + shift, generator=torch.Generator().manual_seed(1))
        for shift in (0.0, 64.0)
    )

    assert first.equal(second)


def test_hard_negatives_among_equal_scores_are_uniform():
    labels = torch.zeros(30_000, dtype=torch.long)

    negatives = likely_wrong_labels(
        labels, torch.full((30_000, 4), -7.0), generator=torch.Generator().manual_seed(0)
    )

    # 10,000 expected each; five standard deviations of the binomial is about 408.
    assert ((negatives.bincount(minlength=4)[1:] - 10_000).abs() < 408).all()


@several
@given(some_labels(finite))
def test_an_adaptive_negative_is_the_likeliest_wrong_label(labelled):
    labels, scores = labelled

    negatives = likely_wrong_labels(labels, scores)

    for label, row, negative in zip(labels.tolist(), scores, negatives.tolist(), strict=True):
        wrong = [score for c, score in enumerate(row.tolist()) if c != label]
        assert row[negative].item() == max(wrong)


def test_only_negatives_that_ask_the_network_need_hints():
    asking = [n for n in KINDS if LabelEmbedding(3, negatives=n).needs_hints]

    assert asking == ["adaptive", "hard", "gradual"]


def test_only_fixed_negatives_are_drawn_once():
    assert [n for n in KINDS if LabelEmbedding(3, negatives=n).draws_once] == ["fixed"]


# Fixed negatives


@several
@given(st.lists(st.integers(0, 300), min_size=1, max_size=20, unique=True), any_seed, st.data())
def test_a_fixed_negative_of_a_sample_is_the_same_in_whatever_batch_it_comes(ids, seed, data):
    sampler = LabelEmbedding(5, place="prepend", negatives="fixed")
    labels = torch.arange(301) % 5
    whole = Batch(torch.zeros(301, 2), {"label": labels}, ids=torch.arange(301))
    others = data.draw(st.permutations(ids))

    def wrong(batch):
        view = sampler.views(batch, torch.Generator().manual_seed(seed), None)["negative"]
        return dict(zip(batch.ids.tolist(), view.inputs[:, :5].argmax(dim=1).tolist(), strict=True))

    in_whole = wrong(whole)
    for chosen in (ids, others, ids[:1]):
        found = wrong(whole.take(torch.tensor(chosen)))
        assert found == {number: in_whole[number] for number in chosen}


def test_other_samples_and_other_seeds_have_other_fixed_negatives():
    batch = Batch(
        torch.zeros(100), {"label": torch.zeros(100, dtype=torch.long)}, ids=torch.arange(100)
    )

    first, second = (fixed_wrong_labels(batch, num_classes=10, seed=seed) for seed in (0, 1))

    assert len(first.unique()) == 9
    assert not first.equal(second)


def test_drawing_negatives_leaves_labels_and_scores_as_they_are():
    labels, scores = torch.tensor([0, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    likely_wrong_labels(labels, scores, generator=torch.Generator())
    wrong_labels(labels, num_classes=2, generator=torch.Generator())

    assert (labels.tolist(), scores.tolist()) == ([0, 1], [[1.0, 2.0], [3.0, 4.0]])


# Gradual, nearest and mixed negatives


def test_gradual_negatives_are_uniform_at_first_and_the_likeliest_in_the_end():
    labels = torch.arange(9000) % 4
    likeliest = (labels + 1) % 4
    likely = 0.5 * torch.eye(4)[likeliest]

    def share(right):
        """Return how often the likeliest wrong label is chosen, with so many samples right."""
        true = torch.eye(4)[labels] * (torch.arange(9000) < 9000 * right)[:, None]
        draw = torch.Generator().manual_seed(0)
        chosen = gradually_likely_wrong_labels(labels, likely + true, generator=draw)
        assert_wrong(chosen, labels, 4)
        return (chosen == likeliest).float().mean().item()

    # Five standard deviations of the binomial is about 0.025.
    assert share(0.0) == pytest.approx(1 / 3, abs=0.025)
    assert share(0.5) == pytest.approx(1 / 2 + 1 / 6, abs=0.025)
    assert share(1.0) == 1.0


def test_a_nearest_negative_has_the_label_of_the_nearest_sample_of_another_class():
    draw = torch.Generator().manual_seed(0)
    x, labels = torch.randn(NEIGHBORS, 1, 2, generator=draw), torch.arange(NEIGHBORS) % 3

    found = nearest_wrong_labels(Batch(x, {"label": labels}), num_classes=3, generator=draw)

    assert_wrong(found, labels, 3)
    for number in (0, 1, 250, 499):
        others = [n for n in range(NEIGHBORS) if labels[n] != labels[number]]
        nearest = min(others, key=lambda n: (x[n] - x[number]).norm().item())
        assert found[number] == labels[nearest]


def test_nearest_negatives_of_samples_that_are_sorted_by_class_are_those_of_others():
    labels = torch.arange(3).repeat_interleave(2 * NEIGHBORS)
    x = torch.tensor([0.0, 1.0, 10.0])[labels][:, None]

    found = nearest_wrong_labels(
        Batch(x, {"label": labels}), num_classes=3, generator=torch.Generator().manual_seed(0)
    )

    assert found.equal(torch.tensor([1, 0, 1])[labels])


def test_where_all_neighbors_are_of_one_class_any_wrong_label_is_drawn():
    batch = Batch(torch.zeros(900, 2), {"label": torch.zeros(900, dtype=torch.long)})

    found = nearest_wrong_labels(batch, num_classes=4, generator=torch.Generator())

    assert found.unique().tolist() == [1, 2, 3]


def test_views_of_mixed_negatives_differ_in_the_label_alone_which_is_mixed_as_the_sample():
    x, labels = torch.eye(6).repeat(50, 1), (torch.arange(6) % 3).repeat(50)
    sampler = LabelEmbedding(3, place="prepend", negatives="mixed", strength=2.0)

    views = sampler.views(Batch(x, {"label": labels}), torch.Generator().manual_seed(0), None)

    codes = {name: view.tensor[:, :3] / 2.0 for name, view in views.items()}
    mixed = views["positive"].tensor[:, 3:]
    assert mixed.equal(views["negative"].tensor[:, 3:])
    # Sample n is of class n mod 3, so what it is made of says what its label is.
    assert torch.allclose(codes["positive"], mixed[:, :3] + mixed[:, 3:])
    for code in codes.values():
        assert torch.allclose(code.sum(dim=1), torch.ones(300))
    own = codes["positive"].gather(1, labels[:, None])
    assert (own >= 0.5).all()
    assert 100 < (own == 1).sum() < 250
    # No class of the mixture is among its wrong ones.
    assert not (codes["negative"] * codes["positive"]).any()


def test_of_two_classes_samples_of_the_same_one_alone_are_mixed():
    labels = torch.arange(200) % 2
    batch = Batch(torch.eye(2)[labels], {"label": labels})
    sampler = LabelEmbedding(2, place="prepend", negatives="mixed")

    views = sampler.views(batch, torch.Generator().manual_seed(0), None)

    assert views["positive"].tensor.equal(torch.eye(2)[labels].repeat(1, 2))
    assert views["negative"].tensor[:, :2].equal(torch.eye(2)[1 - labels])


@pytest.mark.parametrize(
    ("shape", "is_image", "strength"),
    [((1, 28, 28), True, 1.0), ((3, 32, 32), True, 0.1 * 3072**0.5), ((3072,), False, 1.0)],
)
def test_labels_in_color_images_are_in_proportion_to_their_length(shape, is_image, strength):
    network = ow.mlp(
        shape,
        num_classes=10,
        widths=(8,),
        objective="threshold",
        negatives="random",
        readout="goodness",
        is_image=is_image,
    )

    assert network.sampler.strength == pytest.approx(strength)


def test_one_class_has_no_wrong_label():
    batch = ow.Batch(torch.zeros(2, 1), {"label": torch.tensor([0, 0])})

    with pytest.raises(SettingError, match="one of several classes, and num_classes is 1"):
        wrong_labels(batch.label, num_classes=1, generator=torch.Generator())
    with pytest.raises(SettingError, match="one of several classes, and num_classes is 1"):
        fixed_wrong_labels(batch, num_classes=1, seed=0)
