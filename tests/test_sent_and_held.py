"""What a rank sends, and what it holds while it trains and after."""

import pytest
import torch
from in_memory import InMemoryTransport
from prepared import (
    CHAPTERS,
    FEDERATED,
    HINTON,
    PFF,
    SMALL,
    STREAMS,
    assert_same_weights,
    prepare,
    reference,
)

from onward.placement import place
from onward.plan.tasks import ProductKind, Task, TaskKind
from onward.runtime.runtime import Runtime, make_worker
from onward.runtime.workers import Settings

# Messages


def num_bytes(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def size(prepared, product):
    """Return the bytes of a product, as they follow from the plan and the network."""
    plan, network = prepared.plan, prepared.network
    block = product.block
    first = product.time * plan.batch_size % (plan.batches(0) * plan.batch_size)
    match product.kind:
        case ProductKind.WEIGHTS:
            return num_bytes(*network.all_blocks[block].state_dict().values())
        case ProductKind.OPTIMIZER_STATE:
            return num_bytes(*network.all_blocks[block].optimizer_tensors())
        case ProductKind.REPORT:
            # Loss and metrics, dead units, epochs, seconds and processor seconds.
            return 8 * (5 + len(network.all_blocks[block].objective.metric_names))
        case ProductKind.COUNTS:
            # And the best chapter, its count, validations since, the end.
            return 8 * (2 + plan.num_blocks + 4)
        case ProductKind.HINTS if plan.kind == "chapters":
            return 4 * 10 * plan.samples[0]
        case ProductKind.HINTS:
            return 4 * 10 * min(plan.batch_size, plan.samples[0] - first)
        case ProductKind.ACTIVITIES:
            views = len(network.sampler.names)
        case ProductKind.NEUTRAL:
            views = 1
            first = (product.time + plan.lead) % plan.batches(0) * plan.batch_size
    samples = min(plan.batch_size, plan.samples[0] - first)
    # With the number and the class of each sample.
    return views * samples * (4 * network.line[block].module.weight.shape[0] + 8 + 8)


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
        (product, placement.ranks(prepared.plan.maker(product))[0], placement.ranks(task)[0])
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

    assert set(first.products) == set(prepared.plan.needs(prepared.plan.gather))
    for runtime in others:
        assert set(runtime.products) == set()


def held(runtime):
    """Return the bytes of weights and moments of each block that a rank has in memory."""

    def size(block):
        state = block.optimizer_tensors()
        tensors = [t for t in [*block.state_dict().values(), *state] if not t.is_meta]
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
    worker = make_worker(second.plan, network, {}, Settings(seed=0))

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
    worker = make_worker(prepared.plan, prepared.network, prepared.shards, prepared.settings)
    worker.release([0, 2])

    worker.settle()
    prepared.network.load_state_dict(trained.state_dict())

    assert [tensor.stride() for tensor in prepared.network.state_dict().values()] == strides
    assert_same_weights(prepared.network, trained)


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [
        ("pff", {**PFF, "network.readout": "softmax"}, "single-layer"),
        pytest.param(
            "pff",
            {**PFF, "network.readout": "softmax"},
            "all-layers",
            marks=pytest.mark.slow,
        ),
        ("hinton", {**HINTON, "plan.hint_age": 5}, "stream"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_longer_run_keeps_no_more_than_a_shorter_one(recipe, changes, name, monkeypatch):
    kept = []
    do = Runtime.do

    def counted(runtime, task: Task):
        do(runtime, task)
        if task.kind is not TaskKind.GATHER:
            told = (ProductKind.REPORT, ProductKind.COUNTS)
            kept[-1] = max(kept[-1], sum(p.kind not in told for p in runtime.products))

    monkeypatch.setattr(Runtime, "do", counted)
    for epochs in (6, 12):
        kept.append(0)
        few = {"training.epochs": epochs, "plan.chapters": epochs, "training.batch_size": 590}
        prepare(recipe, changes | few).run(name, 4)

    assert kept[0] == kept[1] > 0
