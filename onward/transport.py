"""Messages between ranks: tensors of known shapes, in a known order for each pair of ranks.

The only module that imports torch.distributed. What gloo asks for, and is done here once: every
Work handle is kept until it was waited for (a dropped one cancels its message), nothing is polled
with `is_completed` (it stays False) and no wait has a short timeout (it would close the
connection), and messages are told apart by their order, not by tags.
"""

import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import uuid
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import chain, count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import rendezvous  # type: ignore[attr-defined]

from onward.errors import PeerLostError, SettingError
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

OPEN: "list[Transport]" = []
"""Transports of this process that have not parted."""

LINE = 64
"""Bytes of a cache line."""

SMALL = 1 << 16
"""Bytes below which fresh memory is as good as used memory."""

IN_FLIGHT = 4
"""Messages to a rank that are on their way at once; then a sender waits: memory stays bounded."""


class Transport(ABC):
    """Moves messages from rank to rank."""

    rank: int
    num_ranks: int

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


class Buffers:
    """Memory for what arrives, used again once nothing refers to it.

    Fresh memory is dear: the system hands it out page by page, and for a block state of 48 MB that
    was measured to take up to ten times as long as copying the bytes.
    """

    def __init__(self) -> None:
        self.free: dict[int, list[np.ndarray]] = {}

    def empty_like(self, like: Tensor) -> Tensor:
        """Return a tensor of the same shape and type, with any content."""
        size = like.numel() * like.element_size()
        if size < SMALL:
            return torch.empty(like.shape, dtype=like.dtype)
        free = self.free.setdefault(size, [])
        try:
            memory = free.pop()
        except IndexError:
            # Vector instructions like whole cache lines.
            memory = np.empty(size + LINE, np.uint8)
            memory = memory[-memory.ctypes.data % LINE :][:size]
        # The tensor, and all that shares its storage, holds this view alone: as long as it lives,
        # the memory is in use.
        view = memory[:]
        weakref.finalize(view, free.append, memory).atexit = False
        return torch.from_numpy(view).view(like.dtype).view(like.shape)

    def reserve(self, layouts: Iterable[Sequence[Tensor]]) -> None:
        """Have memory ready for messages of these shapes, to be held at the same time."""
        held = [self.empty_like(like).zero_() for layout in layouts for like in layout]
        del held


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
        room.acquire()
        for number, tensor in enumerate(tensors, start=1):
            tensor = tensor.detach().contiguous()
            try:
                work = dist.isend(tensor, dest)
            except RuntimeError as error:
                self._fail(error)
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
                self._fail(error)
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
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.on_failure()

    def exchange(self, topic: str, note: Any) -> list[Any]:
        self.store.set(f"{topic}/{self.rank}", json.dumps(note))
        keys = [f"{topic}/{rank}" for rank in range(self.num_ranks)]
        while not self.store.check(keys):
            if self.failure is not None:
                raise PeerLostError(
                    f"Rank {self.rank} waited for the others ({topic}), and lost the connection "
                    f"to one. The log of the rank that ended first says why."
                ) from self.failure
            if self.store.check(["ended"]):
                raise PeerLostError(
                    f"Rank {self.rank} waited for the others ({topic}), and rank "
                    f"{self.store.get('ended').decode()} has ended. Its log says why."
                )
            # A wait with a time limit would print a warning for each limit that passes.
            time.sleep(0.02)
        return [json.loads(self.store.get(key)) for key in keys]

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
        with suppress(RuntimeError):
            self.store.set("ended", str(self.rank))

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


def launch(num_ranks: int, command: list[str]) -> int:
    """Start a command as several ranks on this machine and wait for them, as torchrun does.

    Args:
        num_ranks: Processes.
        command: Arguments of the Python interpreter.

    Returns:
        The exit status: 0, or that of the rank that failed first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each rank says itself what went wrong; the launcher would add a page of its own.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"onward: rank {rank} was ended by {name}.", file=sys.stderr)
            return 128 - failure.exitcode
        return failure.exitcode
    return 0
