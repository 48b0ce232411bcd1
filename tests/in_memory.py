"""Several ranks in one process: what one sends is delivered to another at once.

They take turns, task by task, so that a run of many ranks is done without any wait; ranks of a team
have a thread each.
"""

import queue
import threading

import torch

from onward.engine.team import Alone, Team
from onward.errors import PeerLostError
from onward.runtime.runtime import Runtime, make_worker
from onward.transport.messages import Transport


class InMemoryTransport(Transport):
    """Joins ranks of one process."""

    def __init__(self, rank, peers):
        super().__init__()
        self.rank, self.num_ranks = rank, len(peers)
        self.peers = peers
        self.inbox = {}
        self.mail = {peer: queue.SimpleQueue() for peer in range(len(peers))}
        self.notes = {}

    @staticmethod
    def group(num_ranks):
        """Return the transports of some ranks that know each other."""
        peers = [None] * num_ranks
        peers[:] = [InMemoryTransport(rank, peers) for rank in range(num_ranks)]
        return peers

    def _send(self, dest, tensors, label):
        layouts, deliver = self.peers[dest].inbox[self.rank]
        layout = next(layouts)
        assert [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in layout]
        deliver(copies(tensors))

    def expect(self, source, layouts, deliver):
        self.inbox[source] = (iter(layouts), deliver)

    def put(self, topic, note):
        self.notes[topic] = note

    def get(self, topic, rank):
        return self.peers[rank].notes.get(topic)

    def all_gather(self, topic, note):
        raise NotImplementedError("Ranks of one process take turns, and cannot wait.")

    def team(self, teams):
        members = next(ranks for ranks in teams if self.rank in ranks)
        return InMemoryTeam(self, members) if len(members) > 1 else Alone()

    def connect(self):
        pass

    def finish(self):
        pass

    def close(self):
        pass

    def say_ended(self):
        pass


class InMemoryTeam(Team):
    """Ranks of one process that work together, each in a thread of its own."""

    def __init__(self, transport, members):
        super().__init__(members.index(transport.rank), len(members))
        self.transport, self.members = transport, members

    def _all_gather(self, own, layouts):
        here = self.transport
        for rank in self.members:
            here.peers[rank].mail[here.rank].put(copies(own))
        here.bytes_sent += sum(t.nbytes for t in own) * (self.size - 1)
        return [self._get(rank) for rank in self.members]

    def _get(self, rank):
        while True:
            try:
                return self.transport.mail[rank].get(timeout=0.1)
            except queue.Empty:
                if self.transport.failure is not None:
                    raise PeerLostError("Another rank of the team failed.") from None


def copies(tensors):
    """Return copies with samples one after the other, as on the wire."""
    return [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]


def run_in_memory(plan, placement, networks, shards, settings, way="memory"):
    """Run all ranks in this process, each with a network of its own; return their runtimes.

    Rank 0's network is the trained one. In a federated run each rank holds its own shards only.
    """
    runtimes = []
    for network, transport in zip(
        networks, InMemoryTransport.group(placement.num_ranks), strict=True
    ):
        own = {
            shard: held
            for shard, held in shards.items()
            if placement.name != "federated" or shard % placement.num_ranks == transport.rank
        }
        worker = make_worker(plan, network, own, settings)
        worker.way = way
        runtimes.append(Runtime(plan, placement, worker, transport))
    if max(placement.teams) > 1:
        _run_in_threads(runtimes)
        return runtimes
    for runtime in runtimes:
        runtime.restore()
    for task in plan.tasks():
        runtimes[placement.ranks(task)[0]].do(task)
    return runtimes


def _run_in_threads(runtimes):
    """Run each rank in a thread, since those of a team wait for each other within a task."""
    errors = []

    def run(runtime):
        try:
            runtime.run()
        except Exception as error:
            errors.append(error)
            for other in runtimes:
                other.transport.fail(error)

    threads = [threading.Thread(target=run, args=(runtime,)) for runtime in runtimes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
