"""Which placement suits some ranks and their links: every choice is simulated."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onward.errors import PlacementError, SettingError
from onward.placement import Placement, place
from onward.plan.tasks import Plan
from onward.simulation import FREE, Costs, Link, Simulation, simulate

FINER = (2, 4, 8)
"""How many times as many chapters a choice has as the plan that was asked for."""

TEAMS = (2, 4)
"""Ranks that share each task, of a plan with as many slices."""


@dataclass(frozen=True)
class Choice:
    """A way to run."""

    plan: Plan
    """What is computed; another number of chapters ends in other weights."""

    placement: Placement
    """Where."""

    simulation: Simulation
    """How it would go."""


def choices(
    plan: Plan,
    placement: Placement,
    block_costs: Sequence[int],
    costs: Costs,
    links: Link | Sequence[Link] = FREE,
    speeds: Sequence[float] | None = None,
    *,
    can_run: Callable[[Plan, Placement], bool] = lambda plan, placement: True,
) -> list[Choice]:
    """Simulate the ways to run a plan on some ranks: all placements, finer chapters, and slices.

    Args:
        plan: What was asked for; other chapters or slices end in other weights.
        placement: Where that was asked for; sequential uses one of its ranks.
        block_costs: Cost of each block of the line, by which `place` balances them.
        costs: What tasks take and products weigh.
        links: The link of every rank, or of each.
        speeds: Speed of each rank; None for 1 everywhere.
        can_run: Says whether blocks and data allow a plan and a placement.

    Returns:
        The choices, the fastest first. What was asked for is one of them, and so is one rank
        without slices, by which speed-ups are counted.
    """
    num_ranks = placement.num_ranks
    ways: list[tuple[Plan, Placement]] = [(plan, placement)]
    for candidate, replicas in _plans(plan):
        for name in candidate.placements:
            if name == "sequential" and candidate.chapters != plan.chapters:
                continue
            ranks = replicas if name == "sequential" else num_ranks
            if ranks > num_ranks:
                continue
            for team in (replicas, None) if name == "single-layer" else (replicas,):
                try:
                    placed = place(candidate, name, ranks, block_costs, team)
                except PlacementError:
                    continue
                if len(placed.teams) == 1 and name != "sequential":
                    # One team does everything, whatever that is called.
                    continue
                is_alone = ranks == 1 and candidate == plan.without_slices()
                if (candidate, placed) not in ways and (is_alone or can_run(candidate, placed)):
                    ways.append((candidate, placed))
    found = []
    for candidate, placed in ways:
        ranks = placed.num_ranks
        own_links = links if isinstance(links, Link) else links[:ranks]
        own_speeds = speeds[:ranks] if speeds is not None else None
        simulation = simulate(candidate, placed, costs, own_links, own_speeds)
        found.append(Choice(candidate, placed, simulation))
    return sorted(found, key=lambda choice: choice.simulation.seconds)


def alone(plan: Plan, found: Sequence[Choice]) -> Choice:
    """Return the choice of one rank that trains without slices."""
    whole = plan.without_slices()
    return next(c for c in found if c.placement.num_ranks == 1 and c.plan == whole)


def _plans(plan: Plan) -> Iterator[tuple[Plan, int]]:
    """Yield the plan, others with more chapters or with slices, and the ranks of a team."""
    yield plan, 1
    whole = plan.without_slices()
    yield whole, 1
    others: list[dict[str, Any]] = [{"chapters": factor * plan.chapters} for factor in FINER]
    others += [{"slices": n, "cut": cut} for n in TEAMS for cut in ("samples", "units")]
    for change in others if plan.is_sliceable else ():
        try:
            other = replace(whole, **change)
        except SettingError:
            continue
        yield other, change.get("slices", 1)


def read_link(text: str) -> Link:
    """Read a link as a person writes it: bandwidth, and latency if there is any.

    Raises:
        SettingError: The text says something else.

    Example:
        >>> read_link("100mbit,20ms")
        Link(bytes_per_second=12500000.0, latency=0.02)
    """
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"{number}([kmg]?)bit(?:,{number}(ms|s))?", text.replace(" ", "").lower())
    if found is None or not float(found[1]):
        raise SettingError(
            f"--link takes a bandwidth, and a latency if there is one, such as 1gbit or "
            f"100mbit,20ms; got {text}."
        )
    bits = float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2]]
    latency = float(found[3] or 0) * (1e-3 if found[4] == "ms" else 1.0)
    return Link(bits / 8, latency)


def read_links(texts: Sequence[str], num_ranks: int) -> Link | list[Link]:
    """Read the links of some ranks: none for no limit, one for all ranks, or one for each.

    Raises:
        SettingError: There are others, or one says something else than `read_link` takes.
    """
    if not texts:
        return FREE
    links = [read_link(text) for text in texts]
    if len(links) not in (1, num_ranks):
        raise SettingError(
            f"--link is given {len(links)} times, and there are {num_ranks} ranks. Give it once "
            f"for all of them, or once for each in order."
        )
    return links if len(links) > 1 else links[0]


def read_speeds(text: str, num_ranks: int) -> list[float]:
    """Read the speed of each rank as a person writes them.

    Raises:
        SettingError: They are no positive numbers, or not one for each rank.

    Example:
        >>> read_speeds("1, 1, 0.5, 1", 4)
        [1.0, 1.0, 0.5, 1.0]
    """
    try:
        speeds = [float(part) for part in text.split(",")]
    except ValueError:
        speeds = []
    if len(speeds) != num_ranks or not all(0 < speed < math.inf for speed in speeds):
        raise SettingError(
            f"--speeds takes a positive number for each of {num_ranks} ranks, such as "
            f"{','.join(['1'] * num_ranks)}; got {text}."
        )
    return speeds
