"""The ranks of a run: which of them this process is, as torchrun or `--processes` has told it."""

import os

STARTED = "ONWARD_STARTED"
"""Variable with the time at which the command was started, for the processes that it starts."""


def started() -> float:
    """Return when the command was started, in seconds since 1970."""
    import psutil

    return float(os.environ.get(STARTED) or psutil.Process().create_time())


def is_distributed() -> bool:
    """Return whether torchrun or `--processes` has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def current_rank() -> int:
    """Return the rank of this process; 0 where there is one."""
    return int(os.environ.get("RANK", "0")) if is_distributed() else 0


def max_restarts() -> int:
    """Return how often torchrun starts the ranks again; 0 where it does not."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def may_restart_apart() -> bool:
    """Return whether several agents of torchrun may start ranks again."""
    has_agents = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    return is_distributed() and max_restarts() > 0 and has_agents


def attempt() -> int:
    """Return how often the ranks of this run have been started again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
