"""The first law: a plan ends in the same weights wherever its tasks run, bit for bit."""

import copy
from dataclasses import dataclass
from functools import cache

import jaxtyping
import pytest
import torch
from ranks import convolutions

import onward as ow
from onward.checkpoint import PRECISIONS, weights_sha256
from onward.config import RunConfig
from onward.dealing import deal
from onward.networks import Network
from onward.placement import place
from onward.plan import ChapterPlan, Kind, Plan, Task, Thing
from onward.preparation import block_costs, build_network, make_arithmetic, make_plan
from onward.recipes import RECIPES
from onward.runtime import Runtime, make_worker, run_in_memory
from onward.seeds import generator, global_generator_kept
from onward.transport import InMemoryTransport
from onward.views import wrong_labels
from onward.workers import Arithmetic, Rows, Worker

SMALL = {
    "network.widths": (24, 20, 16, 12),
    "network.dropout": 0.0,
    "training.epochs": 6,
    "training.batch_size": 200,
    "training.precision": "fp32",
    "data.validation": 70,
}

PFF = {**SMALL, "optimizer.lr": 0.01, "optimizer.head_lr": 0.01, "plan.hint_age": 2}

CHAPTERS = {
    "one-pass": ("one-pass", SMALL),
    "one-pass in bf16": ("one-pass", {**SMALL, "training.precision": "bf16"}),
    "one-pass by autograd": ("one-pass", {**SMALL, "training.gradients": "autograd"}),
    "one-pass with dropout": ("one-pass", {**SMALL, "network.dropout": 0.2}),
    "adaptive, goodness": ("pff", PFF),
    "adaptive, goodness, bf16": ("pff", {**PFF, "training.precision": "bf16"}),
    "adaptive, softmax": ("pff", {**PFF, "network.readout": "softmax"}),
    "random, goodness": ("pff", {**PFF, "network.negatives": "random"}),
    "random, softmax": (
        "pff",
        {**PFF, "network.negatives": "random", "network.readout": "softmax"},
    ),
    "fixed, goodness": ("pff", {**PFF, "network.negatives": "fixed"}),
    "fixed, softmax": ("pff", {**PFF, "network.negatives": "fixed", "network.readout": "softmax"}),
    "hard, goodness": ("pff", {**PFF, "network.negatives": "hard"}),
    "hints one chapter old": ("pff", {**PFF, "plan.hint_age": 1}),
    "moments restart": ("pff", {**PFF, "plan.optimizer_state": "restart"}),
    "moments three chapters old": ("pff", {**PFF, "plan.optimizer_state": "aged:3"}),
    "three chapters an epoch": ("pff", {**PFF, "training.epochs": 2, "plan.chapters": 6}),
    "two epochs a chapter": ("pff", {**PFF, "training.epochs": 8, "plan.chapters": 4}),
    "shifted": ("pff", {**PFF, "network.readout": "softmax", "data.shift": 1}),
    "shifted, two epochs a chapter": (
        "one-pass",
        {**SMALL, "data.shift": 1, "training.epochs": 8, "plan.chapters": 4},
    ),
    "peer normalisation": ("pff", {**PFF, "network.peer": 0.03}),
    "sgd with decay": (
        "pff",
        {**PFF, "optimizer.name": "sgd", "optimizer.weight_decay": 0.001},
    ),
    "validated often": ("one-pass", {**SMALL, "plan.validate_every": 1}),
}
"""Chapter plans: recipe, and what is changed in it."""

STREAM = {
    **SMALL,
    "plan.kind": "stream",
    "plan.chapters": 4,
    "training.epochs": 2,
    "training.batch_size": 150,
}

HINTON = {**STREAM, "optimizer.head_lr": 0.1}

STREAMS = {
    "one-pass": ("one-pass", STREAM),
    "one-pass in bf16": ("one-pass", {**STREAM, "training.precision": "bf16"}),
    "one-pass with dropout, shifted": (
        "one-pass",
        {**STREAM, "network.dropout": 0.2, "data.shift": 1},
    ),
    "fixed negatives": ("hinton", {**HINTON, "network.negatives": "fixed"}),
    "hints of age 0": ("hinton", {**HINTON, "plan.hint_age": 0}),
    "hints of age 1": ("hinton", {**HINTON, "plan.hint_age": 1}),
    "hints of age 5": ("hinton", {**HINTON, "plan.hint_age": 5}),
    "hints of age 5 in bf16": (
        "hinton",
        {**HINTON, "plan.hint_age": 5, "training.precision": "bf16"},
    ),
    "bf16 on the wire": ("hinton", {**HINTON, "plan.hint_age": 1, "plan.wire": "bf16"}),
    "one-pass, bf16 on the wire": ("one-pass", {**STREAM, "plan.wire": "bf16"}),
    "never hints": ("hinton", {**HINTON, "plan.hint_age": "never"}),
    "hints of age 5, softmax, shifted": (
        "hinton",
        {**HINTON, "plan.hint_age": 5, "network.readout": "softmax", "data.shift": 1},
    ),
}
"""Stream plans: recipe, and what is changed in it."""

