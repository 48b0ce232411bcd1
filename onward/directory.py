"""Messages between ranks as files in a folder that all of them share.

For machines that share a disk and nothing else: no process group and no open port. A message is a
safetensors file, put in place by renaming, so that nobody sees half of it; who receives it removes
it.
"""

import atexit
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onward.errors import FileError, PeerLostError
from onward.team import Alone, Team
from onward.transport import OPEN, Buffers, Deliver, Transport

MOST_UNSENT = 8
"""Messages that wait to be written before a sender waits too."""

LOOK_EVERY_SECONDS = 0.01
"""How often a rank looks for a message that has not come yet."""


class DirectoryTransport(Transport):
    """Ranks that share a folder.

    Args:
        folder: The folder, empty at first; it is made where it is missing.
        rank: This rank.
        num_ranks: Number of ranks.

    Raises:
        FileError: The folder cannot be written to, or holds an earlier run.
    """

    def __init__(self, folder: Path, rank: int, num_ranks: int) -> None:
        super().__init__()
        self.folder, self.rank, self.num_ranks = folder, rank, num_ranks
        of_another_run = FileError(
            f"The folder {folder} holds messages of another run. Name an empty one."
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if set(os.listdir(folder)) - {f"rank-{other}" for other in range(num_ranks)}:
                raise of_another_run
            (folder / f"rank-{rank}").mkdir()
        except FileExistsError as error:
            raise of_another_run from error
        except OSError as error:
            raise FileError(
                f"The folder {folder} cannot be written to: {error.strerror}."
            ) from error
        OPEN.append(self)
        # However this process ends, if it ends by itself, the others should hear of it.
        atexit.register(self._say_if_open)
        self._numbers = [0] * num_ranks
        # Bounded, so that memory is; a sender that is far ahead waits.
        self._unsent: queue.Queue[tuple[Path, dict[str, Tensor], str] | None]
        self._unsent = queue.Queue(maxsize=MOST_UNSENT)
        self._sender = threading.Thread(target=self._write, daemon=True)
        self._sender.start()
        self._receivers: list[threading.Thread] = []
        self._buffers = Buffers()

    def _send(self, dest: int, tensors: Sequence[Tensor], label: str) -> None:
        number = self._numbers[dest]
        self._numbers[dest] += 1
        held = {str(n): tensor.detach().contiguous() for n, tensor in enumerate(tensors)}
        self._unsent.put((self._path(self.rank, dest, number), held, label))

    def _path(self, source: int, dest: int, number: int) -> Path:
        return self.folder / f"rank-{source}" / f"{number}-to-{dest}.safetensors"

    def _write(self) -> None:
        while (unsent := self._unsent.get()) is not None:
            path, tensors, label = unsent
            start = self.recorder.now() if self.recorder else 0.0
            partial = path.with_suffix(".partial")
            try:
                save_file(tensors, partial)
                partial.replace(path)
            except (OSError, SafetensorError) as error:
                self._fail(FileError(f"The message {path} cannot be written: {error}."))
                self.say_ended()
                # Nobody waits for room that will never come.
                while self._unsent.get() is not None:
                    pass
                return
            if self.recorder:
                self.recorder.add("send", label, start, self.recorder.now())

    def expect(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        receiver = threading.Thread(
            target=self._receive, args=(source, layouts, deliver), daemon=True
        )
        receiver.start()
        self._receivers.append(receiver)

    def _receive(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        try:
            for number, layout in enumerate(layouts):
                path = self._path(source, self.rank, number)
                while not path.exists():
                    self._check_peers()
                    time.sleep(LOOK_EVERY_SECONDS)
                deliver(self._read(path, layout))
                path.unlink()
        except Exception as error:
            self._fail(error)

    def _read(self, path: Path, layout: Sequence[Tensor]) -> list[Tensor]:
        """Read a message, which must be of the shapes and types that the plan says."""
        tensors = []
        with safe_open(path, framework="pt") as file:
            for number, like in enumerate(layout):
                found = file.get_tensor(str(number))
                if (found.shape, found.dtype) != (like.shape, like.dtype):
                    raise FileError(
                        f"{path} holds a tensor of shape {tuple(found.shape)} and type "
                        f"{found.dtype}, and the plan says {tuple(like.shape)} and {like.dtype}."
                    )
                tensors.append(self._buffers.empty_like(like).copy_(found))
        return tensors

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.on_failure()

    def _check_peers(self) -> None:
        """Notice that another rank has ended before its time."""
        if self.failure is not None:
            raise PeerLostError(f"Rank {self.rank} cannot go on: {self.failure}") from self.failure
        for path in self.folder.glob("ended-*"):
            raise PeerLostError(
                f"Rank {self.rank} waited for others, and rank {path.name[6:]} has ended. Its log "
                f"says why."
            )

    def say_ended(self) -> None:
        # The folder may be gone, or the disk full.
        with suppress(OSError):
            (self.folder / f"ended-{self.rank}").touch()

    def _say_if_open(self) -> None:
        if self in OPEN:
            self.say_ended()

    def exchange(self, topic: str, note: Any) -> list[Any]:
        name = topic.replace(" ", "-")
        own = self.folder / f"rank-{self.rank}" / f"{name}.json"
        partial = own.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(note))
            partial.replace(own)
        except OSError as error:
            raise FileError(
                f"The folder {self.folder} cannot be written to: {error.strerror}."
            ) from error
        paths = [self.folder / f"rank-{rank}" / own.name for rank in range(self.num_ranks)]
        while not all(path.exists() for path in paths):
            self._check_peers()
            time.sleep(LOOK_EVERY_SECONDS)
        return [json.loads(path.read_text()) for path in paths]

    def team(self, teams: Sequence[range]) -> Team:
        assert all(len(ranks) == 1 for ranks in teams), "Ranks that share a folder work alone."
        return Alone()

    def close(self) -> None:
        self._unsent.put(None)
        self._sender.join()
        for receiver in self._receivers:
            receiver.join()
        self.exchange("closed", None)
        (self.folder / f"gone-{self.rank}").touch()
        # The folder may serve the next run, which begins once nobody reads in it any more.
        if self.rank == 0:
            while len(gone := list(self.folder.glob("gone-*"))) < self.num_ranks:
                self._check_peers()
                time.sleep(LOOK_EVERY_SECONDS)
            for path in gone:
                path.unlink()
            for rank in range(self.num_ranks):
                shutil.rmtree(self.folder / f"rank-{rank}")
        while (self.folder / f"rank-{self.rank}").exists():
            time.sleep(LOOK_EVERY_SECONDS)
        OPEN.remove(self)
        atexit.unregister(self._say_if_open)
