"""Augmentation: what it does to mini-batches, where it stands, and what is refused."""

import functools

import numpy as np
import pytest
import torch
from contract_cases import CASES, graph, two_sides
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SHORT, classes, draw, pixels
from test_preprocessing import whitened

import onward as ow
from onward.augmentation import augmented, with_augmentation
from onward.batch import Batch, joined
from onward.checkpoint import weights_sha256
from onward.errors import SettingError
from onward.preparation import preview
from onward.sharding import DataConfig, local_shards, split

few = settings(max_examples=25, deadline=None, derandomize=True)
any_seed = st.integers(0, 2**40)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=seeded(seed))


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
    rows, columns = cut[:, 0].any(dim=2), cut[:, 0].any(dim=1)
    assert cut[:, 0].equal(rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        assert line.sum(dim=1).max() == side
        # One piece: it changes at most twice from what is cut to what is not.
        assert (line.int().diff(dim=1) != 0).sum(dim=1).max() <= 2
    starts = {(r.nonzero()[0].item(), c.nonzero()[0].item()) for r, c in zip(rows, columns)}  # noqa: B905
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


def test_what_fails_is_told_with_its_line():
    line = broken.__code__.co_firstlineno + 1

    with pytest.raises(
        SettingError, match=rf"broken fails at .*test_augmentation\.py:{line}: KeyError: 'oops'\."
    ):
        ow.train(network(), ow.dataset(pixels(), classes()), training=SHORT, augment=broken)


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"shift": 1}, (9,), r"data.shift is 1 pixels, but the rows have shape \(9,\). It is for"),
        ({"shift": 4}, (2, 4), r"or signals, of shape \(channels, length\), and smaller than"),
        ({"cutout": 2}, (2, 9), r"data.cutout is 2 pixels, but the rows have shape \(2, 9\)"),
        ({"flip": "random"}, (2, 9), r"data.flip is random, but the rows have shape \(2, 9\)"),
        ({"flip": "random"}, (8, 8, 3), r"data.flip is random, but the rows have shape \(8, 8, 3"),
    ],
)
def test_settings_are_refused_where_samples_are_no_images(changes, shape, message):
    x = draw().random((20, *shape))
    dataset = ow.dataset(x, classes(20), x_val=x, y_val=classes(20), is_image=False)
    config = ow.RunConfig(data=DataConfig(**changes))

    with pytest.raises(SettingError, match=message):
        local_shards(config, dataset, 0)


def test_settings_are_refused_where_samples_have_several_inputs():
    config = ow.RunConfig(data=DataConfig(shift=1, validation=0))

    with pytest.raises(SettingError, match=r"data\.shift is 1 pixels, but the rows have several"):
        local_shards(config, split(config, two_sides()), 0)


def test_functions_do_not_go_with_a_run_that_settings_repeat():
    with pytest.raises(SettingError, match=r"for networks that a script has built: ow\.train"):
        ow.RunConfig(recipe="one-pass", augment=(ow.Flip(),))


# In a run


def network(shape=(1, 4, 4)):
    return ow.mlp(shape, num_classes=2, widths=(8, 8))


def trained(augment=(), kind="chapters", dataset=None, made=None, **more):
    made = made or network()
    dataset = dataset or ow.dataset(pixels(), classes())
    training = ow.TrainingConfig(epochs=4, batch_size=10, precision="fp32")
    plan = ow.PlanConfig(kind=kind, chapters=more.pop("chapters", 2))
    return ow.train(made, dataset, training=training, plan=plan, augment=augment, **more)


class Seen:
    """Notes what it is given, and moves it."""

    def __init__(self):
        self.calls = {}

    def __call__(self, batch, draw, epoch):
        found = batch.replace(inputs=batch.tensor + torch.rand(len(batch), 1, 1, 1, generator=draw))
        key = (epoch, *batch.ids.tolist())
        self.calls.setdefault(key, []).append((batch.tensor.clone(), found.tensor.clone()))
        return found


