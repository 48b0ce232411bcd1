"""Whether each rank has memory enough for its part of a run."""

import ctypes
import gc
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from onward.batch import CHUNK_SAMPLES, Batch, Tensors, parts
from onward.devices import device_key, device_name, free_bytes
from onward.engine.kernels.closed_form import SLICE_BYTES, has_closed_form
from onward.errors import SettingError
from onward.network.networks import Network
from onward.network.passes import passes
from onward.placement import Placement
from onward.plan.tasks import INPUT, Plan, Product, ProductKind, Task, TaskKind
from onward.runtime.holding import Way
from onward.runtime.store import MOST_UNWRITTEN
from onward.runtime.workers import Settings
from onward.transport.distributed import IN_FLIGHT, POSTED

NO_LIMIT = 1 << 60
"""Bytes from which on a limit is none: how the first version of control groups says so."""


MACHINE = " the memory of the machine"
"""How the name of the limit ends that is the machine itself."""


LESS = (
    "Use smaller --widths or --batch-size, or fewer ranks on this machine. --plan stream on "
    "several machines lets each hold its own blocks alone, and changes the weights. `onward plan` "
    "says what each rank would hold."
)
"""What would take less memory."""

LESS_ON_GPUS = (
    "Use a smaller --batch-size or --widths, or several GPUs, which share the blocks with --plan "
    "stream; that changes the weights."
)
"""The same of the memory of a GPU."""


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


def device_room(needed: int, device: torch.device) -> Room:
    """Return the room of this process on a GPU, of which it needs so many bytes."""
    if device.type == "cpu":
        return Room(0, 0, {})
    key = device_key(device).replace(" ", "-")
    return Room(needed, 0, {f"{key} free memory of {device_name(device)}": free_bytes(device)})


