"""Messages: what follows a task, from whom to whom."""

from collections import Counter

import pytest
from placements import chapters, for_all_placements, plans, sent
from plans import stream_of_two_blocks

from onward.placement import place
from onward.plan.tasks import ProductKind


def weights_sent(plan, placement, block):
    """Return the ranks between which a block's weights go, and how often, the end left out."""
    return Counter(
        (source, message.dest)
        for source, message in sent(plan, placement)
        for product in message.products
        if product.kind is ProductKind.WEIGHTS and product.block == block
        if product.time < plan.chapters - 1
    )


# Messages


@for_all_placements(plans)
def test_the_sender_of_a_message_has_made_what_it_holds(plan, placement):
    for source, message in sent(plan, placement):
        (task,) = {plan.maker(product) for product in message.products}
        assert source in placement.ranks(task)


@for_all_placements(plans)
def test_the_receiver_of_a_message_needs_all_that_it_holds(plan, placement):
    needed = {rank: set() for rank in range(placement.num_ranks)}
    for task in plan.tasks():
        for rank in placement.ranks(task):
            needed[rank].update(plan.needs(task))

    for _, message in sent(plan, placement):
        assert set(message.products) <= needed[message.dest]


@for_all_placements(plans)
def test_what_a_rank_needs_and_another_has_made_is_sent_to_it_once(plan, placement):
    makers = {p: placement.ranks(task) for task in plan.tasks() for p in plan.makes(task)}
    needed = {
        (product, rank)
        for task in plan.tasks()
        for product in plan.needs(task)
        for rank in placement.ranks(task)
    }

    arrived = Counter((p, m.dest) for _, m in sent(plan, placement) for p in m.products)

    assert arrived == Counter((p, rank) for p, rank in needed if rank not in makers[p])


@for_all_placements(plans)
def test_nothing_is_sent_to_oneself(plan, placement):
    assert all(source != message.dest for source, message in sent(plan, placement))


@for_all_placements(plans)
def test_no_message_is_empty_and_a_task_sends_one_to_a_rank(plan, placement):
    found = [message for _, message in sent(plan, placement)]

    assert all(message.products for message in found)
    assert len({(plan.maker(m.products[0]), m.dest) for m in found}) == len(found)


@for_all_placements(plans)
def test_a_rank_that_does_its_tasks_in_order_waits_only_for_earlier_ones(plan, placement):
    # So that no two ranks ever wait for each other, whatever the placement.
    position = {task: number for number, task in enumerate(plan.tasks())}

    for _, message in sent(plan, placement):
        for product in message.products:
            waiting = [t for t in plan.uses(product) if message.dest in placement.ranks(t)]
            assert all(position[plan.maker(product)] < position[task] for task in waiting)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_single_layer_sends_the_weights_of_a_block_to_all_later_ranks(num_ranks):
    plan = chapters(num_blocks=num_ranks, num_chapters=8)

    placement = place(plan, "single-layer", num_ranks, [1] * num_ranks)

    for block in range(num_ranks):
        later = range(block + 1, num_ranks)
        assert weights_sent(plan, placement, block) == {(block, rank): 7 for rank in later}


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_all_layers_sends_the_weights_of_a_block_to_the_next_rank_of_the_ring_only(num_ranks):
    plan = chapters(num_blocks=2, num_chapters=2 * num_ranks + 1)

    placement = place(plan, "all-layers", num_ranks, [1, 1])

    ring = {(rank, (rank + 1) % num_ranks): 2 for rank in range(num_ranks)}
    assert all(weights_sent(plan, placement, block) == ring for block in range(2))


def test_in_all_layers_moments_go_with_the_weights():
    plan = chapters(num_blocks=2, num_chapters=4)

    placement = place(plan, "all-layers", 2, [1, 1])

    for _, message in sent(plan, placement):
        if plan.maker(message.products[0]).time < 3:
            assert [p.kind for p in message.products if p.kind is not ProductKind.REPORT] == [
                ProductKind.WEIGHTS,
                ProductKind.OPTIMIZER_STATE,
            ]


def test_in_all_layers_moments_as_old_as_the_ring_is_long_never_travel():
    plan = chapters(num_blocks=2, num_chapters=8, optimizer_state_age=4)

    placement = place(plan, "all-layers", 4, [1, 1])

    things = {p.kind for _, message in sent(plan, placement) for p in message.products}
    assert ProductKind.OPTIMIZER_STATE not in things


def test_in_single_layer_moments_never_travel():
    plan = chapters(num_blocks=4)

    placement = place(plan, "single-layer", 4, [1] * 4)

    things = {p.kind for _, message in sent(plan, placement) for p in message.products}
    assert ProductKind.OPTIMIZER_STATE not in things


def test_in_a_stream_activities_go_from_each_rank_to_the_next():
    plan = stream_of_two_blocks(num_blocks=3, head_reads=(), hint_age=None)

    placement = place(plan, "stream", 3, [1, 1, 1])

    routes = Counter(
        (source, message.dest)
        for source, message in sent(plan, placement)
        for product in message.products
        if product.kind is ProductKind.ACTIVITIES
    )
    assert routes == {(0, 1): 10, (1, 2): 10}
