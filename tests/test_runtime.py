"""How a rank takes what others send."""

import threading

import onward as ow
from onward.config import RunConfig
from onward.dealing import deal
from onward.placement import place
from onward.plan import Product, Thing
from onward.preparation import build_network, make_plan
from onward.recipes import RECIPES
from onward.runtime import QUEUE, has_room, run_in_memory
from onward.transport import InMemoryTransport
from onward.workers import Arithmetic


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
