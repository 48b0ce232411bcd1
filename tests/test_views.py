import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import onward as ow
from onward import seeds
from onward.chapters import ChapterWorker
from onward.networks import Network
from onward.placement import place
from onward.plan import ChapterPlan, StreamPlan
from onward.readouts import GoodnessSweep
from onward.runtime import run_in_memory
from onward.views import (
    LabelEmbedding,
    Negatives,
    Plain,
    View,
    likely_wrong_labels,
    shift_images,
    wrong_labels,
)
from onward.workers import Arithmetic, Rows

several = settings(max_examples=60, deadline=None, derandomize=True)

any_seed = st.integers(0, 2**40)
LARGEST = torch.finfo(torch.float32).max
finite = st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30, LARGEST, -LARGEST]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
anything = finite | st.just(math.inf) | st.just(math.nan)


@st.composite
def labeled(draw, score=None, max_classes=12):
    """Draw labels, the number of classes, and class scores if wished."""
    num_classes = draw(st.integers(2, max_classes))
    labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=12))
    if score is None:
        return torch.tensor(labels), num_classes
    row = st.lists(score, min_size=num_classes, max_size=num_classes)
    scores = draw(st.lists(row, min_size=len(labels), max_size=len(labels)))
    return torch.tensor(labels), torch.tensor(scores, dtype=torch.float32)


