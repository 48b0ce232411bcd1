"""Starts the ranks of a run on this machine, and starts them again where one was killed.

As torchrun does it on many machines, but open to this machine alone: ranks meet at a socket of the
loopback.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from onward.errors import SettingError, Stopped

LAUNCHER = "ONWARD_LAUNCHER"
"""Variable with the process that has started the ranks."""

LISTEN_FD = "ONWARD_LISTEN_FD"
"""Variable with the socket at which rank 0 lets the others meet."""

LOOK_EVERY_SECONDS = 0.05
"""How often the launcher looks whether a rank has ended."""

GRACE_SECONDS = 30.0
"""How long ranks have to end after they were asked to."""

SETTLE_SECONDS = 1.0
"""How long after the first rank others may end for the same reason."""


def launch(
    num_ranks: int,
    command: Sequence[str],
    restarts: int = 0,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Start a command as several ranks on this machine and wait for them.

    Args:
        num_ranks: Processes.
        command: Arguments of the Python interpreter.
        restarts: How often all are started again after one was ended by a signal.
        variables: More variables of their environment.

    Returns:
        The exit status: 0, or that of the rank that failed first.

    Raises:
        SettingError: This is Windows, whose processes inherit no sockets and get no signals.
    """
    for attempt in range(restarts + 1):
        with _started(num_ranks, command, attempt, variables or {}) as ranks:
            status = _wait(ranks)
        if status >= 0 or ranks[0].returncode == 0:
            # Rank 0 ends last, once the result is written.
            return max(status, 0)
        rank = next(r for r, process in enumerate(ranks) if process.returncode == status)
        name = signal.Signals(-status).name
        text = f"onward: rank {rank} was ended by {name}"
        if attempt == restarts:
            print(f"{text}.", file=sys.stderr)
            return 128 - status
        print(
            f"{text}; all ranks go on from what is finished (restart {attempt + 1} of {restarts}).",
            file=sys.stderr,
        )
    raise AssertionError("every attempt returns, or is followed by another")


@contextmanager
def _started(
    num_ranks: int, command: Sequence[str], attempt: int, variables: Mapping[str, str]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start all ranks, hand them the signals of this process, and leave none behind."""
    if sys.platform == "win32":
        raise SettingError(
            "--processes does not work on Windows. Leave it out to train in one process, or run "
            "Onward in WSL."
        )
    with socket.create_server(("127.0.0.1", 0)) as meeting:
        shared = {
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(meeting.getsockname()[1]),
            "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
            # Rank 0 serves, and is a client as the others are.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            LAUNCHER: str(os.getpid()),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        ranks: list[subprocess.Popen[bytes]] = []
        asked: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            for process in ranks:
                if process.poll() is None:
                    process.send_signal(number if len(asked) == 1 else signal.SIGKILL)

        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, forward) for number in handled}
        try:
            for rank in range(num_ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                own |= {LISTEN_FD: str(meeting.fileno())} if rank == 0 else {}
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        env={**os.environ, **variables, **shared, **own},
                        pass_fds=[meeting.fileno()] if rank == 0 else [],
                        # The terminal's signals come through `forward`, once.
                        process_group=0,
                    )
                )
            yield ranks
        finally:
            _end(ranks)
            for number, handler in before.items():
                signal.signal(number, handler)
    if asked:
        raise Stopped(asked[0])


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Wait until all ranks are done or one has failed; return its status, below 0 for a signal."""
    while not any(process.poll() for process in ranks):
        if all(process.poll() == 0 for process in ranks):
            return 0
        time.sleep(LOOK_EVERY_SECONDS)
    first = next(process.returncode for process in ranks if process.returncode)
    # Others notice that a rank was killed, and may be seen to end before it.
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(LOOK_EVERY_SECONDS)
    killed = [p.returncode for p in ranks if p.returncode is not None and p.returncode < 0]
    return killed[0] if killed else first


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Ask all that still run to end, and make them where they do not."""
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
