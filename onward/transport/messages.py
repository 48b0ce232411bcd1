"""Messages between ranks: tensors of known shapes, in a known order for each pair of ranks.

Here is what all ways to other ranks have in common, and what a rank has that is alone.
"""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from onward.engine.team import Alone, Team
from onward.errors import OnwardError, PeerLostError
from onward.timeline import Recorder
from onward.transport.waiting import Doing

Deliver = Callable[[list[Tensor]], None]
"""What is done with a message that has arrived."""

LOOK_EVERY_SECONDS = 0.02
"""How often a rank looks for what another leaves: gloo warns at each wait that has a limit."""

OPEN: "list[Transport]" = []
"""Transports of this process that have not parted."""

PIECE = 500_000
"""Characters of a note that travel at once; stores take no more than megabytes."""


class Transport(ABC):
    """Moves messages from rank to rank."""

    rank: int
    num_ranks: int
    carries = True
    """Whether messages travel; where not, ranks read what others have kept."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.recorder = Recorder(0, most=0)
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
    def get(self, topic: str, rank: int) -> Any:
        """Return what a rank has left on a topic; None where it has not."""

    def all_gather(self, topic: str, note: Any) -> list[Any]:
        """Give all ranks something, and get theirs.

        Args:
            topic: Each is used once.
            note: Anything JSON can hold; what is large travels in pieces.

        Returns:
            The notes of all ranks, in order.

        Raises:
            PeerLostError: One has ended, or cannot be reached.
        """
        text = json.dumps(note)
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        for number, piece in enumerate(pieces):
            self.put(_topic(topic, number), [len(pieces), piece])
        every: list[Any] = []
        for rank in range(self.num_ranks):
            text, number, count = "", 0, 1
            while number < count:
                with self.doing.wait(f"word ({topic})", rank):
                    while (found := self.get(_topic(topic, number), rank)) is None:
                        self.pause()
                count, piece = found
                text, number = text + piece, number + 1
            every.append(json.loads(text))
        return every

    def team(self, teams: Sequence[range]) -> Team:
        """Return the team of this rank, given the ranks of all teams; all ranks call it."""
        assert all(len(ranks) == 1 for ranks in teams), "Ranks without connections work alone."
        return Alone()

    def pause(self) -> None:
        """Wait a little, before this rank looks once more for what it waits for.

        Raises:
            PeerLostError: It would wait in vain.
        """
        self.check_peers()
        time.sleep(LOOK_EVERY_SECONDS)

    def check_peers(self) -> None:
        """Notice that another rank has ended.

        Raises:
            PeerLostError: It has, or the connection to it is lost.
        """
        self.check_connections(f"cannot go on: {self.failure}")

    def check_connections(self, consequence: str) -> None:
        """Notice that a connection is lost; asks nobody, for it is often done.

        Args:
            consequence: What that means for this rank, as a message goes on after its name.

        Raises:
            PeerLostError: One is.
        """
        if isinstance(self.failure, OnwardError | torch.OutOfMemoryError):
            raise self.failure
        if self.failure is not None:
            raise PeerLostError(f"Rank {self.rank} {consequence}") from self.failure

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


class SingleProcessTransport(Transport):
    """One rank, which has nobody to send to and nobody to wait for."""

    rank, num_ranks = 0, 1

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, Any] = {}

    def _send(self, dest: int, tensors: Sequence[Tensor], label: str) -> None:
        """Do nothing: no task of another rank needs it."""

    def expect(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        """Do nothing, as `send` does."""

    def put(self, topic: str, note: Any) -> None:
        self.notes[topic] = note

    def get(self, topic: str, rank: int) -> Any:
        return self.notes.get(topic)

    def connect(self) -> None:
        """Do nothing: all ranks are there."""

    def finish(self) -> None:
        """Do nothing: nothing was sent."""

    def close(self) -> None:
        """Do nothing: there is nobody to part from."""

    def say_ended(self) -> None:
        """Do nothing: there is nobody who waits."""


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


def _topic(topic: str, piece: int) -> str:
    return f"{topic} {piece}" if piece else topic
