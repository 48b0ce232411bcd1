"""Whether each rank has memory enough for its part of a run."""

import resource
import socket
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
from onward.plan import ChapterPlan, Kind, Plan, Product, StreamPlan, Task, Thing
from onward.runtime import QUEUE
from onward.steps import SLICE_BYTES, has_closed_form
from onward.transport import IN_FLIGHT, POSTED


class Room(NamedTuple):
    """What a rank needs, and what it may hold."""

    needed: int
    """Bytes that it will hold at its peak, about."""

    allowed: int
    """Bytes that it may hold, together with the others that share its limit."""

    where: str
    """What sets the limit: a machine, and a control group of it."""

    @classmethod
    def of_this_process(cls, needed: int) -> "Room":
        """Return the room of this process, whose part of a run needs so many bytes."""
        groups = "".join(f"{path}\n" for path in _limits())
        return cls(needed, allowed(), f"{socket.gethostname()}\n{groups}")


def check(rooms: Sequence[Room]) -> None:
    """Refuse a run that ranks have no room for.

    Args:
        rooms: Of each rank.

    Raises:
        SettingError: Some would need more than they may hold together.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for rank, room in enumerate(rooms):
        sharing[room.where].append(rank)
    for ranks in sharing.values():
        needed, limit = sum(rooms[rank].needed for rank in ranks), rooms[ranks[0]].allowed
        if needed > limit:
            who = f"Rank {ranks[0]}" if len(ranks) == 1 else f"The {len(ranks)} ranks of a machine"
            if len(rooms) == 1:
                who = "The run"
            raise SettingError(
                f"{who} would hold about {needed / 1e6:,.0f} MB, and may hold {limit / 1e6:,.0f} "
                f"MB. In a stream plan each rank holds its own blocks alone: --plan stream on "
                f"several machines. `onward plan` says what each rank would hold."
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
    *,
    closed_form: bool,
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
        closed_form: Whether closed forms are used where there are some.
    """
    inputs = 4 * torch.Size(network.sampler.width(input_shape)).numel()
    sizes = _sizes(network, input_shape, closed_form=closed_form)
    if isinstance(plan, StreamPlan):
        return [
            _of_stream(plan, placement, rank, sizes, inputs, len(network.sampler.names))
            for rank in range(placement.num_ranks)
        ]
    assert isinstance(plan, ChapterPlan)
    return _of_chapters(plan, placement, sizes, inputs, len(network.sampler.names))


@torch.no_grad()
def _sizes(network: Network, input_shape: tuple[int, ...], *, closed_form: bool) -> dict[int, Size]:
    x = torch.zeros(1, *network.sampler.width(input_shape))
    sizes = {}
    for number, block in enumerate(network.all_blocks):
        x = block.infer(x) if block.reads is None else x.new_zeros(1, network.num_classes)
        sizes[number] = _size(block, x.nbytes, closed_form=closed_form)
    return sizes


def _size(block: Block, row: int, *, closed_form: bool) -> Size:
    weights = sum(tensor.nbytes for tensor in block.state_dict().values())
    copy = weights // 2 if block.precision is torch.bfloat16 else 0
    in_closed_form = closed_form and has_closed_form(block)
    return Size(
        weights=weights,
        moments=sum(t.nbytes for parts in block.moments.values() for t in parts.values()),
        products=copy if in_closed_form else 0,
        gradients=min(weights, 2 * SLICE_BYTES) if in_closed_form else weights + copy,
        row=row,
    )


def _of_stream(
    plan: StreamPlan,
    placement: Placement,
    rank: int,
    sizes: Mapping[int, Size],
    inputs: int,
    views: int,
) -> int:
    owners = {b: placement.rank(Task(Kind.TRAIN, 0, b)) for b in plan.trained}
    own = [block for block, owner in owners.items() if owner == rank]
    # A mini-batch of all views, and of the neutral one where a head reads it.
    rows = plan.batch_size * (views + bool(plan.head_reads))
    total = sum(sizes[b].weights + sizes[b].moments + sizes[b].products for b in own)
    total += max((sizes[b].gradients for b in own), default=0)
    total += max((_step(plan, sizes, b, inputs, views) for b in own), default=0)
    for block in own:
        if block and block != plan.head and owners[block - 1] != rank:
            total += (QUEUE + POSTED + 2) * rows * sizes[block - 1].row
        if block + 1 < plan.num_blocks and owners[block + 1] != rank:
            total += IN_FLIGHT * rows * sizes[block].row
    if rank == placement.rank(plan.gather):
        total += sum(sizes[b].weights for b in plan.trained if b not in own)
    return total


