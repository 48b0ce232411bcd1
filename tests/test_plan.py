"""Plans: what waits for what, what is learned from what, and what is refused."""

import re
from dataclasses import replace

import pytest
from hypothesis import assume
from plans import (
    DELAYED,
    chapter_plans,
    chapters_of_two_blocks,
    for_all,
    plans,
    recurrent,
    stream_of_two_blocks,
    stream_plans,
    with_a_way_around,
)

from onward.errors import SettingError
from onward.plan.tasks import INPUT, Node, Product, ProductKind, Segment, Task, TaskKind, Work

# What waits for what


@for_all(plans)
def test_every_need_of_a_task_was_made_by_an_earlier_one(plan):
    made = set()

    for task in plan.tasks():
        assert set(plan.needs(task)) <= made
        made.update(plan.makes(task))


@for_all(plans)
def test_the_maker_of_a_product_is_the_task_that_makes_it(plan):
    makers = {product: task for task in plan.tasks() for product in plan.makes(task)}

    assert {product: plan.maker(product) for product in makers} == makers


@for_all(plans)
def test_the_uses_of_a_product_are_the_tasks_that_need_it(plan):
    users = {product: [] for task in plan.tasks() for product in plan.makes(task)}
    for task in plan.tasks():
        for product in plan.needs(task):
            users[product].append(task)

    for product, tasks in users.items():
        assert sorted(plan.uses(product)) == sorted(tasks)


@for_all(plans)
def test_no_task_is_done_twice_and_nothing_is_made_twice(plan):
    tasks = list(plan.tasks())
    products = [product for task in tasks for product in plan.makes(task)]

    assert len(set(tasks)) == len(tasks)
    assert len(set(products)) == len(products)


@for_all(plans)
def test_the_last_task_gathers_the_last_weights_and_all_that_is_reported(plan):
    made = [product for task in plan.tasks() for product in plan.makes(task)]
    reported = [p for p in made if p.kind in (ProductKind.REPORT, ProductKind.COUNTS)]
    kind = ProductKind.BEST if plan.keep_best else ProductKind.WEIGHTS
    weights = {p.block: p for p in made if p.kind is kind}

    *_, last = plan.tasks()

    assert last == plan.gather
    assert sorted(plan.needs(last)) == sorted([*weights.values(), *reported])
    assert sorted(weights) == list(plan.trained)


@for_all(plans)
def test_heads_come_after_the_blocks_that_learn_from_views(plan):
    are_heads = [plan.nodes[block].is_head for block in plan.trained]

    assert are_heads == [False] * plan.num_blocks + [True] * len(plan.heads)
    assert list(plan.heads) == list(plan.trained)[plan.num_blocks :]


# What is learned from what, and when


@for_all(chapter_plans())
def test_each_block_is_trained_once_a_chapter_in_order(plan):
    for block in plan.trained:
        times = [t.time for t in plan.tasks() if t.kind is TaskKind.TRAIN and t.block == block]

        assert times == list(range(plan.chapters))


@for_all(stream_plans())
def test_each_block_of_a_stream_is_trained_at_every_visit_of_a_mini_batch_and_in_order(plan):
    visits = [
        (epoch, batch, tick)
        for epoch in range(plan.epochs)
        for batch in range(plan.batches(0))
        for tick in range(plan.ticks)
    ]

    for block in plan.trained:
        times = [t.time for t in plan.tasks() if t.kind is TaskKind.TRAIN and t.block == block]

        assert times == list(range(len(visits)))
        assert [plan.position(time) for time in times] == visits


@for_all(plans)
def test_chapters_cover_every_mini_batch_of_every_epoch_once_and_in_order(plan):
    assume(len(plan.samples) == 1)
    covered = [
        (segment.epoch, batch)
        for chapter in range(plan.chapters)
        for segment in plan.segments(chapter)
        for batch in range(segment.first, segment.last)
    ]

    expected = [(epoch, batch) for epoch in range(plan.epochs) for batch in range(plan.batches(0))]
    assert covered == expected


