"""What samplers make of a batch: embedded labels, plain samples; and shifted images."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import onward as ow
from onward.batch import Batch
from onward.errors import SettingError
from onward.network.networks import Network
from onward.network.readouts import GoodnessSweep
from onward.network.samplers import LabelEmbedding, Plain, Sampler

several = settings(max_examples=60, deadline=None, derandomize=True)

any_seed = st.integers(0, 2**40)


def images(*shape, seed=0):
    """Make images of pixels between 0 and 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def views_of(sampler, x, labels, seed=0):
    """Return the views of samples that are numbered from 0."""
    batch = Batch(x, {"label": torch.tensor(labels)}, ids=torch.arange(len(x)))
    return sampler.views(batch, torch.Generator().manual_seed(seed), None)


# Label embedding


def embedding(num_classes=3, *, place="prepend", **settings):
    return LabelEmbedding(num_classes, place=place, **settings)


def shown(sampler, x, labels):
    """Return the samples with these labels."""
    return sampler.with_label(Batch(x), torch.tensor(labels)).inputs


def labels_in(x, num_classes):
    """Return the labels that are in front of vectors."""
    return x[:, :num_classes].argmax(dim=1)


places = pytest.mark.parametrize("place", ["overwrite", "prepend"])


def test_a_label_overwrites_the_first_pixels_of_an_image_row_by_row():
    x = images(2, 1, 2, 3)

    found = shown(embedding(4, place="overwrite"), x, [1, 3])

    assert found.flatten(1)[:, :4].tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    assert found.flatten(1)[:, 4:].equal(x.flatten(1)[:, 4:])


def test_a_label_overwrites_the_first_pixels_of_all_channels():
    x = images(2, 3, 2, 4)

    found = shown(embedding(place="overwrite"), x, [1, 2])

    for channel in range(3):
        assert found[:, channel, 0, :3].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert found[:, :, 0, 3].equal(x[:, :, 0, 3])
    assert found[:, :, 1].equal(x[:, :, 1])


def test_a_label_comes_before_images_as_a_plane_for_each_class():
    x = images(2, 3, 2, 4)

    found = shown(embedding(place="prepend"), x, [1, 2])

    assert found.shape == (2, 6, 2, 4)
    assert (found[0, 1] == 1).all()
    assert (found[1, 2] == 1).all()
    assert (found[0, [0, 2]] == 0).all()
    assert (found[1, [0, 1]] == 0).all()
    assert found[:, 3:].equal(x)


def test_a_label_overwrites_the_first_features_of_vectors():
    x = images(2, 8)

    found = shown(embedding(place="overwrite"), x, [1, 2])

    assert found[:, :3].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert found[:, 3:].equal(x[:, 3:])


def test_a_label_is_put_before_vectors():
    x = images(2, 4)

    found = shown(embedding(place="prepend"), x, [1, 2])

    assert found[:, :3].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert found[:, 3:].equal(x)


@places
def test_the_neutral_label_is_an_equal_share_of_every_class(place):
    x = images(2, 8)

    found = embedding(4, place=place).neutral(Batch(x)).inputs

    assert (found[:, :4] == 0.25).all()
    assert found[:, 4:].equal(x[:, 4:] if place == "overwrite" else x)


def test_the_neutral_label_of_ten_classes_is_a_tenth_each_as_in_hintons_code():
    found = embedding(10, place="overwrite").neutral(Batch(images(1, 1, 28, 28))).inputs

    assert found[0, 0, 0, :10].tolist() == pytest.approx([0.1] * 10, rel=1e-6)


def test_the_strength_of_a_label_scales_the_true_and_the_neutral_one():
    sampler = embedding(2, strength=5.0)

    neutral = sampler.neutral(Batch(torch.zeros(1, 1))).inputs

    assert shown(sampler, torch.zeros(1, 1), [1]).tolist() == [[0.0, 5.0, 0.0]]
    assert neutral.tolist() == [[2.5, 2.5, 0.0]]


def test_a_label_looks_the_same_whatever_other_samples_there_are():
    # mpezeshki's tutorial writes the largest pixel of the batch, so that samples depend on others.
    x = images(3, 8)
    brighter = torch.cat([x[:2], x[2:] * 1e6])
    sampler = embedding(place="overwrite")

    found, beside_brighter = (shown(sampler, each, [0, 1, 2]) for each in (x, brighter))

    assert found[:2].equal(beside_brighter[:2])


def test_positive_and_negative_views_show_the_true_and_a_wrong_label():
    x, labels, sampler = images(30, 4), [0, 1, 2] * 10, embedding()

    views = views_of(sampler, x, labels)

    wrong = labels_in(views["negative"].inputs, 3).tolist()
    assert list(views) == list(sampler.names) == ["positive", "negative"]
    assert views["positive"].inputs.equal(shown(sampler, x, labels))
    assert all(w != label for w, label in zip(wrong, labels, strict=True))
    assert views["negative"].inputs.equal(shown(sampler, x, wrong))


def test_both_views_tell_the_objective_the_true_label():
    views = views_of(embedding(), images(2, 4), [0, 2])

    assert [view.label.tolist() for view in views.values()] == [[0, 2], [0, 2]]


def test_views_keep_all_else_that_is_known_of_their_samples():
    known = {"structure": {"edges": torch.zeros(2, 7)}, "index": torch.tensor([1])}
    batch = Batch(
        images(2, 4),
        {"label": torch.tensor([0, 2]), "age": torch.tensor([7.0, 9.0])},
        ids=torch.tensor([5, 6]),
        weights=torch.tensor([1.0, 2.0]),
        **known,
    )

    for view in embedding().views(batch, torch.Generator(), None).values():
        assert {n: t for n, t in view.tensors().items() if n != "inputs"} == {
            n: t for n, t in batch.tensors().items() if n != "inputs"
        }


