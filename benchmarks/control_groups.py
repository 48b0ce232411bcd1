"""Control groups (cgroup v1, root only): shares of a core, and limits of memory, for processes."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import common

MOUNTED = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS = 10_000


def need(controller: str) -> None:
    """End well, saying why, where groups of a controller cannot be made."""
    if not os.access(MOUNTED / controller / "cgroup.procs", os.W_OK):
        common.skip(
            f"This needs the {controller} controller of cgroup v1 at {MOUNTED / controller}, "
            f"writable by root."
        )


@contextmanager
def quotas(number: int, quota: float) -> Iterator[list[str]]:
    """Make groups that have a share of a core each, and yield their folders."""
    settings = {
        "cpu.cfs_period_us": PERIOD_MICROSECONDS,
        "cpu.cfs_quota_us": round(quota * PERIOD_MICROSECONDS),
        # So that other work on the machine cannot take the quota away.
        "cpu.shares": 65_536,
    }
    with _made("cpu", number, settings) as folders:
        yield folders


@contextmanager
def limits(number: int, num_bytes: int) -> Iterator[list[str]]:
    """Make groups that may hold so many bytes each, and yield their folders."""
    with _made("memory", number, {"memory.limit_in_bytes": num_bytes}) as folders:
        yield folders


@contextmanager
def _made(controller: str, number: int, settings: dict[str, int]) -> Iterator[list[str]]:
    with ExitStack() as stack:
        folders = []
        for each in range(number):
            folder = MOUNTED / controller / f"onward-{os.getpid()}-{each}"
            folder.mkdir()
            stack.callback(_remove, folder)
            for name, value in settings.items():
                (folder / name).write_text(str(value))
            folders.append(str(folder))
        yield folders


def _remove(folder: Path) -> None:
    # Its processes have ended, but the system may not know yet.
    for _ in range(50):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def join(folder: str | None) -> None:
    """Put this process into a group."""
    if folder:
        Path(folder, "cgroup.procs").write_text(str(os.getpid()))
