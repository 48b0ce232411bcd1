"""Hints in plans: how old they are, and who needs them."""

from hypothesis import assume
from plans import (
    chapter_plans,
    for_all,
    plans,
    stream_of_two_blocks,
    stream_plans,
    streams_of_one_visit,
)

from onward.plan.tasks import INPUT, Product, ProductKind, Task, TaskKind


def hints_needed(plan):
    """Return each training task with the time of the hints that it needs, or None."""
    needs = {task: plan.needs(task) for task in plan.tasks() if task.kind is TaskKind.TRAIN}
    return {
        task: next((p for p in products if p.kind is ProductKind.HINTS), None)
        for task, products in needs.items()
    }


@for_all(chapter_plans())
def test_hints_of_a_chapter_are_exactly_as_old_as_the_plan_says(plan):
    for task, hints in hints_needed(plan).items():
        if hints is not None:
            assert plan.maker(hints) == Task(TaskKind.SCORE, task.time - plan.hint_age, 0)


@for_all(stream_plans())
def test_hints_of_a_mini_batch_are_exactly_as_old_as_the_plan_says(plan):
    for task, hints in hints_needed(plan).items():
        if hints is not None:
            assert plan.maker(hints) == Task(
                TaskKind.TRAIN, task.time - plan.hint_age, plan.heads[-1]
            )


@for_all(chapter_plans())
def test_each_block_of_a_chapter_needs_hints_as_soon_as_there_are_some_and_not_before(plan):
    for task, hints in hints_needed(plan).items():
        are_some = plan.hint_age is not None and task.time >= plan.hint_age
        if task.block not in plan.heads:
            assert (hints is not None) is are_some


@for_all(streams_of_one_visit())
def test_each_block_of_a_stream_that_reads_the_input_needs_hints_as_soon_as_there_are_some(plan):
    for task, hints in hints_needed(plan).items():
        are_some = plan.hint_age is not None and task.time >= plan.hint_age
        # Other blocks get outputs, and with them the negatives of those that read the input.
        if task.block not in plan.heads:
            assert (hints is not None) is (are_some and (INPUT, 0) in plan.nodes[task.block].reads)


@for_all(plans)
def test_a_head_never_needs_hints(plan):
    assert all(hints is None for t, hints in hints_needed(plan).items() if t.block in plan.heads)


@for_all(plans)
def test_without_hints_nothing_is_scored(plan):
    assume(plan.hint_age is None)
    made = [product for task in plan.tasks() for product in plan.makes(task)]

    assert all(task.kind is not TaskKind.SCORE for task in plan.tasks())
    assert all(product.kind is not ProductKind.HINTS for product in made)


@for_all(chapter_plans())
def test_only_hints_that_will_be_needed_are_scored(plan):
    scored = [task.time for task in plan.tasks() if task.kind is TaskKind.SCORE]

    last = plan.chapters - (plan.chapters if plan.hint_age is None else plan.hint_age)
    assert scored == list(range(last))


def test_hints_of_age_0_are_scores_of_the_network_just_before_the_mini_batch():
    plan = stream_of_two_blocks(epochs=1, chapters=1, batch_size=5)

    order = [str(task) for task in plan.tasks()]

    assert order == ["0P0", "1P0", "2T0", "0T0", "1T0", "0P1", "1P1", "2T1", "0T1", "1T1", "0G0"]
    assert plan.needs(Task(TaskKind.TRAIN, 1, 0)) == [Product(ProductKind.HINTS, 1, 0)]
    assert plan.maker(Product(ProductKind.HINTS, 1, 0)) == Task(TaskKind.TRAIN, 1, 2)
