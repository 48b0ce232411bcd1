"""Messages between ranks: tensors of known shapes, in a known order for each pair of ranks.

The only module that imports torch.distributed. What gloo asks for, and is done here once: every
Work handle is kept until it was waited for (a dropped one cancels its message), nothing is polled
with `is_completed` (it stays False) and no wait has a short timeout (it would close the
connection), and messages are told apart by their order, not by tags.
"""

import json
import os
import queue
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain, count, islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import rendezvous  # type: ignore[attr-defined]

from onward.buffers import Buffers
from onward.errors import PeerLostError, SettingError
from onward.launcher import LISTEN_FD
from onward.team import Alone, Team
from onward.timeline import Recorder

Deliver = Callable[[list[Tensor]], None]
"""What is done with a message that has arrived."""

NEVER = timedelta(days=365)
"""How long a rank waits: gloo's own limit of 30 minutes is shorter than a long chapter."""

POSTED = 2
"""Messages asked for ahead from each source, so that they arrive while a rank computes."""

RUNS = count()
"""Numbers the transports of a process."""

SERVED: list[Any] = []
"""What ranks of this machine meet at, on the rank that keeps it."""

OPEN: "list[Transport]" = []
"""Transports of this process that have not parted."""

IN_FLIGHT = 4
"""Messages to a rank that are on their way at once; then a sender waits: memory stays bounded."""


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
    def tell(self, topic: str, note: Any) -> None:
        """Leave something small where all ranks find it, in place of what this rank left before.

        Args:
            topic: What it is about.
            note: Anything JSON can hold, under a megabyte.
        """

    @abstractmethod
    def heard(self, topic: str, ranks: Sequence[int] | None = None) -> list[Any]:
        """Return what ranks, or all, have left on a topic; None for those that have not."""

    @abstractmethod
    def exchange(self, topic: str, note: Any) -> list[Any]:
        """Tell all ranks something small, and hear what they say.

        Args:
            topic: Each is used once.
            note: Anything JSON can hold, under a megabyte.

        Returns:
            The notes of all ranks, in order.
        """

    @abstractmethod
    def team(self, teams: Sequence[range]) -> Team:
        """Return the team of this rank, given the ranks of all teams; all ranks call it."""

    def check_peers(self) -> None:
        """Notice that another rank has ended.

        Raises:
            PeerLostError: It has, or the connection to it is lost.
        """
        if self.failure is not None:
            raise PeerLostError(f"Rank {self.rank} cannot go on: {self.failure}") from self.failure

    def fail(self, error: Exception) -> None:
        """Let what waits for messages end with an error, the first that there was."""
        self.failure = self.failure or error
        self.on_failure()

    @abstractmethod
    def close(self) -> None:
        """Wait until everything sent has been received, then part."""

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

    def tell(self, topic: str, note: Any) -> None:
        self.notes[topic] = note

    def heard(self, topic: str, ranks: Sequence[int] | None = None) -> list[Any]:
        asked = range(self.num_ranks) if ranks is None else ranks
        return [self.peers[rank].notes.get(topic) for rank in asked]

    def exchange(self, topic: str, note: Any) -> list[Any]:
        if self.num_ranks > 1:
            raise NotImplementedError("Ranks of one process take turns, and cannot wait.")
        return [note]

    def team(self, teams: Sequence[range]) -> Team:
        members = next(ranks for ranks in teams if self.rank in ranks)
        return InMemoryTeam(self, members) if len(members) > 1 else Alone()

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


class Sent(NamedTuple):
    """A tensor on its way, which must live until it has arrived."""

    work: dist.Work
    tensor: Tensor
    label: str
    start: float
    room: threading.Semaphore | None
    """What its message took up, where it is the last of it."""


