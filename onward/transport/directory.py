"""A folder that ranks share, instead of a network.

For machines that share a disk and nothing else: no process group and no open port. What a rank
makes, others read from its store (`store`); here they leave each other notes. A rank that was
killed comes back alone, while the others go on or wait for it.
"""

import atexit
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from onward.errors import FileError, PeerLostError
from onward.files import atomic_write
from onward.transport.messages import LOOK_EVERY_SECONDS, OPEN, Deliver, Transport

NAMES = re.compile(r"(rank|notes|ended|gone|stage)-\d+")
"""What lies in such a folder: stores, notes, marks of ranks that have ended or are done,
and folders of later stages."""

PARTING_SECONDS = 30.0
"""How long rank 0 waits for others to part."""

LAST = ("figures", "timeline", "kept", "finished")
"""What ranks tell at the end of a run; one that comes back after it is not at its end."""


class DirectoryTransport(Transport):
    """Ranks that share a folder.

    Args:
        folder: The folder; it is made where it is missing.
        rank: This rank.
        num_ranks: Number of ranks.
        placement: Its name; notes of an earlier start with another one do not count.

    Raises:
        FileError: The folder cannot be written to, or is that of more ranks.
    """

    carries = False

    def __init__(self, folder: Path, rank: int, num_ranks: int, placement: str) -> None:
        super().__init__()
        self.folder, self.rank, self.num_ranks = folder, rank, num_ranks
        self.start = f"{placement} on {num_ranks}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            strange = [name for name in os.listdir(folder) if not NAMES.fullmatch(name)]
            if strange:
                raise FileError(
                    f"The folder {folder} holds something else ({strange[0]}). Name an empty one."
                )
            self._notes(rank).mkdir(exist_ok=True)
            last = [self._note(topic, rank) for topic in LAST]
            for path in (*last, self._mark("gone", rank), self._mark("ended", rank)):
                path.unlink(missing_ok=True)
            # Ranks that have ended before this one came may come back as well.
            self._old = {self._ended(other) for other in range(num_ranks)} | {None}
        except FileError:
            raise
        except OSError as error:
            raise FileError(
                f"The folder {folder} cannot be written to: {error.strerror}."
            ) from error
        OPEN.append(self)
        # However this process ends, if it ends by itself, the others should hear of it.
        atexit.register(self.say_ended)

    def _mark(self, word: str, rank: int) -> Path:
        return self.folder / f"{word}-{rank}"

    def _ended(self, rank: int) -> tuple[int, int] | None:
        """Return a rank and when it has ended; None where it has not."""
        try:
            return rank, self._mark("ended", rank).stat().st_mtime_ns
        except OSError:
            return None

    def _notes(self, rank: int) -> Path:
        return self.folder / f"notes-{rank}"

    def _send(self, dest: int, tensors: Sequence[Tensor], label: str) -> None:
        """Do nothing: who needs it reads it from the store of this rank."""

    def expect(self, source: int, layouts: Iterable[Sequence[Tensor]], deliver: Deliver) -> None:
        """Do nothing, as `send` does."""

    def check_peers(self) -> None:
        super().check_peers()
        for rank in range(self.num_ranks):
            if self._ended(rank) not in self._old:
                raise PeerLostError(
                    f"Rank {self.rank} waited for others, and rank {rank} has ended. Its log says "
                    f"why."
                )

    def say_ended(self) -> None:
        # The folder may be gone, or the disk full.
        with suppress(OSError):
            self._mark("ended", self.rank).touch()

    def put(self, topic: str, note: Any) -> None:
        try:
            with atomic_write(self._note(topic, self.rank)) as partial:
                partial.write_text(json.dumps([self.start, note]))
        except OSError as error:
            raise FileError(
                f"The folder {self.folder} cannot be written to: {error.strerror}."
            ) from error

    def get(self, topic: str, rank: int) -> Any:
        path = self._note(topic, rank)
        try:
            start, note = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise FileError(f"The note {path} is damaged: {error}.") from error
        return note if start == self.start else None

    def _note(self, topic: str, rank: int) -> Path:
        return self._notes(rank) / f"{topic.replace(' ', '-')}.json"

    def connect(self) -> None:
        """Do nothing: each rank begins when it comes."""

    def finish(self) -> None:
        self.all_gather("finished", None)

    def close(self) -> None:
        # The folder may serve the next run, which begins once nobody reads in it any more.
        own, ranks = self._mark("gone", self.rank), range(self.num_ranks)
        own.touch()
        if self.rank == 0:
            self._part(lambda: all(self._mark("gone", rank).exists() for rank in ranks))
            for rank in ranks:
                shutil.rmtree(self._notes(rank), ignore_errors=True)
            for rank in ranks:
                self._mark("gone", rank).unlink(missing_ok=True)
        self._part(lambda: not own.exists())
        OPEN.remove(self)
        atexit.unregister(self.say_ended)

    def _part(self, is_so: Callable[[], bool]) -> None:
        """Wait, but not without end: one that was killed now has no part in the run any more."""
        deadline = time.monotonic() + PARTING_SECONDS
        while not is_so() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_SECONDS)
