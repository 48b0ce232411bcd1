"""A run that was cut, on whatever ranks it goes on, ends in the weights of one that was not."""

import copy
import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import InMemoryTransport
from plans import chapter_plans, for_all, plans
from prepared import (
    CHAPTERS,
    FEDERATED,
    SLICED,
    SMALL,
    STREAMS,
    assert_same_weights,
    prepare,
    reference,
)
from thinned import thinned

from onward.errors import FileError, SettingError
from onward.placement import place
from onward.plan.tasks import Product, ProductKind
from onward.runtime.resume import agree_on_rest, open_store
from onward.runtime.runtime import Runtime, make_worker
from onward.seeds import global_generators_kept
from onward.transport.directory import DirectoryTransport
from onward.transport.messages import OPEN

pytestmark = pytest.mark.usefixtures("unchecked")


def go_on(prepared, name, num_ranks, folder, *, most=None, shared=True, every=1):
    """Begin a run, or go on with it, in this process, and stop after some tasks.

    Returns the runtimes, rank 0 first, and the tasks that were done.
    """
    transports = InMemoryTransport.group(num_ranks)
    networks = [copy.deepcopy(prepared.network) for _ in transports]
    workers = [make_worker(prepared.plan, n, prepared.shards, prepared.settings) for n in networks]
    stores = [
        open_store(folder if shared else folder / f"disk-{rank}", rank, "", "", [], every)
        for rank in range(num_ranks)
    ]
    plan, holders, _ = agree_on_what_is_left(prepared.plan, stores, workers, transports)
    placement = place(plan, name, num_ranks, prepared.costs())
    runtimes = [
        Runtime(plan, placement, worker, transport, store=store, holders=holders)
        for worker, transport, store in zip(workers, transports, stores, strict=True)
    ]
    done = []
    with global_generators_kept():
        for runtime in runtimes:
            runtime.restore()
        for task in list(plan.tasks())[:most]:
            runtimes[placement.ranks(task)[0]].do(task)
            done.append(task)
    for store in stores:
        store.close()
    return runtimes, done


def agree_on_what_is_left(plan, stores, workers, transports):
    """Let each rank, in a thread of its own, agree with the others; return what rank 0 knows."""
    notes, all_are_there = {}, threading.Barrier(len(transports), timeout=60)

    def all_gather(transport):
        def gather(topic, note):
            notes[transport.rank] = json.loads(json.dumps(note))
            all_are_there.wait()
            return [notes[rank] for rank in range(len(transports))]

        return gather

    for transport in transports:
        transport.all_gather = all_gather(transport)
    with ThreadPoolExecutor(len(transports)) as pool:
        plans = [plan] * len(transports)
        agreed = list(pool.map(agree_on_rest, stores, plans, workers, transports))
    assert all(each == agreed[0] for each in agreed)
    return agreed[0]


def num_tasks(prepared):
    return sum(1 for _ in prepared.plan.all_tasks())


# What is left of a plan


@st.composite
def cut_plans(draw):
    """Draw a plan, how many of its tasks were done, and what of their products is lost."""
    kind, sizes = draw(plans)
    return kind, sizes, draw(st.floats(0, 1)), draw(st.integers(0, 5)), draw(st.integers(1, 3))


def made_until(plan, share, every):
    tasks = list(plan.all_tasks())
    done = tasks[: int(share * (len(tasks) - 1))]
    small = (ProductKind.REPORT, ProductKind.COUNTS)
    made = [p for t in done for p in plan.makes(t) if p.kind in small or plan.is_kept(p, every)]
    return done, made


def with_held(plan, held):
    return replace(plan, held=frozenset(held))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cut_plans())