def test_making_views_leaves_the_images_as_they_are():
    x = images(2, 1, 4, 4)
    before = x.clone()
    sampler = embedding(place="overwrite")

    views_of(sampler, x, [0, 1])
    sampler.neutral(Batch(x))
    sampler.candidates(Batch(x))

    assert x.equal(before)


def test_a_sweep_tries_every_label_of_a_sample_in_a_row():
    x, sampler = images(2, 4), embedding()

    found = sampler.candidates(Batch(x)).inputs

    assert labels_in(found, 3).tolist() == [0, 1, 2, 0, 1, 2]
    assert found[:, 3:].equal(x[[0, 0, 0, 1, 1, 1]])
    assert sampler.num_candidates == 3


@several
@given(
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=3).map(tuple),
    num_classes=st.integers(2, 5),
    place=st.sampled_from(["overwrite", "prepend"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(shape=(3, 2, 2), num_classes=4, place="overwrite", dtype=torch.float32)
def test_every_view_has_the_shape_that_the_sampler_says(shape, num_classes, place, dtype):
    room = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    place = place if room >= num_classes else "prepend"
    sampler = embedding(num_classes, place=place)
    x = torch.zeros(6, *shape, dtype=dtype)

    views = views_of(sampler, x, [n % num_classes for n in range(6)])

    each = (views["positive"], views["negative"], sampler.neutral(Batch(x)))
    for view in (*each, sampler.candidates(Batch(x[:1]))):
        assert tuple(view.inputs.shape[1:]) == sampler.view_shape(shape)
        assert view.inputs.dtype == dtype
    if place == "overwrite":
        assert sampler.view_shape(shape) == shape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3,), r"4 labels cannot overwrite the first of 3 features"),
        ((5, 1, 3), r"4 labels cannot overwrite the first pixels of images that have 3 a channel"),
    ],
)
def test_more_classes_than_there_are_inputs_to_overwrite_are_refused(shape, message):
    with pytest.raises(SettingError, match=message):
        embedding(4, place="overwrite").view_shape(shape)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("place", r"place is one of overwrite, prepend; got 'other'"),
        (
            "negatives",
            r"negatives is one of fixed, .*, mixed; got 'other'",
        ),
    ],
)
def test_settings_that_a_label_embedding_does_not_know_are_refused(name, message):
    sampler = embedding()
    # In tests, a check of types would be first.
    object.__setattr__(sampler, name, "other")

    with pytest.raises(SettingError, match=message):
        sampler.__post_init__()


def test_views_differ_in_the_first_inputs_only_where_the_label_is_written_there():
    overwriting, appending = embedding(place="overwrite"), embedding(place="prepend")

    assert overwriting.label_inputs((8,)) == appending.label_inputs((8,)) == 3
    assert overwriting.label_inputs((1, 4, 4)) == 3
    # In each channel, and in planes.
    assert overwriting.label_inputs((3, 4, 4)) == 0
    assert appending.label_inputs((1, 4, 4)) == 0
    assert Plain().label_inputs((8,)) == 0


def test_a_network_on_images_overwrites_and_a_network_on_vectors_does_not():
    settings = {"objective": "threshold", "negatives": "random", "readout": "goodness"}

    on_images = ow.mlp((1, 4, 4), num_classes=3, widths=(5,), is_image=True, **settings)
    on_vectors = ow.mlp((16,), num_classes=3, widths=(5,), **settings)

    inputs = [n.all_blocks[0].module.weight.shape[1] for n in (on_images, on_vectors)]
    assert inputs == [16, 19]


# Plain views


def test_a_plain_view_is_the_samples_as_they_are():
    batch = Batch(images(2, 1, 3, 3), {"label": torch.tensor([0, 1])})

    views = Plain().views(batch, torch.Generator(), None)

    assert views == {"input": batch}
    assert list(Plain().names) == ["input"]


def test_a_plain_sampler_has_nothing_to_say_about_labels():
    batch = Batch(images(2, 3))

    assert Plain().neutral(batch) is batch
    assert Plain().view_shape((1, 3, 3)) == (1, 3, 3)
    assert not Plain().needs_hints
    with pytest.raises(SettingError, match="the sampler Plain writes none into the input"):
        Plain().candidates(batch)


def test_a_network_refuses_an_objective_whose_views_the_sampler_does_not_make():
    block = ow.Block(
        ow.Dense(4, 4, generator=torch.Generator()),
        ow.Threshold(4, threshold=1.0, slope=4.0),
        ow.SGD(),
    )

    with pytest.raises(ValueError, match=r"Block 0 learns from .*positive.* Plain makes"):
        Network([block], Plain(), GoodnessSweep(), num_classes=2)


def test_views_are_all_that_a_sampler_must_make():
    class Halves(Sampler):
        names = ("first", "second")

        def views(self, batch, draw, hints):
            half = batch.tensor.shape[1] // 2
            parts = batch.tensor.split(half, dim=1)
            return {n: batch.replace(inputs=x) for n, x in zip(self.names, parts, strict=True)}

    batch, sampler = Batch(images(2, 4)), Halves()

    assert sampler.views(batch, torch.Generator(), None)["second"].inputs.equal(batch.inputs[:, 2:])
    assert sampler.neutral(batch) is batch
    assert not sampler.needs_hints
    assert not sampler.draws_once
    assert sampler.num_candidates == 1
