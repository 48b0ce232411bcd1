"""Finished tasks on a disk: what a run goes on from after it was cut.

Each rank has a folder of its own in the folder of the run. It writes a file for whatever a task has
made that others go on from, whole or not at all, and a line for each report. Ranks that share the
disk read each other's. A thread writes, so that no task waits for a disk; what was not written yet
when a process was killed is computed again, to the same bits.
"""

import hashlib
import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import lock_descriptor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onward.digests import tensors_sha256
from onward.errors import FileError
from onward.files import PARTIAL, atomic_write
from onward.plan.tasks import Plan, Product, ProductKind, Task
from onward.transport.buffers import Buffers

FORMAT = 1
"""Version of the layout of the files; others are not used."""

SMALL = (ProductKind.REPORT, ProductKind.COUNTS)
"""What is written as a line of the journal, and kept until the run is finished."""

MOST_UNWRITTEN = 2
"""Tasks that wait to be written before a rank waits too."""

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of tensors by their names in files."""

Layouts = Callable[[Product], list[Tensor] | None]
"""Returns tensors of the shapes and types of a product; None where the plan does not know it."""

LOCK = "lock"
"""Held as long as a process writes into a folder."""

LOCKED_SECONDS = 10.0
"""How long a folder may be locked by a process that is about to end."""

JOURNAL = "journal.jsonl"
"""Reports and counts of a rank, one a line."""


class Store:
    """What a rank keeps of a run.

    Args:
        folder: Folder of the run's states, of its own on each machine or shared; it is made where
            it is missing.
        rank: This rank.
        digest: Of the settings; files of other settings are not used.
        every: Chapters between the ends from which the run can go on.

    Raises:
        FileError: The folder cannot be written to, or another process does.
    """

    def __init__(self, folder: Path, rank: int, digest: str, every: int) -> None:
        self.folder, self.rank, self.digest, self.every = folder, rank, digest, every
        self.seen = {rank}
        self.own = folder / f"rank-{rank}"
        self.is_new = not self.own.exists()
        self.files: dict[Product, list[Path]] = {}
        self.notes: dict[Product, Tensor] = {}
        self.damaged: list[str] = []
        self.committed = -1
        self.failure: Exception | None = None
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            self._lock_file: int | None = locked(self.own)
            self._remove_partial()
        except FileError:
            raise
        except OSError as error:
            raise FileError(
                f"The folder {self.own} cannot be written to: {error.strerror}."
            ) from error
        self._buffers = Buffers()
        self._unwritten: queue.Queue[tuple[Task | int | None, dict[Product, list[Tensor]]]]
        self._unwritten = queue.Queue(maxsize=MOST_UNWRITTEN)
        self._lock = threading.Lock()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def _remove_partial(self) -> None:
        """Remove what was not written whole, by this module or by safetensors."""
        for path in (*self.own.glob(f"*{PARTIAL}"), *self.own.glob(".tmp*")):
            path.unlink(missing_ok=True)

    # What is there

    def look(self, layouts: Layouts) -> set[Product]:
        """Find what this rank can read, its own and that of others on the same disk.

        Args:
            layouts: Says what the plan knows.

        Returns:
            All products that are whole. What is damaged is in `damaged`, with the reason.
        """
        for folder in sorted(self.folder.glob("rank-*")):
            for path in sorted(folder.glob("*.safetensors")):
                try:
                    product, _ = self._examine(path, layouts)
                    self.files.setdefault(product, []).append(path)
                except FileError as error:
                    self.damaged.append(str(error))
        self.hear(layouts)
        return set(self.files) | set(self.notes)

    def hear(self, layouts: Layouts) -> list[Product]:
        """Read the journals of all ranks on this disk; return what is new in them."""
        new = []
        for path in sorted(self.folder.glob(f"rank-*/{JOURNAL}")):
            for product, values in read_journal(path, self.digest):
                if product in self.notes or product.kind not in SMALL:
                    continue
                like = layouts(product)
                if like is not None and len(values) == len(like[0]):
                    self.notes[product] = torch.tensor(values, dtype=torch.float64)
                    new.append(product)
        return new

    def _examine(self, path: Path, layouts: Layouts) -> tuple[Product, list[Tensor]]:
        """Return the product in a file, all of whose bytes are as they were written."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("onward", "null"))
                product = read_header(path, header, self.digest)
                wanted = layouts(product)
                if wanted is None:
                    raise FileError(f"{path} holds {product}, which the plan does not know.")
                tensors = checked(path, file, wanted)
        except FileError:
            raise
        except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
            raise FileError(f"{path} is damaged: {error}.") from error
        if tensors_sha256(numbered(tensors)) != header.get("sha256"):
            raise FileError(f"{path} is damaged: its content does not have its checksum.")
        return product, tensors

    def find(self, product: Product, maker: str, layout: list[Tensor]) -> list[Tensor] | None:
        """Return a product once a rank on this disk has kept it.

        Args:
            product: What is looked for.
            maker: The task that makes it.
            layout: Tensors of the shapes and types that it must have.
        """
        if product in self.notes:
            return [self.notes[product]]
        if product.kind in SMALL:
            return None
        for path in sorted(self.folder.glob(f"rank-*/{file_name(maker, product)}")):
            # Of a damaged one: its rank does it again when it comes back.
            with suppress(FileError):
                _, found = self._examine(path, lambda known: layout if known == product else None)
                return [tensor.clone() for tensor in found]
        return None

    def read(self, product: Product, layout: Sequence[Tensor]) -> list[Tensor]:
        """Return a product that was found by `look`.

        Raises:
            FileError: It is gone since.
        """
        if product in self.notes:
            return [self.notes[product]]
        path = self.files[product][0]
        try:
            with safe_open(path, framework="pt") as file:
                # Copies, since the file may go.
                return [tensor.clone() for tensor in checked(path, file, layout)]
        except (OSError, SafetensorError) as error:
            raise FileError(f"{path} cannot be read any more: {error}.") from error

    # What is added

    def keep(self, task: Task, products: Mapping[Product, Sequence[Tensor]]) -> None:
        """Write what a task has made, after a while; the tensors may change at once.

        Raises:
            FileError: An earlier one could not be written: the disk is full, for instance.
        """
        if not products:
            return
        copies = {p: [self._copied(tensor) for tensor in held] for p, held in products.items()}
        # What is known is not news in the journal.
        self.notes |= {p: held[0] for p, held in copies.items() if p.kind in SMALL}
        self._put(task, copies)

    def commit(self, time: int) -> None:
        """Say that all tasks of this rank up to a chapter are done, once they are written."""
        self._put(time, {})

    def _copied(self, tensor: Tensor) -> Tensor:
        return self._buffers.empty_like(tensor).copy_(tensor.detach())

    def _put(self, what: Task | int, products: dict[Product, list[Tensor]]) -> None:
        if self.failure is not None:
            raise self.failure
        self._unwritten.put((what, products))

    def close(self) -> None:
        """Wait until all is written; nothing is kept after.

        Raises:
            FileError: Something could not be written.
        """
        self._unwritten.put((None, {}))
        self._writer.join()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None
        if self.failure is not None:
            raise self.failure

    def write(self, path: Path, text: str) -> None:
        """Write a small file, whole or not at all.

        Raises:
            FileError: The disk is full, for instance.
        """
        try:
            with atomic_write(path) as partial:
                partial.write_text(text)
        except OSError as error:
            raise FileError(f"{path} cannot be written: {error.strerror}.") from error

    def _write(self) -> None:
        while (item := self._unwritten.get())[0] is not None:
            what, products = item
            if self.failure is not None:
                # Nobody waits for room that will never come.
                continue
            try:
                if isinstance(what, Task):
                    self._write_task(what, products)
                else:
                    assert isinstance(what, int)
                    self.committed = max(self.committed, what)
            except Exception as error:
                with suppress(OSError):
                    self._remove_partial()
                if not isinstance(error, (OSError, SafetensorError)):
                    # A bug, which the rank shows when it keeps the next task.
                    self.failure = error
                    continue
                text = getattr(error, "strerror", None) or error
                self.failure = FileError(
                    f"What {what} made cannot be written to {self.own}: {text}. What was written "
                    f"before is whole: put that right, and go on from it."
                )

    def _write_task(self, task: Task, products: dict[Product, list[Tensor]]) -> None:
        text = {p: products.pop(p)[0].tolist() for p in list(products) if p.kind in SMALL}
        if text:
            with (self.own / JOURNAL).open("a") as journal:
                journal.writelines(journal_line(*each, self.digest) for each in text.items())
                journal.flush()
                os.fsync(journal.fileno())
        paths: dict[Product, Path] = {}
        for product, held in products.items():
            tensors = numbered(held)
            header = {
                "format": FORMAT,
                "run": self.digest,
                "product": list(product),
                "sha256": tensors_sha256(tensors),
            }
            paths[product] = path = self.own / file_name(str(task), product)
            with atomic_write(path) as partial:
                save_file(tensors, partial, metadata={"onward": json.dumps(header)})
        flush_folder(self.own)
        with self._lock:
            for product, path in paths.items():
                # The newest is read first.
                others = [known for known in self.files.get(product, []) if known != path]
                self.files[product] = [path, *others]

    # What goes

    def prune(self, plan: Plan, floor: int) -> None:
        """Remove this rank's files that nobody needs who goes on after a chapter.

        Args:
            plan: The plan.
            floor: A chapter that all ranks have committed.
        """
        floor -= (floor + 1) % self.every
        with self._lock:
            for product, paths in list(self.files.items()):
                tasks = [plan.maker(product), *plan.all_uses(product)]
                if plan.gather in tasks or max(map(plan.chapter, tasks)) > floor:
                    continue
                kept = [path for path in paths if not self._is_ours(path.parent)]
                for path in set(paths) - set(kept):
                    with suppress(OSError):
                        path.unlink()
                self.files[product] = kept
                if not kept:
                    del self.files[product]

    def _is_ours(self, folder: Path) -> bool:
        """Return whether this rank tidies a folder: its own, and those nobody writes into now."""
        number = folder.name.removeprefix("rank-")
        is_left = number.isdecimal() and int(number) not in self.seen
        return folder == self.own or is_left

    def remove(self) -> None:
        """Remove this rank's folder, once its run needs it no more."""
        shutil.rmtree(self.own, ignore_errors=True)
        with suppress(OSError):  # It stays where others have something in it.
            self.folder.rmdir()


