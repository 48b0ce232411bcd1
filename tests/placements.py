"""Placements of plans of many sizes."""

from hypothesis import given, settings
from plans import chapter_plans, chapters_of_two_blocks, stream_plans

from onward.errors import PlacementError
from onward.placement import messages, place
from onward.plan.chapters import ChapterPlan

NAMES = ("sequential", "single-layer", "all-layers", "federated", "stream")


def for_all_placements(drawn):
    """Call a test with plans of many sizes under every placement that can run them."""

    def decorate(test):
        @settings(max_examples=20, deadline=None, derandomize=True)
        @given(drawn)
        def check(kind_and_sizes):
            kind, sizes = kind_and_sizes
            plan = kind(**sizes)
            for placement in placements(plan):
                test(plan, placement)
            if kind is ChapterPlan:
                plan = kind(**sizes, slices=2, cut="units")
                for placement in placements(plan, replicas=2):
                    test(plan, placement)

        check.__name__ = check.__qualname__ = test.__name__
        return check

    return decorate


def placements(plan, replicas=1):
    """Return all placements of a plan on up to 5 ranks, or teams."""
    found = []
    costs = [1] * plan.num_blocks
    ways = [(name, teams * replicas, replicas) for name in NAMES for teams in range(1, 6)]
    if replicas > 1:
        # Teams of different sizes.
        ways.append(("single-layer", plan.num_blocks + 1, None))
    for name, ranks, team in ways:
        try:
            found.append(place(plan, name, ranks, costs, team))
        except PlacementError:
            continue
    return found


plans = chapter_plans() | stream_plans()


def chapters(num_blocks=4, num_chapters=8, **changes):
    return chapters_of_two_blocks(
        num_blocks=num_blocks, epochs=num_chapters, chapters=num_chapters, **changes
    )


def sent(plan, placement):
    """Return all messages of a run, with the rank that sends them."""
    return [
        (message.source, message)
        for task in plan.tasks()
        for message in messages(plan, placement, task)
    ]