def test_each_training_mini_batch_is_augmented_alike_in_all_plans_and_nothing_else_is():
    seen = {kind: Seen() for kind in ("chapters", "short chapters", "stream")}
    dataset = ow.dataset(pixels(), classes(), x_val=pixels() // 2, y_val=classes())

    for kind, augment in seen.items():
        trained(
            augment,
            kind=kind.split()[-1],
            dataset=dataset,
            chapters=8 if "short" in kind else 2,
        )

    calls = [each.calls for each in seen.values()]
    for others in calls:
        # The trial sees samples in the order of the data set, in no epoch's order.
        trial = next(iter(others))
        assert others.pop(trial)[0][0].shape == (10, 1, 4, 4)
    examples = [key for key in calls[2] if len(key) == 3]
    assert len(examples) == 1
    del calls[2][examples[0]]
    assert calls[0].keys() == calls[1].keys() == calls[2].keys()
    # Each epoch is once all samples that are learned from, which are as they were.
    size = len(dataset.training)
    for epoch in range(4):
        ids = [id for key in calls[0] if key[0] == epoch for id in key[1:]]
        assert sorted(ids) == list(range(size))
    for key, found in calls[0].items():
        every = [pair for each in calls for pair in each[key]]
        for before, after in every:
            assert before.equal(dataset.x[list(key[1:])] / 255)
            assert after.equal(found[0][1])


def test_each_mini_batch_and_epoch_draws_its_own():
    seen = Seen()

    trained(seen)

    drawn = [(after - before)[:, 0, 0, 0] for ((before, after), *_) in seen.calls.values()]
    values = torch.cat(drawn).mul(2**12).round()
    assert len(values.unique()) > 0.9 * len(values)


def test_views_of_each_augmented_mini_batch_are_drawn_anew_and_alike_for_all_blocks():
    drawn = {}

    class Recorded(ow.Plain):
        def views(self, batch, draw, hints):
            drawn.setdefault(tuple(batch.ids.tolist()), []).append(draw.initial_seed())
            return super().views(batch, draw, hints)

    made = network()
    made.sampler = Recorded()
    trained(ow.Flip(), made=made)

    # Four epochs of five mini-batches, in one portion, which the second block reads again.
    assert [len(seeds) for seeds in drawn.values()] == [1] * 20
    assert len({seed for seeds in drawn.values() for seed in seeds}) == 20


def test_an_alternating_image_turns_with_every_visit_to_its_shard():
    turned = {}

    def noted(batch, draw):
        for id, image in zip(batch.ids.tolist(), batch.tensor, strict=True):
            turned.setdefault(id, []).append(bool(image[0, 0, 0] > image[0, 0, -1]))
        return batch

    x = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(len(pixels()), 1, 4, 4)
    dataset = ow.dataset(x, classes(), x_val=x, y_val=classes())
    training = ow.TrainingConfig(epochs=4, batch_size=10)
    augment = (ow.Flip(alternating=True), noted)
    ow.train(network(), dataset, training=training, plan=ow.PlanConfig(shards=2), augment=augment)

    # The trial sees the first samples once more.
    both = [turns[-2:] for turns in turned.values()]
    assert len(both) == len(dataset.training)
    assert all(first != second for first, second in both)


def test_settings_of_the_data_are_the_same_as_functions():
    config = {"shift": 1, "shift_fill": "reflect", "flip": "alternating", "cutout": 2}
    digits = ow.load_data("digits")
    run = ow.RunConfig(recipe="one-pass").with_settings(
        {f"data.{name}": value for name, value in config.items()}
        | {"network.widths": (8,), "training.epochs": 2, "training.precision": "fp32"}
    )
    (begun,) = preview(run, 1, with_weights=True)

    by_settings = ow.run(run)
    augment = [ow.Translate(1, "reflect"), ow.Flip(alternating=True), ow.Cutout(2)]
    by_functions = ow.train(begun.network, digits, training=run.training, augment=augment)

    assert by_settings.facts["augmentation"] == by_functions.facts["augmentation"]
    assert by_settings.facts["weights_sha256"] == by_functions.facts["weights_sha256"]


def test_augmentation_changes_the_weights_and_comes_before_preprocessing():
    x = ow.dataset(draw().normal(size=(60, 4)), classes())
    seen = []

    def noisy(batch, draw):
        seen.append(batch.tensor)
        return batch.replace(inputs=batch.tensor + 1)

    def started():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return whitened()

    plain, changed = started(), started()
    trained(made=plain, dataset=x, validation=0)
    trained(noisy, made=changed, dataset=x, validation=0)

    assert weights_sha256(plain) != weights_sha256(changed)
    # It is fitted on samples as they are, and applied to what was augmented.
    assert changed.preprocessing.matrix.equal(plain.preprocessing.matrix)
    for batch in seen:
        assert torch.isin(batch, x.x).all()
    batch = x.training.take(slice(0, 5))
    found = changed.transformed(batch, lambda seen: noisy(seen, None)).tensor
    assert found.equal(changed.preprocessing(batch.tensor + 1))


def test_global_generators_are_seeded_for_what_draws_from_them_and_left_as_they_were():
    def careless(batch, draw):
        return batch.replace(inputs=batch.tensor + torch.rand(1) + np.random.rand())

    torch.manual_seed(3)
    first = trained(careless).facts["weights_sha256"]
    before = torch.get_rng_state()
    augmented(Batch(images(3, 2)), [careless], seeded(), 0)

    assert torch.get_rng_state().equal(before)
    torch.manual_seed(3)
    assert trained(careless).facts["weights_sha256"] == first
    some, same, others = (
        augmented(Batch(torch.zeros(2, 1)), [careless], seeded(n), 0).tensor for n in (0, 0, 1)
    )
    assert some.equal(same)
    assert not some.equal(others)


def test_several_inputs_may_be_augmented():
    seen = []

    def swapped(batch, draw):
        seen.append(list(batch.inputs))
        return batch.replace(inputs={n: -t for n, t in batch.inputs.items()})

    trained(swapped, dataset=two_sides(), made=CASES["towers"].build()[0])

    assert seen
    assert set(map(tuple, seen)) == {("left", "right")}


def test_a_graph_is_augmented_whole_in_a_copy():
    dataset, sizes = graph(), []
    before = dataset.x.clone()

    def dropped(batch, draw):
        sizes.append((len(batch), len(batch.index)))
        batch.inputs[:, 0] = 0
        return batch

    block = ow.Block(torch.nn.Linear(12, 4), ow.CrossEntropy(torch.nn.Linear(4, 3)), ow.Adam())
    made = ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=3)
    training = ow.TrainingConfig(epochs=2, batch_size=72)
    ow.train(made, dataset, training=training, augment=dropped)

    assert set(sizes[1:]) == {(72, 48)}
    assert dataset.x.equal(before)


