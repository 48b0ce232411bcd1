"""What a rank does now, and what it waits for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waiting:
    """What a rank waits for, and since when."""

    def __init__(self, what: str, source: int, *, is_short: bool) -> None:
        self.what, self.source, self.is_short = what, source, is_short
        self.since = self.heard_at = time.monotonic()
        self.beat: int | None = None
        self.is_told = False


class Doing:
    """What a rank does now, and what it waits for, if it does."""

    def __init__(self) -> None:
        self.what = "starts"
        self.waiting: Waiting | None = None

    @contextmanager
    def wait(self, what: str, source: int, *, is_short: bool = False) -> Iterator[None]:
        """Wait for something of a rank; a short wait does not take long where all is well."""
        before, self.waiting = self.waiting, Waiting(what, source, is_short=is_short)
        try:
            yield
        finally:
            self.waiting = before
