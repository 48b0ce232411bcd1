"""Tells ranks that wait whether those they wait for are alive, late or gone.

A wait for a message has no end of its own, since a chapter may take hours. So each rank says every
few seconds that it lives, and what it does; who waits looks at that, and only then.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onward.errors import OnwardError, PeerLostError
from onward.launcher import LAUNCHER
from onward.transport import Transport, leave

BEAT_SECONDS = 2.0
"""How often a rank says that it lives."""

PATIENCE_SECONDS = 30.0
"""How long a rank waits before it says for whom."""


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
        self.waiting = Waiting(what, source)
        yield
        self.waiting = None


class Pulse:
    """Says that this rank lives, and watches the one that it waits for.

    Args:
        transport: The way to the others.
        doing: What this rank does.
        peer_timeout: Seconds without a word after which a rank counts as gone.
        note: Told once about a long wait.
    """

    def __init__(
        self,
        transport: Transport,
        doing: Doing,
        peer_timeout: float,
        note: Callable[[str], None],
    ) -> None:
        self.transport, self.doing = transport, doing
        self.peer_timeout, self.note = peer_timeout, note
        self._beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._launcher = os.environ.get(LAUNCHER)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        try:
            while not self._stopped.wait(BEAT_SECONDS if self._beats else 0.0):
                if self._launcher is not None and os.getppid() != int(self._launcher):
                    # Nobody would start the ranks again, or stop them.
                    leave(1)
                self._beats += 1
                self.transport.tell("beat", [self._beats, self.doing.what])
                waiting = self.doing.waiting
                if waiting is not None:
                    self.look(waiting)
        except OnwardError as error:
            self.transport.fail(error)
        except (RuntimeError, OSError) as error:
            if not self._stopped.is_set():
                lost = PeerLostError(
                    f"Rank {self.transport.rank} lost the connection to rank 0, where the ranks "
                    f"meet. The log of rank 0 says why."
                )
                lost.__cause__ = error
                self.transport.fail(lost)

    def look(self, waiting: Waiting) -> None:
        """Look at the rank that this one waits for.

        Raises:
            PeerLostError: It has said nothing for too long.
        """
        now = time.monotonic()
        beat, doing = self.transport.heard("beat", [waiting.source])[0] or (0, "has not started")
        if beat != waiting.beat:
            waiting.beat, waiting.heard_at = beat, now
        silent, waited = now - waiting.heard_at, now - waiting.since
        here, there = self.transport.rank, waiting.source
        if silent > self.peer_timeout:
            raise PeerLostError(
                f"Rank {here} has waited {waited:.0f} s for {waiting.what} from rank {there}, "
                f"which has said nothing for {silent:.0f} s (last: {doing}) and counts as gone: "
                f"placement.peer_timeout is {self.peer_timeout:.0f} s."
            )
        if waited > PATIENCE_SECONDS and not waiting.is_told:
            waiting.is_told = True
            is_alive = silent < 3 * BEAT_SECONDS
            state = f"is alive ({doing})" if is_alive else f"is silent for {silent:.0f} s"
            self.note(
                f"rank {here} has waited {waited:.0f} s for {waiting.what} from rank {there}, "
                f"which {state}."
            )
