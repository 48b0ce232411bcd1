"""Messages between processes, on one machine or several, over torch.distributed.

The only module that imports it. What gloo asks for, and is done here once: every Work handle is
kept until it was waited for (a dropped one cancels its message), nothing is polled with
`is_completed` (it stays False) and no wait has a short timeout (it would close the connection), and
messages are told apart by their order, not by tags.
"""

import json
import os
import queue
import socket
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain, islice
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from onward.engine.team import Alone, Team
from onward.errors import PeerLostError, SettingError
from onward.launcher import LISTEN_FD
from onward.transport.buffers import Buffers
from onward.transport.copies import Copies
from onward.transport.messages import OPEN, Deliver, Transport

NEVER = timedelta(days=365)
"""How long a rank waits: gloo's own limit of 30 minutes is shorter than a long chapter."""

PARTING = timedelta(seconds=30)
"""How long the rank that keeps the meeting point waits for others to leave it."""

POSTED = 2
"""Messages asked for ahead from each source, so that they arrive while a rank computes."""

SERVED: list[Any] = []
"""What ranks of this machine meet at, on the rank that keeps it."""

IN_FLIGHT = 4
"""Messages to a rank that are on their way at once; then a sender waits: memory stays bounded."""


class Sent(NamedTuple):
    """A message on its way, whose tensors must live until they have arrived."""

    works: list[dist.Work | None]
    tensors: list[Tensor]
    label: str
    start: float
    copies: Copies | None = None
    """Of tensors of a GPU, which are sent when they are there."""


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
        try:
            self.meeting, self.rank, self.num_ranks = next(iter(rendezvous("env://")))
        except RuntimeError as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise PeerLostError(f"The ranks cannot meet at {where}: {error}.") from error
        self.store = PrefixStore("starting", self.meeting)
        self._outgoing: dict[int, Outgoing] = {}
        self._receivers: dict[int, threading.Thread] = {}
        self.buffers = Buffers()
        OPEN.append(self)

    def connect(self) -> None:
        word = self._meet()
        self.store = PrefixStore(word, self.meeting)
        with self.doing.wait("a connection", (self.rank + 1) % self.num_ranks, is_short=True):
            try:
                dist.init_process_group(
                    "gloo",
                    # A way of its own: whoever waits for a key keeps all others from theirs.
                    store=PrefixStore(word, self.meeting.clone()),
                    rank=self.rank,
                    world_size=self.num_ranks,
                    timeout=NEVER,
                )
            except RuntimeError as error:
                raise PeerLostError(
                    f"Rank {self.rank} could not connect to all others: {error}. `onward doctor` "
                    f"lists the interfaces of this machine."
                ) from error

    def _meet(self) -> str:
        """Return a word that all ranks of this start know, and none of an earlier one.

        torchrun starts ranks again with the store of the last try, where its words still are
        (pytorch#135712), and on several machines each agent counts its restarts for itself.
        """
        own = uuid.uuid4().hex
        if self.rank:
            return self._answered(own)
        for rank in range(1, self.num_ranks):
            with self.doing.wait("word", rank):
                while self._read(self.meeting, f"here/{rank}") != own:
                    hello = self._read(self.meeting, f"hello/{rank}")
                    self._write(self.meeting, f"welcome/{rank}", f"{hello} {own}")
                    self.pause()
        self._write(self.meeting, "all are here", own)
        return own

    def _answered(self, own: str) -> str:
        """Say hello to rank 0 until it has answered this rank, and all others."""
        self._write(self.meeting, f"hello/{self.rank}", own)
        with self.doing.wait("word", 0):
            while True:
                welcome = self._read(self.meeting, f"welcome/{self.rank}")
                hello, _, first = welcome.partition(" ")
                if hello == own:
                    self._write(self.meeting, f"here/{self.rank}", first)
                    if self._read(self.meeting, "all are here") == first:
                        return first
                self.pause()

    def _send(self, dest: int, tensors: Sequence[Tensor], label: str) -> None:
        start = self.recorder.now()
        if not tensors:
            return
        if dest not in self._outgoing:
            self._outgoing[dest] = Outgoing(self, dest)
        outgoing = self._outgoing[dest]
        with self.doing.wait("room for a message", dest):
            outgoing.take_room()
        detached = [tensor.detach().contiguous() for tensor in tensors]
        outgoing.is_of_device |= not all(tensor.is_cpu for tensor in detached)
        if outgoing.is_of_device:
            # The thread sends those that come after as well, in their order.
            outgoing.sent.put(Sent([], [], label, start, Copies(detached)))
            return
        sent = Sent([], detached, label, start)
        try:
            for tensor in sent.tensors:
                sent.works.append(dist.isend(tensor, dest))
        except RuntimeError as error:
            self.fail(error)
            raise PeerLostError(
                f"Rank {self.rank} lost the connection to rank {dest}. Its log says why, or that "
                f"of the rank that ended first."
            ) from error
        finally:
            outgoing.sent.put(sent)

    def expect(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        rest = iter(layouts)
        first = list(islice(rest, POSTED + 2))
        # Those asked for, the one in use, and room for the part of others that stays longer.
        self.buffers.reserve(first)
        arguments = (source, chain(first, rest), deliver)
        receiver = threading.Thread(target=self._receive, args=arguments, daemon=True)
        receiver.start()
        self._receivers[source] = receiver

    def _receive(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        posted: deque[tuple[list[dist.Work | None], list[Tensor]]] = deque()

        def take() -> None:
            works, tensors = posted.popleft()
            _wait_for(works)
            deliver(tensors)

        try:
            for layout in layouts:
                tensors = [self.buffers.empty_like(like) for like in layout]
                posted.append(([dist.irecv(tensor, source) for tensor in tensors], tensors))
                if len(posted) == POSTED:
                    take()
            while posted:
                take()
        except Exception as error:
            self.fail(error)

    @contextmanager
    def reached(self, whom: str) -> Iterator[None]:
        """Name what this rank has lost the connection to, where it does."""
        try:
            yield
        except RuntimeError as error:
            raise PeerLostError(
                f"Rank {self.rank} lost the connection to {whom}. The log of the rank that ended "
                f"first says why."
            ) from error

    def _write(self, store: Any, key: str, text: str) -> None:
        with self.reached("where the ranks meet"):
            store.set(key, text)

    def _read(self, store: Any, key: str) -> str:
        """Return what is written under a key; one that is not there would be waited for."""
        with self.reached("where the ranks meet"):
            return store.get(key).decode() if store.check([key]) else ""

    def put(self, topic: str, note: Any) -> None:
        self._write(self.store, f"{topic}/{self.rank}", json.dumps(note))

    def get(self, topic: str, rank: int) -> Any:
        return json.loads(self._read(self.store, f"{topic}/{rank}") or "null")

    def check_peers(self) -> None:
        super().check_peers()
        ended = self._read(self.store, "ended")
        if ended:
            raise PeerLostError(
                f"Rank {self.rank} waited for others, and rank {ended} has ended. Its log says why."
            )

    def team(self, teams: Sequence[range]) -> Team:
        team: Team = Alone()
        for members in teams:
            if len(members) > 1:
                # Every rank makes all groups, in the same order.
                first = next(rank for rank in members if rank != self.rank)
                with self.doing.wait("a connection", first, is_short=True):
                    group = dist.new_group(list(members), backend="gloo", timeout=NEVER)
                if self.rank in members:
                    assert group is not None
                    team = DistributedTeam(self, members, group)
        return team

    def say_ended(self) -> None:
        # The store may be gone with the rank that held it.
        with suppress(PeerLostError):
            self._write(self.store, "ended", str(self.rank))

    def finish(self) -> None:
        for dest, outgoing in self._outgoing.items():
            with self.doing.wait("its receipt", dest):
                outgoing.finish()
        for source, receiver in self._receivers.items():
            with self.doing.wait("the last messages", source):
                receiver.join()
        self.all_gather("finished", None)

    def close(self) -> None:
        # Rank 0 may hold the store that the others still read from.
        with suppress(RuntimeError):  # One was killed at the very end, and misses nothing.
            self.store.set(f"gone/{self.rank}", "")
            if self.rank == 0:
                self.store.wait([f"gone/{rank}" for rank in range(self.num_ranks)], PARTING)
        dist.destroy_process_group()
        OPEN.remove(self)


class Outgoing:
    """The messages to one rank: so many at once, each kept until it has arrived."""

    def __init__(self, transport: DistributedTransport, dest: int) -> None:
        self.transport, self.dest = transport, dest
        self.is_of_device = False
        self.sent: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(IN_FLIGHT)
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def take_room(self) -> None:
        """Wait until one message fewer than the most is on its way.

        Raises:
            PeerLostError: That will not be.
        """
        while not self._room.acquire(timeout=1.0):
            self.transport.check_peers()

    def finish(self) -> None:
        """Wait until all have arrived."""
        self.sent.put(None)
        self._thread.join()

    def _wait(self) -> None:
        on_their_way: deque[Sent] = deque()
        is_open = True
        while is_open or on_their_way:
            try:
                # Those that come are sent before earlier ones are waited for.
                sent = self.sent.get(block=not on_their_way)
            except queue.Empty:
                self._arrive(on_their_way.popleft())
                continue
            if sent is None:
                is_open = False
            else:
                on_their_way.append(self._posted(sent))

    def _posted(self, sent: Sent) -> Sent:
        """Return a message on its way; one of a GPU is sent once its copies are there."""
        if sent.copies is None:
            return sent
        try:
            copies = sent.copies.wait()
            works = [dist.isend(copy, self.dest) for copy in copies]
        except RuntimeError as error:
            self.transport.fail(error)
            return sent
        return sent._replace(tensors=copies, works=works)

    def _arrive(self, sent: Sent) -> None:
        """Wait until a message has arrived."""
        try:
            _wait_for(sent.works)
        except RuntimeError as error:
            self.transport.fail(error)
        recorder = self.transport.recorder
        recorder.add("send", sent.label, sent.start, recorder.now())
        self._room.release()


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
        mine = [tensor.detach().contiguous().cpu() for tensor in own]
        works: dict[int, list[dist.Work | None]] = {}
        every: list[Sequence[Tensor]] = []
        with self.transport.reached("another of its team"):
            for rank, layout in zip(self.members, layouts, strict=True):
                if rank == self.transport.rank:
                    every.append([tensor.detach() for tensor in own])
                    continue
                theirs = [self.transport.buffers.empty_like(like) for like in layout]
                every.append(theirs)
                works[rank] = [dist.isend(t, rank, self.group) for t in mine if t.numel()]
                works[rank] += [dist.irecv(t, rank, self.group) for t in theirs if t.numel()]
                self.transport.bytes_sent += sum(tensor.nbytes for tensor in mine)
            for rank, exchanged in works.items():
                with self.transport.doing.wait("its part of a step", rank):
                    _wait_for(exchanged)
        return [
            [theirs.to(like.device) for theirs, like in zip(tensors, layout, strict=True)]
            for tensors, layout in zip(every, layouts, strict=True)
        ]


def _wait_for(works: Iterable[dist.Work | None]) -> None:
    """Wait until messages have arrived."""
    for work in works:
        assert work is not None
        work.wait()


def _serve() -> None:
    """Let ranks of this machine meet, where the launcher has left that to this one."""
    listening = os.environ.pop(LISTEN_FD, None)
    if listening is not None:
        SERVED.append(
            TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=int(listening),
            )
        )
