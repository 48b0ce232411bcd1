"""How a rank takes what others send."""

import threading

import torch
from prepared import CHAPTERS, prepare

import onward as ow
from onward.config import RunConfig
from onward.dealing import deal
from onward.placement import place
from onward.plan.tasks import Product, Thing
from onward.preparation import build_network, make_plan
from onward.recipes import RECIPES
from onward.runtime.runtime import QUEUE, Runtime, has_room, make_worker, run_in_memory
from onward.runtime.store import Store
from onward.runtime.workers import Arithmetic
from onward.transport.directory import DirectoryTransport
from onward.transport.messages import OPEN, InMemoryTransport


def test_a_mini_batch_that_waits_already_always_has_room_for_the_rest_of_itself():
    full = {Product(Thing.NEUTRAL, time, 0) for time in range(QUEUE)}

    assert has_room(full, Product(Thing.NEUTRAL, QUEUE - 1, 1), QUEUE)
    assert not has_room(full, Product(Thing.NEUTRAL, QUEUE, 0), QUEUE)


def test_a_rank_with_many_blocks_sends_more_than_the_queue_holds_and_nobody_waits_for_ever():
    # A mini-batch of the first rank brings neutral activities of more blocks than QUEUE.
    whole = ow.load_data("digits")
    dataset = ow.dataset(whole.x[:40], whole.y[:40], x_test=whole.x_test, y_test=whole.y_test)
    config: RunConfig = RECIPES["hinton"].config.with_settings(
        {"network.widths": (4,) * (2 * QUEUE + 8), "training.epochs": 1, "data.validation": 0}
    )
    config = config.with_settings({"training.batch_size": 20})
    shards, shape = deal(config, dataset, InMemoryTransport.group(1)[0])
    networks = [build_network(config, dataset, shape) for _ in range(2)]
    plan = make_plan(config, networks[0], shape)
    placement = place(plan, "stream", 2, [1] * plan.num_blocks)
    arguments = (plan, placement, networks, shards, Arithmetic(seed=0))

    # In a thread, since the test is about what could hang.
    run = threading.Thread(target=run_in_memory, args=arguments, daemon=True)
    run.start()
    run.join(timeout=60)

    assert placement.owners.count(0) > QUEUE
    assert not run.is_alive()


class Hasty(DirectoryTransport):
    """Finds, when it looks how far another rank is, that this rank has just kept its last task."""

    def heard(self, topic, ranks=None):
        if topic == "committed" and ranks == [1] and self.other is not None:
            store, transport, task, made, chapter = self.other
            self.other = None
            store.keep(task, made)
            store.commit(chapter)
            store.close()
            transport.tell("committed", chapter)
        return super().heard(topic, ranks)


def test_what_another_rank_has_kept_at_the_last_moment_is_found(tmp_path):
    prepared = prepare(*CHAPTERS["one-pass"])
    plan = prepared.plan
    placement = place(plan, "single-layer", 2, prepared.costs())
    stores = [Store(tmp_path / "state", rank, "settings", every=1) for rank in range(2)]
    here, there = (
        Hasty(tmp_path / "shared", 0, 2, "x"),
        DirectoryTransport(tmp_path / "shared", 1, 2, "x"),
    )
    worker = make_worker(plan, prepared.network, prepared.shards, prepared.arithmetic)
    runtime = Runtime(plan, placement, worker, here, store=stores[0])
    report = next(p for p in plan.needs(plan.gather) if p.thing is Thing.REPORT and p.block == 3)
    task = plan.maker(report)
    made = {report: [torch.arange(6.0, dtype=torch.float64)]}
    here.other = (stores[1], there, task, made, plan.chapter(task))

    (found,) = runtime._get(report, plan.gather)
    OPEN.clear()

    assert found.tolist() == [0, 1, 2, 3, 4, 5]
