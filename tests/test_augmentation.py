"""Augmentation: what it does to mini-batches, and what is refused."""

import pytest
import torch
from contract_data import two_sides
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SHORT, classes, images, network, pixels, seeded

import onward as ow
from onward.batch import Batch
from onward.data.augmentation import augmented, with_augmentation
from onward.errors import SettingError

few = settings(max_examples=25, deadline=None, derandomize=True)
any_seed = st.integers(0, 2**40)


def numbered(x, first=0):
    return Batch(x, {"label": torch.arange(len(x)) % 2}, torch.arange(first, first + len(x)))


# Translations


def pixel(image, row, column, fill):
    """Return a pixel of an image, also of what lies around it."""
    places = []
    for place, size in zip((row, column), image.shape[1:], strict=True):
        if fill == "reflect":
            place = abs(place)
            place = place if place < size else 2 * (size - 1) - place
        elif not 0 <= place < size:
            return torch.zeros(len(image))
        places.append(place)
    return image[:, *places]


def moved(image, down, right, fill):
    """Move an image pixel by pixel, the slow way."""
    result = torch.empty_like(image)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            result[:, row, column] = pixel(image, row - down, column - right, fill)
    return result


@few
@given(
    channels=st.integers(1, 2),
    height=st.integers(3, 5),
    width=st.integers(3, 5),
    largest=st.integers(0, 2),
    fill=st.sampled_from(["zeros", "reflect"]),
    seed=any_seed,
)
def test_every_image_is_moved_whole_by_at_most_some_pixels(
    channels, height, width, largest, fill, seed
):
    x = images(3, channels, height, width, seed=seed) + 1
    before = x.clone()

    result = ow.Translate(largest, fill)(Batch(x), seeded(seed)).tensor

    steps = range(-largest, largest + 1)
    for image, found in zip(x, result, strict=True):
        assert any(found.equal(moved(image, d, r, fill)) for d in steps for r in steps)
    assert x.equal(before)
    assert result.is_contiguous()


@few
@given(
    length=st.integers(3, 6),
    largest=st.integers(0, 2),
    fill=st.sampled_from(["zeros", "reflect"]),
    seed=any_seed,
)
def test_every_signal_is_moved_along(length, largest, fill, seed):
    x = images(3, 2, length, seed=seed) + 1

    result = ow.Translate(largest, fill)(Batch(x), seeded(seed)).tensor

    for signal, found in zip(x, result, strict=True):
        each = [moved(signal[:, None], 0, r, fill)[:, 0] for r in range(-largest, largest + 1)]
        assert any(found.equal(one) for one in each)


