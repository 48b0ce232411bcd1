"""Plans of many sizes, and small ones of two blocks, for tests of plans and of what obeys them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from onward.costs.times import BlockCosts
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import INPUT, Node, line

DELAYED = 1
"""What came out at the visit of the same samples before."""


@st.composite
def graphs(draw, most_heads=2, delayed=False):
    """Draw blocks that read the input, and any of the blocks before them.

    Args:
        draw: Given by hypothesis.
        most_heads: Heads behind them at most, each of which reads what it likes.
        delayed: Whether blocks also read any block, themselves and later ones included, as it was.
    """
    num_blocks = draw(st.integers(1, 4))

    def some_of(sources, delay=0, at_least=1):
        found = draw(st.lists(st.sampled_from(sources), min_size=at_least, unique=True))
        return tuple((source, delay) for source in found)

    blocks = range(num_blocks)
    reads = [some_of([INPUT, *range(block)]) for block in blocks]
    if delayed:
        reads = [now + some_of(blocks, DELAYED, at_least=0) for now in reads]
    heads = [some_of([INPUT, *blocks]) for _ in range(draw(st.integers(0, most_heads)))]
    return (*map(Node, reads), *(Node(read, is_head=True) for read in heads))


@st.composite
def validations(draw, num_shards):
    """Draw how often is validated, and what that decides."""
    found = {
        "validate_every": draw(st.sampled_from([None, 1, 2])),
        "has_validation": draw(st.booleans()),
    }
    if num_shards == 1 and found["has_validation"] and found["validate_every"]:
        found["patience"] = draw(st.none() | st.integers(1, 2))
        found["stop_age"] = draw(st.integers(1, 3))
        found["keep_best"] = draw(st.booleans())
    return found


@st.composite
def shared_sizes(draw, num_shards, nodes):
    """Draw what both kinds of plan have: chapters that divide epochs, or the other way round."""
    longer, shorter = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    epochs, chapters = draw(
        st.sampled_from([(longer * shorter, shorter), (shorter, longer * shorter)])
    )
    batch_size = draw(st.integers(1, 3))
    # As many mini-batches an epoch as it has chapters, at least.
    fewest = max(batch_size, (max(1, chapters // epochs) - 1) * batch_size + 1)
    return {
        "nodes": draw(nodes),
        "epochs": epochs,
        "chapters": chapters,
        "batch_size": batch_size,
        "samples": tuple(draw(st.integers(fewest, fewest + 6)) for _ in range(num_shards)),
        **draw(validations(num_shards)),
    }


@st.composite
def chapter_plans(draw):
    sizes = draw(shared_sizes(draw(st.integers(1, 3)), graphs()))
    # A plan with fewer chapters than shards is refused.
    sizes["samples"] = sizes["samples"][: sizes["chapters"]]
    visits = draw(st.none() | st.integers(1, 3))
    return ChapterPlan, {
        **sizes,
        "hint_age": None if visits is None else visits * len(sizes["samples"]),
        "optimizer_state_age": draw(st.none() | st.integers(1, 4)),
    }


@st.composite
def streams_of_one_visit(draw):
    sizes = draw(shared_sizes(1, graphs()))
    # Hints of a stream come from a head.
    has_heads = any(node.is_head for node in sizes["nodes"])
    ages = st.none() | st.integers(0, 6) if has_heads else st.none()
    return StreamPlan, {**sizes, "hint_age": draw(ages)}


@st.composite
def recurrent_streams(draw):
    """Draw streams in which blocks read what came out before."""
    sizes = draw(shared_sizes(1, graphs(most_heads=0, delayed=True)))
    ticks = draw(st.integers(1, 3))
    if ticks == 1:
        # The visit before was an epoch ago, in which there is one mini-batch.
        sizes["chapters"] = min(sizes["chapters"], sizes["epochs"])
        sizes["batch_size"], _ = sizes["samples"] * 2
    return StreamPlan, {**sizes, "hint_age": None, "ticks": ticks}


def stream_plans():
    return streams_of_one_visit() | recurrent_streams()


plans = chapter_plans() | stream_plans()


def for_all(drawn):
    """Call a test with plans of many sizes.

    A plan is made in the test and not while it is drawn: hypothesis forbids there what beartype
    does to check tuples.
    """

    def decorate(test):
        @settings(max_examples=60, deadline=None, derandomize=True)
        @given(drawn)
        def check(kind_and_sizes):
            kind, sizes = kind_and_sizes
            test(kind(**sizes))

        check.__name__ = check.__qualname__ = test.__name__
        return check

    return decorate


def chapters_of_two_blocks(num_blocks=2, head_reads=(), **changes):
    sizes = {
        "nodes": line(num_blocks, head_reads),
        "epochs": 4,
        "chapters": 4,
        "batch_size": 2,
        "samples": (10,),
        "hint_age": None,
        "validate_every": None,
        "has_validation": False,
    }
    return ChapterPlan(**sizes | changes)


def stream_of_two_blocks(num_blocks=2, head_reads=(1,), **changes):
    sizes = {"epochs": 2, "chapters": 2, "hint_age": 0 if head_reads else None}
    plan = chapters_of_two_blocks(num_blocks, head_reads)
    names = ("nodes", "batch_size", "samples", "validate_every", "has_validation")
    return StreamPlan(**{name: getattr(plan, name) for name in names} | sizes | changes)


def with_a_way_around(delay=0):
    """Three blocks, of which the last reads the first and the input, and not the second."""
    return (*line(2), Node(((0, delay), (INPUT, 0))))


def recurrent(ticks=2, **changes):
    """Return a stream of two blocks that read each other, and themselves, as they were."""
    nodes = (
        Node(((INPUT, 0), (0, DELAYED), (1, DELAYED))),
        Node(((0, 0), (1, DELAYED))),
    )
    return stream_of_two_blocks(nodes=nodes, hint_age=None, ticks=ticks, **changes)


def measured():
    """Return costs of four blocks, in round numbers."""
    return BlockCosts(
        train=(1.0,) * 4,
        forward=(10.0, 20.0, 30.0, 40.0),
        neutral=(5.0,) * 4,
        score=2.0,
        validate=7.0,
        weights=(100, 200, 300, 400),
        optimizer_state=(200, 400, 600, 800),
        activities=(128, 64, 32, 16),
        ahead=(64, 32, 16, 8),
        outputs=(64, 32, 16, 8),
        views=2,
        gradients=(100, 200, 300, 400),
        update=(0.5,) * 4,
        report_fields=(5,) * 4,
        batch_size=2,
        classes=10,
    )