@contextmanager
def advice(needed: int) -> Iterator[None]:
    """Where a GPU has no room, say how many bytes were expected to be needed, and what to lower.

    Raises:
        SettingError: It has none.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"Out of GPU memory (estimated need: {needed / 1e6:,.0f} MB). {LESS_ON_GPUS} Torch "
            f"says: {error}"
        ) from error


def check(rooms: Sequence[Room], less: str = LESS) -> None:
    """Refuse a run that ranks have no room for.

    Args:
        rooms: Of each rank.
        less: What would take less.

    Raises:
        SettingError: Some would hold more than they may, each or together.
    """
    for name in dict.fromkeys(name for room in rooms for name in room.limits):
        sharing = [room for room in rooms if name in room.limits]
        alone = sum(room.needed - room.shared for room in sharing)
        needed = alone + max(room.shared for room in sharing)
        # Of a GPU, each rank has seen what was free when it looked.
        limit = min(room.limits[name] for room in sharing)
        if needed > limit:
            one = "The run" if len(rooms) == 1 else f"Rank {rooms.index(sharing[0])}"
            who = one if len(sharing) == 1 else f"{len(sharing)} ranks together"
            raise SettingError(
                f"{who} would hold about {needed / 1e6:,.0f} MB, and may hold {limit / 1e6:,.0f} "
                f"MB ({name.partition(' ')[2]}). {less}"
            )


def estimate(
    plan: Plan,
    placement: Placement,
    network: Network,
    training: Batch,
    settings: Settings,
    *,
    keeps: bool = False,
    ways: Sequence[Way | None] = (),
) -> list[int]:
    """Return the bytes that each rank needs for blocks, activities and messages, about.

    They come on top of what a process holds that has loaded the data and has no blocks yet. What
    is inside of a block that learns by automatic differentiation is taken to be as large as what
    comes out. What is small beside blocks is left out: hints, targets, reports.

    Args:
        plan: What is computed.
        placement: Where.
        network: The blocks; their weights may be released.
        training: Samples like those of the data.
        settings: How it is computed.
        keeps: Whether states are kept to go on from.
        ways: How each rank holds the outputs of frozen blocks; none: all in memory.
    """
    sizes = sizes_of(
        plan, placement, network, training, settings, MOST_UNWRITTEN + 1 if keeps else 0
    )
    training_tasks = trains(plan, placement)
    sent: dict[int, set[Product]] = defaultdict(set)
    coming: dict[int, dict[int, set[Product]]] = defaultdict(lambda: defaultdict(set))
    for task in _first_and_last(plan, placement):
        ranks = placement.ranks(task)
        for product in plan.needs(task):
            makers = placement.ranks(plan.maker(product))
            for rank in set(ranks).difference(makers):
                coming[rank][makers[0]].add(product)
                # The last weights are sent from where they are, others from copies.
                for maker in makers if plan.gather not in plan.uses(product) else ():
                    sent[maker].add(product)
    # Where blocks stay, a rank of a cheap block is ahead of those that read it.
    ahead, behind = (plan.most_waiting + 1, IN_FLIGHT) if placement.owners else (0, 1)
    return [
        _trained(
            plan, placement, rank, training_tasks[rank], sizes, ways[rank] if ways else "memory"
        )
        + sum(sizes.largest(plan, each, POSTED + 1 + ahead) for each in coming[rank].values())
        + sizes.largest(plan, sent[rank], behind)
        + _best(plan, placement, rank, sizes)
        for rank in range(placement.num_ranks)
    ]


def trains(plan: Plan, placement: Placement) -> dict[int, list[Task]]:
    """Return the first tasks of each rank that train."""
    found: dict[int, list[Task]] = defaultdict(list)
    for task in _first_and_last(plan, placement):
        for rank in placement.ranks(task) if task.kind is TaskKind.TRAIN else ():
            found[rank].append(task)
    return found


def _first_and_last(plan: Plan, placement: Placement) -> list[Task]:
    """Return the first tasks, the first validation and what ends a run; others are like these."""
    every = min(plan.validate_every or plan.chapters, plan.chapters)
    times = 2 * len(placement.teams) + POSTED + 2 + plan.most_waiting
    first = islice(plan.tasks(), times * (2 * len(plan.nodes) + 1))
    ends = [*plan.validations(every - 1), *plan.validations(plan.chapters - 1), plan.gather]
    return list(dict.fromkeys([*first, *ends]))


@dataclass(frozen=True)
class Sizes:
    """Bytes of what blocks are and make."""

    products: dict[ProductKind, dict[int, int]]
    """Products that are large, by kind and block."""

    copies: dict[int, int]
    """Copies of weights for products in another type, by block."""

    making: dict[int, int]
    """What is there while a task trains a block, beside its weights, its optimizer state and the
    outputs of frozen blocks."""

    activities: dict[int, int]
    """Outputs of frozen blocks for the samples of a chapter, by the block that reads them."""

    in_memory: dict[int, int]
    """The same with the samples as the network begins with them."""

    elsewhere: dict[int, int]
    """What is in memory where it is held elsewhere."""

    chunks: dict[int, int]
    """Outputs of frozen blocks for a chunk."""

    def largest(self, plan: Plan, products: Iterable[Product], most: int) -> int:
        """Return the bytes of some of the messages that bring products, the largest ones."""
        messages: Counter[Task] = Counter()
        for product in (p for p in products if p.kind in self.products):
            messages[plan.maker(product)] += self.products[product.kind][product.block]
        return sum(nlargest(most, messages.values()))


def _best(plan: Plan, placement: Placement, rank: int, sizes: Sizes) -> int:
    """Return the bytes of the best weights so far, where a rank keeps them, and of better ones."""
    keeps = plan.keep_best and any(
        rank in placement.ranks(task) for c in range(plan.chapters) for task in plan.validations(c)
    )
    return 2 * keeps * sum(sizes.products[ProductKind.BEST].values())


def _trained(
    plan: Plan,
    placement: Placement,
    rank: int,
    tasks: Sequence[Task],
    sizes: Sizes,
    way: Way | None,
) -> int:
    """Return what a rank holds at its peak of the blocks that it trains, messages left out.

    Args:
        plan: What is computed.
        placement: Where.
        rank: The rank.
        tasks: Its first tasks that train.
        sizes: Bytes of the blocks.
        way: How it holds the outputs of frozen blocks.
    """
    weights, states = (
        {block: sizes.products[kind][block] for _, _, block in tasks}
        for kind in (ProductKind.WEIGHTS, ProductKind.OPTIMIZER_STATE)
    )
    # What waits for a later task of this rank.
    left: dict[Task, int] = {}
    most = 0
    for task in tasks:
        block = task.block
        left.pop(task, None)
        making = sizes.making[block]
        making += sizes.in_memory[block] if way == "memory" else sizes.elsewhere[block]
        most = max(most, sum(left.values()) + states[block] + making)
        left |= {
            use: states[block] + (sizes.copies[block] if plan.follows(use) else 0)
            for use in plan.uses(Product(ProductKind.OPTIMIZER_STATE, task.time, block))
            if rank in placement.ranks(use)
        }
    return sum(weights.values()) + most


@torch.no_grad()
def sizes_of(
    plan: Plan,
    placement: Placement,
    network: Network,
    training: Batch,
    settings: Settings,
    unwritten: int = 0,
) -> Sizes:
    """Return the bytes of blocks, of which copies of some states may wait to be written."""
    blocks, views = dict(enumerate(network.all_blocks)), len(network.sampler.names)
    batch = network.transformed(training.take(slice(0, 1)))
    one, types = _bytes_each(batch.inputs), [part.dtype for part in parts(training.inputs)]
    is_copied = network.preprocessing is not None or network.inputs.changes(types[0])
    is_copied |= network.memory_format is not torch.contiguous_format
    batch = network.sampler.neutral(batch)
    samples = {INPUT: _bytes_each(batch.inputs)}
    samples |= {number: _bytes_each(out.inputs) for number, _, out in passes(network, batch)}
    weights = {number: block.num_bytes for number, block in blocks.items()}
    states = {n: sum(t.nbytes for t in block.optimizer_tensors()) for n, block in blocks.items()}
    copies, making, activities, chunks = {}, {}, {}, {}
    in_memory, elsewhere = {}, {}
    for number, block in blocks.items():
        weight, node = weights[number], plan.nodes[number]
        is_closed = settings.closed_form and has_closed_form(block)
        # Of weights and gradients, where products are in bf16.
        copy = weight if is_closed and block.precision is torch.bfloat16 else 0
        # Of automatic differentiation also what the update makes of them.
        gradients = min(weight, 2 * SLICE_BYTES) if is_closed else 2 * weight
        if plan.slices > 1 and plan.cut == "samples":
            # Those of each slice, in the type of the products, and their sum.
            gradients = plan.slices * (weight - copy // 2) + weight
        elif max(placement.teams) > 1:
            # What ranks of a team give each other.
            gradients += weight + states[number]
        read = sum(samples[source] for source, _ in node.reads)
        # Inputs, activities and their derivatives, of all views. A head learns from one.
        row = read if node.is_head else views * 3 * (read + samples[number])
        if node.is_frozen:
            copy, gradients, row = 0, 0, views * (read + samples[number])
        passed = plan.batch_size * plan.work(Task(TaskKind.TRAIN, 0, number)).passed
        copies[number], making[number] = copy, copy + gradients + plan.batch_size * row
        making[number] += unwritten * (weight + states[number])
        # The first block reads the data themselves, unless they are changed or seen as views.
        kept = samples if is_copied or views > 1 else {**samples, INPUT: 0}
        chunk = min(round(passed), CHUNK_SAMPLES)
        if settings.augment:
            # They are made portion by portion, and what is put out for each epoch is kept.
            kept = {**samples, INPUT: 0}
            epoch = round(passed) // len(plan.segments(0))
            chunk = min(epoch, max(CHUNK_SAMPLES, plan.batch_size))
            if passed or (INPUT, 0) in node.reads:
                making[number] += 2 * (chunk or plan.batch_size) * (one + views * samples[INPUT])
        in_memory[number] = round(passed) * _passed(plan, kept, number, views)
        # A graph is one whole, and stays in memory.
        put_out = 0 if training.structure else _passed(plan, {**samples, INPUT: 0}, number, views)
        activities[number], chunks[number] = round(passed) * put_out, chunk * put_out
        elsewhere[number] = round(passed) * views * kept[INPUT] + chunks[number]
        if is_copied and views > 1 and not settings.augment:
            # Views are made of a copy of the samples.
            making[number] += round(passed) * one
    products = {
        ProductKind.WEIGHTS: weights,
        ProductKind.BEST: weights,
        ProductKind.OPTIMIZER_STATE: states,
        ProductKind.ACTIVITIES: {n: plan.batch_size * views * samples[n] for n in blocks},
        ProductKind.NEUTRAL: {n: plan.batch_size * samples[n] for n in blocks},
    }
    return Sizes(products, copies, making, activities, in_memory, elsewhere, chunks)


def _bytes_each(tensors: Tensors) -> int:
    """Return the bytes of a sample."""
    return sum(tensor[:1].nbytes for tensor in parts(tensors))


def _passed(plan: Plan, samples: Mapping[int, int], block: int, views: int) -> int:
    """Return what is held of a sample at most while it is passed on to a block."""
    path = sorted(plan.below[block])
    if plan.nodes[block].is_head:
        # Beside views of a block outputs of each chunk, and all of them joined.
        last = samples[max(path, default=INPUT)]
        return views * last + 2 * sum(samples[source] for source, _ in plan.nodes[block].reads)

    def held(made: int) -> int:
        """Return what is there as soon as a block's outputs are made: they, and what is read."""
        later = {s for b in (*path, block) if b >= made for s, _ in plan.nodes[b].reads}
        return sum(samples[s] for s in (INPUT, *path) if s == made or (s < made and s in later))

    return views * max(map(held, (INPUT, *path)))


def beside(network: Network) -> int:
    """Return the bytes that this process holds now beside the weights of a network."""
    blocks = [block for block in network.all_blocks if not block.is_released]
    return resident() - sum(block.num_bytes for block in blocks)


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


def forget_peak() -> None:
    """Let `peak` begin anew from what this process holds now, where the system can do that (Linux).

    For one that trains several times, each of which tells its own.
    """
    gc.collect()
    if sys.platform == "linux":
        # What was freed before would count as held: glibc keeps it.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def limits() -> dict[str, int]:
    """Return what this process may hold, by a name of the limit: of its machine, of its groups.

    Processes that share a limit call it by the same name.
    """
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        machine = socket.gethostname()
    found = {f"{machine}{MACHINE}": int(psutil.virtual_memory().total)}
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
    versions = {"memory": ("memory", "memory.limit_in_bytes"), "": ("", "memory.max")}
    found = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in versions:
            part, name = versions[controllers]
            for folder in (mounted / part / path.lstrip("/") / name).parents:
                if folder.is_relative_to(mounted / part) and (folder / name).is_file():
                    limit = (folder / name).read_text().strip()
                    if limit.isdecimal() and int(limit) < NO_LIMIT:
                        found[folder] = int(limit)
    return found
