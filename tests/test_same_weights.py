"""The first law: a plan ends in the same weights wherever its tasks run, bit for bit."""

from functools import cache

import pytest
import torch
from prepared import (
    CHAPTERS,
    FEDERATED,
    SLICED,
    SMALL,
    STREAMS,
    assert_same_weights,
    digits,
    prepare,
    prepare_network,
    reference,
)
from thinned import thinned
from weight_jobs import convolutions

import onward as ow
from onward.checkpoint import MEMORY_FORMATS, weights_sha256
from onward.config import RunConfig
from onward.network.negatives import wrong_labels
from onward.network.passes import passes
from onward.runs.sharding import load_shards, split
from onward.runtime.workers import Worker
from onward.seeds import generator
from onward.transport.messages import SingleProcessTransport


def matrix(cases, everywhere, thorough=()):
    """Return each case with some placements; those of thorough cases are all there are."""
    chosen = [(case, *p) for case in cases for p in everywhere]
    chosen += [(case, *p) for case in thorough for p in CHAPTER_PLACEMENTS if p not in everywhere]
    return [pytest.param(*each, id="{}, {} on {}".format(*each)) for each in sorted(chosen)]


CHAPTER_PLACEMENTS = [(n, ranks) for n in ("single-layer", "all-layers") for ranks in (2, 3, 4)]


# The law


@pytest.mark.parametrize(
    ("case", "name", "num_ranks"),
    thinned(
        matrix(
            CHAPTERS,
            [("single-layer", 3), ("all-layers", 2), ("all-layers", 4)],
            thorough=["one-pass", "adaptive, goodness", "adaptive, softmax", "shifted"],
        ),
        every=2,
    ),
)
@pytest.mark.usefixtures("unchecked")
def test_chapters_end_in_the_same_weights_on_any_ranks(case, name, num_ranks):
    expected = reference("chapters", case)

    first, *_ = prepare(*CHAPTERS[case]).run(name, num_ranks)

    assert_same_weights(first.worker.network, expected)


@pytest.mark.parametrize(
    ("case", "name", "num_ranks"), thinned(matrix(STREAMS, [("stream", 2), ("stream", 4)]), every=2)
)
@pytest.mark.usefixtures("unchecked")
def test_a_stream_ends_in_the_same_weights_on_any_ranks(case, name, num_ranks):
    expected = reference("stream", case)

    first, *_ = prepare(*STREAMS[case]).run(name, num_ranks)

    assert_same_weights(first.worker.network, expected)


@pytest.mark.parametrize(
    ("case", "name", "num_ranks"),
    thinned(matrix(FEDERATED, [("federated", 2), ("federated", 4)]), every=2),
)
@pytest.mark.usefixtures("unchecked")
def test_ranks_with_private_shards_end_in_the_weights_of_one_that_has_them_all(
    case, name, num_ranks
):
    expected = reference("federated", case)

    first, *_ = prepare(*FEDERATED[case]).run(name, num_ranks)

    assert_same_weights(first.worker.network, expected)


@cache
def trained_convolutions(kind, name, num_ranks, **settings):
    return trained_network(convolutions(), kind, name, num_ranks, **settings)


def trained_network(network, kind, name, num_ranks, memory_format="auto"):
    changes = {"training.epochs": 3, "plan.kind": kind, "plan.memory_format": memory_format}
    config = RunConfig().with_settings(SMALL | changes)
    shards, summary = load_shards(config, split(config, digits()), SingleProcessTransport())
    first, *_ = prepare_network(network, config, shards, summary).run(name, num_ranks)
    return first.worker.network


@pytest.mark.parametrize(
    ("kind", "name", "num_ranks"),
    [("chapters", "single-layer", 3), ("chapters", "all-layers", 2), ("stream", "stream", 4)],
)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels-last"])
def test_convolutions_obey_the_law_in_both_memory_formats(memory_format, kind, name, num_ranks):
    expected = trained_convolutions(kind, "sequential", 1, memory_format=memory_format)

    actual = trained_convolutions(kind, name, num_ranks, memory_format=memory_format)

    assert_same_weights(actual, expected)
    # The law is not kept by giving up the layout.
    assert actual.memory_format is MEMORY_FORMATS[memory_format]
    for network in (actual, expected):
        assert network.line[1].module[0].weight.is_contiguous(memory_format=network.memory_format)
        x = torch.zeros(2, *digits().input_shape)
        *_, last = passes(network, network.sampler.neutral(network.transformed(ow.Batch(x))))
        assert last.outputs.tensor.is_contiguous(memory_format=network.memory_format)


def test_convolutions_have_channels_last_by_themselves():
    assert trained_convolutions("chapters", "sequential", 1).memory_format is torch.channels_last
    assert reference("chapters", "one-pass").memory_format is torch.contiguous_format


def frozen_late():
    """Return convolutions of which a weight was frozen, and a rule changed, after the building."""
    network = convolutions()
    network.line[0].module[0].weight.requires_grad_(False)
    network.line[1].optimizer = ow.SGD(lr=0.1)
    return network