class DistributedTransport(Transport):
    """Processes on one machine or several, over torch.distributed with gloo.

    Rank, world size and meeting point come from the environment, as torchrun sets them.

    Args:
        iface: Network interface to use. None: loopback where all ranks are on this machine, else
            gloo's choice.
    """

    def __init__(self, iface: str | None = None) -> None:
        super().__init__()
        if iface is None and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            iface = "lo" if os.path.exists("/sys/class/net/lo") else None
        if iface is not None:
            known = [name for _, name in socket.if_nameindex()]
            if iface not in known:
                raise SettingError(
                    f"This machine has no network interface {iface}. It has {', '.join(known)}."
                )
            os.environ["GLOO_SOCKET_IFNAME"] = iface
        _serve()
        store, self.rank, self.num_ranks = next(iter(rendezvous("env://")))
        # torchrun restarts a group with the store of the last try, and would find its addresses
        # there (pytorch#135712), and a process may train more than once; a prefix keeps them apart.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"onward-{attempt}-{next(RUNS)}", store
        )
        OPEN.append(self)
        dist.init_process_group(
            "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.num_ranks,
            timeout=NEVER,
        )
        self._sent: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        self._room = [threading.Semaphore(IN_FLIGHT) for _ in range(self.num_ranks)]
        self._sender = threading.Thread(target=self._wait_for_sends, daemon=True)
        self._sender.start()
        self._receivers: list[threading.Thread] = []
        self.buffers = Buffers()

    def _send(self, dest: int, tensors: Sequence[Tensor], label: str) -> None:
        start = self.recorder.now() if self.recorder else 0.0
        if not tensors:
            return
        room = self._room[dest]
        while not room.acquire(timeout=1.0):
            self.check_peers()
        for number, tensor in enumerate(tensors, start=1):
            tensor = tensor.detach().contiguous()
            try:
                work = dist.isend(tensor, dest)
            except RuntimeError as error:
                self.fail(error)
                raise PeerLostError(
                    f"Rank {self.rank} lost the connection to rank {dest}. Its log says why, or "
                    f"that of the rank that ended first."
                ) from error
            assert work is not None
            is_last = number == len(tensors)
            self._sent.put(Sent(work, tensor, label, start, room if is_last else None))

    def _wait_for_sends(self) -> None:
        while (sent := self._sent.get()) is not None:
            try:
                sent.work.wait()
            except RuntimeError as error:
                self.fail(error)
            if sent.room is None:
                continue
            if self.recorder:
                self.recorder.add("send", sent.label, sent.start, self.recorder.now())
            sent.room.release()

    def expect(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        rest = iter(layouts)
        first = list(islice(rest, POSTED + 2))
        # Those asked for, the one in use, and room for the part of others that stays longer.
        self.buffers.reserve(first)
        arguments = (source, chain(first, rest), deliver)
        receiver = threading.Thread(target=self._receive, args=arguments, daemon=True)
        receiver.start()
        self._receivers.append(receiver)

    def _receive(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        posted: deque[list[tuple[dist.Work, Tensor]]] = deque()

        def take() -> None:
            arriving = posted.popleft()
            for work, _ in arriving:
                work.wait()
            deliver([tensor for _, tensor in arriving])

        try:
            for layout in layouts:
                arriving = []
                for like in layout:
                    tensor = self.buffers.empty_like(like)
                    work = dist.irecv(tensor, source)
                    assert work is not None
                    arriving.append((work, tensor))
                posted.append(arriving)
                if len(posted) == POSTED:
                    take()
            while posted:
                take()
        except Exception as error:
            self.fail(error)

    def tell(self, topic: str, note: Any) -> None:
        with self._store() as store:
            store.set(f"{topic}/{self.rank}", json.dumps(note))

    @contextmanager
    def _store(self) -> Iterator[Any]:
        """Yield where the ranks meet."""
        try:
            yield self.store
        except RuntimeError as error:
            raise PeerLostError(
                f"Rank {self.rank} lost the connection to where the ranks meet. The log of the "
                f"rank that ended first says why."
            ) from error

    def heard(self, topic: str, ranks: Sequence[int] | None = None) -> list[Any]:
        asked = range(self.num_ranks) if ranks is None else ranks
        keys = [f"{topic}/{rank}" for rank in asked]
        with self._store() as store:
            # A key that is not there would be waited for.
            known = [store.get(key) if store.check([key]) else b"null" for key in keys]
        return [json.loads(text) for text in known]

    def exchange(self, topic: str, note: Any) -> list[Any]:
        self.tell(topic, note)
        keys = [f"{topic}/{rank}" for rank in range(self.num_ranks)]
        while True:
            with self._store() as store:
                if store.check(keys):
                    return [json.loads(store.get(key)) for key in keys]
                ended = store.get("ended").decode() if store.check(["ended"]) else None
            if self.failure is not None:
                raise PeerLostError(
                    f"Rank {self.rank} waited for the others ({topic}), and lost the connection "
                    f"to one. The log of the rank that ended first says why."
                ) from self.failure
            if ended is not None:
                raise PeerLostError(
                    f"Rank {self.rank} waited for the others ({topic}), and rank {ended} has "
                    f"ended. Its log says why."
                )
            # A wait with a time limit would print a warning for each limit that passes.
            time.sleep(0.02)

    def team(self, teams: Sequence[range]) -> Team:
        team: Team = Alone()
        for members in teams:
            if len(members) > 1:
                # Every rank makes all groups, in the same order.
                group = dist.new_group(list(members), backend="gloo", timeout=NEVER)
                if self.rank in members:
                    assert group is not None
                    team = DistributedTeam(self, members, group)
        return team

    def say_ended(self) -> None:
        # The store may be gone with the rank that held it.
        with suppress(PeerLostError), self._store() as store:
            store.set("ended", str(self.rank))

    def close(self) -> None:
        self._sent.put(None)
        self._sender.join()
        for receiver in self._receivers:
            receiver.join()
        self.exchange("closed", None)
        # Rank 0 may hold the store that the others still read from.
        self.store.set(f"gone/{self.rank}", "")
        if self.rank == 0:
            self.store.wait([f"gone/{rank}" for rank in range(self.num_ranks)])
        dist.destroy_process_group()
        OPEN.remove(self)


class DistributedTeam(Team):
    """Processes that work together, over connections of their own."""

    def __init__(
        self, transport: DistributedTransport, members: range, group: dist.ProcessGroup
    ) -> None:
        super().__init__(members.index(transport.rank), len(members))
        self.transport, self.members, self.group = transport, members, group

    def _all_gather(
        self, own: Sequence[Tensor], layouts: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor]]:
        mine = [tensor.detach().contiguous() for tensor in own]
        works: list[dist.Work | None] = []
        every: list[Sequence[Tensor]] = []
        try:
            for rank, layout in zip(self.members, layouts, strict=True):
                if rank == self.transport.rank:
                    every.append(mine)
                    continue
                theirs = [self.transport.buffers.empty_like(like) for like in layout]
                every.append(theirs)
                works += [dist.isend(t, rank, self.group) for t in mine if t.numel()]
                works += [dist.irecv(t, rank, self.group) for t in theirs if t.numel()]
                self.transport.bytes_sent += sum(tensor.nbytes for tensor in mine)
            for work in works:
                assert work is not None
                work.wait()
        except RuntimeError as error:
            raise PeerLostError(
                f"Rank {self.transport.rank} lost the connection to another of its team. The log "
                f"of the rank that ended first says why."
            ) from error
        return every


def _serve() -> None:
    """Let ranks of this machine meet, where the launcher has left that to this one."""
    listening = os.environ.pop(LISTEN_FD, None)
    if listening is not None:
        SERVED.append(
            dist.TCPStore(  # type: ignore[attr-defined]
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=int(listening),
            )
        )


def leave(status: int) -> None:
    """End this rank at once, if it is one of several that are connected.

    Threads that wait for messages would keep it, and so the others, from ending.
    """
    if OPEN:
        if status:
            OPEN[-1].say_ended()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
