"""The memory budget: outputs of frozen blocks for a chapter, and where a rank may hold them."""

import shutil
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import psutil
import torch

from onward.batch import Batch
from onward.costs import memory
from onward.devices import device_key, free_bytes
from onward.errors import SettingError
from onward.network.networks import Network
from onward.placement import Placement
from onward.plan.tasks import Plan
from onward.runtime.holding import Way, folder, is_in_memory
from onward.runtime.workers import Settings

ROOMS = ("memory", "disk")
"""What ranks that share tasks have all as much of as the one with the least."""

SHARE = 0.5
"""Part of the free memory that activities may take where nothing is set."""


class Place(NamedTuple):
    """What a rank has for activities, as far as it is not used now."""

    machine: str
    """Name of the machine."""

    memory: int
    """Bytes that are free in memory."""

    disk: int
    """Bytes that are free on the disk for files; 0 where their folder lies in memory."""

    folder: str
    """Where such files are."""

    gigabytes: float | None = None
    """The setting `placement.memory`."""


class Held(NamedTuple):
    """Outputs of frozen blocks for the samples of a chapter, on a rank."""

    bytes: int
    """All that is held at the peak, about."""

    chunk: int
    """What is there of it, about, while a chunk is passed through the blocks."""

    ways: tuple[Way, ...]
    """Ways to hold it, the best first: computing it again is one where that costs no more passes,
    or where each epoch sees samples of its own."""

    memory: int = 0
    """Bytes that may be held in memory."""

    disk: int = 0
    """Bytes that may be held in a file."""

    @property
    def way(self) -> Way | None:
        """How it is held; None where there is no room for it."""
        if not self.bytes:
            return "memory"
        rooms: dict[Way, int] = {"memory": self.memory, "file": self.disk, "again": self.bytes}
        fits = (way for way in self.ways if self.bytes <= rooms[way])
        return next(fits, None) if self.chunk <= self.memory else None


def place(gigabytes: float | None = None, device: torch.device | None = None) -> Place:
    """Return what this process has for activities; see `placement.memory`.

    On a GPU they are held in its own memory, and in no file.
    """
    limit = memory.limits()
    machine = next(name for name in limit if name.endswith(memory.MACHINE))
    if device is not None and device.type != "cpu":
        return Place(device_key(device), free_bytes(device), 0, str(device), gigabytes)
    where = folder()
    disk = 0 if is_in_memory(where) else shutil.disk_usage(where).free
    left = max(min(limit.values()) - memory.resident(), 0)
    free = min(psutil.virtual_memory().available, left)
    return Place(machine, free, disk, str(where), gigabytes)


def with_room(held: Sequence[Held], places: Sequence[Place], placement: Placement) -> list[Held]:
    """Return what is held on each rank with the room for it.

    Ranks that share tasks hold it alike, since they exchange it.

    Args:
        held: On each rank.
        places: What each rank has.
        placement: Where tasks run.
    """
    sharing = Counter(place.machine for place in places)
    own = [
        each._replace(
            memory=round(
                SHARE * there.memory / sharing[there.machine]
                if there.gigabytes is None
                else there.gigabytes * 1e9
            ),
            disk=there.disk // sharing[there.machine],
        )
        for each, there in zip(held, places, strict=True)
    ]
    found = []
    for members in placement.members:
        least = {name: min(getattr(own[rank], name) for rank in members) for name in ROOMS}
        found += [own[rank]._replace(**least) for rank in members]
    return found


def told_size(number: int) -> str:
    """Return a number of bytes as people read it.

    Example:
        >>> told_size(12_340_000_000), told_size(1_520_000)
        ('12.3 GB', '1.52 MB')
    """
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:.3g} MB"


def check(held: Sequence[Held], places: Sequence[Place]) -> None:
    """Refuse a run of which some rank has no room for the outputs of frozen blocks.

    Raises:
        SettingError: One has none.
    """
    for rank, each in enumerate(held):
        if each.way is not None:
            continue
        what = "The outputs of frozen blocks"
        if each.chunk > each.memory:
            raise SettingError(
                f"{what} for a chunk of samples take about {_gigabytes(each.chunk)} on rank "
                f"{rank}, which may hold {_gigabytes(each.memory)}. Raise placement.memory (in "
                f"GB), or use a smaller --batch-size or network."
            )
        raise SettingError(
            f"{what} for the samples of a chapter take about {_gigabytes(each.bytes)} on rank "
            f"{rank}, which may hold {_gigabytes(each.memory)} in memory and has "
            f"{_gigabytes(each.disk)} for it on the disk of {places[rank].folder}. Raise "
            f"placement.memory (in GB), or set TMPDIR to a folder on a disk with room."
        )


def _gigabytes(number: int) -> str:
    """Return a number of bytes in the unit of placement.memory."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e9:.3g} GB"


def estimate(
    plan: Plan,
    placement: Placement,
    network: Network,
    training: Batch,
    settings: Settings,
    places: Sequence[Place],
    *,
    keeps: bool = False,
) -> tuple[list[Held], list[int]]:
    """Return how each rank holds the outputs of frozen blocks, and all bytes it holds at its peak.

    Args:
        plan: What is computed.
        placement: Where.
        network: The blocks; their weights may be released.
        training: Samples like those of the data.
        settings: How it is computed.
        places: What each rank has.
        keeps: Whether states are kept to go on from.
    """
    held = with_room(held_on_ranks(plan, placement, network, training, settings), places, placement)
    ways = [each.way for each in held]
    return held, memory.estimate(
        plan, placement, network, training, settings, keeps=keeps, ways=ways
    )


def held_on_ranks(
    plan: Plan, placement: Placement, network: Network, training: Batch, settings: Settings
) -> list[Held]:
    """Return how large the outputs of frozen blocks are on each rank, and how they may be held.

    Args:
        plan: What is computed.
        placement: Where.
        network: The blocks; their weights may be released.
        training: Samples like those of the data.
        settings: How it is computed.
    """
    sizes = memory.sizes_of(plan, placement, network, training, settings)
    tasks = memory.trains(plan, placement)
    found = []
    for rank in range(placement.num_ranks):
        blocks = {task.block for task in tasks[rank]}
        ways: tuple[Way, ...] = ("memory", "file")
        if settings.augment:
            ways = ("memory", "file", "again")
            heads = blocks.intersection(plan.heads)
            is_shared = placement.teams[placement.team_of(rank)] > 1
            if len(heads) < 2 and len(blocks - heads) < 2 and not is_shared:
                # Nobody else reads here what is put out.
                ways = ("again",)
        most = max((sizes.activities[block] for block in blocks), default=0)
        chunk = max((sizes.chunks[block] for block in blocks), default=0)
        found.append(Held(most, chunk if most else 0, ways))
    return found
