"""Obeys: does the tasks of one rank in the order of the plan, and sends what others need.

The only place where a task is executed. All messages follow from plan and placement, so each
rank knows beforehand how many bytes it gets from whom, and in which order.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial

from torch import Tensor

from onward.chapters import ChapterWorker
from onward.errors import OnwardError, PeerLostError
from onward.networks import Network
from onward.placement import Placement, begun_on, messages
from onward.plan import ChapterPlan, Kind, Plan, Product, StreamPlan, Task, Thing
from onward.streams import StreamWorker
from onward.timeline import SHORTEST_SECONDS, WORDS, Recorder
from onward.transport import InMemoryTransport, Transport
from onward.workers import Arithmetic, Rows, Worker

QUEUE = 16
"""Mini-batches of activities from one source that wait here before no more are taken."""

LARGE = (Thing.WEIGHTS, Thing.MOMENTS, Thing.ACTIVITIES, Thing.NEUTRAL)
"""What a rank takes only so much of before it was needed."""

OnProduct = Callable[[Product, list[Tensor]], None]
"""Told of reports and counts as soon as this rank has them."""


class Runtime:
    """One rank of a run.

    Args:
        plan: What is computed.
        placement: Where.
        worker: Does the tasks of this rank.
        transport: How messages travel.
        on_product: Told of each report and of each count of validation rows.
        recorder: Notes what the rank does. None: nothing is noted.
    """

    def __init__(
        self,
        plan: Plan,
        placement: Placement,
        worker: Worker,
        transport: Transport,
        on_product: OnProduct = lambda product, tensors: None,
        recorder: Recorder | None = None,
    ) -> None:
        self.plan = plan
        self.placement = placement
        self.worker = worker
        self.transport = transport
        self.on_product = on_product
        self.recorder = recorder or Recorder(transport.rank, most=0)
        worker.recorder = transport.recorder = self.recorder
        worker.team = transport.team(placement.members)
        begun = begun_on(plan, placement, transport.rank)
        worker.release(block for block in plan.trained if block not in begun)
        self.idle_seconds = 0.0
        # How many tasks of this rank still need a product that is here.
        self.uses_left: dict[Product, int] = {}
        self.arrived: dict[Product, list[Tensor]] = {}
        self.queued: dict[int, set[Product]] = {}
        self.changed = threading.Condition()
        transport.on_failure = self._wake
        for source in range(placement.num_ranks):
            if source != transport.rank:
                self._expect(source)

    def run(self) -> None:
        """Do all tasks of this rank."""
        for task in self.plan.tasks():
            if self.transport.rank in self.placement.ranks(task):
                self.do(task)

    def do(self, task: Task) -> None:
        """Wait for what a task needs, do it, and send what it made."""
        needs = self.plan.needs(task)
        for product in needs:
            if product not in self.uses_left:
                self.worker.accept(product, self._wait_for(product, task))
                self.uses_left[product] = self._uses_here(product)
        with self.recorder.span(WORDS[task.kind], str(task)):
            self.worker.execute(task)
        sent = cache(self._sent)
        for message in messages(self.plan, self.placement, task):
            if message.source == self.transport.rank:
                tensors = [t for product in message.products for t in sent(product)]
                self.transport.send(message.dest, tensors, str(task))
        for product in self.plan.makes(task):
            self._told(product)
            self.uses_left[product] = self._uses_here(product)
            self._drop_unused(product)
        if task.kind is not Kind.GATHER:
            for product in needs:
                self.uses_left[product] -= 1
                self._drop_unused(product)

    def _uses_here(self, product: Product) -> int:
        return sum(self.transport.rank in self.placement.ranks(t) for t in self.plan.uses(product))

    def _drop_unused(self, product: Product) -> None:
        if not self.uses_left[product]:
            del self.uses_left[product]
            self.worker.drop(product)

    def _sent(self, product: Product) -> list[Tensor]:
        """Return the tensors of a product, which must not change until they have arrived."""
        tensors = self.worker.content(product)
        is_last = self.plan.gather in self.plan.uses(product)
        if product.thing is Thing.WEIGHTS and self.placement.owners and not is_last:
            # The block stays, and may be trained on before the message is out.
            return [tensor.clone() for tensor in tensors]
        return tensors

    def _told(self, product: Product) -> None:
        if self.transport.rank == 0 and product.thing in (Thing.REPORT, Thing.COUNTS):
            self.on_product(product, self.worker.content(product))

    def _expect(self, source: int) -> None:
        """Tell the transport what will come from a source."""
        here = self.transport.rank

        def incoming() -> Iterator[tuple[Product, ...]]:
            for task in self.plan.tasks():
                if source in self.placement.ranks(task):
                    for message in messages(self.plan, self.placement, task):
                        if (message.source, message.dest) == (source, here):
                            yield message.products

        def layout(products: tuple[Product, ...]) -> list[Tensor]:
            return [t for p in products for t in self.worker.layout(p)]

        coming = incoming()
        layouts = (layout(products) for products in incoming())
        queued: set[Product] = set()
        self.queued[source] = queued

        def deliver(tensors: list[Tensor]) -> None:
            products = next(coming)
            now = self.recorder.now()
            self.recorder.add("receive", str(self.plan.maker(products[0])), now, now)
            self._take(products, tensors, queued)

        self.transport.expect(source, layouts, deliver)

    def _take(
        self, products: tuple[Product, ...], tensors: list[Tensor], queued: set[Product]
    ) -> None:
        """Take a message that has arrived; called by the transport, in order for each source."""
        rest = iter(tensors)
        for product in products:
            parts = [next(rest) for _ in self.worker.layout(product)]
            if product.thing in (Thing.REPORT, Thing.COUNTS):
                self.on_product(product, parts)
            with self.changed:
                if product.thing in LARGE:
                    most = most_waiting(self.plan)
                    self.changed.wait_for(partial(has_room, queued, product, most))
                    queued.add(product)
                self.arrived[product] = parts
                self.changed.notify_all()

    def _wait_for(self, product: Product, task: Task) -> list[Tensor]:
        with self.changed:
            start = self.recorder.now()
            while product not in self.arrived:
                failure = self.transport.failure
                if isinstance(failure, OnwardError):
                    raise failure
                if failure is not None:
                    raise PeerLostError(
                        f"Rank {self.transport.rank} waited for the {product.thing} of block "
                        f"{product.block}, time {product.time}, and lost the connection to "
                        f"another rank. The log of the rank that ended first says why."
                    ) from failure
                self.changed.wait()
            end = self.recorder.now()
            self.idle_seconds += end - start
            if end - start > SHORTEST_SECONDS:
                self.recorder.add("wait", str(task), start, end)
            for queued in self.queued.values():
                queued.discard(product)
            self.changed.notify_all()
            return self.arrived.pop(product)

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()


def has_room(queued: set[Product], product: Product, most: int) -> bool:
    """Return whether a product may join those that wait: of so many times and no more."""
    return len({product.time} | {other.time for other in queued}) <= most


def most_waiting(plan: Plan) -> int:
    """Return the mini-batches, or chapters, of which things from one source may wait on a rank.

    A rank may need moments some chapters after the weights that came with them.
    """
    if isinstance(plan, ChapterPlan):
        return 2 + (plan.moments_age or 0)
    return QUEUE


def make_worker(
    plan: Plan, network: Network, shards: Mapping[int, Rows], arithmetic: Arithmetic
) -> Worker:
    """Return the worker that a kind of plan asks for."""
    if isinstance(plan, StreamPlan):
        return StreamWorker(plan, network, shards, arithmetic)
    assert isinstance(plan, ChapterPlan)
    return ChapterWorker(plan, network, shards, arithmetic)


def run_in_memory(
    plan: Plan,
    placement: Placement,
    networks: Sequence[Network],
    shards: Mapping[int, Rows],
    arithmetic: Arithmetic,
) -> list[Runtime]:
    """Run all ranks in this process, task by task, each with a network of its own.

    Rank 0's network is the trained one. For tests, and to follow a run in a debugger.
    """
    runtimes = [
        Runtime(plan, placement, make_worker(plan, network, shards, arithmetic), transport)
        for network, transport in zip(
            networks, InMemoryTransport.group(placement.num_ranks), strict=True
        )
    ]
    if max(placement.teams) > 1:
        # Ranks of a team wait for each other in the middle of a task.
        errors: list[Exception] = []

        def run(runtime: Runtime) -> None:
            try:
                runtime.run()
            except Exception as error:
                errors.append(error)
                for other in runtimes:
                    other.transport.failure = error
                    other.transport.on_failure()

        threads = [threading.Thread(target=run, args=(runtime,)) for runtime in runtimes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return runtimes
    for task in plan.tasks():
        runtimes[placement.rank(task)].do(task)
    return runtimes
