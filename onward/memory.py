"""Whether each rank has memory enough for its part of a run."""

import socket
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from onward.batch import Batch, Tensors, parts
from onward.blocks import Block
from onward.errors import SettingError
from onward.kernels.closed_form import SLICE_BYTES, has_closed_form
from onward.networks import Network, passes
from onward.placement import Placement, messages
from onward.plan.tasks import INPUT, Plan, Product, ProductKind, Task, TaskKind
from onward.runtime.store import MOST_UNWRITTEN
from onward.runtime.workers import Settings
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

    optimizer_state: int
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
    training: Batch,
    settings: Settings,
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
        training: Samples like those of the data.
        settings: How it is computed.
        keeps: Whether states are kept to go on from.
    """
    sizes = _sizes(network, training, settings.closed_form)
    views = len(network.sampler.names)
    # Shifted copies of the data.
    copies = sum(plan.rows) * _bytes_each(training.inputs) if settings.shift else 0
    ranks = range(placement.num_ranks)
    kept = [_of_store(plan, placement, rank, sizes) if keeps else 0 for rank in ranks]
    found = ESTIMATES[plan.kind](plan, placement, sizes, views, copies)
    return [num_bytes + more for num_bytes, more in zip(found, kept, strict=True)]


def _of_store(plan: Plan, placement: Placement, rank: int, sizes: Mapping[int, Size]) -> int:
    """Return what copies of states take until they are written."""
    own = [
        block
        for block in plan.trained
        if not placement.owners or rank in placement.ranks(Task(TaskKind.TRAIN, 0, block))
    ]
    return (MOST_UNWRITTEN + 1) * max(
        (sizes[b].weights + sizes[b].optimizer_state for b in own), default=0
    )


@torch.no_grad()
def _sizes(network: Network, training: Batch, closed_form: bool) -> dict[int, Size]:
    batch = network.sampler.neutral(training.take(slice(0, 1)))
    sizes = {INPUT: Size(0, 0, 0, 0, _bytes_each(batch.inputs))}
    for number, _, outputs in passes(network, batch):
        block = network.all_blocks[number]
        row = _bytes_each(outputs.inputs)
        sizes[number] = _size(block, row, closed_form and has_closed_form(block))
    return sizes


def _bytes_each(tensors: Tensors) -> int:
    """Return the bytes of a sample."""
    return sum(tensor[:1].nbytes for tensor in parts(tensors))


def _size(block: Block, row: int, closed_form: bool) -> Size:
    weights = block.num_bytes
    copy = weights // 2 if block.precision is torch.bfloat16 else 0
    return Size(
        weights=weights,
        optimizer_state=sum(tensor.nbytes for tensor in block.optimizer_tensors()),
        products=copy if closed_form else 0,
        gradients=min(weights, 2 * SLICE_BYTES) if closed_form else weights + copy,
        row=row,
    )


def _of_stream(
    plan: Plan, placement: Placement, sizes: Mapping[int, Size], views: int, copies: int
) -> list[int]:
    # Neutral samples may be an epoch ahead.
    ranks = range(placement.num_ranks)
    return [2 * copies + _of_stream_rank(plan, placement, rank, sizes, views) for rank in ranks]


def _of_stream_rank(
    plan: Plan, placement: Placement, rank: int, sizes: Mapping[int, Size], views: int
) -> int:
    owners = {b: placement.rank(Task(TaskKind.TRAIN, 0, b)) for b in plan.trained}
    own = [block for block, owner in owners.items() if owner == rank]
    total = sum(sizes[b].weights + sizes[b].optimizer_state + sizes[b].products for b in own)
    total += max((sizes[b].gradients + _step(plan, sizes, b, views) for b in own), default=0)
    waiting = plan.most_waiting + POSTED + 2
    # A mini-batch of all views, and of the neutral one where a head reads it.
    rows = plan.batch_size * (views + bool(plan.heads))
    reads = {b: {read for read in plan.nodes[b].reads if read[0] != INPUT} for b in plan.trained}
    for block in own:
        elsewhere = {source for source, _ in reads[block] if owners[source] != rank}
        size = plan.batch_size if plan.nodes[block].is_head else rows
        total += waiting * size * sum(sizes[source].row for source in elsewhere)
        readers = [b for b in range(plan.num_blocks) if reads[b] & {(block, 0), (block, 1)}]
        if any(owners[reader] != rank for reader in readers):
            total += IN_FLIGHT * rows * sizes[block].row
        if any(owners[reader] == rank and (block, 1) in reads[reader] for reader in readers):
            # Until the next visit.
            total += rows * sizes[block].row
    ends = [plan.gather, *plan.validations(plan.chapters - 1)]
    if rank in {placement.rank(task) for task in ends}:
        total += sum(sizes[b].weights for b in plan.trained if b not in own)
    elif plan.has_validation and plan.validate_every:
        # Weights on their way to where they are validated, while training goes on.
        total += sum(sizes[b].weights for b in own)
    return total


def _of_chapters(
    plan: Plan, placement: Placement, sizes: Mapping[int, Size], views: int, copies: int
) -> list[int]:
    segments = len(plan.segments(0)) if copies else 1
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
            held[rank].update(p.block for p in plan.needs(task) if p.kind is ProductKind.WEIGHTS)
            if task.kind is TaskKind.TRAIN:
                trained[rank].add(task.block)
                held[rank].add(task.block)
        for product in plan.needs(task):
            if product.kind is ProductKind.OPTIMIZER_STATE:
                for rank in set(own) & set(placement.ranks(plan.maker(product))):
                    kept[rank] -= sizes[product.block].optimizer_state
        for product in plan.makes(task):
            if product.kind is ProductKind.OPTIMIZER_STATE:
                users = {rank for use in plan.uses(product) for rank in placement.ranks(use)}
                for rank in set(own) & users:
                    kept[rank] += sizes[product.block].optimizer_state
                    most[rank] = max(most[rank], kept[rank])
        for message in messages(plan, placement, task):
            size = sum(_of_product(product, sizes) for product in message.products)
            incoming[message.dest][message.source].append(size)
            outgoing[message.source] = max(outgoing[message.source], size)
    # Where blocks stay, a rank of a cheap block is ahead of those that read it.
    ahead = plan.most_waiting if placement.owners else 1
    found = []
    for rank in ranks:
        blocks = [sizes[b] for b in trained[rank]]
        total = sum(sizes[b].weights for b in held[rank])
        total += max(most[rank], *(b.optimizer_state for b in blocks), 0)
        total += max((b.products + _slices(plan, placement, b) for b in blocks), default=0)
        total += sum(sum(sent[: POSTED + 1 + ahead]) for sent in incoming[rank].values())
        total += outgoing[rank]
        total += max((_step(plan, sizes, b, views) for b in trained[rank]), default=0)
        highest = max(trained[rank], default=-1)
        found.append(copies + total + _passed(plan, sizes, highest, views, segments))
    return found


def _slices(plan: Plan, placement: Placement, size: Size) -> int:
    """Return what the gradients of a block take, and what ranks of a team give each other."""
    if plan.num_slices == 1:
        return size.gradients
    if plan.slice_kind == "rows":
        # Those of each slice, in the type of the products, and their sum.
        return plan.num_slices * (size.products or size.weights) + size.weights
    whole = size.weights + size.optimizer_state
    return size.gradients + (whole if max(placement.teams) > 1 else 0)


def _of_product(product: Product, sizes: Mapping[int, Size]) -> int:
    """Return the bytes of a block, or none of what is small."""
    match product.kind:
        case ProductKind.WEIGHTS:
            return sizes[product.block].weights
        case ProductKind.OPTIMIZER_STATE:
            return sizes[product.block].optimizer_state
    return 0


def _step(plan: Plan, sizes: Mapping[int, Size], block: int, views: int) -> int:
    """Return what a step makes on the way: inputs, activities and their derivatives."""
    read = sum(sizes[source].row for source, _ in plan.nodes[block].reads)
    if plan.nodes[block].is_head:
        return plan.batch_size * read
    return plan.batch_size * views * 3 * (read + sizes[block].row)


def _passed(plan: Plan, sizes: Mapping[int, Size], highest: int, views: int, segments: int) -> int:
    """Return what a chapter's rows take that are passed on to a block."""
    first = plan.segments(0)[0]
    rows = max(plan.rows) * (first.last - first.first) // plan.batches(0)
    # The first block reads the data themselves, unless there are views of them.
    line = {block: sizes[block].row for block in range(plan.num_blocks)}
    line[INPUT] = sizes[INPUT].row if views > 1 else 0
    top = min(highest, plan.num_blocks - 1)

    def is_read(source: int, first: int) -> bool:
        return any((source, 0) in plan.nodes[b].reads for b in range(first, top + 1))

    # The outputs of a block are made from those of others, and some wait for later blocks.
    most = line[INPUT]
    for made in range(top):
        if is_read(made, made + 1):
            there = [source for source in (INPUT, *range(made)) if is_read(source, made)]
            most = max(most, line[made] + sum(line[source] for source in there))
    most *= views
    if highest in plan.heads:
        # Those of each chunk, and all of them joined.
        read = 2 * sum(sizes[source].row for source in plan.sources(highest))
        most = max(most, views * line[top - 1] + read)
    return segments * rows * most


ESTIMATES = {"chapters": _of_chapters, "stream": _of_stream}
"""What ranks hold, by kind of plan."""


def resident() -> int:
    """Return the bytes that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Return the most bytes that this process has held."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    # getrusage would tell the launcher's peak where that is larger: it is inherited.
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

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
