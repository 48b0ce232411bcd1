"""When each task of a plan runs, on ranks and links of given speeds: a simulation of the runtime.

Nothing is trained and no process is started, so thousands of ranks take seconds.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from onward.placement import Message, Placement, messages
from onward.plan.tasks import Plan, Product, Task, TaskKind
from onward.timeline import WORDS, Span


@dataclass(frozen=True)
class Link:
    """The way from a rank to the network, and from there to another."""

    bytes_per_second: float = math.inf
    """What a rank sends, to all others together, and what it receives."""

    latency: float = 0.0
    """Seconds from the last byte sent to the last byte received."""


FREE = Link()
"""Messages take no time."""


class Costs(ABC):
    """What tasks take and what their products weigh."""

    @abstractmethod
    def seconds(self, plan: Plan, task: Task, known: Set[int], ranks: int) -> float:
        """Return how long each rank of speed 1 works on a task.

        Args:
            plan: What is computed.
            task: One of its tasks.
            known: Blocks that the rank has passed this chapter's samples through already.
            ranks: Ranks that share the task.
        """

    def exchanged(self, plan: Plan, task: Task, known: Set[int], ranks: int) -> tuple[int, int]:
        """Return what ranks that share a task tell each other in it.

        Returns:
            How often they do, and the bytes that each gives to each other in all.
        """
        return 0, 0

    @abstractmethod
    def num_bytes(self, plan: Plan, product: Product) -> int:
        """Return what a product weighs in a message."""


@dataclass(frozen=True)
class KnownCosts(Costs):
    """Seconds of each task as they were measured in a run; messages weigh nothing."""

    measured: dict[Task, float]
    """Seconds by task; what is not there takes no time."""

    @classmethod
    def of(cls, plan: Plan, timeline: Iterable[Span]) -> "KnownCosts":
        """Return what the tasks of a plan took in a run that was recorded."""
        took = {(span.what, span.label): span.end - span.start for span in timeline}
        return cls({task: took.get((WORDS[task.kind], str(task)), 0.0) for task in plan.tasks()})

    def seconds(self, plan: Plan, task: Task, known: Set[int], ranks: int) -> float:
        return self.measured.get(task, 0.0)

    def num_bytes(self, plan: Plan, product: Product) -> int:
        return 0


@dataclass
class Simulation:
    """How a run would go."""

    seconds: float
    """Makespan: from the first task to the end of the last."""

    busy: list[float]
    """Seconds each rank works."""

    waiting: list[float]
    """Seconds each rank waits for others before its last task ends."""

    bytes_by_link: Counter[tuple[int, int]]
    """Bytes from one rank to another."""

    spans: list[Span] = field(default_factory=list)
    """What each rank does, in order of its end; empty unless asked for."""

    def bytes_sent(self, rank: int) -> int:
        """Return the bytes that a rank sends."""
        return sum(n for (source, _), n in self.bytes_by_link.items() if source == rank)


def simulate(
    plan: Plan,
    placement: Placement,
    costs: Costs,
    links: Link | Sequence[Link] = FREE,
    speeds: Sequence[float] | None = None,
    *,
    timeline: bool = False,
) -> Simulation:
    """Follow a run event by event.

    A rank does its tasks in the order of the plan, each as soon as all it needs is there. What it
    sends goes out while it computes, one message after the other, and comes in one after the
    other. Not followed: bounded queues, and the processor time that messages take.

    Args:
        plan: What is computed.
        placement: Where.
        costs: What tasks take and products weigh.
        links: The link of every rank, or of each.
        speeds: Speed of each rank, 1 being that of `costs`; None for 1 everywhere.
        timeline: Whether to keep what each rank did and when.

    Example:
        >>> from onward.placement import place
        >>> from onward.plan.chapters import ChapterPlan
        >>> from onward.plan.tasks import line
        >>> plan = ChapterPlan(
        ...     nodes=line(2), epochs=3, chapters=3, batch_size=1, samples=(1,),
        ...     hint_age=None, validate_every=None, has_validation=False,
        ... )
        >>> costs = KnownCosts({task: 1.0 for task in plan.tasks() if task.kind is TaskKind.TRAIN})
        >>> simulate(plan, place(plan, "all-layers", 3, [1, 1]), costs).seconds
        4.0
    """
    return _Simulator(plan, placement, costs, links, speeds, timeline).run()


class _Simulator:
    """The state of a simulation, and what happens at each event."""

    def __init__(
        self,
        plan: Plan,
        placement: Placement,
        costs: Costs,
        links: Link | Sequence[Link],
        speeds: Sequence[float] | None,
        timeline: bool,
    ) -> None:
        ranks = placement.num_ranks
        self.plan, self.placement, self.costs = plan, placement, costs
        self.links = [links] * ranks if isinstance(links, Link) else list(links)
        self.speeds = list(speeds) if speeds is not None else [1.0] * ranks
        for name, given in (("links", self.links), ("speeds", self.speeds)):
            if len(given) != ranks:
                raise ValueError(f"There are {len(given)} {name} for {ranks} ranks.")
        self.timeline = timeline
        self.todo: list[deque[Task]] = [deque() for _ in range(ranks)]
        for task in plan.tasks():
            for rank in placement.ranks(task):
                self.todo[rank].append(task)
        self.ready: Counter[Task] = Counter()
        self.here: list[set[Product]] = [set() for _ in range(ranks)]
        self.missing: list[set[Product]] = [set() for _ in range(ranks)]
        self.free = [0.0] * ranks
        self.known: list[tuple[int, frozenset[int]]] = [(-1, frozenset())] * ranks
        self.sent_until, self.received_until = [0.0] * ranks, [0.0] * ranks
        # When, a number that tells apart what happens at the same time, and what happens then.
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.numbers = count()
        self.found = Simulation(0.0, [0.0] * ranks, [0.0] * ranks, Counter())

    def run(self) -> Simulation:
        for rank in range(self.placement.num_ranks):
            self._next_task(rank, 0.0)
        while self.events:
            now, _, happen = heapq.heappop(self.events)
            happen(now)
        left = sum(map(len, self.todo))
        assert not left, f"{left} tasks wait for each other"
        return self.found

    def _at(self, time: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), happen))

    def _next_task(self, rank: int, now: float) -> None:
        """Start the next task of a rank, if all that share it are there; else let it wait."""
        if not self.todo[rank]:
            return
        task = self.todo[rank][0]
        missing = {p for p in self.plan.needs(task) if p not in self.here[rank]}
        self.missing[rank] = missing
        if missing:
            return
        team = self.placement.ranks(task)
        self.ready[task] += 1
        if self.ready[task] < len(team):
            return
        del self.ready[task]
        chapter, known = self.known[team[0]]
        known = known if chapter == task.time else frozenset()
        seconds = self.costs.seconds(self.plan, task, known, len(team))
        seconds /= min(self.speeds[member] for member in team)
        if len(team) > 1:
            seconds += self._exchange(task, team, known)
        for member in team:
            self.found.waiting[member] += now - self.free[member]
            self._span(member, "wait", str(task), self.free[member], now)
            # A frozen block passes nothing on the way to it.
            is_passing = task.kind is TaskKind.TRAIN and task.block not in self.plan.heads
            if is_passing and not self.plan.nodes[task.block].is_frozen:
                self.known[member] = (task.time, known | self.plan.below[task.block])
            self.found.busy[member] += seconds
            self._span(member, WORDS[task.kind], str(task), now, now + seconds)
            self._at(now + seconds, partial(self._done, member))

    def _exchange(self, task: Task, team: range, known: Set[int]) -> float:
        """Return the seconds in which ranks that share a task tell each other what they found."""
        times, num_bytes = self.costs.exchanged(self.plan, task, known, len(team))
        for source in team:
            for dest in team:
                if source != dest:
                    self.found.bytes_by_link[source, dest] += num_bytes
        links = [self.links[member] for member in team]
        slowest = min(link.bytes_per_second for link in links)
        return times * max(link.latency for link in links) + num_bytes * (len(team) - 1) / slowest

    def _done(self, rank: int, now: float) -> None:
        task = self.todo[rank].popleft()
        self.free[rank] = now
        self.found.seconds = max(self.found.seconds, now)
        for message in messages(self.plan, self.placement, task):
            if message.source != rank:
                continue
            num_bytes = sum(self.costs.num_bytes(self.plan, p) for p in message.products)
            self.found.bytes_by_link[rank, message.dest] += num_bytes
            begin = max(now, self.sent_until[rank])
            end = begin + num_bytes / self.links[rank].bytes_per_second
            self.sent_until[rank] = end
            self._span(rank, "send", str(task), begin, end)
            self._at(end, partial(self._sent, rank, message, num_bytes, begin))
        self.here[rank].update(self.plan.makes(task))
        self._next_task(rank, now)

    def _sent(
        self, source: int, message: Message, num_bytes: int, begin: float, now: float
    ) -> None:
        """A message has left: it comes in while it goes out, unless others come in before it."""
        dest = message.dest
        seconds = num_bytes / self.links[dest].bytes_per_second
        arrived = max(now, max(begin, self.received_until[dest]) + seconds)
        self.received_until[dest] = arrived
        self._at(arrived + self.links[source].latency, partial(self._arrived, message))

    def _arrived(self, message: Message, now: float) -> None:
        rank = message.dest
        self.here[rank].update(message.products)
        if self.missing[rank]:
            self.missing[rank].difference_update(message.products)
            if not self.missing[rank]:
                self._next_task(rank, now)

    def _span(self, rank: int, what: str, label: str, start: float, end: float) -> None:
        if self.timeline and end > start:
            self.found.spans.append(Span(rank, what, label, start, end))
