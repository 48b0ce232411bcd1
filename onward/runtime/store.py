"""Finished tasks on a disk: what a run goes on from after it was cut.

Each rank has a folder of its own in the folder of the run. It writes a file for each product that
others go on from, whole or not at all; the folders are the only list of what there is. Ranks that
share the disk read each other's. A thread writes, so that no task waits for a disk; what was not
written yet when a process was killed is computed again, to the same bits.
"""

import queue
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onward.digests import tensors_sha256
from onward.errors import FileError
from onward.files import PARTIAL, atomic_write, flush_folder
from onward.plan.tasks import NOTES, Plan, Product, ProductKind, Task
from onward.transport.buffers import Buffers

FORMAT = "2"
"""Version of the layout of the files; others are not used."""

MOST_UNWRITTEN = 2
"""Tasks that wait to be written before a rank waits too."""

Layouts = Callable[[Product], list[Tensor] | None]
"""Returns tensors of the shapes and types of a product; None where the plan does not know it."""

LOCK = "lock"
"""Held as long as a process writes into a folder."""

LOCKED_SECONDS = 10.0
"""How long a folder may be locked by a process that is about to end."""

ENDING = ".safetensors"
"""Of the names of all files of products."""


class Store:
    """What a rank keeps of a run.

    Args:
        folder: Folder of the run's states, of its own on each machine or shared; it is made where
            it is missing.
        rank: This rank.
        digest: Of the settings; files of other settings are not used.
        every: Chapters between the ends from which the run can go on.
        is_kept: Whether what comes after the last chapter may be asked for, too.

    Raises:
        FileError: The folder cannot be written to, or another process does.
    """

    def __init__(
        self, folder: Path, rank: int, digest: str, every: int, *, is_kept: bool = False
    ) -> None:
        self.is_kept = is_kept
        self.folder, self.digest, self.every = folder, digest, every
        self.own = folder / f"rank-{rank}"
        self.is_new = not self.own.exists()
        self.seen = {rank}
        self.known: set[Product] = set()
        self.damaged: set[str] = set()
        self.committed = -1
        self.failure: Exception | None = None
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.own)
            # What was not written whole, by this module or by safetensors.
            for path in (*self.own.glob(f"*{PARTIAL}"), *self.own.glob(".tmp*")):
                path.unlink()
        except FileError:
            raise
        except OSError as error:
            raise FileError(
                f"The folder {self.own} cannot be written to: {error.strerror}."
            ) from error
        self._buffers = Buffers()
        self._unwritten: queue.Queue[Callable[[], None] | None]
        self._unwritten = queue.Queue(maxsize=MOST_UNWRITTEN)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    # What is there

    def look(self, layouts: Layouts) -> list[Product]:
        """Find what this rank can read, its own and that of others on the same disk.

        Args:
            layouts: Says what the plan knows; the rest is passed over.

        Returns:
            Products that are whole, and that this rank did not know of. What is damaged is in
            `damaged`, with the reason.
        """
        new = []
        for path in sorted(self.folder.glob(f"rank-*/*{ENDING}")):
            product = product_of(path.name)
            if product is None or product in self.known or (layout := layouts(product)) is None:
                continue
            try:
                self._read(path, product, layout)
            except FileError as error:
                self.damaged.add(str(error))
            else:
                self.known.add(product)
                new.append(product)
        return new

    def read(self, product: Product, layout: Sequence[Tensor]) -> list[Tensor]:
        """Return a product that a rank on this disk has kept.

        Args:
            product: What is looked for.
            layout: Tensors of the shapes and types that it must have.

        Raises:
            FileError: None has, or it is damaged.
        """
        name = file_name(product)
        failure = FileError(f"{self.folder} does not hold {name}.")
        for path in sorted(self.folder.glob(f"rank-*/{name}")):
            try:
                return self._read(path, product, layout)
            except FileError as error:
                failure = error
        raise failure

    def _read(self, path: Path, product: Product, layout: Sequence[Tensor]) -> list[Tensor]:
        """Return what is in a file, all of whose bytes are as they were written."""
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                # Mapped, and so nothing is allocated, whatever sizes the file claims.
                tensors = [file.get_tensor(name) for name in numbered(layout)]
        except (OSError, RuntimeError, SafetensorError) as error:
            raise FileError(f"{path} is damaged: {error}.") from error
        found, wanted = ([(tuple(t.shape), t.dtype) for t in each] for each in (tensors, layout))
        if found != wanted:
            raise FileError(f"{path} is damaged: it holds {found}, and the plan says {wanted}.")
        # Copies, since the file may go.
        tensors = [tensor.clone() for tensor in tensors]
        expected = self._header(product, tensors)
        wrong = [word for word, value in expected.items() if header.get(word) != value]
        if wrong:
            raise FileError(
                f"{path} is damaged, or of another run: its {', '.join(wrong)} is not as expected."
            )
        return tensors

    def _header(self, product: Product, tensors: Sequence[Tensor]) -> dict[str, str]:
        return {
            "format": FORMAT,
            "run": self.digest,
            "product": file_name(product),
            "sha256": tensors_sha256(numbered(tensors)),
        }

    # What is added

    def keep(self, task: Task, products: Mapping[Product, Sequence[Tensor]]) -> None:
        """Write what a task has made, after a while; the tensors may change at once.

        Raises:
            FileError: An earlier one could not be written: the disk is full, for instance.
        """
        if not products:
            return
        copies = {
            product: [self._buffers.empty_like(t).copy_(t.detach()) for t in tensors]
            for product, tensors in products.items()
        }
        self._put(partial(self._write_task, task, copies))

    def commit(self, time: int) -> None:
        """Say that all tasks of this rank up to a chapter are done, once they are written."""

        def all_are_written() -> None:
            self.committed = time

        self._put(all_are_written)

    def close(self) -> None:
        """Wait until all is written; nothing is kept after.

        Raises:
            FileError: Something could not be written.
        """
        self._unwritten.put(None)
        self._writer.join()
        self._lock.release()
        if self.failure is not None:
            raise self.failure

    def _put(self, work: Callable[[], None]) -> None:
        if self.failure is not None:
            raise self.failure
        self._unwritten.put(work)

    def _write(self) -> None:
        while (work := self._unwritten.get()) is not None:
            # After a failure nobody waits for room that will never come.
            if self.failure is None:
                try:
                    work()
                except Exception as error:
                    self.failure = error

    def _write_task(self, task: Task, products: Mapping[Product, Sequence[Tensor]]) -> None:
        # Before `look` can find it, to which it is no news.
        self.known.update(products)
        # Reports first: a task of which all else is there is not done again.
        in_order = sorted(products.items(), key=lambda item: item[0].kind not in NOTES)
        try:
            for product, tensors in in_order:
                with atomic_write(self.own / file_name(product)) as path:
                    save_file(numbered(tensors), path, metadata=self._header(product, tensors))
            flush_folder(self.own)
        except (OSError, SafetensorError) as error:
            text = getattr(error, "strerror", None) or error
            raise FileError(
                f"What {task} made cannot be written to {self.own}: {text}. What was written "
                f"before is whole: put that right, and go on from it."
            ) from error

    # What goes

    def prune(self, plan: Plan, floor: int) -> None:
        """Remove files that nobody needs who goes on after a chapter.

        Args:
            plan: The plan.
            floor: A chapter that all ranks have committed.
        """
        if self.is_kept:
            plan = replace(plan, epochs=2 * plan.epochs, chapters=2 * plan.chapters)
        floor -= (floor + 1) % self.every
        # Each rank tidies its own folder, and those that nobody writes into now.
        of_others = {self.folder / f"rank-{rank}" for rank in self.seen} - {self.own}
        folders = set(self.folder.glob("rank-*")) - of_others
        for product in list(self.known):
            tasks = [plan.maker(product), *plan.all_uses(product)]
            if plan.gather not in tasks and max(map(plan.chapter, tasks)) <= floor:
                for folder in folders:
                    with suppress(OSError):
                        (folder / file_name(product)).unlink()
                self.known.remove(product)

    def remove(self) -> None:
        """Remove this rank's folder, once its run needs it no more."""
        shutil.rmtree(self.own, ignore_errors=True)
        with suppress(OSError):  # It stays where others have something in it.
            self.folder.rmdir()