def locked(folder: Path) -> int:
    """Keep other processes from writing into a rank's folder until this one has ended, however.

    Returns:
        The file that holds the lock, which closing it lets go.

    Raises:
        FileError: Another process has it.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + LOCKED_SECONDS
    while _is_taken(lock):
        if time.monotonic() > deadline:
            os.close(lock)
            raise FileError(
                f"Another process writes into {folder}: the run goes on already, or another one "
                f"has the same folder."
            )
        time.sleep(0.1)
    return lock


def _is_taken(lock: int) -> bool:
    """Lock an open file, and return False, unless another process has locked it."""
    try:
        return not lock_descriptor(lock, blocking=False)
    except OSError:
        return False  # Some disks that are shared have no locks.


def check_idle(folder: Path) -> None:
    """Refuse the states of a run that other processes write.

    Raises:
        FileError: They do.
    """
    for lock in sorted(folder.glob(f"rank-*/{LOCK}")):
        with suppress(FileNotFoundError):
            os.close(locked(lock.parent))


def file_name(maker: str, product: Product) -> str:
    """Return the name of the file of a product that a task has made."""
    return f"{maker}-{product.kind.replace(' ', '-')}.safetensors"


def numbered(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return tensors by their numbers, as names."""
    return {str(number): tensor for number, tensor in enumerate(tensors)}