@for_all(plans)
def test_no_chapter_is_empty(plan):
    segments = [segment for c in range(plan.chapters) for segment in plan.segments(c)]

    assert all(segment.first < segment.last for segment in segments)


@for_all(plans)
def test_every_row_of_an_epoch_is_in_one_mini_batch(plan):
    for shard, samples in enumerate(plan.samples):
        full, left = divmod(samples, plan.batch_size)

        assert plan.batches(shard) == full + bool(left)


@for_all(chapter_plans())
def test_chapters_learn_from_the_shards_in_turn(plan):
    shards = [plan.shard(chapter) for chapter in range(plan.chapters)]

    assert shards == [chapter % len(plan.samples) for chapter in range(plan.chapters)]


@for_all(chapter_plans())
def test_a_shard_counts_the_epochs_that_learned_from_it(plan):
    learned = {
        shard: [
            segment.epoch
            for chapter in range(shard, plan.chapters, len(plan.samples))
            for segment in plan.segments(chapter)
        ]
        for shard in range(len(plan.samples))
    }

    for shard, epochs in learned.items():
        for number, epoch in enumerate(sorted(set(epochs))):
            assert plan.epochs_before(epoch, shard) == number


def test_a_chapter_of_several_epochs_learns_from_all_mini_batches_of_each():
    plan = chapters_of_two_blocks(epochs=6, chapters=2)

    assert plan.segments(1) == [Segment(3, 0, 5), Segment(4, 0, 5), Segment(5, 0, 5)]


def test_samples_that_an_epoch_leaves_out_are_passed_and_scored():
    plan = chapters_of_two_blocks(batch_size=4, chapters=2, drop_last=True, hint_age=1)
    short = chapters_of_two_blocks(batch_size=4, chapters=8, drop_last=True)

    assert plan.work(Task(TaskKind.TRAIN, 0, 1)) == Work(learned=4.0, passed=2.5)
    assert plan.work(Task(TaskKind.SCORE, 0, 0)) == Work(0.0, 0.0, scored=2.5)
    assert short.work(Task(TaskKind.TRAIN, 0, 1)) == Work(learned=1.0, passed=1.0)


def test_samples_that_each_epoch_sees_anew_are_passed_as_often_as_they_are_learned_from():
    plan = chapters_of_two_blocks(batch_size=4, chapters=2, drop_last=True, is_augmented=True)

    assert plan.work(Task(TaskKind.TRAIN, 0, 1)) == Work(learned=4.0, passed=4.0)


def test_a_chapter_shorter_than_an_epoch_learns_from_a_part_of_its_mini_batches():
    plan = chapters_of_two_blocks(epochs=2, chapters=4)

    assert [plan.segments(chapter) for chapter in range(4)] == [
        [Segment(0, 0, 2)],
        [Segment(0, 2, 5)],
        [Segment(1, 0, 2)],
        [Segment(1, 2, 5)],
    ]


def test_in_a_chapter_a_block_learns_from_the_blocks_below_as_published_in_it():
    plan = chapters_of_two_blocks(num_blocks=3)

    needs = plan.needs(Task(TaskKind.TRAIN, 2, 2))

    assert needs == [
        Product(ProductKind.WEIGHTS, 1, 2),
        Product(ProductKind.OPTIMIZER_STATE, 1, 2),
        Product(ProductKind.WEIGHTS, 2, 0),
        Product(ProductKind.WEIGHTS, 2, 1),
    ]


def test_in_a_stream_a_block_learns_from_the_activities_of_the_block_below():
    plan = stream_of_two_blocks()

    assert plan.needs(Task(TaskKind.TRAIN, 7, 1)) == [Product(ProductKind.ACTIVITIES, 7, 0)]


