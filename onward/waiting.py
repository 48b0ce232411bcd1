"""What a rank does now, and what it waits for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waiting:
    """What a rank waits for, and since when."""

    def __init__(self, what: str, source: int) -> None:
        self.what, self.source = what, source
        self.since = self.heard_at = time.monotonic()
        self.beat: int | None = None
        self.is_told = False


class Doing:
    """What a rank does now, and what it waits for, if it does."""

    def __init__(self) -> None:
        self.what = "starts"
        self.waiting: Waiting | None = None

    @contextmanager
    def wait(self, what: str, source: int) -> Iterator[None]:
        """Wait for something of a rank."""
        before, self.waiting = self.waiting, Waiting(what, source)
        try:
            yield
        finally:
            self.waiting = before