def locked(folder: Path) -> FileLock:
    """Keep other processes from writing into a rank's folder until this one has ended, however.

    Returns:
        The lock, which may be released before.

    Raises:
        FileError: Another process has it.
        OSError: The folder cannot be written to.
    """
    lock = FileLock(folder / LOCK, LOCKED_SECONDS, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FileError(
            f"Another process writes into {folder}: the run goes on already, or another one has "
            f"the same folder."
        ) from error
    except OSError:
        (folder / LOCK).touch()  # Some disks that are shared have files, but no locks.
    return lock


def check_idle(folder: Path) -> None:
    """Refuse the states of a run that other processes write.

    Raises:
        FileError: They do.
    """
    for path in sorted(folder.rglob(f"rank-*/{LOCK}")):
        with suppress(FileNotFoundError):
            locked(path.parent).release()


def file_name(product: Product) -> str:
    """Return the name of the file of a product."""
    return f"{product.kind.replace(' ', '-')}-{product.time}-{product.block}{ENDING}"


def product_of(name: str) -> Product | None:
    """Return the product that a file is named after; None for any other name."""
    with suppress(ValueError):
        kind, time, block = name.removesuffix(ENDING).rsplit("-", 2)
        product = Product(ProductKind(kind.replace("-", " ")), int(time), int(block))
        if file_name(product) == name:
            return product
    return None


def numbered(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return tensors by their numbers, as names."""
    return {str(number): tensor for number, tensor in enumerate(tensors)}
