"""Views of a batch: embedded labels, plain rows, shifted images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import onward as ow
from onward import seeds
from onward.networks import Network
from onward.readouts import GoodnessSweep
from onward.views import LabelEmbedding, Negatives, Plain, View, shift_images

several = settings(max_examples=60, deadline=None, derandomize=True)

any_seed = st.integers(0, 2**40)


def images(*shape, seed=0):
    """Make images of pixels between 0 and 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


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
