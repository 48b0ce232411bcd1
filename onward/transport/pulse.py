"""Tells ranks that wait whether those they wait for are alive, late or gone.

A wait for a message has no end of its own, since a chapter may take hours. So each rank says every
few seconds that it lives, and what it does; who waits looks at that, and only then.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from onward.errors import PeerLostError
from onward.launcher import LAUNCHER
from onward.transport.messages import Transport, exit_process
from onward.transport.waiting import Waiting

BEAT_SECONDS = 2.0
"""How often a rank says that it lives."""

PATIENCE_SECONDS = 30.0
"""How long a rank waits for one that is silent before it says so."""

GRACE_SECONDS = 10.0
"""How long a rank may go on to wait once that is in vain."""


class Pulse:
    """Says that this rank lives, and watches the one that it waits for.

    Args:
        transport: The way to the others.
        peer_timeout: Seconds without a word after which a rank counts as gone.
        note: Told once about a long wait.
    """

    def __init__(
        self,
        transport: Transport,
        peer_timeout: float,
        note: Callable[[str], None],
    ) -> None:
        self.transport = transport
        self.peer_timeout, self.note = peer_timeout, note
        self._beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._launcher = os.environ.get(LAUNCHER)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopped.wait(BEAT_SECONDS if self._beats else 0.0):
                with self._answered():
                    self._beat()
        except Exception as error:
            self.transport.fail(error)
            while not self._stopped.wait(GRACE_SECONDS):
                if self.transport.doing.waiting is not None:
                    # It waits where nothing wakes it, such as for others of its team.
                    self._say(str(error))
                    exit_process(2)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """End this rank where nothing that it asks of the meeting point returns."""
        watch = threading.Timer(self.peer_timeout, self._end_unheard)
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _end_unheard(self) -> None:
        # Not even a farewell would be heard.
        self._say(
            f"This rank has heard nothing for {self.peer_timeout:.0f} s from where the ranks meet, "
            f"on rank 0 or its launcher: placement.peer_timeout."
        )
        os._exit(2)

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):
            print(f"onward: rank {self.transport.rank}: {text}", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        if self._launcher is not None and os.getppid() != int(self._launcher):
            # Nobody would start the ranks again, or stop them.
            exit_process(1)
        self._beats += 1
        doing = self.transport.doing
        self.transport.put("beat", [self._beats, doing.what])
        waiting = doing.waiting
        if waiting is not None:
            self.look(waiting)

    def look(self, waiting: Waiting) -> None:
        """Look at the rank that this one waits for.

        Raises:
            PeerLostError: It has said nothing for too long.
        """
        now = time.monotonic()
        beat, doing = self.transport.get("beat", waiting.source) or (0, "has not started")
        if beat != waiting.beat:
            waiting.beat, waiting.heard_at = beat, now
        silent, waited = now - waiting.heard_at, now - waiting.since
        here, there = self.transport.rank, waiting.source
        if waiting.is_short and waited > self.peer_timeout:
            raise PeerLostError(
                f"Rank {here} has waited {waited:.0f} s for {waiting.what} from rank {there}, "
                f"which lives. All ranks must reach each other: see --iface and `onward doctor`, "
                f"and let no firewall close the ports between them."
            )
        if silent > self.peer_timeout:
            raise PeerLostError(
                f"Rank {here} has waited {waited:.0f} s for {waiting.what} from rank {there}, "
                f"which has said nothing for {silent:.0f} s (last: {doing}) and counts as gone: "
                f"placement.peer_timeout is {self.peer_timeout:.0f} s."
            )
        is_silent = silent > 3 * BEAT_SECONDS
        # One that is at work may need long; one that is silent should not be.
        patience = PATIENCE_SECONDS if is_silent else self.peer_timeout
        if waited > patience and not waiting.is_told:
            waiting.is_told = True
            state = f"is silent for {silent:.0f} s" if is_silent else f"is alive ({doing})"
            with suppress(OSError, ValueError):  # Nobody may read what is said.
                self.note(
                    f"rank {here} has waited {waited:.0f} s for {waiting.what} from rank {there}, "
                    f"which {state}."
                )