def test_whatever_is_lost_all_that_a_task_needs_is_held_or_made_before_it(drawn):
    kind, sizes, share, seed, every = drawn
    plan = kind(**sizes)
    _, made = made_until(plan, share, every)
    held = random.Random(seed).sample(made, len(made) * seed // 5)
    plan = with_held(plan, held)

    known, trained = set(held), set()
    for task in plan.tasks():
        assert set(plan.needs(task)) <= known
        before = plan.follows(task)
        assert before is None or before in trained
        known.update(plan.makes(task))
        trained.add(task)
    assert task == plan.gather


@settings(max_examples=40, deadline=None, derandomize=True)
@given(chapter_plans(), st.floats(0, 1))
def test_where_all_is_kept_no_finished_task_is_done_again(kind_and_sizes, share):
    kind, sizes = kind_and_sizes
    plan = kind(**sizes)
    done, made = made_until(plan, share, every=1)

    plan = with_held(plan, made)

    assert not made or not set(done) & set(plan.tasks())


@for_all(plans)
def test_without_anything_held_all_tasks_are_to_be_done(plan):
    gathers = Product(ProductKind.WEIGHTS, 10**6, 0)

    assert list(plan.tasks()) == list(plan.all_tasks())
    assert list(with_held(plan, [gathers]).tasks()) == list(plan.all_tasks())


# The law, after a cut


def some_cuts(cases, placements, shares):
    """Return each case with a placement before and one after a cut, and how far it had come."""
    found = []
    for number, case in enumerate(cases):
        before = placements[number % len(placements)]
        after = placements[(number // len(placements) + number + 1) % len(placements)]
        share = shares[number % len(shares)]
        name = "{}: {} on {}, then {} on {}".format(case, *before, *after)
        found.append(pytest.param(case, *before, *after, share, id=f"{name}, after {share:.0%}"))
    return found


CHAPTER_PLACEMENTS = [
    ("sequential", 1),
    ("all-layers", 2),
    ("single-layer", 3),
    ("all-layers", 3),
    ("single-layer", 4),
]


@pytest.mark.parametrize(
    ("case", "before", "ranks_before", "after", "ranks_after", "share"),
    thinned(some_cuts(CHAPTERS, CHAPTER_PLACEMENTS, [0.15, 0.5, 0.8, 0.97])),
)
def test_chapters_that_were_cut_end_in_the_same_weights(
    case, before, ranks_before, after, ranks_after, share, tmp_path
):
    prepared = prepare(*CHAPTERS[case])
    most = int(share * num_tasks(prepared))

    go_on(prepared, before, ranks_before, tmp_path, most=most)
    (first, *_), done = go_on(prepared, after, ranks_after, tmp_path)

    assert_same_weights(first.worker.network, reference("chapters", case))
    assert len(done) == num_tasks(prepared) - most


@pytest.mark.parametrize(
    ("case", "before", "ranks_before", "after", "ranks_after", "share"),
    thinned(
        some_cuts(STREAMS, [("sequential", 1), ("stream", 2), ("stream", 4)], [0.3, 0.9, 0.6, 0.8])
    ),
)
def test_a_stream_that_was_cut_ends_in_the_same_weights(
    case, before, ranks_before, after, ranks_after, share, tmp_path
):
    prepared = prepare(*STREAMS[case])
    most = int(share * num_tasks(prepared))

    go_on(prepared, before, ranks_before, tmp_path, most=most)
    (first, *_), done = go_on(prepared, after, ranks_after, tmp_path)

    assert_same_weights(first.worker.network, reference("stream", case))
    assert len(done) < num_tasks(prepared) - most // 2


@pytest.mark.parametrize("lost", [0, 3, 4])
@pytest.mark.parametrize("case", ["hints of age 0", "hints of age 5"])
def test_a_stream_of_which_the_state_of_one_block_is_older_ends_in_the_same_weights(
    case, lost, tmp_path
):
    prepared = prepare(*STREAMS[case])
    tasks = list(prepared.plan.all_tasks())
    ends = list(prepared.plan.chapter_ends)
    most = max(n for n, task in enumerate(tasks) if task.time == ends[2] and task.block == 3) + 3

    go_on(prepared, "stream", 2, tmp_path, most=most)
    (path,) = tmp_path.glob(f"rank-*/weights-{ends[2]}-{lost}.safetensors")
    path.unlink()
    (first, *_), _ = go_on(prepared, "stream", 2, tmp_path)

    assert_same_weights(first.worker.network, reference("stream", case))


@pytest.mark.parametrize(
    ("kind", "cases", "case", "before", "ranks_before", "after", "ranks_after"),
    thinned(
        [("sliced", SLICED, case, "all-layers", 2, "single-layer", 4) for case in SLICED]
        + [("federated", FEDERATED, case, "federated", 4, "federated", 2) for case in FEDERATED],
    ),
)
def test_slices_and_shards_that_were_cut_end_in_the_same_weights(
    kind, cases, case, before, ranks_before, after, ranks_after, tmp_path
):
    prepared = prepare(*cases[case])

    go_on(prepared, before, ranks_before, tmp_path, most=17)
    (first, *_), _ = go_on(prepared, after, ranks_after, tmp_path)

    assert_same_weights(first.worker.network, reference(kind, case))


@pytest.mark.parametrize("name", ["all-layers", "single-layer"])
@pytest.mark.parametrize("share", thinned([0.2, 0.5, 0.9]))
def test_ranks_with_disks_of_their_own_fetch_what_they_lack_from_each_other(name, share, tmp_path):
    prepared = prepare(*CHAPTERS["adaptive, softmax"])
    most = int(share * num_tasks(prepared))

    go_on(prepared, name, 4, tmp_path, most=most, shared=False)
    (first, *_), done = go_on(prepared, "all-layers", 4, tmp_path, shared=False)

    assert_same_weights(first.worker.network, reference("chapters", "adaptive, softmax"))
    assert len(done) == num_tasks(prepared) - most


@pytest.mark.parametrize("lost", thinned([0, 1, 3]))
def test_a_disk_that_is_lost_costs_little_and_no_bits(lost, tmp_path):
    prepared = prepare(*CHAPTERS["one-pass"])

    go_on(prepared, "all-layers", 4, tmp_path, most=20, shared=False)
    (tmp_path / f"disk-{lost}").rename(tmp_path / "gone")
    (first, *_), done = go_on(prepared, "all-layers", 3, tmp_path, shared=False)

    assert_same_weights(first.worker.network, reference("chapters", "one-pass"))
    assert len(done) <= num_tasks(prepared) - 14


@pytest.mark.parametrize("seed", thinned(range(4)))
def test_a_run_that_is_cut_again_and_again_ends_in_the_same_weights(seed, tmp_path):
    prepared = prepare(*CHAPTERS["adaptive, goodness"])
    draw = random.Random(seed)
    ways = [*CHAPTER_PLACEMENTS, ("all-layers", 4)]

    for _ in range(5):
        go_on(prepared, *draw.choice(ways), tmp_path, most=draw.randint(0, 9))
        files = sorted(tmp_path.glob("rank-*/*.safetensors"))
        for path in draw.sample(files, len(files) // 5):
            damage(path, draw)
    (first, *_), _ = go_on(prepared, *draw.choice(ways), tmp_path)

    assert_same_weights(first.worker.network, reference("chapters", "adaptive, goodness"))


def damage(path, draw):
    """Cut a file short, or change one of its bytes."""
    content = bytearray(path.read_bytes())
    if draw.random() < 0.5:
        content = content[: draw.randrange(len(content))]
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


# Which run it is


def begin(folder, settings="lr = 1", weights=("a", None), rank=0, held_out=("v",)):
    open_store(folder, rank, "", settings, weights, every=1, held_out=held_out).close()


def test_a_run_goes_on_from_the_weights_that_it_began_with(tmp_path):
    begin(tmp_path)

    # A rank knows the first weights of the blocks that it has.
    begin(tmp_path, weights=("a", "b"), rank=1)
    begin(tmp_path, weights=(None, "b"), rank=2)
    with pytest.raises(SettingError, match=r"began from other weights\. Seed torch"):
        begin(tmp_path, weights=("c", None), rank=3)
    begin(tmp_path, weights=("a", "b"))

    begun = json.loads((tmp_path / "rank-0" / "begun.json").read_text())
    assert begun["first_weights"] == ["a", None]


def test_a_run_goes_on_with_the_settings_that_it_began_with(tmp_path):
    begin(tmp_path, "seed = 0\nlr = 1")

    with pytest.raises(SettingError, match=r"Then: lr = 1; now: lr = 2\. A run goes on with"):
        begin(tmp_path, "seed = 0\nlr = 2", rank=1)
    begin(tmp_path, "seed = 0\nlr = 1", rank=1)


def test_a_run_goes_on_with_the_test_and_validation_samples_that_it_began_with(tmp_path):
    begin(tmp_path)

    with pytest.raises(SettingError, match="is of a run with other test or validation samples"):
        begin(tmp_path, held_out=("w",))
    begin(tmp_path)

    # As version 0.1 wrote it.
    path = tmp_path / "rank-0" / "begun.json"
    begun = json.loads(path.read_text())
    path.write_text(json.dumps({name: begun[name] for name in ("settings", "first_weights")}))
    begin(tmp_path, held_out=("w",))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "5", "[" * 100_000, '{"settings": 5}', '{"settings": "", "first_weights": 0}'],
)
def test_what_a_run_began_with_is_damaged(text, tmp_path):
    begin(tmp_path)
    (tmp_path / "rank-0" / "begun.json").write_text(text)

    with pytest.raises(FileError, match=r"begun\.json is damaged .* Remove .*rank-0 to go on"):
        begin(tmp_path, rank=1)


def test_a_folder_in_which_a_run_cannot_begin_is_named(tmp_path):
    (tmp_path / "rank-0" / "token").mkdir(parents=True)

    with pytest.raises(FileError, match=r"rank-0/token cannot be written: Is a directory"):
        begin(tmp_path)


# What is kept


def test_ranks_that_share_a_folder_instead_of_messages_leave_each_other_s_files_alone(tmp_path):
    prepared = prepare(*CHAPTERS["one-pass"])
    worker = make_worker(prepared.plan, prepared.network, prepared.shards, prepared.settings)
    transport = DirectoryTransport(tmp_path, 1, 3, "all-layers")
    store = open_store(tmp_path, 1, "", "", [], every=1)

    _, holders, _ = agree_on_rest(store, prepared.plan, worker, transport)
    store.close()
    OPEN.clear()

    # It waits for no word of theirs.
    assert holders == {}
    assert store.seen == {0, 1, 2}


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_see_whose_disk_they_share(shared, tmp_path):
    prepared = prepare(*CHAPTERS["one-pass"])
    # What a rank finds may be a copy of another's disk.
    go_on(prepared, "all-layers", 2, tmp_path / "before", most=5)
    for disk in ("disk-0", "disk-1"):
        shutil.copytree(tmp_path / "before", tmp_path / disk)

    ranks, _ = go_on(prepared, "all-layers", 2, tmp_path, most=0, shared=shared)

    assert [rank.store.seen for rank in ranks] == ([{0, 1}] * 2 if shared else [{0}, {1}])


@pytest.mark.parametrize(
    ("kind", "case"),
    [(CHAPTERS, "one-pass"), (CHAPTERS, "adaptive, softmax"), (STREAMS, "one-pass")],
)
def test_files_of_products_that_a_plan_does_not_have_are_passed_over(kind, case, tmp_path):
    prepared = prepare(*kind[case])
    go_on(prepared, None, 1, tmp_path, most=5)
    names = ("weights-1-99", "weights-999-0", "hints-998-0", "activities-999-0", "report-0-99")
    for name in names:
        (tmp_path / "rank-0" / f"{name}.safetensors").touch()

    (first, *_), _ = go_on(prepared, None, 1, tmp_path, most=0)

    assert first.store.damaged == set()


def test_what_is_reported_is_whole_after_a_cut(tmp_path):
    prepared = prepare(*CHAPTERS["validated often"])

    go_on(prepared, "all-layers", 2, tmp_path, most=13)
    (first, *_), _ = go_on(prepared, "single-layer", 2, tmp_path)

    reports = [
        p for p in prepared.plan.all_needs(prepared.plan.gather) if p.kind is ProductKind.REPORT
    ]
    assert {
        p for p in first.plan.needs(prepared.plan.gather) if p.kind is ProductKind.REPORT
    } == set(reports)


@pytest.mark.parametrize("name", ["all-layers", "single-layer"])
def test_old_states_are_removed(name, tmp_path):
    prepared = prepare("one-pass", {**SMALL, "training.epochs": 16})

    go_on(prepared, name, 2, tmp_path, most=num_tasks(prepared) - 2)

    kept = [path.stem.split("-") for path in tmp_path.glob("rank-*/weights-*.safetensors")]
    assert min(int(time) for _, time, _ in kept) >= prepared.plan.chapters - 8