@pytest.mark.parametrize(("shape", "places"), [((5, 5), 25), ((25,), 5)])
def test_every_distance_is_equally_likely(shape, places):
    x = torch.zeros(25_000, 1, *shape)
    x[:, 0, *[size // 2 for size in shape]] = 1

    result = ow.Translate(2)(Batch(x), seeded()).tensor

    assert (result.flatten(1).sum(dim=1) == 1).all()
    counts = result.sum(dim=(0, 1)).flatten()
    counts = counts[counts > 0]
    assert len(counts) == places
    # Five standard deviations of the binomial.
    assert ((counts - 25_000 / places).abs() < 5 * (25_000 / places) ** 0.5).all()


# Flips


def test_a_coin_is_tossed_for_each_image():
    x = images(400, 2, 3, 4)

    first, other = (ow.Flip()(Batch(x), seeded(n), epoch=0).tensor for n in (0, 1))

    turned = [found.equal(image.flip(2)) for image, found in zip(x, first, strict=True)]
    stayed = [found.equal(image) for image, found in zip(x, first, strict=True)]
    assert [a != b for a, b in zip(turned, stayed, strict=True)] == [True] * 400
    # Half of 400, and five standard deviations of the binomial.
    assert abs(sum(turned) - 200) < 50
    assert not first.equal(other)


def test_an_alternating_image_turns_every_epoch_whatever_else_is_in_the_batch():
    flip, x = ow.Flip(alternating=True), images(400, 1, 2, 3)
    batch = numbered(x, first=1_000)

    epochs = [flip(batch, seeded(n), epoch=n).tensor for n in range(3)]

    assert epochs[0].equal(epochs[2])
    assert epochs[1].equal(epochs[0].flip(3))
    turned = (epochs[0] != x).flatten(1).any(dim=1)
    assert abs(turned.sum() - 200) < 50
    few = torch.tensor([7, 300, 2])
    assert flip(batch.take(few), seeded(9), epoch=0).tensor.equal(epochs[0][few])
    # These directions are those of any machine, and of every version.
    x = torch.tensor([[[[0.0, 1.0]]]]).expand(16, -1, -1, -1)
    found = flip(numbered(x), seeded(), epoch=0).tensor[:, 0, 0, 0]
    assert found.tolist() == [0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1]


# Cutout


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_square_of_zeros_is_cut_whose_center_may_be_anywhere(side):
    x = torch.ones(4_000, 2, 5, 6)

    cut = ow.Cutout(side)(Batch(x), seeded()).tensor == 0

    assert cut[:, 0].equal(cut[:, 1])
    samples, columns = cut[:, 0].any(dim=2), cut[:, 0].any(dim=1)
    assert cut[:, 0].equal(samples[:, :, None] & columns[:, None, :])
    for line in (samples, columns):
        assert line.sum(dim=1).max() == side
        # One piece: it changes at most twice from what is cut to what is not.
        assert (line.int().diff(dim=1) != 0).sum(dim=1).max() <= 2
    starts = {(r.nonzero()[0].item(), c.nonzero()[0].item()) for r, c in zip(samples, columns)}  # noqa: B905
    assert len(starts) >= (5 - side // 2) * (6 - side // 2)
    assert x.eq(1).all()


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ow.Translate(-1), "ow.Translate: pixels is a whole number of 0 or more; got -1"),
        (lambda: ow.Translate(1, "wrap"), "fill is one of zeros, reflect; got 'wrap'"),
        (lambda: ow.Cutout(0), "ow.Cutout: pixels is a whole number of 1 or more; got 0"),
        (lambda: ow.Cutout(1.5), "pixels is a whole number of 1 or more; got 1.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_none_can_have_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize(
    ("augment", "inputs", "message"),
    [
        (ow.Translate(1), images(3, 9), r"or signals of shape \(channels, length\); the samples"),
        (ow.Translate(3), images(2, 1, 3, 8), "by up to 3 pixels, and they are of 3 x 8"),
        (ow.Flip(), images(3, 2, 9), r"ow.Flip takes images of .* samples have shape \(2, 9\)"),
        (
            ow.Cutout(3),
            images(2, 1, 3, 8),
            "cuts squares of 3 x 3 pixels, and samples are of 3 x 8",
        ),
        (ow.Cutout(2), images(3, 9), r"takes images of shape \(channels, height, width\); the"),
        (ow.Flip(), {"left": images(2, 1), "right": images(2, 1)}, r"inputs \(left, right\)"),
        (ow.Flip(alternating=True), images(2, 1, 3, 3), "by their ids, and the batch has none"),
    ],
)
def test_samples_that_an_augmentation_is_not_for_are_refused(augment, inputs, message):
    with pytest.raises(SettingError, match=message):
        augmented(Batch(inputs), [augment], seeded(), 0)


def fewer(batch, draw):
    return batch.take(slice(1, None))


def relabelled(batch, draw):
    batch.label.zero_()
    return batch


def mislabelled(batch, draw):
    return batch.with_targets(label=batch.label.flip(0))


def unlabelled(batch, draw):
    return batch.replace(targets={})


def divided(batch, draw):
    return batch.replace(inputs=batch.tensor / torch.zeros_like(batch.tensor))


def renumbered(batch, draw):
    batch.ids.add_(1)
    return batch


def shuffled(batch, draw):
    return batch.take(torch.randperm(len(batch), generator=draw))


def cropped(batch, draw):
    return batch.replace(inputs=batch.tensor[:, :, 1:])


def halved(batch, draw):
    return batch.replace(inputs=batch.tensor.half())


def bare(batch, draw):
    return batch.tensor


def broken(batch, draw):
    raise KeyError("oops")


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (fewer, "returns 19 samples of 20; it returns as many as it gets"),
        (relabelled, "changes label of the batch in place; return others"),
        (mislabelled, "changes label, the classes of the data; .* as a target of another name"),
        (unlabelled, "changes label, the classes of the data; "),
        (divided, "makes values that are NaN or infinite, of samples that have none"),
        (renumbered, "changes ids of the batch in place; return others"),
        (shuffled, "returns samples with other ids"),
        (cropped, r"makes inputs of \(1, 3, 4\) float32 from \(1, 4, 4\) float32"),
        (halved, r"makes inputs of \(1, 4, 4\) float16 from \(1, 4, 4\) float32"),
        (bare, "returns a Tensor of torch; an augmentation returns an ow.Batch"),
    ],
)
def test_what_does_not_return_the_samples_is_refused_with_file_and_line(augment, message):
    line = augment.__code__.co_firstlineno

    with pytest.raises(SettingError, match=rf"test_augmentation\.py:{line}\) {message}") as error:
        ow.train(network(), ow.dataset(pixels(), classes()), training=SHORT, augment=augment)

    assert str(error.value).startswith(f"The augmentation {augment.__name__} (")


def test_an_augmentation_may_add_targets():
    def marked(batch, draw):
        return batch.with_targets(mark=torch.zeros(len(batch)))

    ow.train(network(), ow.dataset(pixels(), classes()), training=SHORT, augment=marked)


def test_what_fails_is_told_with_its_line():
    line = broken.__code__.co_firstlineno + 1

    with pytest.raises(
        SettingError, match=rf"broken fails at .*test_augmentation\.py:{line}: KeyError: 'oops'\."
    ):
        ow.train(network(), ow.dataset(pixels(), classes()), training=SHORT, augment=broken)


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        (
            {"shift": 1},
            (9,),
            r"data.shift is 1 pixels, but the samples have shape \(9,\). It is for",
        ),
        ({"shift": 4}, (2, 4), r"or signals, of shape \(channels, length\), and smaller than"),
        ({"cutout": 2}, (2, 9), r"data.cutout is 2 pixels, but the samples have shape \(2, 9\)"),
        ({"flip": "random"}, (2, 9), r"data.flip is random, but the samples have shape \(2, 9\)"),
        (
            {"flip": "random"},
            (8, 8, 3),
            r"data.flip is random, but the samples have shape \(8, 8, 3",
        ),
    ],
)
def test_settings_are_refused_where_samples_are_no_images(changes, shape, message):
    with pytest.raises(SettingError, match=message):
        with_augmentation(ow.DataConfig(**changes), shape)


def test_settings_are_refused_where_samples_have_several_inputs():
    network = ow.mlp((4,), num_classes=3)

    with pytest.raises(
        SettingError, match=r"data\.shift is 1 pixels, but the samples have several"
    ):
        ow.train(network, two_sides(), training=SHORT, shift=1, validation=0)


def test_functions_do_not_go_with_a_run_that_settings_repeat():
    with pytest.raises(SettingError, match=r"for networks that a script has built: ow\.train"):
        ow.RunConfig(recipe="one-pass", augment=(ow.Flip(),))