def images(*shape, seed=0):
    """Make images of pixels between 0 and 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# Negatives never carry the true label, however they are drawn


def assert_wrong(negatives, labels, num_classes):
    assert negatives.shape == labels.shape
    assert (negatives != labels).all()
    assert (negatives >= 0).all()
    assert (negatives < num_classes).all()


@several
@given(labeled(max_classes=200), any_seed)
def test_a_uniform_negative_never_carries_the_true_label(rows, seed):
    labels, num_classes = rows

    negatives = wrong_labels(
        labels, num_classes=num_classes, generator=torch.Generator().manual_seed(seed)
    )

    assert_wrong(negatives, labels, num_classes)


@several
@given(labeled(anything))
def test_an_adaptive_negative_never_carries_the_true_label(rows):
    labels, scores = rows

    negatives = likely_wrong_labels(labels, scores)

    assert_wrong(negatives, labels, scores.shape[1])


@several
@given(labeled(anything), any_seed)
def test_a_hard_negative_never_carries_the_true_label(rows, seed):
    labels, scores = rows

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


def worker_of(num_classes, negatives):
    """Make the worker of a run that draws negatives in some way."""
    network = ow.mlp(
        (3,),
        num_classes=num_classes,
        widths=(2,),
        objective="threshold",
        negatives=negatives,
        readout="goodness",
    )
    plan = ChapterPlan(
        num_blocks=1,
        head_reads=(),
        epochs=1,
        chapters=1,
        batch_size=1,
        rows=(1,),
        hint_age=None,
        validate_every=None,
        has_validation=False,
    )
    return ChapterWorker(plan, network, {}, Arithmetic(seed=3))


@pytest.mark.parametrize("negatives", list(Negatives))
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_a_worker_never_draws_the_true_label(negatives, num_classes):
    worker = worker_of(num_classes, negatives.value)
    labels = torch.arange(400) % num_classes
    scores = torch.randn(400, num_classes, generator=torch.Generator().manual_seed(0)) * 1e30

    for time in range(20):
        drawn = worker.negative_labels(labels, scores if negatives.needs_hints else None, time, 0)
        assert_wrong(drawn, labels, num_classes)


@pytest.mark.parametrize("negatives", [Negatives.ADAPTIVE, Negatives.HARD])
def test_a_worker_draws_uniformly_before_there_are_hints(negatives):
    worker = worker_of(4, negatives.value)
    labels = torch.zeros(9000, dtype=torch.long)

    drawn = worker.negative_labels(labels, None, 0, 0)

    counts = drawn.bincount(minlength=4)
    assert counts[0] == 0
    # 3,000 expected each; five standard deviations of the binomial is about 224.
    assert ((counts[1:] - 3000).abs() < 224).all()


def test_a_worker_takes_the_likeliest_wrong_label_for_adaptive_negatives():
    worker = worker_of(3, "adaptive")

    drawn = worker.negative_labels(
        torch.tensor([0, 1, 2]), torch.tensor([[3.0, 1.0, 2.0]] * 3), 0, 0
    )

    assert drawn.tolist() == [2, 0, 0]


def test_a_worker_samples_hard_negatives():
    worker = worker_of(3, "hard")
    labels = torch.zeros(200, dtype=torch.long)
    hints = torch.tensor([[3.0, 1.0, 2.0]]).expand(200, 3)

    drawn = worker.negative_labels(labels, hints, 0, 0)

    assert drawn.unique().tolist() == [1, 2]


# How they are distributed


def test_every_wrong_label_is_equally_likely():
    labels = torch.full((90_000,), 3)

    wrong = wrong_labels(labels, num_classes=10, generator=torch.Generator().manual_seed(0))

    counts = wrong.bincount(minlength=10)
    assert counts[3] == 0
    others = counts[counts > 0]
    assert len(others) == 9
    # 10,000 expected each; five standard deviations of the binomial is about 470.
    assert ((others - 10_000).abs() < 470).all()


def test_a_hard_negative_is_sampled_in_proportion_to_its_probability():
    rows = 60_000
    labels = torch.zeros(rows, dtype=torch.long)
    scores = torch.tensor([[9.0, 1.0, 0.0, -2.0]])

    negatives = likely_wrong_labels(
        labels, scores.expand(rows, 4), generator=torch.Generator().manual_seed(0)
    )

    share = negatives.bincount(minlength=4)[1:] / rows
    expected = scores[0, 1:].softmax(dim=0)
    # Five standard deviations of each share.
    bound = 5 * (expected * (1 - expected) / rows).sqrt()
    assert ((share - expected).abs() < bound).all()


def test_a_constant_added_to_the_scores_of_a_row_changes_no_hard_negative():
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
@given(labeled(finite))
def test_an_adaptive_negative_is_the_likeliest_wrong_label(rows):
    labels, scores = rows

    negatives = likely_wrong_labels(labels, scores)

    for label, row, negative in zip(labels.tolist(), scores, negatives.tolist(), strict=True):
        wrong = [score for c, score in enumerate(row.tolist()) if c != label]
        assert row[negative].item() == max(wrong)


def test_only_adaptive_and_hard_negatives_need_hints():
    assert [n for n in Negatives if n.needs_hints] == [Negatives.ADAPTIVE, Negatives.HARD]


def test_drawing_negatives_leaves_labels_and_scores_as_they_are():
    labels, scores = torch.tensor([0, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    likely_wrong_labels(labels, scores, generator=torch.Generator())
    wrong_labels(labels, num_classes=2, generator=torch.Generator())

    assert (labels.tolist(), scores.tolist()) == ([0, 1], [[1.0, 2.0], [3.0, 4.0]])


# The negatives that blocks get to see


@dataclass(frozen=True)
class Watched(LabelEmbedding):
    """Remembers what views were made of."""

    seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def views(self, x, labels, negative_labels=None):
        assert negative_labels is not None
        self.seen.append((x, labels, negative_labels))
        return super().views(x, labels, negative_labels)


def negatives_seen(kind, negatives, *, hint_age=None, epochs=3):
    """Train on twelve numbered rows and return by number the negatives of each, in order."""
    network = ow.mlp(
        (1,),
        num_classes=3,
        widths=(4, 4),
        objective="threshold",
        negatives=negatives,
        readout="goodness",
    )
    network.sampler = Watched(3, False, Negatives(negatives))
    plan = (ChapterPlan if kind == "chapters" else StreamPlan)(
        num_blocks=2,
        head_reads=network.head.reads if network.head else (),
        epochs=epochs,
        chapters=epochs,
        batch_size=5,
        rows=(12,),
        hint_age=hint_age,
        validate_every=None,
        has_validation=False,
    )
    x, y = torch.arange(12.0)[:, None], torch.arange(12) % 3
    rows = Rows(x, y, x[:0], y[:0])
    run_in_memory(plan, place(plan, None, 1, [1, 1]), [network], {0: rows}, Arithmetic(seed=0))
    drawn = {number: [] for number in range(12)}
    for inputs, labels, wrong in network.sampler.seen:
        assert_wrong(wrong, labels, 3)
        assert labels.equal(y[inputs[:, 0].long()])
        for number, label in zip(inputs[:, 0].tolist(), wrong.tolist(), strict=True):
            drawn[int(number)].append(label)
    return drawn


@pytest.mark.parametrize(
    ("kind", "negatives", "hint_age"),
    [
        ("chapters", "fixed", None),
        ("chapters", "random", None),
        ("chapters", "adaptive", 1),
        ("chapters", "hard", 1),
        ("stream", "fixed", None),
        ("stream", "random", None),
        ("stream", "hard", 0),
        ("stream", "hard", 2),
    ],
)
def test_in_training_every_row_is_seen_with_a_wrong_label_in_every_epoch(kind, negatives, hint_age):
    drawn = negatives_seen(kind, negatives, hint_age=hint_age)

    assert {len(labels) for labels in drawn.values()} == {3}


@pytest.mark.parametrize("kind", ["chapters", "stream"])
def test_fixed_negatives_of_a_row_are_the_same_in_every_epoch(kind):
    drawn = negatives_seen(kind, "fixed")

    assert {len(set(labels)) for labels in drawn.values()} == {1}


@pytest.mark.parametrize("kind", ["chapters", "stream"])
def test_random_negatives_of_a_row_change_from_epoch_to_epoch(kind):
    drawn = negatives_seen(kind, "random", epochs=12)

    assert {len(set(labels)) for labels in drawn.values()} == {2}


# Label embedding


def embedding(num_classes=3, *, overwrite, strength=1.0):
    return LabelEmbedding(num_classes, overwrite, Negatives.RANDOM, strength)


def test_a_label_overwrites_the_first_inputs_of_an_image():
    x = images(2, 1, 2, 3)

    rows = embedding(overwrite=True).with_label(x, torch.tensor([1, 2]))

    assert rows[:, :3].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert rows[:, 3:].equal(x.flatten(1)[:, 3:])


def test_a_label_is_put_before_other_rows():
    x = images(2, 4)

    rows = embedding(overwrite=False).with_label(x, torch.tensor([1, 2]))

    assert rows[:, :3].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert rows[:, 3:].equal(x)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_neutral_label_is_an_equal_share_of_every_class(overwrite):
    x = images(2, 8)

    rows = embedding(4, overwrite=overwrite).neutral(x)

    assert (rows[:, :4] == 0.25).all()
    assert rows[:, 4:].equal(x[:, 4:] if overwrite else x)


def test_the_neutral_label_of_ten_classes_is_a_tenth_each_as_in_hintons_code():
    rows = embedding(10, overwrite=True).neutral(images(1, 1, 28, 28))

    assert rows[0, :10].tolist() == pytest.approx([0.1] * 10, rel=1e-6)


def test_the_strength_of_a_label_scales_the_true_and_the_neutral_one():
    sampler = embedding(2, overwrite=False, strength=5.0)

    shown = sampler.with_label(torch.zeros(1, 1), torch.tensor([1]))
    neutral = sampler.neutral(torch.zeros(1, 1))

    assert shown.tolist() == [[0.0, 5.0, 0.0]]
    assert neutral.tolist() == [[2.5, 2.5, 0.0]]


def test_a_label_looks_the_same_whatever_other_rows_there_are():
    # mpezeshki's tutorial writes the largest pixel of the batch, so that rows depend on neighbors.
    x = images(3, 8)
    brighter = torch.cat([x[:2], x[2:] * 1e6])
    sampler, labels = embedding(overwrite=True), torch.tensor([0, 1, 2])

    rows, beside_brighter = sampler.with_label(x, labels), sampler.with_label(brighter, labels)

    assert rows[:2].equal(beside_brighter[:2])


def test_positive_and_negative_views_show_the_true_and_the_wrong_label():
    x = images(2, 4)
    labels, wrong = torch.tensor([0, 2]), torch.tensor([1, 0])
    sampler = embedding(overwrite=False)

    views = sampler.views(x, labels, wrong)

    assert list(views) == list(sampler.names) == ["positive", "negative"]
    assert views["positive"].x.equal(sampler.with_label(x, labels))
    assert views["negative"].x.equal(sampler.with_label(x, wrong))


def test_both_views_tell_the_objective_the_true_label():
    labels = torch.tensor([0, 2])

    views = embedding(overwrite=False).views(images(2, 4), labels, torch.tensor([1, 0]))

    assert [view.labels.tolist() for view in views.values()] == [[0, 2], [0, 2]]


def test_making_views_leaves_the_images_as_they_are():
    x = images(2, 1, 4, 4)
    before = x.clone()
    sampler = embedding(overwrite=True)

    sampler.views(x, torch.tensor([0, 1]), torch.tensor([1, 0]))
    sampler.neutral(x)

    assert x.equal(before)


@several
@given(
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=3).map(tuple),
    num_classes=st.integers(2, 5),
    overwrite=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_view_has_the_width_that_the_sampler_says(shape, num_classes, overwrite, dtype):
    overwrite = overwrite and math.prod(shape) >= num_classes
    sampler = embedding(num_classes, overwrite=overwrite)
    x, labels = torch.zeros(6, *shape, dtype=dtype), torch.arange(6) % num_classes

    views = sampler.views(x, labels, (labels + 1) % num_classes)

    expected = (6, *sampler.width(shape))
    for rows in (views["positive"].x, views["negative"].x, sampler.neutral(x)):
        assert (tuple(rows.shape), rows.dtype) == (expected, dtype)


def test_a_network_on_images_overwrites_and_a_network_on_vectors_does_not():
    settings = {"objective": "threshold", "negatives": "random", "readout": "goodness"}

    on_images = ow.mlp((1, 4, 4), num_classes=3, widths=(5,), is_image=True, **settings)
    on_vectors = ow.mlp((16,), num_classes=3, widths=(5,), **settings)

    inputs = [n.all_blocks[0].module.weight.shape[1] for n in (on_images, on_vectors)]
    assert inputs == [16, 19]


# Plain views


def test_a_plain_view_is_the_rows_as_they_are():
    x, labels = images(2, 1, 3, 3), torch.tensor([0, 1])

    views = Plain().views(x, labels)

    assert list(views) == list(Plain().names) == ["input"]
    assert views["input"].x is x
    assert views["input"].labels is labels


def test_a_plain_sampler_has_nothing_to_say_about_labels():
    x = images(2, 3)

    assert Plain().neutral(x) is x
    assert Plain().width((1, 3, 3)) == (1, 3, 3)
    assert Plain().negatives is None


def test_a_network_refuses_an_objective_whose_views_the_sampler_does_not_make():
    block = ow.Block(
        ow.Dense(4, 4, generator=torch.Generator()),
        ow.Threshold(4, threshold=1.0, slope=4.0),
        ow.SGD(),
    )

    with pytest.raises(ValueError, match=r"Block 0 learns from .*positive.* Plain makes"):
        Network([block], Plain(), GoodnessSweep(), num_classes=2)


def test_chosen_rows_of_a_view_keep_their_labels():
    view = View(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([5, 6, 7]))

    chosen = view.rows(torch.tensor([2, 0]))

    assert (chosen.x.tolist(), chosen.labels.tolist()) == ([[3.0], [1.0]], [7, 5])


def test_chosen_rows_are_those_of_every_block_that_a_view_reads():
    view = View((torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])), torch.tensor([5, 6]))

    chosen = view.rows(torch.tensor([1]))

    assert [part.tolist() for part in chosen.x] == [[[2.0]], [[4.0]]]


# Shifted images


def shifted(image, down, right):
    """Shift an image pixel by pixel, the slow way: positive is down and right."""
    result = torch.zeros_like(image)
    channels, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                for channel in range(channels):
                    result[channel, row, column] = image[channel, row - down, column - right]
    return result


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 2),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    largest=st.integers(0, 2),
    seed=any_seed,
)
def test_every_image_is_shifted_whole_by_at_most_some_pixels_with_zeros_coming_in(
    channels, height, width, largest, seed
):
    x = images(3, channels, height, width, seed=seed) + 1

    result = shift_images(x, largest, torch.Generator().manual_seed(seed))

    steps = range(-largest, largest + 1)
    for image, moved in zip(x, result, strict=True):
        assert any(moved.equal(shifted(image, d, r)) for d in steps for r in steps)


def test_every_shift_is_equally_likely():
    x = torch.zeros(25_000, 1, 5, 5)
    x[:, :, 2, 2] = 1

    result = shift_images(x, 2, torch.Generator().manual_seed(0))

    assert (result.sum(dim=(1, 2, 3)) == 1).all()
    # 1,000 expected in each of 25 places; five standard deviations of the binomial is about 155.
    assert ((result.sum(dim=(0, 1)) - 1000).abs() < 155).all()


def test_no_shift_leaves_images_as_they_are():
    x = images(4, 2, 3, 3)

    assert shift_images(x, 0, torch.Generator()).equal(x)


def test_shifting_makes_new_images():
    x = images(4, 1, 3, 3)
    before = x.clone()

    shift_images(x, 1, torch.Generator())

    assert x.equal(before)


def test_images_are_shifted_anew_each_epoch_and_alike_in_each_run():
    x = images(20, 1, 4, 4)

    def epoch(number):
        return shift_images(x, 1, seeds.generator(0, "shift", number, 0))

    assert epoch(0).equal(epoch(0))
    assert not epoch(0).equal(epoch(1))