def test_in_a_stream_a_chapter_goes_on_from_the_state_at_the_end_of_the_last():
    plan = stream_of_two_blocks()

    assert plan.needs(Task(TaskKind.TRAIN, 5, 1)) == [
        Product(ProductKind.WEIGHTS, 4, 1),
        Product(ProductKind.OPTIMIZER_STATE, 4, 1),
        Product(ProductKind.ACTIVITIES, 5, 0),
    ]


def test_the_first_chapter_needs_nothing_of_a_chapter_before():
    plan = chapters_of_two_blocks(hint_age=1)

    assert plan.needs(Task(TaskKind.TRAIN, 0, 0)) == []


@for_all(chapter_plans())
def test_the_moments_a_chapter_starts_with_have_their_stated_age(plan):
    for task in plan.tasks():
        if task.kind is TaskKind.TRAIN:
            moments = [p for p in plan.needs(task) if p.kind is ProductKind.OPTIMIZER_STATE]
            has_some = (
                plan.optimizer_state_age is not None and task.time >= plan.optimizer_state_age
            )

            expected = [
                Product(
                    ProductKind.OPTIMIZER_STATE,
                    task.time - (plan.optimizer_state_age or 0),
                    task.block,
                )
            ]
            assert moments == (expected if has_some else [])


# Validation


@for_all(plans)
def test_the_last_chapter_is_validated_on_every_shard(plan):
    shards = [task.block for task in plan.validations(plan.chapters - 1)]

    assert shards == (list(range(len(plan.samples))) if plan.has_validation else [])


@for_all(plans)
def test_chapters_are_validated_as_often_as_asked_each_on_its_shard(plan):
    assume(plan.has_validation)
    validated = {
        task.time: task.block
        for task in plan.tasks()
        if task.kind is TaskKind.VALIDATE and task.time < plan.chapters - 1
    }

    every = plan.validate_every or plan.chapters
    expected = range(every - 1, plan.chapters - 1, every)
    assert validated == {chapter: plan.shard(chapter) for chapter in expected}


@for_all(stream_plans())
def test_a_stream_reports_at_the_end_of_each_chapter(plan):
    ends = [
        (chapter, (segment.epoch * plan.batches(0) + segment.last) * plan.ticks - 1)
        for chapter in range(plan.chapters)
        for segment in plan.segments(chapter)[-1:]
    ]
    told = [
        (product.block, product.time)
        for task in plan.tasks()
        for product in plan.makes(task)
        if product.kind is ProductKind.REPORT
    ]

    assert plan.chapter_ends == {step: chapter for chapter, step in ends}
    assert sorted(told) == [(block, step) for block in plan.trained for _, step in ends]


# Going on


@for_all(stream_plans())
def test_a_stream_goes_on_from_the_end_of_any_chapter_and_does_nothing_again(plan):
    reported = (ProductKind.REPORT, ProductKind.COUNTS)
    for chapter in range(plan.chapters):
        done = [t for t in plan.tasks() if plan.chapter(t) <= chapter and t != plan.gather]
        made = [product for task in done for product in plan.makes(task)]
        kept = [p for p in made if p.kind in reported or plan.is_kept(p, every=1)]

        rest = replace(plan, held=frozenset(kept))

        assert not set(rest.tasks()) & set(done)