SLICED = {
    "rows": ("one-pass", {**SMALL, "plan.slices": 4}),
    "rows in bf16": ("one-pass", {**SMALL, "plan.slices": 2, "training.precision": "bf16"}),
    "rows with dropout": ("one-pass", {**SMALL, "plan.slices": 2, "network.dropout": 0.2}),
    "rows, adaptive, softmax": (
        "pff",
        {**PFF, "plan.slices": 2, "network.readout": "softmax"},
    ),
    "units": ("one-pass", {**SMALL, "plan.slices": 4, "plan.cut": "units"}),
    "units in bf16": (
        "one-pass",
        {
            **SMALL,
            "plan.slices": 2,
            "plan.cut": "units",
            "training.precision": "bf16",
            "network.dropout": 0.2,
        },
    ),
    "units, adaptive, goodness": ("pff", {**PFF, "plan.slices": 2, "plan.cut": "units"}),
    "units, adaptive, softmax": (
        "pff",
        {**PFF, "plan.slices": 2, "plan.cut": "units", "network.readout": "softmax"},
    ),
    "units, moments restart": (
        "one-pass",
        {
            **SMALL,
            "plan.slices": 2,
            "plan.cut": "units",
            "plan.optimizer_state": "restart",
            "plan.validate_every": 1,
        },
    ),
}
"""Chapter plans that cut mini-batches: recipe, and what is changed in it."""

FEDERATED = {
    "one-pass, iid": (
        "one-pass",
        {**SMALL, "plan.shards": 4, "training.batch_size": 100, "training.epochs": 6},
    ),
    "one-pass, by class": (
        "one-pass",
        {
            **SMALL,
            "plan.shards": 4,
            "plan.shard_by": "class",
            "training.batch_size": 100,
            "training.epochs": 6,
        },
    ),
    "adaptive, by class": (
        "pff",
        {
            **PFF,
            "plan.shards": 4,
            "plan.shard_by": "class",
            "training.batch_size": 100,
            "training.epochs": 8,
            "plan.hint_age": 4,
            "network.readout": "softmax",
            "plan.validate_every": 1,
        },
    ),
}
"""Chapter plans over four shards: recipe, and what is changed in it."""


@dataclass
class Prepared:
    """Everything that decides the weights of a run."""

    plan: Plan
    network: Network
    shards: dict[int, Rows]
    arithmetic: Arithmetic

    def costs(self):
        return block_costs(self.network, tuple(self.shards[0].x.shape[1:]))

    def run(self, name, num_ranks, replicas=1):
        """Run a placement in this process; return its runtimes, rank 0 first.

        In a federated run each rank holds its own shards and no others.
        """
        placement = place(self.plan, name, num_ranks, self.costs(), replicas)
        networks = [copy.deepcopy(self.network) for _ in range(num_ranks)]
        with global_generator_kept():
            if name != "federated":
                return run_in_memory(self.plan, placement, networks, self.shards, self.arithmetic)
            runtimes = []
            for network, transport in zip(
                networks, InMemoryTransport.group(num_ranks), strict=True
            ):
                rank = transport.rank
                own = {shard: r for shard, r in self.shards.items() if shard % num_ranks == rank}
                worker = make_worker(self.plan, network, own, self.arithmetic)
                runtimes.append(Runtime(self.plan, placement, worker, transport))
            for task in self.plan.tasks():
                runtimes[placement.rank(task)].do(task)
            return runtimes


@cache
def digits():
    """Return digits of which 590 are trained on: in two chunks, and uneven mini-batches."""
    whole = ow.load_data("digits")
    return ow.dataset(whole.x[:660], whole.y[:660], x_test=whole.x_test, y_test=whole.y_test)


def prepare(recipe, changes):
    config = RECIPES[recipe].config.with_settings(changes)
    shards, shape = deal(config, digits(), InMemoryTransport.group(1)[0])
    network = build_network(config, digits(), shape)
    return prepare_network(network, config, shards, shape)


def prepare_network(network, config, shards, shape):
    network.set_precision(PRECISIONS[config.training.precision])
    plan, arithmetic = make_plan(config, network, shape), make_arithmetic(config)
    return Prepared(plan, network, shards, arithmetic)


