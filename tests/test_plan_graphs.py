"""Plans of blocks that do not stand in a line: around others, and with delays."""

from plans import (
    chapter_plans,
    chapters_of_two_blocks,
    for_all,
    recurrent,
    stream_of_two_blocks,
    stream_plans,
    with_a_way_around,
)

from onward.plan.tasks import INPUT, Node, Product, ProductKind, Task, TaskKind

# Blocks that do not stand in a line


@for_all(chapter_plans())
def test_a_chapter_needs_the_weights_of_the_blocks_that_samples_pass_and_no_others(plan):
    def passed_before(block):
        sources = [source for source, _ in plan.nodes[block].reads if source != INPUT]
        return set(sources).union(*map(passed_before, sources))

    for task in plan.tasks():
        if task.kind is TaskKind.TRAIN:
            needs = plan.needs(task)
            now = [p.block for p in needs if p.kind is ProductKind.WEIGHTS and p.time == task.time]

            assert now == sorted(passed_before(task.block))


@for_all(stream_plans())
def test_a_block_of_a_stream_needs_the_outputs_that_it_reads_and_no_others(plan):
    for task in plan.tasks():
        if task.kind is TaskKind.TRAIN and task.block not in plan.heads:
            needed = {p for p in plan.needs(task) if p.kind is ProductKind.ACTIVITIES}

            assert needed == {
                Product(ProductKind.ACTIVITIES, task.time - delay, source)
                for source, delay in plan.nodes[task.block].reads
                if source != INPUT and (not delay or plan.has_before(task.time))
            }


@for_all(stream_plans())
def test_only_blocks_on_the_way_to_a_head_are_passed_as_inference_sees_them(plan):
    passed = {task.block for task in plan.tasks() if task.kind is TaskKind.PASS}

    assert passed == {block for head in plan.heads for block in plan.below[head]}


def test_a_chapter_passes_samples_around_a_block_that_is_not_on_their_way():
    plan = chapters_of_two_blocks(nodes=with_a_way_around())

    assert plan.needs(Task(TaskKind.TRAIN, 2, 2)) == [
        Product(ProductKind.WEIGHTS, 1, 2),
        Product(ProductKind.OPTIMIZER_STATE, 1, 2),
        Product(ProductKind.WEIGHTS, 2, 0),
    ]
    assert Task(TaskKind.TRAIN, 2, 2) not in plan.uses(Product(ProductKind.WEIGHTS, 2, 1))


def test_a_block_of_a_stream_that_reads_the_input_beside_others_needs_hints_too():
    plan = stream_of_two_blocks(nodes=(*with_a_way_around(), Node(((2, 0),), is_head=True)))

    assert plan.needs(Task(TaskKind.TRAIN, 7, 2)) == [
        Product(ProductKind.HINTS, 7, 0),
        Product(ProductKind.ACTIVITIES, 7, 0),
    ]
    assert plan.uses(Product(ProductKind.HINTS, 7, 0)) == [
        Task(TaskKind.TRAIN, 7, 0),
        Task(TaskKind.TRAIN, 7, 2),
    ]


def test_a_head_needs_the_blocks_that_it_reads_as_inference_sees_them_and_those_below():
    plan = stream_of_two_blocks(nodes=(*with_a_way_around(), Node(((2, 0),), is_head=True)))

    order = " ".join(str(task) for task in plan.tasks() if task.time == 7)

    assert order == "0P7 2P7 3T7 0T7 1T7 2T7"
    assert plan.uses(Product(ProductKind.NEUTRAL, 7, 0)) == [Task(TaskKind.PASS, 7, 2)]


def test_outputs_of_a_stream_that_two_blocks_read_are_needed_by_both():
    plan = stream_of_two_blocks(nodes=with_a_way_around(), hint_age=None)

    assert plan.uses(Product(ProductKind.ACTIVITIES, 7, 0)) == [
        Task(TaskKind.TRAIN, 7, 1),
        Task(TaskKind.TRAIN, 7, 2),
    ]


# Delays


def test_a_mini_batch_visits_all_blocks_once_a_tick():
    plan = recurrent(epochs=1, chapters=1, samples=(4,))

    order = " ".join(map(str, plan.tasks()))

    assert order == "0T0 1T0 0T1 1T1 0T2 1T2 0T3 1T3 0G0"
    assert [plan.position(time) for time in range(4)] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 1, 1),
    ]


def test_a_delay_brings_what_came_out_at_the_tick_before():
    plan = recurrent()

    assert plan.needs(Task(TaskKind.TRAIN, 7, 0)) == [
        Product(ProductKind.ACTIVITIES, 6, 0),
        Product(ProductKind.ACTIVITIES, 6, 1),
    ]
    assert plan.needs(Task(TaskKind.TRAIN, 7, 1)) == [
        Product(ProductKind.ACTIVITIES, 6, 1),
        Product(ProductKind.ACTIVITIES, 7, 0),
    ]


def test_a_delay_brings_nothing_of_the_mini_batch_before():
    plan = recurrent()

    assert plan.needs(Task(TaskKind.TRAIN, 8, 0)) == []
    assert plan.needs(Task(TaskKind.TRAIN, 8, 1)) == [Product(ProductKind.ACTIVITIES, 8, 0)]
    assert plan.uses(Product(ProductKind.ACTIVITIES, 7, 1)) == []


def test_where_a_mini_batch_is_all_samples_a_delay_brings_what_came_out_in_the_epoch_before():
    plan = recurrent(ticks=1, batch_size=10, epochs=4, chapters=1)

    assert plan.needs(Task(TaskKind.TRAIN, 0, 0)) == []
    assert plan.needs(Task(TaskKind.TRAIN, 3, 0)) == [
        Product(ProductKind.ACTIVITIES, 2, 0),
        Product(ProductKind.ACTIVITIES, 2, 1),
    ]


def test_a_tick_has_the_samples_of_its_mini_batch():
    plan = recurrent(ticks=3, batch_size=4)

    assert [plan.samples_at(time) for time in range(12)] == [4, 4, 4, 4, 4, 4, 2, 2, 2, 4, 4, 4]


def test_a_chapter_ends_with_the_last_tick_of_a_mini_batch():
    plan = recurrent(ticks=3, epochs=1, chapters=2)

    assert plan.chapter_ends == {5: 0, 14: 1}