# What is refused


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        pytest.param(
            chapters_of_two_blocks,
            {"epochs": 10, "chapters": 4},
            "10 epochs cannot be cut into 4 equal chapters: one of training.epochs and "
            "plan.chapters must divide the other.",
            id="fewer chapters that do not divide",
        ),
        pytest.param(
            stream_of_two_blocks,
            {"epochs": 4, "chapters": 10},
            "4 epochs cannot be cut into 10 equal chapters",
            id="more chapters that do not divide",
        ),
        pytest.param(
            chapters_of_two_blocks,
            {"batch_size": 11},
            "training.batch_size is 11, but the training set has 10 samples. Set "
            "training.batch_size to 10 or less.",
            id="mini-batch larger than the set",
        ),
        pytest.param(
            chapters_of_two_blocks,
            {"batch_size": 5, "samples": (10, 4)},
            "training.batch_size is 5, but shard 1 has 4 samples. Set training.batch_size to 4",
            id="mini-batch larger than a shard",
        ),
        pytest.param(
            chapters_of_two_blocks,
            {"epochs": 1, "chapters": 6},
            "plan.chapters is 6 and training.epochs is 1: that is more than one chapter a "
            "mini-batch, of which an epoch has 5.",
            id="more chapters than mini-batches",
        ),
        pytest.param(
            chapters_of_two_blocks,
            {"hint_age": 0},
            "plan.hint_age is 0, but in a chapter plan hints are at least one chapter old: a "
            "chapter cannot wait for its own end.",
            id="hints of age 0 in a chapter plan",
        ),
        pytest.param(
            chapters_of_two_blocks,
            {"hint_age": -1},
            "plan.hint_age is -1, but in a chapter plan hints are at least one chapter old",
            id="hints of a later chapter",
        ),
        pytest.param(
            stream_of_two_blocks,
            {"hint_age": -1},
            "plan.hint_age is -1; it cannot be negative.",
            id="hints of a later mini-batch",
        ),
        pytest.param(
            chapters_of_two_blocks,
            {"samples": (10, 10, 10), "hint_age": 4},
            "plan.hint_age is 4, but hints of a shard come from its owner's last visit, 3 "
            "chapters before. Use 3 or a multiple, or never.",
            id="hints of another shard",
        ),
        pytest.param(
            stream_of_two_blocks,
            {"samples": (10, 10)},
            "plan.shards is 2, but a stream plan has one stream of mini-batches, and so one "
            "shard. Shards go with chapters.",
            id="shards in a stream plan",
        ),
        pytest.param(
            chapters_of_two_blocks,
            {"nodes": with_a_way_around(DELAYED)},
            "A block reads with a delay what came out at the visit before, and in a chapter plan "
            "blocks are not visited in turn. Use --plan stream.",
            id="delays in a chapter plan",
        ),
        pytest.param(
            recurrent,
            {"ticks": 1},
            "A block reads with a delay what came out at the visit before of the same samples. So "
            "the network needs ticks of 2 or more, or training.batch_size all samples; there are 5 "
            "mini-batches an epoch.",
            id="delays where each mini-batch is visited once an epoch",
        ),
        pytest.param(
            stream_of_two_blocks,
            {"ticks": 2},
            "Heads that learn from what inference sees do not go with ticks and delays yet. Let "
            "the blocks have scores of their own.",
            id="heads with ticks",
        ),
        pytest.param(
            stream_of_two_blocks,
            {"nodes": (Node(((INPUT, 0), (0, DELAYED))), Node(((0, 0),), True)), "batch_size": 10},
            "Heads that learn from what inference sees do not go with ticks and delays yet.",
            id="heads with delays",
        ),
        pytest.param(
            chapters_of_two_blocks,
            {"nodes": (Node(((INPUT, 0),)), Node(((0, 0),), is_head=True), Node(((0, 0),)))},
            "Heads, which learn from what inference sees, are the last blocks.",
            id="a block behind a head",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, changes, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        make(**changes)


def test_a_mini_batch_may_be_the_whole_set():
    assert chapters_of_two_blocks(batch_size=10).segments(0) == [Segment(0, 0, 1)]


# How it reads


def test_a_task_prints_as_block_kind_and_time():
    assert str(Task(TaskKind.TRAIN, time=7, block=2)) == "2T7"


def test_a_chapter_plan_prints_in_the_order_in_which_one_rank_does_it():
    plan = chapters_of_two_blocks(
        epochs=2, chapters=2, hint_age=1, has_validation=True, head_reads=(1,)
    )

    order = " ".join(map(str, plan.tasks()))

    assert order == "0T0 1T0 2T0 0S0 0T1 1T1 2T1 0V1 0G1"