def test_what_learns_and_by_which_rule_may_change_after_a_network_is_built():
    expected = trained_network(frozen_late(), "chapters", "sequential", 1)

    actual = trained_network(frozen_late(), "chapters", "all-layers", 2)

    assert_same_weights(actual, expected)
    assert actual.line[0].module[0].weight.equal(convolutions().line[0].module[0].weight)


@pytest.mark.parametrize(
    ("kind", "name", "num_ranks"),
    [
        pytest.param("chapters", "single-layer", 2, id="single-layer on 2"),
        pytest.param("chapters", "single-layer", 4, id="single-layer on 4"),
        pytest.param("chapters", "all-layers", 3, id="all-layers on 3"),
        pytest.param("stream", "stream", 3, id="stream on 3"),
    ],
)
def test_convolutions_with_batch_statistics_and_dropout_obey_the_law_too(kind, name, num_ranks):
    expected = trained_convolutions(kind, "sequential", 1)

    actual = trained_convolutions(kind, name, num_ranks)

    assert_same_weights(actual, expected)


def test_statistics_of_batches_travel_with_the_weights():
    network = trained_convolutions("chapters", "all-layers", 3)

    # Three epochs of three mini-batches, each seen once in training and never in passing.
    counts = {n: b.item() for n, b in network.named_buffers() if n.endswith("batches_tracked")}
    assert set(counts.values()) == {9}
    assert len(counts) == 4


TEAMS = [("sequential", 2, 2), ("all-layers", 4, 2), ("all-layers", 3, 1), ("single-layer", 4, 2)]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("case", "name", "num_ranks", "replicas"),
    thinned([(case, *team) for case in SLICED for team in TEAMS])
    + [(case, "all-layers", 8, 4) for case in ("samples", "units")]
    + [(case, "sequential", 4, 4) for case in ("samples", "units")]
    # Teams of one and of more ranks.
    + [(case, "single-layer", 5, None) for case in ("samples", "units")],
)
def test_a_plan_with_slices_ends_in_the_same_weights_in_teams_of_any_size(
    case, name, num_ranks, replicas
):
    first, *_ = prepare(*SLICED[case]).run(name, num_ranks, replicas)

    assert_same_weights(first.worker.network, reference("sliced", case))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", ["samples", "units"])
def test_every_rank_of_a_team_ends_with_the_whole_block(case):
    one, other = prepare(*SLICED[case]).run("sequential", 2, 2)

    assert_same_weights(one.worker.network, other.worker.network)


@pytest.mark.parametrize(
    ("cut", "case"), [("samples", "samples in bf16"), ("units", "units in bf16")]
)
def test_slices_change_the_weights(cut, case):
    recipe, changes = SLICED[case]
    whole = prepare(recipe, {**changes, "plan.slices": 1}).run("sequential", 1)[0].worker.network

    assert weights_sha256(whole) != weights_sha256(reference("sliced", case))


# What the law would be worth nothing without


def test_each_plan_has_weights_of_its_own():
    digests = [weights_sha256(reference("chapters", case)) for case in CHAPTERS]

    # Validating more often changes nothing, as it should.
    assert weights_sha256(reference("chapters", "validated often")) == digests[0]
    assert len(set(digests)) == len(CHAPTERS) - 1


def test_each_age_of_hints_in_a_stream_has_weights_of_its_own():
    digests = {weights_sha256(reference("stream", case)) for case in STREAMS}

    assert len(digests) == len(STREAMS)


def test_another_seed_ends_in_other_weights():
    (other,) = prepare("one-pass", SMALL | {"training.seed": 1}).run("sequential", 1)

    assert weights_sha256(other.worker.network) != weights_sha256(reference("chapters", "one-pass"))


@pytest.mark.parametrize("case", ["adaptive, goodness", "adaptive, softmax", "hard, goodness"])
def test_negatives_drawn_with_hints_are_not_those_that_would_have_been_drawn_without(
    case, monkeypatch
):
    drawn = {}
    sampled = Worker.sampled

    def recorded(worker, batch, hints, time, shard):
        views = sampled(worker, batch, hints, time, shard)
        # The label is written into the first pixels.
        found = views["negative"].tensor.flatten(1)[:, :10].argmax(dim=1)
        seed = worker.settings.seed
        random = wrong_labels(
            batch.label, num_classes=10, generator=generator(seed, "negatives", time, shard)
        )
        drawn[time] = (hints is not None, found, random)
        return views

    monkeypatch.setattr(Worker, "sampled", recorded)
    prepare(*CHAPTERS[case]).run("sequential", 1)

    hinted = [chapter for chapter, (is_hinted, _, _) in drawn.items() if is_hinted]
    assert hinted == [2, 3, 4, 5]
    for is_hinted, found, random in drawn.values():
        assert found.equal(random) is not is_hinted
    assert not drawn[2][1].equal(drawn[5][1])