def checked(path: Path, file: Any, layout: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of an open file, which must be of the shapes and types of a layout.

    Raises:
        FileError: They are not; nothing was allocated for them.
    """
    wanted = numbered(layout)
    if set(file.keys()) != set(wanted):
        raise FileError(
            f"{path} holds {len(file.keys())} tensors, and the plan says {len(wanted)}."
        )
    tensors = []
    for name, like in wanted.items():
        found = file.get_slice(name)
        shape, kind = tuple(found.get_shape()), TYPES.get(found.get_dtype())
        if (shape, kind) != (tuple(like.shape), like.dtype):
            raise FileError(
                f"{path} holds a tensor of shape {shape} and type {found.get_dtype()}, and the "
                f"plan says {tuple(like.shape)} and {like.dtype}."
            )
        tensors.append(file.get_tensor(name))
    return tensors


def read_header(path: Path, header: Any, digest: str) -> Product:
    """Return the product that a header names.

    Raises:
        FileError: It is not one of this version, or of another run.
    """
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FileError(f"{path} was not written by this version of onward.")
    if header.get("run") != digest:
        raise FileError(f"{path} is of a run with other settings.")
    product = as_product(header.get("product"))
    if product is None:
        raise FileError(f"{path} is damaged: its header names no product.")
    return product


def as_product(entry: Any) -> Product | None:
    """Return the product that something read from a file stands for; None for anything else."""
    match entry:
        case [str(thing), int(time), int(block)] if (
            thing in list(ProductKind) and min(time, block) >= 0
        ):
            return Product(ProductKind(thing), time, block)
    return None


def journal_line(product: Product, values: Iterable[float], run: str) -> str:
    """Return a line of the journal, with a checksum in front.

    It begins with the end of the last line, which a process may have died in.
    """
    text = json.dumps([*product, *values])
    return f"\n{_checksum(run, text.encode())} {text}"


def _checksum(run: str, text: bytes) -> str:
    return hashlib.sha256(run.encode() + text).hexdigest()[:16]


def read_journal(path: Path, run: str) -> Iterator[tuple[Product, list[float]]]:
    """Yield the lines of a journal that are whole, and of a run; the last may be cut."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        checksum, _, text = line.partition(b" ")
        if _checksum(run, text).encode() != checksum:
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            continue
        product = as_product(entry[:3]) if isinstance(entry, list) else None
        if product and all(isinstance(value, float | int) for value in entry[3:]):
            yield product, entry[3:]


def flush_folder(folder: Path) -> None:
    """Have the disk take in the names of a folder; Windows opens no folders."""
    if sys.platform == "win32":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