@cache
def reference(kind, case):
    """Return the trained network of the sequential run, which is short and obvious."""
    cases = {"chapters": CHAPTERS, "stream": STREAMS, "federated": FEDERATED, "sliced": SLICED}
    (runtime,) = prepare(*cases[kind][case]).run("sequential", 1)
    return runtime.worker.network


def assert_same_weights(actual, expected):
    """Check the digest, and every tensor, those that inference does not need included."""
    assert weights_sha256(actual) == weights_sha256(expected)
    theirs = expected.state_dict()
    for name, tensor in actual.state_dict().items():
        assert tensor.equal(theirs[name]), name


def matrix(cases, everywhere, thorough=()):
    """Return each case with some placements; those of thorough cases are all there are."""
    chosen = [(case, *p) for case in cases for p in everywhere]
    chosen += [(case, *p) for case in thorough for p in CHAPTER_PLACEMENTS if p not in everywhere]
    return [pytest.param(*each, id="{}, {} on {}".format(*each)) for each in sorted(chosen)]


CHAPTER_PLACEMENTS = [(n, ranks) for n in ("single-layer", "all-layers") for ranks in (2, 3, 4)]


@pytest.fixture
def unchecked(monkeypatch):
    """Leave out the checks of types and shapes, which take most of the time of many short runs.

    The tests of messages and memory below make the same calls with checks.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# The law


@pytest.mark.parametrize(
    ("case", "name", "num_ranks"),
    matrix(
        CHAPTERS,
        [("single-layer", 3), ("all-layers", 2), ("all-layers", 4)],
        thorough=["one-pass", "adaptive, goodness", "adaptive, softmax", "shifted"],
    ),
)
@pytest.mark.usefixtures("unchecked")
def test_chapters_end_in_the_same_weights_on_any_ranks(case, name, num_ranks):
    expected = reference("chapters", case)

    first, *_ = prepare(*CHAPTERS[case]).run(name, num_ranks)

    assert_same_weights(first.worker.network, expected)


@pytest.mark.parametrize(
    ("case", "name", "num_ranks"), matrix(STREAMS, [("stream", 2), ("stream", 4)])
)
@pytest.mark.usefixtures("unchecked")
def test_a_stream_ends_in_the_same_weights_on_any_ranks(case, name, num_ranks):
    expected = reference("stream", case)

    first, *_ = prepare(*STREAMS[case]).run(name, num_ranks)

    assert_same_weights(first.worker.network, expected)


@pytest.mark.parametrize(
    ("case", "name", "num_ranks"), matrix(FEDERATED, [("federated", 2), ("federated", 4)])
)
@pytest.mark.usefixtures("unchecked")
def test_ranks_with_private_shards_end_in_the_weights_of_one_that_has_them_all(
    case, name, num_ranks
):
    expected = reference("federated", case)

    first, *_ = prepare(*FEDERATED[case]).run(name, num_ranks)

    assert_same_weights(first.worker.network, expected)


@cache
def trained_convolutions(kind, name, num_ranks, layout=torch.contiguous_format):
    network = convolutions().to(memory_format=layout)
    return trained_network(network, kind, name, num_ranks)


def trained_network(network, kind, name, num_ranks):
    config = RunConfig().with_settings(SMALL | {"training.epochs": 3, "plan.kind": kind})
    shards, shape = deal(config, digits(), InMemoryTransport.group(1)[0])
    first, *_ = prepare_network(network, config, shards, shape).run(name, num_ranks)
    return first.worker.network


@pytest.mark.parametrize(
    ("kind", "name", "num_ranks"),
    [("chapters", "single-layer", 3), ("chapters", "all-layers", 2), ("stream", "stream", 4)],
)
def test_convolutions_with_channels_last_obey_the_law_too(kind, name, num_ranks):
    expected = trained_convolutions(kind, "sequential", 1, torch.channels_last)

    actual = trained_convolutions(kind, name, num_ranks, torch.channels_last)

    assert_same_weights(actual, expected)
    # The law is not kept by giving up the layout.
    assert actual.line[1].module[0].weight.is_contiguous(memory_format=torch.channels_last)


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
    [(case, *team) for case in SLICED for team in TEAMS]
    + [(case, "all-layers", 8, 4) for case in ("rows", "units")]
    + [(case, "sequential", 4, 4) for case in ("rows", "units")]
    # Teams of one and of more ranks.
    + [(case, "single-layer", 5, None) for case in ("rows", "units")],
)
def test_a_plan_with_slices_ends_in_the_same_weights_in_teams_of_any_size(
    case, name, num_ranks, replicas
):
    first, *_ = prepare(*SLICED[case]).run(name, num_ranks, replicas)

    assert_same_weights(first.worker.network, reference("sliced", case))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", ["rows", "units"])
def test_every_rank_of_a_team_ends_with_the_whole_block(case):
    one, other = prepare(*SLICED[case]).run("sequential", 2, 2)

    assert_same_weights(one.worker.network, other.worker.network)


@pytest.mark.parametrize(("cut", "case"), [("rows", "rows in bf16"), ("units", "units in bf16")])
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
    negative_labels = Worker.negative_labels

    def recorded(worker, labels, hints, time, shard):
        found = negative_labels(worker, labels, hints, time, shard)
        seed = worker.arithmetic.seed
        random = wrong_labels(
            labels, num_classes=10, generator=generator(seed, "negatives", time, shard)
        )
        drawn[time] = (hints is not None, found, random)
        return found

    monkeypatch.setattr(Worker, "negative_labels", recorded)
    prepare(*CHAPTERS[case]).run("sequential", 1)

    hinted = [chapter for chapter, (is_hinted, _, _) in drawn.items() if is_hinted]
    assert hinted == [2, 3, 4, 5]
    for is_hinted, found, random in drawn.values():
        assert found.equal(random) is not is_hinted
    assert not drawn[2][1].equal(drawn[5][1])


def test_a_stream_draws_some_negatives_that_it_would_not_have_drawn_without_hints():
    with_hints = weights_sha256(reference("stream", "hints of age 5"))

    assert with_hints != weights_sha256(reference("stream", "never hints"))


# Messages


def num_bytes(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def size(prepared, product):
    """Return the bytes of a product, as they follow from the plan and the network."""
    plan, network = prepared.plan, prepared.network
    block = product.block
    first = product.time * plan.batch_size % (plan.batches(0) * plan.batch_size)
    match product.thing:
        case Thing.WEIGHTS:
            return num_bytes(*network.all_blocks[block].state_dict().values())
        case Thing.MOMENTS:
            each = network.all_blocks[block].moments.values()
            return num_bytes(*(tensor for parts in each for tensor in parts.values()))
        case Thing.REPORT:
            return 8 * 6
        case Thing.COUNTS:
            return 8 * (2 + plan.num_blocks)
        case Thing.HINTS if isinstance(plan, ChapterPlan):
            return 4 * 10 * plan.rows[0]
        case Thing.HINTS:
            return 4 * 10 * min(plan.batch_size, plan.rows[0] - first)
        case Thing.ACTIVITIES:
            views = len(network.sampler.names)
        case Thing.NEUTRAL:
            views = 1
            first = (product.time + plan.lead) % plan.batches(0) * plan.batch_size
    rows = min(plan.batch_size, plan.rows[0] - first)
    return 4 * views * rows * network.line[block].module.weight.shape[0]


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [
        pytest.param("one-pass", SMALL, "single-layer", id="single-layer"),
        pytest.param("pff", {**PFF, "network.readout": "softmax"}, "all-layers", id="all-layers"),
        pytest.param("hinton", {**HINTON, "plan.hint_age": 5}, "stream", id="stream"),
    ],
)
def test_a_rank_sends_the_bytes_that_follow_from_the_plan(recipe, changes, name):
    prepared = prepare(recipe, changes)
    placement = place(prepared.plan, name, 4, prepared.costs())
    wanted = {
        (product, placement.rank(prepared.plan.maker(product)), placement.rank(task))
        for task in prepared.plan.tasks()
        for product in prepared.plan.needs(task)
    }
    expected = [0] * 4
    for product, source, dest in wanted:
        if source != dest:
            expected[source] += size(prepared, product)

    runtimes = prepared.run(name, 4)

    assert [runtime.transport.bytes_sent for runtime in runtimes] == expected


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [
        pytest.param(
            "pff", {**PFF, "network.readout": "softmax"}, "single-layer", id="single-layer"
        ),
        pytest.param("pff", {**PFF, "network.readout": "softmax"}, "all-layers", id="all-layers"),
        pytest.param(*CHAPTERS["moments three chapters old"], "all-layers", id="older moments"),
        pytest.param(*FEDERATED["adaptive, by class"], "federated", id="federated"),
        pytest.param(*STREAMS["hints of age 5 in bf16"], "stream", id="stream"),
    ],
)
def test_what_was_sent_does_not_change_while_it_may_be_on_its_way(
    recipe, changes, name, monkeypatch
):
    sent = []
    send = InMemoryTransport.send

    def kept(transport, dest, tensors, label):
        sent.extend((tensor.detach(), tensor.detach().clone()) for tensor in tensors)
        send(transport, dest, tensors, label)

    monkeypatch.setattr(InMemoryTransport, "send", kept)
    prepare(recipe, changes).run(name, 4)

    assert len(sent) > 100
    for after, before in sent:
        # Reports of heads hold NaN.
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


# Memory


@pytest.mark.parametrize(
    ("kind", "case", "name"),
    [
        ("chapters", "adaptive, softmax", "sequential"),
        ("chapters", "adaptive, softmax", "single-layer"),
        ("chapters", "moments three chapters old", "all-layers"),
        ("stream", "hints of age 5", "stream"),
    ],
)
def test_after_a_run_only_what_was_gathered_is_left(kind, case, name):
    cases = {"chapters": CHAPTERS, "stream": STREAMS}[kind]
    prepared = prepare(*cases[case])

    first, *others = prepared.run(name, 1 if name == "sequential" else 4)

    gathered = set(prepared.plan.needs(prepared.plan.gather))
    assert set(first.uses_left) == gathered
    assert set(first.worker.values) == {p for p in gathered if p.thing is not Thing.WEIGHTS}
    for runtime in others:
        assert runtime.uses_left == {}
        assert runtime.worker.values == {}
    assert all(runtime.arrived == {} for runtime in [first, *others])


def held(runtime):
    """Return the bytes of weights and moments of each block that a rank has in memory."""

    def size(block):
        moments = [tensor for parts in block.moments.values() for tensor in parts.values()]
        tensors = [t for t in [*block.state_dict().values(), *moments] if not t.is_meta]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    return [size(block) for block in runtime.worker.blocks]


@pytest.mark.parametrize("case", ["one-pass", "hints of age 5"])
def test_in_a_stream_a_rank_holds_the_blocks_that_are_its_own(case):
    case = STREAMS[case][0], {**STREAMS[case][1], "data.validation": 0}

    (alone,) = prepare(*case).run("sequential", 1)
    ranks = prepare(*case).run("stream", 4)

    whole = held(alone)
    for rank, runtime in enumerate(ranks):
        for block, size in enumerate(held(runtime)):
            if runtime.placement.owners[block] == rank:
                assert size == whole[block]
            elif rank:
                assert size < 200
            else:
                # Rank 0 has gathered the weights, and no moments.
                assert 200 < size < whole[block]


def test_weights_that_are_elsewhere_are_no_numbers():
    _, second, *_ = prepare(*CHAPTERS["one-pass"]).run("all-layers", 2)
    network = second.worker.network
    worker = make_worker(second.plan, network, {}, Arithmetic(seed=0))

    worker.release([0])

    assert network.line[0].module.weight.isnan().all()
    assert not network.line[1].module.weight.isnan().any()


def test_a_network_can_be_filled_again_after_a_run_that_left_some_of_it_elsewhere():
    trained = reference("chapters", "one-pass")
    prepared = prepare(*CHAPTERS["one-pass"])
    prepared.network.line[0].module.weight.data = (
        prepared.network.line[0].module.weight.data.T.contiguous().T
    )
    strides = [tensor.stride() for tensor in prepared.network.state_dict().values()]
    worker = make_worker(prepared.plan, prepared.network, prepared.shards, prepared.arithmetic)
    worker.release([0, 2])

    worker.settle()
    prepared.network.load_state_dict(trained.state_dict())

    assert [tensor.stride() for tensor in prepared.network.state_dict().values()] == strides
    assert_same_weights(prepared.network, trained)


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [
        ("pff", {**PFF, "network.readout": "softmax"}, "single-layer"),
        ("pff", {**PFF, "network.readout": "softmax"}, "all-layers"),
        ("hinton", {**HINTON, "plan.hint_age": 5}, "stream"),
    ],
)
def test_a_longer_run_keeps_no_more_than_a_shorter_one(recipe, changes, name, monkeypatch):
    kept = []
    do = Runtime.do

    def counted(runtime, task: Task):
        do(runtime, task)
        if task.kind is not Kind.GATHER:
            told = (Thing.REPORT, Thing.COUNTS)
            kept[-1] = max(kept[-1], sum(p.thing not in told for p in runtime.worker.values))

    monkeypatch.setattr(Runtime, "do", counted)
    for epochs in (6, 12):
        kept.append(0)
        few = {"training.epochs": epochs, "plan.chapters": epochs, "training.batch_size": 590}
        prepare(recipe, changes | few).run(name, 4)

    assert kept[0] == kept[1] > 0
