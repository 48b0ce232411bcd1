"""Negative labels in training: what workers draw, and what blocks get to see."""

from dataclasses import dataclass, field
from typing import get_args

import pytest
import torch
from samples import assert_wrong

import onward as ow
from onward.batch import Batch
from onward.network.samplers import LabelEmbedding
from onward.placement import place
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import line
from onward.runs.preparation import nodes_of
from onward.runtime.chapters import ChapterWorker
from onward.runtime.runtime import Runtime, make_worker
from onward.runtime.workers import Settings, Shard
from onward.settings import Negatives
from onward.transport.messages import SingleProcessTransport

KINDS = get_args(Negatives)


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
        nodes=line(1),
        epochs=1,
        chapters=1,
        batch_size=1,
        samples=(1,),
        hint_age=None,
        validate_every=None,
        has_validation=False,
    )
    return ChapterWorker(plan, network, {}, Settings(seed=3))


def drawn(worker, labels, hints=None, time=0):
    """Return the negative labels that a worker draws, as they are written into the inputs."""
    numbered = Batch(torch.zeros(len(labels), 3), {"label": labels}, ids=torch.arange(len(labels)))
    views = worker.sampled(numbered, hints, time, 0)
    return views["negative"].inputs[:, : worker.network.num_classes].argmax(dim=1)


@pytest.mark.parametrize("negatives", [kind for kind in KINDS if kind != "mixed"])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_a_worker_never_draws_the_true_label(negatives, num_classes):
    worker = worker_of(num_classes, negatives)
    labels = torch.arange(400) % num_classes
    scores = torch.randn(400, num_classes, generator=torch.Generator().manual_seed(0)) * 1e30
    hints = scores if worker.network.sampler.needs_hints else None

    for time in range(20):
        assert_wrong(drawn(worker, labels, hints, time), labels, num_classes)


@pytest.mark.parametrize("negatives", ["adaptive", "hard", "gradual"])
def test_a_worker_draws_uniformly_before_there_are_hints(negatives):
    worker = worker_of(4, negatives)

    counts = drawn(worker, torch.zeros(9000, dtype=torch.long)).bincount(minlength=4)

    assert counts[0] == 0
    # 3,000 expected each; five standard deviations of the binomial is about 224.
    assert ((counts[1:] - 3000).abs() < 224).all()


def test_a_worker_takes_the_likeliest_wrong_label_for_adaptive_negatives():
    worker, hints = worker_of(3, "adaptive"), torch.tensor([[3.0, 1.0, 2.0]] * 3)

    assert drawn(worker, torch.tensor([0, 1, 2]), hints).tolist() == [2, 0, 0]


def test_a_worker_samples_hard_negatives():
    worker, labels = worker_of(3, "hard"), torch.zeros(200, dtype=torch.long)
    hints = torch.tensor([[3.0, 1.0, 2.0]]).expand(200, 3)

    assert drawn(worker, labels, hints).unique().tolist() == [1, 2]


@dataclass(frozen=True)
class Watched(LabelEmbedding):
    """Remembers the samples that views were made of, and their negative views."""

    seen: list[tuple[Batch, Batch]] = field(default_factory=list)

    def views(self, batch, draw, hints):
        views = super().views(batch, draw, hints)
        self.seen.append((batch, views["negative"]))
        return views


def negatives_seen(kind, negatives, *, hint_age=None, epochs=3):
    """Train on twelve numbered samples and return by number the negatives of each, in order."""
    network = ow.mlp(
        (1,),
        num_classes=3,
        widths=(4, 4),
        objective="threshold",
        negatives=negatives,
        readout="goodness",
    )
    network.sampler = Watched(3, place="prepend", negatives=negatives)
    plan = (ChapterPlan if kind == "chapters" else StreamPlan)(
        nodes=nodes_of(network),
        epochs=epochs,
        chapters=epochs,
        batch_size=5,
        samples=(12,),
        hint_age=hint_age,
        validate_every=None,
        has_validation=False,
    )
    label = torch.arange(12) % 3
    samples = Batch(torch.arange(12.0)[:, None], {"label": label}, ids=torch.arange(12))
    shards = {0: Shard(samples, samples.take(slice(0, 0)))}
    worker = make_worker(plan, network, shards, Settings(seed=0))
    # A worker looks at two samples before it trains.
    network.sampler.seen.clear()
    Runtime(plan, place(plan, None, 1, [1, 1]), worker, SingleProcessTransport()).run()
    drawn = {number: [] for number in range(12)}
    for batch, negative in network.sampler.seen:
        wrong = negative.inputs[:, :3].argmax(dim=1)
        assert negative.inputs[:, 3:].equal(batch.inputs)
        assert batch.label.equal(label[batch.ids])
        assert batch.ids.equal(batch.inputs[:, 0].long())
        assert_wrong(wrong, batch.label, 3)
        for number, negative_label in zip(batch.ids.tolist(), wrong.tolist(), strict=True):
            drawn[number].append(negative_label)
    return drawn


@pytest.mark.parametrize(
    ("kind", "negatives", "hint_age"),
    [
        ("chapters", "fixed", None),
        ("chapters", "random", None),
        ("chapters", "adaptive", 1),
        ("chapters", "hard", 1),
        ("chapters", "gradual", 1),
        ("chapters", "nearest", None),
        ("stream", "fixed", None),
        ("stream", "random", None),
        ("stream", "gradual", 0),
        ("stream", "nearest", None),
        ("stream", "hard", 0),
        ("stream", "hard", 2),
    ],
)
def test_in_training_every_sample_is_seen_with_a_wrong_label_in_every_epoch(
    kind, negatives, hint_age
):
    drawn = negatives_seen(kind, negatives, hint_age=hint_age)

    assert {len(labels) for labels in drawn.values()} == {3}


@pytest.mark.parametrize("kind", ["chapters", "stream"])
def test_fixed_negatives_of_a_sample_are_the_same_in_every_epoch(kind):
    drawn = negatives_seen(kind, "fixed")

    assert {len(set(labels)) for labels in drawn.values()} == {1}


def test_fixed_negatives_of_a_sample_are_the_same_in_a_stream_as_in_chapters():
    assert negatives_seen("chapters", "fixed") == negatives_seen("stream", "fixed")


@pytest.mark.parametrize("kind", ["chapters", "stream"])
def test_random_negatives_of_a_sample_change_from_epoch_to_epoch(kind):
    drawn = negatives_seen(kind, "random", epochs=12)

    assert {len(set(labels)) for labels in drawn.values()} == {2}
