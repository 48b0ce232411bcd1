"""Stages that see no label, and those after them."""

import json
import warnings

import numpy as np
import pytest
import torch
from commands import onward
from contract_cases import CASES, train
from contract_data import vectors
from cuts import Cut, CutAfter
from torch import nn

import onward as ow
from onward.errors import OnwardError, OnwardWarning, SettingError
from onward.network import trained_on
from onward.network.samplers import Plain
from onward.network.trained_on import TrainedOn
from onward.recipes.cells import AdversarialReconstruction
from onward.runs import folders
from onward.runs.sharding import agree, describe, load_shards, local_shards, seen, split
from onward.transport.messages import SingleProcessTransport

SHORT = ow.TrainingConfig(epochs=2, batch_size=16, precision="fp32")


class Seen(Plain):
    """Remembers which samples it has seen, and whether they had labels."""

    def __init__(self):
        self.ids, self.has_labels = set(), set()

    def views(self, batch, draw, hints):
        self.ids |= set(batch.ids.tolist())
        self.has_labels.add("label" in batch.targets)
        return super().views(batch, draw, hints)


class Rebuilding(ow.Objective):
    """Rebuilds samples, and their labels where it sees some."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(8, 12)

    def loss(self, inputs, outputs, draw):
        wanted, found = inputs["input"].tensor, self.decoder(outputs["input"].tensor)
        labels = inputs["input"].targets.get("label")
        wanted = wanted if labels is None else wanted + labels[:, None]
        return (found - wanted).square().mean()


def two_stages(*, sees_labels=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, samplers = nn.Linear(12, 8), (Seen(), Seen())
        cell = ow.Block(layer, Rebuilding(), ow.Adam())
        head = ow.Block(nn.Linear(8, 8), ow.CrossEntropy(nn.Linear(8, 3)), ow.Adam())
    frozen = ow.Block(layer, ow.CrossEntropy(nn.Linear(8, 3)), None)
    first = ow.Network([cell], samplers[0], None, num_classes=0)
    second = ow.Network([frozen, head], samplers[1], ow.SumOfHeads(), num_classes=3)
    return samplers, [
        ow.Stage(network=first, training=SHORT, sees_labels=sees_labels),
        ow.Stage(network=second, training=SHORT),
    ]


def test_a_stage_that_sees_no_label_has_samples_without_labels():
    (without, with_labels), stages = two_stages()

    ow.train(stages, vectors(), validation=0)

    assert (without.has_labels, with_labels.has_labels) == ({False}, {True})
    assert without.ids == with_labels.ids


@pytest.mark.parametrize("sees_labels", [False, True])
def test_a_stage_that_sees_no_label_learns_the_same_from_other_labels(sees_labels):
    weights = []
    for step in 1, 2:
        _, stages = two_stages(sees_labels=sees_labels)
        samples = vectors()
        y = (samples.y + step) % 3
        changed = ow.dataset(samples.x, y, x_test=samples.x_test, y_test=samples.y_test)
        ow.train(stages, changed, validation=0)
        weights.append([t.clone() for t in stages[0].network.state_dict().values()])

    assert all(a.equal(b) for a, b in zip(*weights, strict=True)) is not sees_labels


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("recipe", ["uff", "hinton-unsupervised"])
def test_samples_whose_labels_are_not_kept_are_learned_from_without_labels(recipe):
    config = ow.RunConfig(recipe=recipe).with_settings(
        {
            "network.widths": (32, 16),
            "training.epochs": 1,
            "training.batch_size": 50,
            "data.labelled": 0.1,
            "data.validation": 0,
        }
    )

    result = ow.run(config)

    (cells,) = result.earlier
    assert cells.facts["samples"]["training"] == len(ow.load_data("digits").x) == 1437
    assert result.facts["samples"]["training"] == 143
    assert cells.accuracy is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("recipe", "small"),
    [
        ("uff", {"network.widths": (8, 6)}),
        ("hinton-unsupervised", {"network.widths": (8, 6)}),
        ("ffcl", {"network.channels": (2, 3)}),
    ],
)
def test_early_stopping_is_of_the_stage_that_names_classes(recipe, small):
    judged = {"plan.patience": 1, "plan.keep_best": True, "plan.monitor": "roc-auc"}
    config = ow.RunConfig(recipe=recipe).with_settings(small | judged | {"training.epochs": 3})
    digits = ow.load_data("digits")
    of_two = digits.y < 2
    parts = {"x_test": digits.x_test, "y_test": digits.y_test % 2}

    result = ow.run(config, dataset=ow.dataset(digits.x[of_two], digits.y[of_two], **parts))

    for stage in result.earlier:
        assert {entry.chapter for entry in stage.progress} == {0, 1, 2}
    assert result.facts["best_chapter"] is not None


def test_where_no_stage_names_classes_early_stopping_is_said_to_have_no_effect():
    with pytest.warns(
        OnwardWarning, match="patience = 1 has no effect: these blocks predict no class"
    ):
        train(CASES["denoising, no readout"], patience=1)


def test_denoising_cells_are_refused_in_a_stream():
    config = ow.RunConfig(recipe="uff").with_settings(
        {"network.cell": "denoising", "plan.kind": "stream"}
    )

    with pytest.raises(SettingError, match="a denoising cell drops part"):
        ow.run(config)


def test_convolutional_cells_of_one_number_are_refused():
    config = ow.RunConfig(recipe="uff").with_settings(
        {"network.cell": "convolutional", "network.channels": (2, 2, 1)}
    )

    with pytest.raises(SettingError, match="cell 2 puts out one number a sample"):
        ow.run(config)


def test_a_discriminator_is_judged_in_full_precision():
    cell = AdversarialReconstruction(nn.Linear(3, 4), nn.Linear(4, 1), weight=0.1)
    views = {"input": ow.Batch(torch.rand(5, 4))}
    latents = {"input": ow.Batch(torch.rand(5, 3))}

    with torch.autocast("cpu", torch.bfloat16):
        losses = cell.loss(views, latents, torch.Generator())

    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_a_sampler_that_needs_labels_is_refused_where_there_are_none():
    _, stages = two_stages()
    stages[0].network.sampler = ow.LabelEmbedding(3, place="overwrite")

    with pytest.raises(
        SettingError, match=r"classes of samples are asked for .* and these have none"
    ):
        ow.train(stages, vectors(), validation=0)


def test_what_later_stages_need_is_found_before_the_first():
    config = ow.RunConfig(recipe="uff").with_settings(
        {"network.widths": (8,), "training.batch_size": 100, "data.labelled": 0.05}
    )

    with pytest.raises(
        SettingError,
        match=r"0\.05 and keeps the labels of 64 training samples",
    ):
        ow.run(config, listener=Never())


class Never(ow.Listener):
    def begin(self, plan, placement):
        raise AssertionError("A stage has begun.")


@pytest.mark.filterwarnings("error")
def test_settings_of_a_later_stage_have_an_effect():
    config = ow.RunConfig(recipe="hinton-unsupervised").with_settings(
        {
            "network.widths": (8, 8),
            "network.head_epochs": 3,
            "training.epochs": 2,
            "plan.chapters": 2,
            "optimizer.head_lr": 0.01,
            "plan.validate_every": 1,
            "data.labelled": 0.1,
            "data.class_weights": "balanced",
            "training.batch_size": 50,
        }
    )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No better than chance|Silent|The loss|All ")
        result = ow.run(config)

    assert result.facts["chapters"] == 3
    assert result.earlier[0].facts["chapters"] == 2


def test_a_model_knows_all_samples_that_its_blocks_have_learned_from():
    config = ow.RunConfig(recipe="uff").with_settings(
        {"network.widths": (8,), "training.epochs": 1, "data.labelled": 0.1, "data.validation": 0}
    )
    network = ow.run(config).network

    assert network.trained_on.overlap(ow.load_data("digits").training) > 0.9
    assert network.trained_on.overlap(ow.load_data("digits").test) < 0.1


@pytest.mark.filterwarnings("ignore:No better than chance|Silent|The loss")
def test_the_input_transformation_is_of_all_training_samples():
    x, y = vectors().x, vectors().y
    changes = {"data.labelled": 0.5, "data.standardize": "feature", "data.validation": 0}
    changes |= {"network.widths": (8,), "training.epochs": 1, "training.batch_size": 8}
    config = ow.RunConfig(recipe="uff").with_settings(changes)
    dataset = ow.dataset(x, y, x_test=x, y_test=y)
    shards, summary = load_shards(config, split(config, dataset), SingleProcessTransport())

    assert summary.inputs.arrays["mean"].flatten().allclose(x.mean(dim=0))
    assert (summary.samples, summary.every_samples) == ((len(x) // 2,), (len(x),))
    assert len(seen(config, shards, summary, sees_labels=True)[0].training) == len(x) // 2


def test_a_sample_belongs_to_the_same_shard_with_its_label_and_without():
    changes = {"data.labelled": 0.3, "plan.shards": 3, "data.validation": 0}
    config = ow.RunConfig().with_settings(changes)
    dataset = split(config, ow.load_data("digits"))
    local, summary = load_shards(config, dataset, SingleProcessTransport())

    every, some = (seen(config, local, summary, sees_labels=sees) for sees in (False, True))

    for number in range(3):
        ids = [set(shards[number].training.ids.tolist()) for shards in (every, some)]
        assert ids[1] < ids[0]
    kept = sum(len(shard.training) for shard in some.values())
    assert (kept, summary.of(sees_labels=True).samples) == (sum(summary.samples), summary.samples)
    assert sum(summary.of(sees_labels=False).samples) == dataset.num_samples


def test_a_changed_stage_does_not_go_on(tmp_path):
    _, stages = two_stages()
    with pytest.raises(Cut):
        ow.train(stages, vectors(), validation=0, folder=tmp_path, listener=CutAfter(1))

    _, stages = two_stages(sees_labels=True)
    with pytest.raises(OnwardError, match="sees labels"):
        ow.train(stages, vectors(), validation=0, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["uff", "mono-forward"])
def test_two_processes_learn_from_the_same_samples_and_labels(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ("train", recipe, "--data", "digits", "--set", "data.labelled=0.3", "--epochs", 2)
    train += ("--set", "network.widths=16,8", "--batch-size", 20)
    found = []
    for processes in 1, 2:
        folder = tmp_path / f"run-{processes}"
        assert onward(*train, "--processes", processes, "--out", folder) == 0
        found.append(json.loads((folder / "result.json").read_text()))

    one, two = found
    assert one["samples"] == two["samples"]
    assert one["samples"]["training"] == 387
    assert one["weights_sha256"] == two["weights_sha256"]


@pytest.mark.distributed
def test_ranks_with_data_of_their_own_learn_without_labels_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = ow.load_data("digits")
    for rank, samples in enumerate((slice(0, 500), slice(500, 1400))):
        np.savez(f"own-{rank}.npz", x=digits.x[samples].numpy(), y=digits.y[samples].numpy())
    train = ("train", "uff", "--data", "own-{rank}.npz", "--set", "data.labelled=0.3")
    train += ("--set", "network.widths=16,8", "--epochs", 4, "--batch-size", 20)

    assert onward(*train, "--processes", 2, "--placement", "federated", "--out", "run") == 0

    first, last = (json.loads((tmp_path / "run" / f).read_text()) for f in FILES)
    assert first["samples"]["training"] > 3 * last["samples"]["training"]


FILES = ("stage-0/result.json", "result.json")
"""Results of both stages."""


def test_the_command_says_that_a_stage_names_no_classes(tmp_path, capsys):
    config = ow.RunConfig(recipe="uff").with_settings(
        {"network.widths": (8,), "training.epochs": 1}
    )
    ow.run(config, folder=tmp_path / "run")

    assert onward("evaluate", tmp_path / "run" / "stage-0") == 2
    assert "names no classes: it is one of several stages" in capsys.readouterr().err


def digests(samples, kept):
    return TrainedOn(frozenset(str(n) for n in range(kept)), kept / samples)


@pytest.mark.parametrize(("first", "second"), [((50, 50), (500, 500)), ((5000, 1000), (60, 60))])
def test_what_more_samples_were_learned_from_is_remembered(first, second):
    a, b = digests(*first), digests(*second)
    widest = max(a, b, key=lambda each: each.samples)

    assert a.wider(b) is b.wider(a) is widest
    assert TrainedOn(frozenset(), 0.0).wider(a) is a


def test_what_was_learned_from_in_trainings_before_is_remembered(monkeypatch):
    a, b, c = digests(3, 3), digests(4, 4), digests(5, 5)

    assert b.after(a).earlier == (a,)
    assert c.after(b.after(a)).earlier == (b, a)
    assert a.after(b.after(a)).earlier == (b,)
    assert b.after(b) == b.after(None) == b
    assert TrainedOn.from_json(c.after(b.after(a)).to_json()) == c.after(b.after(a))
    monkeypatch.setattr(trained_on, "MOST_EARLIER", 1)
    assert c.after(b.after(a)).earlier == (b,)


def test_a_run_that_replaces_one_of_several_stages_has_one(tmp_path):
    short = {"network.widths": (8,), "training.epochs": 1}
    ow.run(ow.RunConfig(recipe="uff").with_settings(short), folder=tmp_path)
    config = ow.RunConfig(recipe="one-pass").with_settings(short)

    ow.run(config, folder=tmp_path, overwrite=True)

    assert folders.stages(tmp_path, folders.read_result(tmp_path)) == []


def test_the_digest_of_all_ranks_tells_other_samples_of_another_rank_apart():
    config = ow.RunConfig().with_settings({"data.name": "own-{rank}.npz"})
    digits = ow.load_data("digits")
    parts = [ow.dataset(digits.x[n : n + 200], digits.y[n : n + 200]) for n in (0, 300, 700)]
    found = []
    for pair in (parts[:2], [parts[0], parts[2]]):
        both = [split(config, part) for part in pair]
        notes = [describe(config, local_shards(config, d, r), d) for r, d in enumerate(both)]
        found.append(agree(config, notes))

    assert found[0].data_sha256 == found[1].data_sha256
    assert found[0].every_sha256 != found[1].every_sha256
