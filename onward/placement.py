"""Where tasks run: a rank for each task, as data.

A placement decides time and traffic, never the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate

from onward.errors import PlacementError
from onward.plan.tasks import Plan, Product, Task, TaskKind


@dataclass(frozen=True)
class Placement:
    """A rank for each task of a plan."""

    name: str = "custom"
    """What it is called."""

    teams: tuple[int, ...] = (1,)
    """Number of ranks of each team, which share its tasks: neighbours, rank 0 in team 0. Without
    replicas each rank is a team."""

    owners: tuple[int, ...] = ()
    """Team of each block, heads included, where blocks stay; empty where chapters go round."""

    shards: int = 1
    """Shards of the plan: a shard's validation stays with its owner."""

    is_gathered_everywhere: bool = False
    """Whether all ranks gather the finished network, and not the first alone."""

    @cached_property
    def num_ranks(self) -> int:
        """Number of ranks (world size)."""
        return sum(self.teams)

    @cached_property
    def members(self) -> list[range]:
        """The ranks of each team."""
        firsts = accumulate(self.teams, initial=0)
        return [range(first, first + size) for first, size in zip(firsts, self.teams, strict=False)]

    def team_of(self, rank: int) -> int:
        """Return the team that a rank belongs to."""
        return next(team for team, ranks in enumerate(self.members) if rank in ranks)

    def ranks(self, task: Task) -> range:
        """Return the ranks that share a task. Validation and gathering are done by one."""
        if task.kind is TaskKind.GATHER and self.is_gathered_everywhere:
            return range(self.num_ranks)
        ranks = self.members[self._team(task)]
        return ranks if task.kind in (TaskKind.TRAIN, TaskKind.SCORE) else ranks[:1]

    def _team(self, task: Task) -> int:
        if task.kind is TaskKind.GATHER:
            return 0
        if not self.owners:
            by_shard = task.kind is TaskKind.VALIDATE and self.shards > 1
            return (task.block if by_shard else task.time) % len(self.teams)
        if task.kind in (TaskKind.SCORE, TaskKind.VALIDATE):
            return self.owners[-1]
        return self.owners[task.block]


@dataclass(frozen=True)
class Message:
    """What one task sends to one rank."""

    source: int
    """The rank that sends it."""

    dest: int
    """The rank that needs it."""

    products: tuple[Product, ...]
    """What it holds, in order."""


def messages(plan: Plan, placement: Placement, task: Task) -> list[Message]:
    """Return the messages that follow a task: who needs what of it elsewhere.

    Both ends derive them from the plan, so nothing is negotiated. All ranks of a team hold what it
    made; receivers are assigned to them in turn.
    """
    makers = placement.ranks(task)
    held: dict[int, list[Product]] = {}
    for product in plan.makes(task):
        needed = {rank for use in plan.uses(product) for rank in placement.ranks(use)}
        for dest in sorted(needed - set(makers)):
            held.setdefault(dest, []).append(product)
    return [
        Message(makers[dest % len(makers)], dest, tuple(products))
        for dest, products in sorted(held.items())
    ]


def restored(
    plan: Plan, placement: Placement, holders: Mapping[Product, Sequence[int]]
) -> list[Message]:
    """Return the messages before the first task: what was made before, to ranks without it.

    Args:
        plan: A plan that holds products.
        placement: Where the rest is done.
        holders: The ranks that can read each held product.
    """
    if not plan.held:
        return []
    wanted = dict.fromkeys(
        (product, rank)
        for task in plan.tasks()
        for product in plan.needs(task)
        for rank in placement.ranks(task)
        if plan.is_done(product) and rank not in holders[product]
    )
    return [
        Message(holders[product][dest % len(holders[product])], dest, (product,))
        for product, dest in wanted
    ]


def first_blocks(plan: Plan, placement: Placement, rank: int) -> list[int]:
    """Return the blocks that a rank trains first: it needs their first weights, and no others.

    Those of all other blocks come from elsewhere before they are needed.
    """
    first = (Task(TaskKind.TRAIN, 0, block) for block in plan.trained)
    rest = [task for task in first if not plan.held or task in plan.rest]
    return [task.block for task in rest if rank in placement.ranks(task)]


