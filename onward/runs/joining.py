"""How this process joins the other ranks of a run, and parts from them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from onward.config import RunConfig
from onward.errors import SettingError
from onward.runs.results import Listener
from onward.transport.directory import DirectoryTransport
from onward.transport.distributed import DistributedTransport
from onward.transport.messages import SingleProcessTransport, Transport
from onward.transport.pulse import Pulse
from onward.world import current_rank, is_distributed


@contextmanager
def join_ranks(config: RunConfig, listener: Listener) -> Iterator[Transport]:
    """Join the other ranks, watch those that this one waits for, and part from them.

    Raises:
        OnwardError: Several ranks are asked for, and this is one process, or the way is not open.
    """
    transport = open_transport(config)
    pulse = Pulse(transport, config.placement.peer_timeout, listener.note)
    with pulse if transport.num_ranks > 1 else nullcontext():
        transport.connect()
        yield transport
        transport.finish()
    transport.close()


def open_transport(config: RunConfig) -> Transport:
    """Return the way to the other ranks: of torchrun, or none where this is one process.

    Raises:
        OnwardError: Several ranks are asked for, and this is one process, or the way is not open.
    """
    placement = config.placement
    if is_distributed() and placement.directory is not None:
        num_ranks, folder = int(os.environ["WORLD_SIZE"]), Path(placement.directory)
        # A word for the start of the run, which notes of an earlier one with another do not have.
        name = placement.name or config.plan.usual_placement
        return DirectoryTransport(folder, current_rank(), num_ranks, name)
    if is_distributed():
        return DistributedTransport(placement.iface)
    if placement.directory is not None:
        raise SettingError(
            f"placement.directory is {placement.directory}, and this is one process, with "
            f"nobody to share a folder with. Set the variables RANK and WORLD_SIZE on each "
            f"machine, or use --processes."
        )
    if placement.processes > 1:
        raise SettingError(
            f"placement.processes is {placement.processes}, and this is one process: only the "
            f"command starts others. Use `onward train ... --processes {placement.processes}`, or "
            f"start this script with torchrun --nproc-per-node {placement.processes}."
        )
    return SingleProcessTransport()
