"""A group of four processes, which is started once for all tests that need one.

`results` starts the group and returns what each job told on each rank. As a script this file is the
body of a rank: it does the jobs in order, each in a world of its own size over real gloo, and
writes what they return as JSON.
"""

import atexit
import faulthandler
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from functools import cache
from pathlib import Path

import torch.distributed as dist
import transport_jobs  # noqa: F401 (its jobs come first, and `deserted` last)
from filelock import FileLock
from jobs import JOBS, NUM_RANKS
from weight_jobs import deserted, write_digits

from onward.launcher import launch
from onward.transport.messages import exit_process

LIMIT_SECONDS = 150
"""After this a rank prints where it hangs, and ends."""


# In the tests


@cache
def results():
    """Start the group once; return by job what each of its ranks told, rank 0 first.

    The entry "status" is the exit status of the group.
    """
    # Workers of one pytest session start one group together.
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    folder = Path(tempfile.gettempdir()) / f"onward-ranks-{session}"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "status").exists():
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            (folder / "status").write_text(str(_started(folder)))
    told = [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]
    found = {name: [each[name] for each in told if name in each] for name in JOBS}
    return found | {"status": int((folder / "status").read_text()), "folder": folder}


def _started(folder):
    """Start the group in a folder, wait for it, and return its exit status."""
    write_digits(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(probe.getsockname()[1]))
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return launch(NUM_RANKS, [__file__, str(folder)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# In a rank


def main(folder):
    rank, told = int(os.environ["RANK"]), {}
    for number, (name, (num_ranks, function)) in enumerate(JOBS.items()):
        if rank >= num_ranks:
            continue
        # A world of its own: its size, and a try of its own, which the transport keeps apart.
        os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(num_ranks)
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        start = time.monotonic()
        try:
            told[name] = function(folder)
        except Exception as error:
            told[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"rank {rank}: {name}: {time.monotonic() - start:.2f} s", flush=True)
        (folder / f"rank{rank}.json").write_text(json.dumps(told))
        if dist.is_initialized() and function is not deserted:
            dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    main(Path(sys.argv[1]))
    # At once, as the command ends a rank: threads that wait for one that died would abort.
    exit_process(0)
