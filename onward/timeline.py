"""What each rank did and when: recorded, or simulated, and as a file that trace viewers open."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from onward.plan.tasks import TaskKind

WORDS = {
    TaskKind.PASS: "forward",
    TaskKind.TRAIN: "train",
    TaskKind.SCORE: "score",
    TaskKind.VALIDATE: "validate",
    TaskKind.GATHER: "gather",
}
"""What a rank does in a task, in one word."""

LANES = {"send": 1, "receive": 2}
"""Lane of a rank for what goes on beside its tasks; all else is in lane 0."""

SHORTEST_SECONDS = 1e-4
"""Shortest wait that is worth a place in a timeline."""


class Span(NamedTuple):
    """Something a rank did for a while."""

    rank: int
    """Who."""
    what: str
    """train, forward, score, validate, gather, send, receive or wait."""
    label: str
    """The task that was done, was waited with, or made what travelled."""
    start: float
    """Seconds after the run began."""
    end: float
    """The same; a receive has no length, since nobody knows when a message began to come in."""


def spans_kept(num_ranks: int) -> int:
    """Return the spans that each rank keeps for the timeline, so that its file stays small."""
    return min(10_000, max(200, 200_000 // num_ranks))


class Recorder:
    """Notes what one rank does.

    Args:
        rank: Whose.
        most: Spans that are kept; a run that does more is recorded up to there.
    """

    def __init__(self, rank: int, most: int) -> None:
        self.rank = rank
        self.most = most
        self.spans: list[Span] = []
        self.lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Let the run begin now."""
        self.wall, self.zero = time.time(), time.perf_counter()

    def now(self) -> float:
        """Return the seconds since the run began."""
        return time.perf_counter() - self.zero

    def add(self, what: str, label: str, start: float, end: float) -> None:
        """Keep a span; threads that send and receive do so too."""
        with self.lock:
            if len(self.spans) < self.most:
                self.spans.append(Span(self.rank, what, label, start, end))

    @contextmanager
    def span(self, what: str, label: str) -> Iterator[None]:
        """Keep a span that lasts as long as the body."""
        start = self.now()
        try:
            yield
        finally:
            self.add(what, label, start, self.now())

    def note(self) -> dict[str, Any]:
        """Return what the rank tells of itself, in microseconds, for `merged`."""
        with self.lock:
            spans = [
                [s.what, s.label, round(1e6 * s.start), round(1e6 * s.end)] for s in self.spans
            ]
        return {"wall": self.wall, "is_full": len(spans) == self.most, "spans": spans}


def merged(notes: Sequence[dict[str, Any]]) -> list[Span]:
    """Join the notes of all ranks, from the moment when the first of them began.

    The clocks of several machines must agree (as NTP keeps them) for their lanes to.
    """
    first = min(note["wall"] for note in notes)
    return [
        Span(rank, what, label, begin + 1e-6 * start, begin + 1e-6 * end)
        for rank, note in enumerate(notes)
        for begin in [note["wall"] - first]
        for what, label, start, end in note["spans"]
    ]


def is_whole(notes: Iterable[dict[str, Any]]) -> bool:
    """Return whether every rank recorded all that it did."""
    return not any(note["is_full"] for note in notes)


def to_chrome(spans: Iterable[Span]) -> dict[str, Any]:
    """Return spans in the Chrome trace format, as chrome://tracing and Perfetto open it.

    A rank is a process; its tasks, what it sends and what it receives are threads.

    Source:
        Trace Event Format, "JSON Object Format"; X is a span, i an instant, M a name.
    """
    events: list[dict[str, Any]] = []
    ranks = set()
    for span in spans:
        ranks.add(span.rank)
        where = {"pid": span.rank, "tid": LANES.get(span.what, 0), "ts": 1e6 * span.start}
        what = {"name": span.label or span.what, "cat": span.what}
        if span.end > span.start:
            events.append({**what, "ph": "X", **where, "dur": 1e6 * (span.end - span.start)})
        else:
            events.append({**what, "ph": "i", **where, "s": "t"})
    names = [
        {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}}
        for rank in sorted(ranks)
    ]
    names += [
        {"name": "thread_name", "ph": "M", "pid": rank, "tid": lane, "args": {"name": name}}
        for rank in sorted(ranks)
        for lane, name in enumerate(("tasks", *LANES))
    ]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}


def from_chrome(trace: dict[str, Any]) -> list[Span]:
    """Return the spans of a trace that `to_chrome` made."""
    return [
        Span(
            event["pid"],
            event["cat"],
            event["name"],
            1e-6 * event["ts"],
            1e-6 * (event["ts"] + event.get("dur", 0.0)),
        )
        for event in trace["traceEvents"]
        if event["ph"] != "M"
    ]