BALANCED = ("single-layer", "stream")
"""Placements in which blocks stay on their ranks, and so are dealt out by what they cost."""


def place(
    plan: Plan,
    name: str | None,
    num_ranks: int,
    costs: Sequence[int],
    replicas: int | None = None,
) -> Placement:
    """Assign the tasks of a plan to ranks.

    Args:
        plan: What is computed.
        name: How to assign. None: sequential on one rank; else stream for a stream plan, federated
            for several shards, all-layers for the rest.
        num_ranks: Number of ranks.
        costs: Cost of each block in the line, in any unit, such as its parameters.
        replicas: Ranks that share each task. None: one; but where blocks stay and a plan with
            slices has more ranks than blocks, more ranks for more expensive blocks.

    Raises:
        PlacementError: The plan cannot be assigned so, or has no work for so many ranks.

    Source:
        single-layer, all-layers, federated: Aktemur et al. 2024, arXiv:2404.08573, sections 4.1
        to 4.3. stream: one run of blocks a rank, activities travel.
    """
    slices = plan.slices
    if replicas is not None and (num_ranks % replicas or slices % replicas):
        raise PlacementError(
            f"placement.replicas is {replicas}, with {num_ranks} ranks and plan.slices = {slices}: "
            f"it must divide both. Slices are what replicas share."
        )
    if replicas is None and name == "single-layer" and slices > 1 and num_ranks > plan.num_blocks:
        teams = assign_by_cost(costs, num_ranks, slices)
    else:
        teams = (replicas or 1,) * (num_ranks // (replicas or 1))
    num_teams = len(teams)
    if name is None:
        name = "sequential" if num_teams == 1 else plan.usual_placement
    if name not in plan.placements:
        *others, last = plan.placements
        raise PlacementError(
            f"The placement {name} cannot run a {plan.kind.removesuffix('s')} plan. Choose "
            f"{', '.join(others)} or {last}, or another --plan."
        )
    most, unit = _most_ranks(plan, name)
    if num_teams > most:
        many = most * (replicas or 1)
        raise PlacementError(
            f"The placement {name} has work for {many} {'rank' if many == 1 else 'ranks'} at most "
            f"({unit}), but there are {num_ranks}. Start fewer, or choose another placement"
            + (", or more chapters (--chapters)." if name == "all-layers" else ".")
        )
    shards = len(plan.samples)
    if name == "federated" and (shards < 2 or shards % num_teams):
        wanted = f"{num_teams}, or to a multiple of it" if num_teams > 1 else "2 or more"
        owner = "rank" if num_teams == num_ranks else "team"
        raise PlacementError(
            f"A federated run deals {shards} {'shard' if shards == 1 else 'shards'} to {num_teams} "
            f"{owner}{'' if num_teams == 1 else 's'}. Set plan.shards to {wanted}."
        )
    if name not in BALANCED:
        return Placement(name, teams, (), shards)
    owners = balance(costs, num_teams, passing=name == "single-layer")
    owners += (num_teams - 1,) * len(plan.heads)
    return Placement(name, teams, owners, shards)


def check_placement(plan: Plan, placement: Placement, num_ranks: int) -> None:
    """Refuse a placement of a user's own that does not fit.

    Raises:
        PlacementError: It does not; the message says why.
    """
    if placement.num_ranks != num_ranks:
        raise PlacementError(
            f"The placement has {placement.num_ranks} ranks, in teams of {placement.teams}, and "
            f"there are {num_ranks}."
        )
    slices = plan.slices
    if any(team < 1 or slices % team for team in placement.teams):
        raise PlacementError(
            f"The placement has teams of {placement.teams} ranks, which must divide plan.slices; "
            f"it is {slices}."
        )
    owners, teams = placement.owners, len(placement.teams)
    if owners and (len(owners) != len(plan.nodes) or not set(owners) <= set(range(teams))):
        raise PlacementError(
            f"The placement gives the blocks to the teams {owners}. There are {len(plan.nodes)} "
            f"blocks, heads included, and teams from 0 to {teams - 1}."
        )
    if not owners and teams > 1 and "all-layers" not in plan.placements:
        raise PlacementError(
            f"In a {plan.kind} plan blocks stay where they are: owners names the team of each."
        )


def stall(plan: Plan, placement: Placement) -> str | None:
    """Say why ranks will wait for hints or validations; None where nothing stalls."""
    num_teams = len(placement.teams)
    teams = "ranks" if num_teams == placement.num_ranks else "teams"
    beside = f"and there are {num_teams} {teams}"
    age = plan.hint_age
    if age is not None and age < num_teams > 1:
        unit = {"mini-batch": "mini-batches"}.get(plan.time_word, f"{plan.time_word}s")
        unit = plan.time_word if age == 1 else unit
        return (
            f"plan.hint_age is {age} {unit} {beside}: {plan.stalled(age)}. An age of {num_teams} "
            f"or more does not stall, but changes the weights."
        )
    least = plan.least_stop_age(num_teams)
    if plan.patience is not None and plan.stop_age < least:
        return (
            f"plan.stop_age is {plan.stop_age} {beside}: chapters wait for the validation of "
            f"earlier ones. With {least} or more nothing waits, and training stops that much later."
        )
    return None


def balance(costs: Sequence[int], num_ranks: int, *, passing: bool) -> tuple[int, ...]:
    """Cut blocks into contiguous runs, one a rank, so that the most expensive costs least.

    Args:
        costs: Cost of passing samples through each block. Training costs twice that (forward, and
            the gradient of the weights).
        num_ranks: Number of runs, at most the number of blocks.
        passing: Whether a rank also passes samples through all blocks below its own.

    Returns:
        The rank of each block.

    Example:
        >>> balance([1, 1, 1, 3], 2, passing=False)
        (0, 0, 0, 1)
    """

    def run(first: int, last: int) -> int:
        below = sum(costs[: last - 1]) if passing else 0
        return 2 * sum(costs[first:last]) + below

    @cache
    def cut(first: int, ranks: int) -> tuple[int, tuple[int, ...]]:
        if ranks == 1:
            return run(first, len(costs)), (len(costs),)
        options = []
        for last in range(first + 1, len(costs) - ranks + 2):
            rest, ends = cut(last, ranks - 1)
            options.append((max(run(first, last), rest), (last, *ends)))
        return min(options)

    ends = cut(0, num_ranks)[1]
    return tuple(
        next(r for r, end in enumerate(ends) if block < end) for block in range(len(costs))
    )


def assign_by_cost(costs: Sequence[int], num_ranks: int, slices: int) -> tuple[int, ...]:
    """Assign ranks to blocks, more to expensive ones, so that the slowest task is fastest.

    Args:
        costs: Cost of passing samples through each block; see `balance`.
        num_ranks: Number of ranks, at least the number of blocks.
        slices: Parts of every mini-batch; the ranks of a block share them evenly.

    Returns:
        The number of ranks of each block.

    Raises:
        PlacementError: They cannot be assigned so.

    Example:
        >>> assign_by_cost([1, 1, 1, 9], 8, 4)
        (1, 1, 2, 4)
    """
    sizes = [size for size in range(1, slices + 1) if slices % size == 0]

    @cache
    def assign(block: int, ranks: int) -> tuple[float, tuple[int, ...]] | None:
        if block == len(costs):
            return None if ranks else (0.0, ())
        options = []
        for size in sizes:
            rest = assign(block + 1, ranks - size) if size <= ranks else None
            if rest is not None:
                own = (2 * costs[block] + sum(costs[:block])) / size
                options.append((max(own, rest[0]), (size, *rest[1])))
        return min(options, default=None)

    assigned = assign(0, num_ranks)
    if assigned is None:
        raise PlacementError(
            f"{num_ranks} ranks cannot be assigned to {len(costs)} blocks in teams of "
            f"{', '.join(map(str, sizes))}, which divide plan.slices. Start fewer, or cut the plan "
            f"into more slices."
        )
    return assigned[1]


def _most_ranks(plan: Plan, name: str) -> tuple[int, str]:
    match name:
        case "sequential":
            return 1, "it does everything on rank 0"
        case "all-layers":
            return plan.chapters, "one a chapter"
        case "federated":
            return len(plan.samples), "one a shard"
    return plan.num_blocks, "one a block"
