"""How a rank takes what others send."""

import threading

import torch
from in_memory import InMemoryTransport, run_in_memory
from prepared import CHAPTERS, assert_same_weights, prepare

import onward as ow
from onward.config import RunConfig
from onward.placement import place
from onward.plan.streams import QUEUE
from onward.plan.tasks import Product, ProductKind
from onward.runs.preparation import make_plan, make_stages
from onward.runs.sharding import load_shards, split
from onward.runtime.products import Products
from onward.runtime.runtime import Runtime, make_worker
from onward.runtime.store import Store
from onward.runtime.workers import Settings
from onward.transport.directory import DirectoryTransport
from onward.transport.messages import OPEN, SingleProcessTransport


class Arriving(threading.Thread):
    """A product that arrives from rank 1, and may have to wait for room."""

    def __init__(self, products, product):
        super().__init__(target=products.deliver, args=(product, [torch.ones(1)], 1), daemon=True)
        self.start()

    def has_room(self, seconds):
        self.join(seconds)
        return not self.is_alive()


def full_table():
    """Return a table with as many products of rank 1 as may wait."""
    products = Products(uses=lambda product: 1, most_waiting=QUEUE)
    for time in range(QUEUE):
        products.deliver(Product(ProductKind.NEUTRAL, time, 0), [torch.ones(1)], 1)
    return products


def nothing():
    pass


def test_a_mini_batch_that_waits_already_always_has_room_for_the_rest_of_itself():
    products = full_table()

    assert Arriving(products, Product(ProductKind.NEUTRAL, QUEUE - 1, 1)).has_room(10)
    assert not Arriving(products, Product(ProductKind.NEUTRAL, QUEUE, 0)).has_room(0.2)


def test_there_is_room_again_once_a_mini_batch_is_needed():
    products = full_table()
    late = Arriving(products, Product(ProductKind.NEUTRAL, QUEUE, 0))

    products.wait_for(Product(ProductKind.NEUTRAL, 0, 0), nothing)

    assert late.has_room(10)


def test_what_another_rank_sends_has_room_of_its_own():
    products = full_table()

    products.deliver(Product(ProductKind.ACTIVITIES, QUEUE, 5), [torch.ones(1)], 2)

    assert Product(ProductKind.ACTIVITIES, QUEUE, 5) in products


def test_reports_never_wait_for_room():
    products = full_table()

    assert Arriving(products, Product(ProductKind.REPORT, QUEUE, 0)).has_room(10)


def test_a_product_is_freed_by_the_last_task_that_uses_it_here():
    products = Products(uses=lambda product: 2, most_waiting=QUEUE)
    product = Product(ProductKind.WEIGHTS, 0, 0)
    products.put(product, [torch.ones(1)])

    products.release(product)
    assert list(products) == [product]
    products.release(product)

    assert list(products) == []


def test_what_no_task_uses_here_is_not_kept():
    products = Products(uses=lambda product: 0, most_waiting=QUEUE)

    products.put(Product(ProductKind.WEIGHTS, 0, 0), [torch.ones(1)])

    assert list(products) == []


def test_a_rank_with_many_blocks_sends_more_than_the_queue_holds_and_nobody_waits_for_ever():
    # A mini-batch of the first rank brings neutral activities of more blocks than QUEUE.
    whole = ow.load_data("digits")
    dataset = ow.dataset(whole.x[:40], whole.y[:40], x_test=whole.x_test, y_test=whole.y_test)
    config: RunConfig = RunConfig(recipe="hinton").with_settings(
        {"network.widths": (4,) * (2 * QUEUE + 8), "training.epochs": 1, "data.validation": 0}
    )
    config = config.with_settings({"training.batch_size": 20})
    shards, summary = load_shards(config, split(config, dataset), SingleProcessTransport())
    networks = [make_stages(config, dataset, summary)[0].network for _ in range(2)]
    plan = make_plan(config, networks[0], summary)
    placement = place(plan, "stream", 2, [1] * plan.num_blocks)
    arguments = (plan, placement, networks, shards, Settings(seed=0))

    # In a thread, since the test is about what could hang.
    run = threading.Thread(target=run_in_memory, args=arguments, daemon=True)
    run.start()
    run.join(timeout=60)

    assert placement.owners.count(0) > QUEUE
    assert not run.is_alive()


class Hasty(DirectoryTransport):
    """Finds, when it looks how far another rank is, that this rank has just kept its last task."""

    def get(self, topic, rank):
        if topic == "committed" and rank == 1 and self.other is not None:
            store, transport, task, made, chapter = self.other
            self.other = None
            store.keep(task, made)
            store.commit(chapter)
            store.close()
            transport.put("committed", chapter)
        return super().get(topic, rank)


def test_what_another_rank_has_kept_at_the_last_moment_is_found(tmp_path):
    prepared = prepare(*CHAPTERS["one-pass"])
    plan = prepared.plan
    placement = place(plan, "single-layer", 2, prepared.costs())
    stores = [Store(tmp_path / "state", rank, "settings", every=1) for rank in range(2)]
    here, there = (
        Hasty(tmp_path / "shared", 0, 2, "x"),
        DirectoryTransport(tmp_path / "shared", 1, 2, "x"),
    )
    worker = make_worker(plan, prepared.network, prepared.shards, prepared.settings)
    heard = []
    runtime = Runtime(
        plan, placement, worker, here, lambda product, _: heard.append(product), store=stores[0]
    )
    report = next(
        p for p in plan.needs(plan.gather) if p.kind is ProductKind.REPORT and p.block == 3
    )
    task = plan.maker(report)
    (layout,) = worker.layout(report)
    figures = torch.arange(len(layout), dtype=torch.float64)
    here.other = (stores[1], there, task, {report: [figures]}, plan.chapter(task))

    (found,) = runtime._get(report, plan.gather)
    OPEN.clear()

    assert found.equal(figures)
    assert heard == [report]


def test_images_of_a_stream_travel_as_they_lie_in_memory(monkeypatch):
    sent, send = [], InMemoryTransport.send

    def noted(transport, dest, tensors, label=""):
        sent.extend(tensors)
        send(transport, dest, tensors, label)

    monkeypatch.setattr(InMemoryTransport, "send", noted)
    small = {"network.channels": (4, 6, 8), "network.pooled": "2", "network.head_units": 0}
    run = {"data.flip": "none", "data.shift": 0, "training.epochs": 1, "data.validation": 0}
    prepared = prepare("conv", {**small, **run, "plan.kind": "stream"})
    assert prepared.network.memory_format is torch.channels_last

    one, *_ = prepared.run("sequential", 1)
    two, *_ = prepared.run("stream", 2)

    assert_same_weights(two.worker.network, one.worker.network)
    # Neither end then has to lay them out anew: messages are elements one after the other.
    images = [tensor for tensor in sent if tensor.ndim == 4 and len(tensor) > 8]
    assert images
    assert all(tensor.is_contiguous() for tensor in images)
