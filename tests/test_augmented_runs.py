"""Runs whose mini-batches are augmented: what is drawn, and what is recorded."""

import functools

import numpy as np
import pytest
import torch
from contract_cases import CASES
from contract_data import graph, two_sides
from samples import classes, draw, images, network, pixels, seeded
from test_preprocessing import whitened

import onward as ow
from onward.batch import Batch
from onward.checkpoint import weights_sha256
from onward.data.augmentation import augmented, with_augmentation
from onward.errors import SettingError
from onward.runs.preparation import preview

# In a run


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

    class Begun(ow.Listener):
        def begin(self, plan, placement):
            drawn.clear()  # Those of the trial.

    made = network()
    made.sampler = Recorded()
    trained(ow.Flip(), made=made, listener=Begun())

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


# What auto becomes


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
