"""Obeys: does the tasks of one rank in the order of the plan, and sends what others need.

The only place where a task is executed. All messages follow from plan and placement, so each
rank knows beforehand how many bytes it gets from whom, and in which order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache

from torch import Tensor

from onward.errors import FileError
from onward.network.networks import Network
from onward.placement import Placement, first_blocks, messages, restored
from onward.plan.tasks import NOTES, Plan, Product, ProductKind, Task, TaskKind
from onward.runtime.chapters import ChapterWorker
from onward.runtime.products import Products
from onward.runtime.store import Store
from onward.runtime.streams import StreamWorker
from onward.runtime.workers import Made, Settings, Shard, Worker
from onward.timeline import SHORTEST_SECONDS, WORDS, Recorder
from onward.transport.messages import Transport

WORKERS: dict[str, Callable[..., Worker]] = {"chapters": ChapterWorker, "stream": StreamWorker}
"""The worker of each kind of plan."""

OnProduct = Callable[[Product, list[Tensor]], None]
"""Called with reports and counts as soon as this rank has them."""


class Runtime:
    """One rank of a run.

    Args:
        plan: What is computed.
        placement: Where.
        worker: Does the tasks of this rank.
        transport: How messages travel.
        on_product: Called with each report and each count of validation samples.
        recorder: Notes what the rank does. None: nothing is noted.
        store: Keeps what the rank finishes, and has what was finished before. None: nothing is
            kept.
        holders: The ranks that can read each product that the plan holds.
    """

    def __init__(
        self,
        plan: Plan,
        placement: Placement,
        worker: Worker,
        transport: Transport,
        on_product: OnProduct = lambda product, tensors: None,
        recorder: Recorder | None = None,
        store: Store | None = None,
        holders: Mapping[Product, Sequence[int]] | None = None,
    ) -> None:
        self.plan = plan
        self.placement = placement
        self.worker = worker
        self.transport = transport
        self.on_product = on_product
        self.recorder = recorder or Recorder(transport.rank, most=0)
        worker.recorder = transport.recorder = self.recorder
        worker.team = transport.team(placement.members)
        first = first_blocks(plan, placement, transport.rank)
        worker.release(block for block in plan.trained if block not in first)
        self.idle_seconds = 0.0
        self.products = Products(self._uses_here, plan.most_waiting)
        self.store = store
        holders = holders or {}
        self.holdings = {p for p, ranks in holders.items() if transport.rank in ranks}
        self.restored = restored(plan, placement, holders)
        self.reported = frozenset(plan.all_needs(plan.gather))
        self.chapter = 0
        transport.on_failure = self.products.wake
        # What an earlier part of the run had committed may have been placed otherwise.
        transport.put("committed", -1)
        for source in range(placement.num_ranks):
            if source != transport.rank:
                self._expect(source)

    def run(self) -> None:
        """Send what others need of what was done before, then do all tasks of this rank."""
        self.restore()
        for task in self.plan.tasks():
            if self.transport.rank in self.placement.ranks(task):
                self.do(task)
        self._commit(self.plan.chapters)

    def restore(self) -> None:
        """Send what others need of what was done before, and report what was reported."""
        for product in sorted(self.holdings):
            is_news = product.kind in NOTES and self.plan.is_done(product)
            if is_news and self.transport.rank == 0:
                self.on_product(product, self._stored(product))
        for message in self.restored:
            if message.source == self.transport.rank:
                self.transport.send(message.dest, self._stored(message.products[0]), "restore")

    def do(self, task: Task) -> None:
        """Wait for what a task needs, do it, and put what it has made where others need it."""
        self._commit(self.plan.chapter(task))
        self._hear()
        given = {product: self._get(product, task) for product in self.plan.needs(task)}
        self.transport.doing.what = f"{WORDS[task.kind]}, {task}"
        with self.recorder.span(WORDS[task.kind], str(task)):
            made = self.worker.execute(task, given)
        self._send(task, made)
        self._keep(task, made)
        for product, tensors in made.items():
            if self.transport.rank == 0 and product.kind in NOTES:
                self.on_product(product, tensors)
            self.products.put(product, tensors)
        if task.kind is not TaskKind.GATHER:
            for product in given:
                self.products.release(product)

    def _get(self, product: Product, task: Task) -> list[Tensor]:
        """Return a product, of this rank, of another, or of an earlier part of the run."""
        if product not in self.products:
            if self.plan.is_done(product) and product in self.holdings:
                self._put(product, self._stored(product))
            else:
                with self._waiting(product, task):
                    if not self.transport.carries:
                        self._put(product, self._found(product))
        return self.products.wait_for(product, self.transport.check_peers)

    def _put(self, product: Product, tensors: list[Tensor]) -> None:
        """Have what was made elsewhere in the table, laid out in memory as here."""
        self.products.put(product, self.worker.received(product, tensors))

    def _stored(self, product: Product) -> list[Tensor]:
        assert self.store is not None
        return self.store.read(product, self.worker.layout(product))

    def _send(self, task: Task, made: Made) -> None:
        """Send what a task has made to the ranks that need it."""
        sent = cache(lambda product: self._frozen(product, made[product]))
        for message in messages(self.plan, self.placement, task):
            if message.source == self.transport.rank:
                tensors = [tensor for product in message.products for tensor in sent(product)]
                self.transport.send(message.dest, tensors, str(task))

    def _frozen(self, product: Product, tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors of a product, which must not change until they have arrived."""
        is_last = self.plan.gather in self.plan.uses(product)
        if product.kind is ProductKind.WEIGHTS and self.placement.owners and not is_last:
            # The block stays, and may be trained on before the message is out.
            return [tensor.clone() for tensor in tensors]
        return tensors

    def _keep(self, task: Task, made: Made) -> None:
        """Keep what a task has made, once for all ranks of its team that share a disk."""
        if self.store is None:
            return
        first, *_ = self.placement.ranks(task)
        if first == self.transport.rank or first not in self.store.seen:
            self.store.keep(task, {p: held for p, held in made.items() if self._is_kept(p)})

    def _is_kept(self, product: Product) -> bool:
        assert self.store is not None
        return product.kind in NOTES or self.plan.is_kept(product, self.store.every)

    def _commit(self, chapter: int) -> None:
        """Say that all before a chapter is done here, and forget what no rank goes back to."""
        if self.store is None or chapter == self.chapter:
            return
        self.chapter = chapter
        self.store.commit(chapter - 1)
        self.transport.put("committed", self.store.committed)
        heard = [self.transport.get("committed", r) for r in range(self.placement.num_ranks)]
        if None not in heard:
            self.store.prune(self.plan, min(heard))

    def _uses_here(self, product: Product) -> int:
        return sum(self.transport.rank in self.placement.ranks(t) for t in self.plan.uses(product))

    def _expect(self, source: int) -> None:
        """Tell the transport what will come from a source."""
        here = self.transport.rank

        def incoming() -> Iterator[tuple[Product, ...]]:
            for message in self.restored:
                if (message.source, message.dest) == (source, here):
                    yield message.products
            for task in self.plan.tasks():
                if source in self.placement.ranks(task):
                    for message in messages(self.plan, self.placement, task):
                        if (message.source, message.dest) == (source, here):
                            yield message.products

        def layout(products: tuple[Product, ...]) -> list[Tensor]:
            return [t for p in products for t in self.worker.layout(p)]

        coming = incoming()
        layouts = (layout(products) for products in incoming())

        def deliver(tensors: list[Tensor]) -> None:
            products, rest = next(coming), iter(tensors)
            made = {p: [next(rest) for _ in self.worker.layout(p)] for p in products}
            now = self.recorder.now()
            self.recorder.add("receive", str(self.plan.maker(products[0])), now, now)
            self._keep_received(made, source)
            for product, parts in made.items():
                if product.kind in NOTES:
                    self.on_product(product, parts)
                laid_out = self.worker.received(product, parts)
                is_bounded = not self.plan.is_done(product)
                self.products.deliver(product, laid_out, source, is_bounded=is_bounded)

        self.transport.expect(source, layouts, deliver)

    def _keep_received(self, made: Mapping[Product, list[Tensor]], source: int) -> None:
        """Keep what is on no disk that this rank reads, and the last weights, which end a run."""
        if self.store is None:
            return
        kept = {}
        for product, parts in made.items():
            is_weights = product.kind in (ProductKind.WEIGHTS, ProductKind.BEST)
            is_last = is_weights and self.plan.gather in self.plan.uses(product)
            if self._is_kept(product) and (is_last or source not in self.store.seen):
                kept[product] = parts
        self.store.keep(self.plan.maker(next(iter(made))), kept)

    @contextmanager
    def _waiting(self, product: Product, task: Task) -> Iterator[None]:
        """Note how long a task waits, and let the rank that it waits for be watched."""
        start, check = self.recorder.now(), self.transport.check_connections
        what = f"the {product.kind} of block {product.block}, time {product.time},"
        lost = (
            f"waited for {what} and lost the connection to another rank. The log of the rank that "
            f"ended first says why."
        )
        with self.transport.doing.wait(what, self._source(product)):
            if self.transport.carries:
                self.products.wait_for(product, lambda: check(lost))
            yield
        end = self.recorder.now()
        self.idle_seconds += end - start
        if end - start > SHORTEST_SECONDS:
            self.recorder.add("wait", str(task), start, end)

    def _found(self, product: Product) -> list[Tensor]:
        """Wait for a product that another rank keeps where this one reads it."""
        assert self.store is not None
        maker, layout = self.plan.maker(product), self.worker.layout(product)
        source = self._source(product)
        while True:
            # What was committed when it was asked is on the disk, and so is found after.
            committed = self.transport.get("committed", source)
            self._hear()
            with suppress(FileError):
                return self.store.read(product, layout)
            if committed is not None and committed >= self.plan.chapter(maker):
                raise FileError(
                    f"Rank {self.transport.rank} needs what {maker} has made, which rank {source} "
                    f"keeps no more, or is damaged. Stop all ranks, and start them again: what is "
                    f"missing is then made once more."
                )
            self.transport.pause()

    def _hear(self) -> None:
        """Pass on what others have reported, where no message brings it."""
        if self.transport.carries or self.transport.rank or self.store is None:
            return
        for product in self.store.look(self._reported):
            self.on_product(product, self._stored(product))

    def _reported(self, product: Product) -> list[Tensor] | None:
        """Return what a report that is awaited looks like; None for all else."""
        is_awaited = product.kind in NOTES and product in self.reported
        return self.worker.layout(product) if is_awaited else None

    def _source(self, product: Product) -> int:
        """Return the rank that sends a product to this one."""
        here = self.transport.rank
        sent = (
            self.restored
            if self.plan.is_done(product)
            else messages(self.plan, self.placement, self.plan.maker(product))
        )
        return next(m.source for m in sent if m.dest == here and product in m.products)


def make_worker(
    plan: Plan, network: Network, shards: Mapping[int, Shard], settings: Settings
) -> Worker:
    """Return the worker of a plan."""
    return WORKERS[plan.kind](plan, network, shards, settings)