def test_a_run_says_what_augments_it_and_does_not_go_on_with_another(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    class Stopping(ow.Listener):
        def progress(self, entry):
            raise Stopped

    def one(batch, draw):
        return batch

    def other(batch, draw):
        return batch

    def scaled(batch, draw, by):
        return batch

    once, twice = (functools.partial(scaled, by=factor) for factor in (1, 2))
    result = trained([one, twice, ow.Translate(2, fill="reflect")])
    assert result.to_json()["augmentation"] == [
        one.__qualname__,
        f"{scaled.__qualname__}(by=2)",
        "Translate(pixels=2, fill='reflect')",
    ]
    for begun, changed in ((one, other), (once, twice)):
        with pytest.raises(Stopped):
            trained(begun, folder=tmp_path / begun.__class__.__name__, listener=Stopping())
        with pytest.raises(SettingError, match="other settings"):
            trained(changed, folder=tmp_path / begun.__class__.__name__)


# Batches that are joined


def test_joined_batches_are_those_of_all_samples():
    parts = [
        Batch(images(n, 2, seed=n), {"label": torch.arange(n)}, torch.arange(n), torch.ones(n))
        for n in (2, 3)
    ]

    whole = joined(parts)

    assert whole.inputs.equal(torch.cat([part.inputs for part in parts]))
    assert whole.ids.tolist() == whole.label.tolist() == [0, 1, 0, 1, 2]
    assert whole.weights.equal(torch.ones(5))
    assert whole.index is None


def test_of_joined_batches_those_count_that_counted():
    parts = [Batch(images(2, 2), index=torch.tensor([1])), Batch(images(3, 2))]

    assert joined(parts).index.tolist() == [1, 2, 3, 4]


def test_batches_that_hold_other_targets_are_not_joined():
    with pytest.raises(SettingError, match=r"inputs; inputs, targets\.label"):
        joined([Batch(images(2, 2)), Batch(images(1, 2), {"label": torch.tensor([0])})])


@pytest.mark.parametrize(
    ("shape", "shift", "flip"),
    [
        ((3, 32, 32), 2, "alternating"),
        ((1, 28, 40), 2, "none"),
        ((1, 8, 8), 0, "none"),
        ((3, 64), 4, "none"),
        ((20,), 0, "none"),
    ],
)
def test_auto_is_what_fits_samples_of_a_shape(shape, shift, flip):
    found = with_augmentation(ow.DataConfig(shift="auto", flip="auto"), shape)

    assert (found.shift, found.flip) == (shift, flip)


def test_what_is_set_stays_whatever_the_shape():
    config = ow.DataConfig(shift=3, flip="random")

    assert with_augmentation(config, (1, 8, 8)) == config


def test_what_auto_has_become_is_in_the_run_folder(tmp_path):
    np.savez(tmp_path / "x.npz", x=draw().normal(size=(40, 1, 16, 16)), y=classes(40))
    config = ow.RunConfig(
        recipe="conv", data=ow.DataConfig(name=str(tmp_path / "x.npz"), shift="auto", flip="auto")
    ).with_settings({"network.channels": (4,), "network.pooled": (1,), "training.batch_size": 10})

    result = ow.run(config.with_settings({"training.epochs": 1}), folder=tmp_path / "run")

    text = (tmp_path / "run" / "config.toml").read_text()
    assert ("shift = 1\n" in text, 'flip = "none"\n' in text) == (True, True)
    assert result.facts["augmentation"] == ["Translate(pixels=1, fill='zeros')"]
