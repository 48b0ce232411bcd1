"""Whether each rank has memory enough for its part of a run."""

import resource
import socket
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from onward.blocks import Block
from onward.errors import SettingError
from onward.networks import Network
from onward.placement import Placement, messages
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import Kind, Plan, Product, Task, Thing
from onward.runtime.runtime import most_waiting
from onward.runtime.store import MOST_UNWRITTEN
from onward.runtime.workers import Arithmetic
from onward.steps import SLICE_BYTES, has_closed_form
from onward.transport.distributed import IN_FLIGHT, POSTED

NO_LIMIT = 1 << 60
"""Bytes from which on a limit is none: how the first version of control groups says so."""


class Room(NamedTuple):
    """What a rank will hold, and what it may."""

    needed: int
    """Bytes that it will hold at its peak, about."""

    shared: int
    """Bytes of these that all processes of a machine have in common: libraries."""

    limits: dict[str, int]
    """Bytes that it may hold together with all others that name the same limit."""


def room(needed: int) -> Room:
    """Return the room of this process, whose part of a run needs so many bytes at its peak."""
    shared = getattr(psutil.Process().memory_info(), "shared", 0)
    return Room(needed, min(shared, needed), limits())


def check(rooms: Sequence[Room]) -> None:
    """Refuse a run that ranks have no room for.

    Args:
        rooms: Of each rank.

    Raises:
        SettingError: Some would hold more than they may, each or together.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for rank, own in enumerate(rooms):
        for name in own.limits:
            sharing[name].append(rank)
    for name, ranks in sharing.items():
        limit = rooms[ranks[0]].limits[name]
        needed = sum(rooms[rank].needed - rooms[rank].shared for rank in ranks)
        needed += max(rooms[rank].shared for rank in ranks)
        if needed > limit:
            who = f"Rank {ranks[0]}" if len(ranks) == 1 else f"{len(ranks)} ranks together"
            if len(rooms) == 1:
                who = "The run"
            what = name.partition(" ")[2]
            raise SettingError(
                f"{who} would hold about {needed / 1e6:,.0f} MB, and may hold {limit / 1e6:,.0f} "
                f"MB ({what}). Use smaller --widths or --batch-size, or fewer ranks on this "
                f"machine. --plan stream on several machines lets each hold its own blocks alone, "
                f"and changes the weights. `onward plan` says what each rank would hold."
            )


@dataclass(frozen=True)
class Size:
    """Bytes that belong to a block."""

    weights: int
    """Weights and buffers."""

    moments: int
    """State of its optimiser."""

    products: int
    """Copy of the weights for products in another type, as long as a step is there."""

    gradients: int
    """Gradients of a step."""

    row: int
    """What it hands on for a view of a row."""


def estimate(
    plan: Plan,
    placement: Placement,
    network: Network,
    input_shape: tuple[int, ...],
    arithmetic: Arithmetic,
    *,
    keeps: bool = False,
) -> list[int]:
    """Return the bytes that each rank needs for blocks, activities and messages, about.

    They come on top of what a process holds that has loaded the data and has no blocks yet. What
    is inside of a block that learns by automatic differentiation is taken to be as large as what
    comes out.

    Args:
        plan: What is computed.
        placement: Where.
        network: The blocks; their weights may be released.
        input_shape: Shape of a row of the data.
        arithmetic: How it is computed.
        keeps: Whether states are kept to go on from.
    """
    row = 4 * torch.Size(network.sampler.width(input_shape)).numel()
    sizes = {-1: Size(0, 0, 0, 0, row), **_sizes(network, input_shape, arithmetic.closed_form)}
    views = len(network.sampler.names)
    # Shifted copies of the data.
    copies = sum(plan.rows) * 4 * torch.Size(input_shape).numel() if arithmetic.shift else 0
    ranks = range(placement.num_ranks)
    kept = [_of_store(plan, placement, rank, sizes) if keeps else 0 for rank in ranks]
    if isinstance(plan, StreamPlan):
        # Rows with the neutral label may be an epoch ahead.
        found = [2 * copies + _of_stream(plan, placement, rank, sizes, views) for rank in ranks]
    else:
        assert isinstance(plan, ChapterPlan)
        segments = len(plan.segments(0)) if arithmetic.shift else 1
        found = [copies + n for n in _of_chapters(plan, placement, sizes, views, segments)]
    return [num_bytes + more for num_bytes, more in zip(found, kept, strict=True)]


def _of_store(plan: Plan, placement: Placement, rank: int, sizes: Mapping[int, Size]) -> int:
    """Return what copies of states take until they are written."""
    own = [
        block
        for block in plan.trained
        if not placement.owners or rank in placement.ranks(Task(Kind.TRAIN, 0, block))
    ]
    return (MOST_UNWRITTEN + 1) * max((sizes[b].weights + sizes[b].moments for b in own), default=0)


@torch.no_grad()
def _sizes(network: Network, input_shape: tuple[int, ...], closed_form: bool) -> dict[int, Size]:
    x = torch.zeros(1, *network.sampler.width(input_shape))
    sizes = {}
    for number, block in enumerate(network.all_blocks):
        x = block.infer(x) if block.reads is None else x.new_zeros(1, network.num_classes)
        sizes[number] = _size(block, x.nbytes, closed_form and has_closed_form(block))
    return sizes


def _size(block: Block, row: int, closed_form: bool) -> Size:
    weights = block.num_bytes
    copy = weights // 2 if block.precision is torch.bfloat16 else 0
    return Size(
        weights=weights,
        moments=sum(t.nbytes for parts in block.moments.values() for t in parts.values()),
        products=copy if closed_form else 0,
        gradients=min(weights, 2 * SLICE_BYTES) if closed_form else weights + copy,
        row=row,
    )


def _of_stream(
    plan: StreamPlan, placement: Placement, rank: int, sizes: Mapping[int, Size], views: int
) -> int:
    owners = {b: placement.rank(Task(Kind.TRAIN, 0, b)) for b in plan.trained}
    own = [block for block, owner in owners.items() if owner == rank]
    total = sum(sizes[b].weights + sizes[b].moments + sizes[b].products for b in own)
    total += max((sizes[b].gradients + _step(plan, sizes, b, views) for b in own), default=0)
    # A mini-batch of all views, and of the neutral one where a head reads it.
    rows = plan.batch_size * (views + bool(plan.head_reads))
    for block in own:
        if 0 < block < plan.num_blocks and owners[block - 1] != rank:
            total += (most_waiting(plan) + POSTED + 2) * rows * sizes[block - 1].row
        if block + 1 < plan.num_blocks and owners[block + 1] != rank:
            total += IN_FLIGHT * rows * sizes[block].row
        if block == plan.head:
            read = [b for b in plan.head_reads if owners[b] != rank]
            waiting = (most_waiting(plan) + POSTED + 2) * plan.batch_size
            total += waiting * sum(sizes[b].row for b in read)
    ends = [plan.gather, *plan.validations(plan.chapters - 1)]
    if rank in {placement.rank(task) for task in ends}:
        total += sum(sizes[b].weights for b in plan.trained if b not in own)
    elif plan.has_validation and plan.validate_every:
        # Weights on their way to where they are validated, while training goes on.
        total += sum(sizes[b].weights for b in own)
    return total


def _of_chapters(
    plan: ChapterPlan,
    placement: Placement,
    sizes: Mapping[int, Size],
    views: int,
    segments: int,
) -> list[int]:
    ranks = range(placement.num_ranks)
    held: list[set[int]] = [set() for _ in ranks]
    trained: list[set[int]] = [set() for _ in ranks]
    incoming: list[dict[int, list[int]]] = [defaultdict(list) for _ in ranks]
    outgoing = [0] * placement.num_ranks
    # Moments that a rank keeps for a later task of its own, now and at most.
    kept, most = [0] * placement.num_ranks, [0] * placement.num_ranks
    for task in plan.tasks():
        own = placement.ranks(task)
        for rank in own:
            held[rank].update(p.block for p in plan.needs(task) if p.thing is Thing.WEIGHTS)
            if task.kind is Kind.TRAIN:
                trained[rank].add(task.block)
                held[rank].add(task.block)
        for product in plan.needs(task):
            if product.thing is Thing.MOMENTS:
                for rank in set(own) & set(placement.ranks(plan.maker(product))):
                    kept[rank] -= sizes[product.block].moments
        for product in plan.makes(task):
            if product.thing is Thing.MOMENTS:
                users = {rank for use in plan.uses(product) for rank in placement.ranks(use)}
                for rank in set(own) & users:
                    kept[rank] += sizes[product.block].moments
                    most[rank] = max(most[rank], kept[rank])
        for message in messages(plan, placement, task):
            size = sum(_of_product(product, sizes) for product in message.products)
            incoming[message.dest][message.source].append(size)
            outgoing[message.source] = max(outgoing[message.source], size)
    # Where blocks stay, a rank of a cheap block is ahead of those that read it.
    ahead = most_waiting(plan) if placement.owners else 1
    found = []
    for rank in ranks:
        blocks = [sizes[b] for b in trained[rank]]
        total = sum(sizes[b].weights for b in held[rank])
        total += max(most[rank], *(b.moments for b in blocks), 0)
        total += max((b.products + _slices(plan, placement, b) for b in blocks), default=0)
        total += sum(sum(sent[: POSTED + 1 + ahead]) for sent in incoming[rank].values())
        total += outgoing[rank]
        total += max((_step(plan, sizes, b, views) for b in trained[rank]), default=0)
        highest = max(trained[rank], default=-1)
        found.append(total + _passed(plan, sizes, highest, views, segments))
    return found


def _slices(plan: ChapterPlan, placement: Placement, size: Size) -> int:
    """Return what the gradients of a block take, and what ranks of a team give each other."""
    if plan.slices == 1:
        return size.gradients
    if plan.cut == "rows":
        # Those of each slice, in the type of the products, and their sum.
        return plan.slices * (size.products or size.weights) + size.weights
    whole = size.weights + size.moments
    return size.gradients + (whole if max(placement.teams) > 1 else 0)


def _of_product(product: Product, sizes: Mapping[int, Size]) -> int:
    """Return the bytes of a block, or none of what is small."""
    match product.thing:
        case Thing.WEIGHTS:
            return sizes[product.block].weights
        case Thing.MOMENTS:
            return sizes[product.block].moments
    return 0


def _step(plan: Plan, sizes: Mapping[int, Size], block: int, views: int) -> int:
    """Return what a step makes on the way: inputs, activities and their derivatives."""
    if block == plan.head:
        return plan.batch_size * sum(sizes[b].row for b in plan.head_reads)
    return plan.batch_size * views * 3 * (sizes[block - 1].row + sizes[block].row)


def _passed(
    plan: ChapterPlan, sizes: Mapping[int, Size], highest: int, views: int, segments: int
) -> int:
    """Return what a chapter's rows take that are passed on to a block."""
    first = plan.segments(0)[0]
    rows = max(plan.rows) * (first.last - first.first) // plan.batches(0)
    # The first block reads the data themselves, unless there are views of them.
    line = [sizes[-1].row if views > 1 else 0, *(sizes[b].row for b in range(plan.num_blocks))]
    top = min(highest, plan.num_blocks - 1)
    # Activities of one block are made from those of another: both are there at once.
    most = views * max([line[0], *(line[b] + line[b + 1] for b in range(top))])
    if plan.head is not None and highest == plan.head:
        # Those of each chunk, and all of them joined.
        read = 2 * sum(sizes[b].row for b in plan.head_reads)
        most = max(most, views * line[top] + read)
    return segments * rows * most


def resident() -> int:
    """Return the bytes that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Return the most bytes that this process has held."""
    # getrusage would tell the launcher's peak where that is larger: it is inherited.
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def limits() -> dict[str, int]:
    """Return what this process may hold, by a name of the limit: of its machine, of its groups.

    Processes that share a limit call it by the same name.
    """
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        machine = socket.gethostname()
    found = {f"{machine} the memory of the machine": int(psutil.virtual_memory().total)}
    for folder, limit in _group_limits().items():
        found[f"{machine}-{folder.stat().st_ino} control group {folder}"] = limit
    return found


def _group_limits(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> dict[Path, int]:
    """Return the limits of the control groups that this process is in, by folder (Linux)."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            root, name = mounted / "memory", "memory.limit_in_bytes"
        elif not controllers:
            root, name = mounted, "memory.max"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (folder / name).is_file():
                limit = (folder / name).read_text().strip()
                if limit.isdecimal() and int(limit) < NO_LIMIT:
                    found[folder] = int(limit)
    return found