def _of_chapters(
    plan: ChapterPlan,
    placement: Placement,
    sizes: Mapping[int, Size],
    inputs: int,
    views: int,
) -> list[int]:
    ranks = range(placement.num_ranks)
    held: list[set[int]] = [set() for _ in ranks]
    trained: list[set[int]] = [set() for _ in ranks]
    incoming: list[dict[int, list[int]]] = [{} for _ in ranks]
    outgoing = [0 for _ in ranks]
    for task in plan.tasks():
        for rank in placement.ranks(task):
            held[rank].update(p.block for p in plan.needs(task) if p.thing is Thing.WEIGHTS)
            if task.kind is Kind.TRAIN:
                trained[rank].add(task.block)
                held[rank].add(task.block)
        for message in messages(plan, placement, task):
            size = sum(_of_product(product, sizes) for product in message.products)
            incoming[message.dest].setdefault(message.source, []).append(size)
            outgoing[message.source] = max(outgoing[message.source], size)
    travel = not placement.owners and len(placement.teams) > 1
    found = []
    for rank in ranks:
        total = sum(sizes[b].weights for b in held[rank])
        moments = [sizes[b].moments for b in trained[rank]]
        # Where chapters go round, moments are here for one chapter and on their way for another.
        total += max(moments, default=0) if travel else sum(moments)
        total += max((sizes[b].products + sizes[b].gradients for b in trained[rank]), default=0)
        total += sum(sum(first[: POSTED + 2]) for first in incoming[rank].values())
        total += outgoing[rank]
        total += max((_step(plan, sizes, b, inputs, views) for b in trained[rank]), default=0)
        found.append(total + _passed(plan, sizes, max(trained[rank], default=0), inputs, views))
    return found


def _of_product(product: Product, sizes: Mapping[int, Size]) -> int:
    """Return the bytes of a block, or none of what is small."""
    match product.thing:
        case Thing.WEIGHTS:
            return sizes[product.block].weights
        case Thing.MOMENTS:
            return sizes[product.block].moments
    return 0


def _step(plan: Plan, sizes: Mapping[int, Size], block: int, inputs: int, views: int) -> int:
    """Return what a step makes on the way: inputs, activities and their derivatives."""
    if block == plan.head:
        return plan.batch_size * sum(sizes[b].row for b in plan.head_reads)
    read = sizes[block - 1].row if block else inputs
    return plan.batch_size * views * 3 * (read + sizes[block].row)


def _passed(
    plan: ChapterPlan, sizes: Mapping[int, Size], highest: int, inputs: int, views: int
) -> int:
    """Return what a chapter's rows take that are passed on to a block."""
    segments = plan.segments(0)
    rows = max(plan.rows) * (segments[0].last - segments[0].first) // plan.batches(0)
    if highest == plan.head:
        return rows * sum(sizes[b].row for b in plan.head_reads)
    # The first block reads the data themselves, unless there are views of them.
    read = [inputs if views > 1 else 0, *(sizes[b].row for b in range(plan.num_blocks))]
    return rows * views * max([read[0], *(read[b] + read[b + 1] for b in range(highest))])


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
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def allowed() -> int:
    """Return the bytes that this process may hold, by its machine and its control groups."""
    return min([int(psutil.virtual_memory().total), *_limits().values()])


def _limits(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> dict[str, int]:
    """Return the limits of the control groups that this process is in, by file (Linux)."""
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
                if limit.isdecimal():
                    found[str(folder / name)] = int(limit)
    return found
