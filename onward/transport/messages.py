"""Messages between ranks: tensors of known shapes, in a known order for each pair of ranks.

Here is what all ways to other ranks have in common, and the one that stays in this process.
"""

import os
import queue
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from onward.errors import OnwardError, PeerLostError
from onward.team import Alone, Team
from onward.timeline import Recorder
from onward.transport.waiting import Doing

Deliver = Callable[[list[Tensor]], None]
"""What is done with a message that has arrived."""

LOOK_EVERY_SECONDS = 0.02
"""How often a rank looks for a note: a wait with a limit would print a warning each time."""

OPEN: "list[Transport]" = []
"""Transports of this process that have not parted."""


class Transport(ABC):
    """Moves messages from rank to rank."""

    rank: int
    num_ranks: int
    carries = True
    """Whether messages travel; where not, ranks read what others have kept."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.recorder: Recorder | None = None
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.doing = Doing()

    def send(self, dest: int, tensors: Sequence[Tensor], label: str = "") -> None:
        """Hand tensors to a rank; returns before they have arrived. They must not change after.

        Args:
            dest: The rank.
            tensors: What it gets.
            label: What a timeline calls the message.
        """
        self.bytes_sent += sum(tensor.nbytes for tensor in tensors)
        self._send(dest, tensors, label)

    @abstractmethod
    def _send(self, dest: int, tensors: Sequence[Tensor], label: str) -> None: ...

    @abstractmethod
    def expect(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        """Say what the messages of a source will look like, in order, and who takes them.

        Args:
            source: A rank.
            layouts: For each message, tensors of the shapes and types to come, with any content.
            deliver: Called with each message, in order; the tensors are the receiver's own.
        """

    @abstractmethod
    def put(self, topic: str, note: Any) -> None:
        """Leave something small where all ranks find it, in place of what this rank left before.

        Args:
            topic: What it is about.
            note: Anything JSON can hold, under a megabyte.
        """

    @abstractmethod
    def get(self, topic: str, ranks: Sequence[int] | None = None) -> list[Any]:
        """Return what ranks, or all, have left on a topic; None for those that have not."""

    def all_gather(self, topic: str, note: Any) -> list[Any]:
        """Give all ranks something small, and get theirs.

        Args:
            topic: Each is used once.
            note: Anything JSON can hold, under a megabyte.

        Returns:
            The notes of all ranks, in order.

        Raises:
            PeerLostError: One has ended, or cannot be reached.
        """
        # In a list, since a rank may have nothing to say.
        self.put(topic, [note])
        every: list[Any] = []
        for rank in range(self.num_ranks):
            with self.doing.wait(f"word ({topic})", rank):
                while (note := self.get(topic, [rank])[0]) is None:
                    self.check_peers()
                    time.sleep(LOOK_EVERY_SECONDS)
            every += note
        return every

    @abstractmethod
    def team(self, teams: Sequence[range]) -> Team:
        """Return the team of this rank, given the ranks of all teams; all ranks call it."""

    def check_peers(self) -> None:
        """Notice that another rank has ended.

        Raises:
            PeerLostError: It has, or the connection to it is lost.
        """
        if isinstance(self.failure, OnwardError):
            raise self.failure
        if self.failure is not None:
            raise PeerLostError(f"Rank {self.rank} cannot go on: {self.failure}") from self.failure

    def fail(self, error: Exception) -> None:
        """Let what waits for messages end with an error, the first that there was."""
        self.failure = self.failure or error
        self.on_failure()

    @abstractmethod
    def connect(self) -> None:
        """Wait until all ranks are there; nothing else works before."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until everything sent, by any rank, has been received."""

    @abstractmethod
    def close(self) -> None:
        """Part, once all ranks have finished."""

    @abstractmethod
    def say_ended(self) -> None:
        """Tell the others that this rank ends before its time."""


class InMemoryTransport(Transport):
    """Joins ranks of one process: what is sent is delivered at once. For tests and for reading."""

    def __init__(self, rank: int, peers: "list[InMemoryTransport]") -> None:
        super().__init__()
        self.rank = rank
        self.peers = peers
        self.inbox: dict[int, tuple[Iterator[Sequence[Tensor]], Deliver]] = {}
        self.mail: dict[int, queue.SimpleQueue[list[Tensor]]] = {}
        self.notes: dict[str, Any] = {}

    @staticmethod
    def group(num_ranks: int) -> "list[InMemoryTransport]":
        """Return the transports of some ranks that know each other."""
        peers: list[InMemoryTransport] = []
        peers.extend(InMemoryTransport(rank, peers) for rank in range(num_ranks))
        for peer in peers:
            peer.mail = {rank: queue.SimpleQueue() for rank in range(num_ranks)}
        return peers

    @property
    def num_ranks(self) -> int:  # type: ignore[override]
        """Number of ranks."""
        return len(self.peers)

    def _send(self, dest: int, tensors: Sequence[Tensor], label: str) -> None:
        layouts, deliver = self.peers[dest].inbox[self.rank]
        layout = next(layouts)
        assert [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in layout]
        # Rows one after the other, as on the wire.
        kept = torch.contiguous_format
        deliver([tensor.detach().clone(memory_format=kept) for tensor in tensors])

    def expect(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        self.inbox[source] = (iter(layouts), deliver)

    def put(self, topic: str, note: Any) -> None:
        self.notes[topic] = note

    def get(self, topic: str, ranks: Sequence[int] | None = None) -> list[Any]:
        asked = range(self.num_ranks) if ranks is None else ranks
        return [self.peers[rank].notes.get(topic) for rank in asked]

    def all_gather(self, topic: str, note: Any) -> list[Any]:
        if self.num_ranks > 1:
            raise NotImplementedError("Ranks of one process take turns, and cannot wait.")
        return super().all_gather(topic, note)

    def team(self, teams: Sequence[range]) -> Team:
        members = next(ranks for ranks in teams if self.rank in ranks)
        return InMemoryTeam(self, members) if len(members) > 1 else Alone()

    def connect(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def say_ended(self) -> None:
        pass


class InMemoryTeam(Team):
    """Ranks of one process that work together, each in a thread of its own."""

    def __init__(self, transport: InMemoryTransport, members: range) -> None:
        super().__init__(members.index(transport.rank), len(members))
        self.transport, self.members = transport, members

    def _all_gather(
        self, own: Sequence[Tensor], layouts: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor]]:
        here = self.transport
        for rank in self.members:
            # Rows one after the other, as on the wire.
            copies = [t.detach().clone(memory_format=torch.contiguous_format) for t in own]
            here.peers[rank].mail[here.rank].put(copies)
        here.bytes_sent += sum(t.nbytes for t in own) * (self.size - 1)
        return [self._get(rank) for rank in self.members]

    def _get(self, rank: int) -> Sequence[Tensor]:
        while True:
            try:
                return self.transport.mail[rank].get(timeout=0.1)
            except queue.Empty:
                if self.transport.failure is not None:
                    raise PeerLostError("Another rank of the team failed.") from None


def exit_process(status: int) -> None:
    """End this rank at once, if it is one of several that are connected.

    Threads that wait for messages would keep it, and so the others, from ending.
    """
    if OPEN:
        if status:
            OPEN[-1].say_ended()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
