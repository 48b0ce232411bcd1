"""Training: the one entry, for one process or, under torchrun, for many."""

import os
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from onward.checkpoint import PRECISIONS, tensors_sha256, weights_sha256
from onward.config import PlacementConfig, PlanConfig, RunConfig, TrainingConfig
from onward.data import Dataset
from onward.dealing import (
    Shape,
    agree,
    deal,
    describe,
    hold,
    is_private,
    load_data,
    with_private_shards,
)
from onward.directory import DirectoryTransport
from onward.errors import PlacementError, SettingError
from onward.networks import Network, build, evaluate
from onward.objectives import Threshold
from onward.placement import Placement, place
from onward.plan import ChapterPlan, Plan, StreamPlan
from onward.readouts import GoodnessSweep, Readout, SoftmaxHead
from onward.results import Listener, Log, Result
from onward.runtime import Runtime, make_worker
from onward.seeds import global_generator_kept
from onward.timeline import Recorder, Span, merged
from onward.transport import DistributedTransport, InMemoryTransport, Transport
from onward.version import VERSION
from onward.workers import Arithmetic, Rows


def is_distributed() -> bool:
    """Return whether this process is one of several that torchrun, or `--nodes`, has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def current_rank() -> int:
    """Return the rank of this process; 0 where there is one."""
    return int(os.environ.get("RANK", "0")) if is_distributed() else 0


def resolve_precision(name: str) -> str:
    """Return the arithmetic that `auto` stands for on this machine."""
    if name != "auto":
        return name
    known = torch.cpu.get_capabilities()
    return "bf16" if known.get("avx512_bf16") or known.get("amx_bf16") else "fp32"


def run(config: RunConfig, listener: Listener | None = None) -> Result | None:
    """Do a run from its settings: load data, build the network, train, test.

    Under torchrun every process calls this, and rank 0 gets the result.

    Args:
        config: The run.
        listener: Told how training goes.

    Returns:
        The result on rank 0; None on others.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.
    """
    config.check()
    dataset = load_data(config, current_rank())
    transport = _open_transport(config.placement)
    config = with_private_shards(config, transport.num_ranks)
    held, shape = deal(config, dataset, transport)
    network = build_network(config, dataset, shape)
    return _train(network, config, dataset, held, shape, transport, listener or Listener())


class Preview(NamedTuple):
    """A run that has not been started."""

    plan: Plan
    placement: Placement
    network: Network
    """The network with its first weights."""
    rows: Rows
    """The rows of one shard."""
    arithmetic: Arithmetic
    shares: list[int]
    """What each block of the line costs of a pass through it, see `block_costs`."""


def preview(config: RunConfig, num_ranks: int) -> Preview:
    """Make all of a run that is there before it starts, to look at or to find mistakes.

    Args:
        config: The run.
        num_ranks: Ranks it is meant for.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.
    """
    config.check()
    config = with_private_shards(config, num_ranks)
    ranks = range(num_ranks if is_private(config) else 1)
    parts = [load_data(config, rank) for rank in ranks]
    held = [hold(config, part, rank) for rank, part in zip(ranks, parts, strict=True)]
    notes = [describe(own, part) for own, part in zip(held, parts, strict=True)]
    dataset, shape = parts[0], agree(config, notes)
    network = build_network(config, dataset, shape)
    network.set_precision(PRECISIONS[resolve_precision(config.training.precision)])
    plan = make_plan(config, network, shape)
    shares = block_costs(network, dataset.input_shape)
    placement = _place(config, plan, num_ranks, shares)
    return Preview(plan, placement, network, held[0][0], make_arithmetic(config), shares)


def make_arithmetic(config: RunConfig) -> Arithmetic:
    """Return the settings of a run that decide weights beside the plan."""
    return Arithmetic(
        seed=config.training.seed,
        schedule=config.training.schedule,
        closed_form=config.training.gradients == "closed-form",
        bf16_wire=config.plan.wire == "bf16",
        shift=config.data.shift,
    )


def build_network(config: RunConfig, dataset: Dataset, shape: Shape) -> Network:
    """Build the network of a run, with its first weights."""
    return build(
        config.network,
        config.optimizer,
        input_shape=dataset.input_shape,
        num_classes=shape.num_classes,
        is_image=dataset.is_image,
        seed=config.training.seed,
    )


def _place(config: RunConfig, plan: Plan, num_ranks: int, shares: Sequence[int]) -> Placement:
    placement = place(plan, config.placement.name, num_ranks, shares)
    if is_private(config) and placement.name != "federated":
        raise PlacementError(
            f"Each rank has a shard of its own, and the placement {placement.name} needs all rows "
            f"everywhere. Use --placement federated, on two ranks or more."
        )
    return placement


@torch.no_grad()
def block_costs(network: Network, input_shape: tuple[int, ...]) -> list[int]:
    """Return what passing a row through each block of the line costs, in FLOPs, head included.

    Args:
        network: The blocks.
        input_shape: Shape of a row of the data.

    Raises:
        SettingError: Rows do not fit a block, or a head scores another number of classes.
    """
    activities = torch.zeros(1, *network.sampler.width(input_shape))
    costs = []
    for number, block in enumerate(network.line):
        shape = tuple(activities.shape[1:])
        with FlopCounterMode(display=False) as counter:
            try:
                activities = block.infer(activities)
                scores = block.scores(activities)
            except (RuntimeError, IndexError) as error:
                raise SettingError(
                    f"Block {number} cannot take rows of shape {shape}: {error}. The rows of the "
                    f"data have shape {input_shape}."
                ) from error
        if scores.ndim == 2 and scores.shape[1] != network.num_classes:
            raise SettingError(
                f"Block {number} scores {scores.shape[1]} classes, and the network was built for "
                f"{network.num_classes}. Give its head {network.num_classes} outputs."
            )
        costs.append(max(counter.get_total_flops(), 1))
    return costs


@contextmanager
def threads_kept(number: int) -> Iterator[None]:
    """Compute with some threads, and go back to as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_bytes() -> int:
    """Return the most memory this process has held."""
    # getrusage would tell the launcher's peak where that is larger: it is inherited.
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _check_alike(network: Network, config: RunConfig, precision: str, transport: Transport) -> None:
    """Refuse ranks that would train something else than the others."""
    # Where data lie may differ, and their content has been compared.
    settings = config.with_settings(
        {"data.name": "", "data.dir": None, "training.precision": precision}
    )
    settings = replace(settings, placement=PlacementConfig())
    # The settings do not know the optimizers of a network that a user has built.
    optimizers = [f"block {n}: {b.optimizer}" for n, b in enumerate(network.all_blocks)]
    notes = transport.exchange(
        "start from",
        {
            "settings": "\n".join([settings.to_toml(), *optimizers]),
            "versions": f"onward {VERSION}, torch {torch.__version__}",
            "weights": tensors_sha256(network.state_dict()),
        },
    )
    ours = notes[transport.rank]
    for rank, theirs in enumerate(notes):
        for what in ("versions", "settings", "weights"):
            if theirs[what] != ours[what]:
                raise SettingError(
                    _difference(what, transport.rank, ours[what], rank, theirs[what])
                )


def _difference(what: str, here: int, ours: str, rank: int, theirs: str) -> str:
    if what == "weights":
        return (
            "The ranks start from different weights. Seed torch before the network is built, the "
            "same on all ranks."
        )
    mine, other = set(ours.splitlines()), set(theirs.splitlines())
    return (
        f"The ranks have different {what}, and would not train the same network: rank {here} has "
        f"{', '.join(sorted(mine - other))}; rank {rank} has {', '.join(sorted(other - mine))}."
    )


def train(
    network: Network,
    dataset: Dataset,
    *,
    training: TrainingConfig | None = None,
    plan: PlanConfig | None = None,
    placement: PlacementConfig | None = None,
    validation: float | int = 0.1,
    shift: int = 0,
    listener: Listener | None = None,
) -> Result | None:
    """Train a network, in this process or, under torchrun, on all its ranks.

    The same script runs either way, and ends in the same weights: every process builds the same
    network from the same data, and rank 0 gets the result.

    Args:
        network: What is trained, in place. Its first weights must be the same on all ranks.
        dataset: What is learned from, see `onward.data.from_arrays`.
        training: Epochs, batch size, seed, arithmetic.
        plan: What is computed.
        placement: Where; by default all-layers (or stream) where there are several ranks.
        validation: Training rows kept apart: a share below 1, or a number of rows.
        shift: Largest random shift of training images, in pixels.
        listener: Told how training goes.

    Returns:
        The result on rank 0; None on others.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.

    Example:
        >>> import onward as ow
        >>> network = ow.mlp((1, 8, 8), num_classes=10, widths=(64, 64))
        >>> result = ow.train(network, ow.load_data("digits"), training=ow.TrainingConfig(epochs=8))
        >>> result.accuracy > 0.9
        True
    """
    config = RunConfig(recipe="custom")
    config = replace(
        config,
        data=replace(config.data, name=dataset.name, validation=validation, shift=shift),
        training=training or TrainingConfig(),
        plan=plan or PlanConfig(),
        placement=placement or PlacementConfig(),
    )
    config.check()
    transport = _open_transport(config.placement)
    held, shape = deal(config, dataset, transport)
    return _train(network, config, dataset, held, shape, transport, listener or Listener())


def make_plan(config: RunConfig, network: Network, shape: Shape) -> Plan:
    """Make the plan of a run.

    Args:
        config: Settings of the run.
        network: Says how many blocks there are, and whether they use hints.
        shape: Rows of each shard.

    Raises:
        SettingError: Settings do not fit together.
    """
    plan, training = config.plan, config.training
    head, is_stream = network.head, plan.kind == "stream"
    negatives = network.sampler.negatives
    hint_age: int | None = None
    if negatives is not None and negatives.needs_hints and plan.hint_age != "never":
        usual = 0 if is_stream else len(network.line)
        if len(shape.rows) > 1:
            usual = len(shape.rows)
        hint_age = usual if plan.hint_age is None else plan.hint_age
    if is_stream and hint_age is not None and head is None:
        raise SettingError(
            "In a stream plan, hints come from a softmax head, and this network has none. Use "
            "--negatives hard, --readout softmax, or --plan chapters."
        )
    shared: dict[str, Any] = {
        "num_blocks": len(network.line),
        "head_reads": head.reads if head is not None and head.reads else (),
        "epochs": training.epochs,
        "chapters": plan.chapters or training.epochs,
        "batch_size": training.batch_size,
        "rows": shape.rows,
        "hint_age": hint_age,
        "validate_every": plan.validate_every,
        "has_validation": any(shape.validation_rows),
    }
    if is_stream:
        if plan.optimizer_state != "travel":
            raise SettingError(
                f"plan.optimizer_state is {plan.optimizer_state}, but in a stream plan blocks "
                f"stay where they are and keep their moments. It goes with --plan chapters."
            )
        return StreamPlan(**shared)
    return ChapterPlan(**shared, moments_age=moments_age(plan.optimizer_state))


def moments_age(optimizer_state: str) -> int | None:
    """Return the age in chapters of the moments a chapter starts with; None for none.

    Example:
        >>> moments_age("travel"), moments_age("restart"), moments_age("aged:4")
        (1, None, 4)
    """
    name, _, age = optimizer_state.partition(":")
    if name == "aged" and age.isdecimal() and int(age) > 0:
        return int(age)
    if optimizer_state not in ("travel", "restart"):
        raise SettingError(
            f"plan.optimizer_state must be travel, restart or aged:N with N of at least 1; got "
            f"{optimizer_state}."
        )
    return 1 if optimizer_state == "travel" else None


def _open_transport(placement: PlacementConfig) -> Transport:
    if is_distributed() and placement.directory is not None:
        num_ranks = int(os.environ["WORLD_SIZE"])
        return DirectoryTransport(Path(placement.directory), current_rank(), num_ranks)
    if is_distributed():
        return DistributedTransport(placement.iface)
    if placement.nodes > 1:
        raise SettingError(
            f"placement.nodes is {placement.nodes}, and this is one process: only the command "
            f"starts others. Use `onward train ... --nodes {placement.nodes}`, or start this "
            f"script with torchrun --nproc-per-node {placement.nodes}."
        )

    return InMemoryTransport.group(1)[0]


def _train(
    network: Network,
    config: RunConfig,
    dataset: Dataset,
    held: dict[int, Rows],
    shape: Shape,
    transport: Transport,
    listener: Listener,
) -> Result | None:
    precision = resolve_precision(config.training.precision)
    network.set_precision(PRECISIONS[precision])
    if shape.num_classes > network.num_classes:
        raise SettingError(
            f"The data have {shape.num_classes} classes, and the network was built for "
            f"{network.num_classes}. Give num_classes={shape.num_classes}."
        )
    plan = make_plan(config, network, shape)
    shares = block_costs(network, dataset.input_shape)
    placement = _place(config, plan, transport.num_ranks, shares)
    if placement.name == "federated":
        held = {s: rows for s, rows in held.items() if s % transport.num_ranks == transport.rank}
    _check_alike(network, config, precision, transport)
    log = Log(plan, listener)
    worker = make_worker(plan, network, held, make_arithmetic(config))
    recorder = Recorder(transport.rank, most=spans_kept(transport.num_ranks))
    runtime = Runtime(plan, placement, worker, transport, log.take, recorder)
    transport.exchange("start", None)
    recorder.start()
    cpu_start = time.process_time()
    if transport.rank == 0:
        listener.begin(plan, placement)
    try:
        with global_generator_kept(), threads_kept(config.training.threads):
            runtime.run()
    finally:
        if transport.rank == 0:
            listener.end()
    seconds = recorder.now()
    figures = {
        "cpu_seconds": time.process_time() - cpu_start,
        "idle_seconds": runtime.idle_seconds,
        "bytes_sent": transport.bytes_sent,
        "validation_seconds": worker.validation_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "seconds": seconds - worker.validation_seconds,
    }
    everywhere = transport.exchange("figures", figures)
    timeline = merged(transport.exchange("timeline", recorder.note()))
    transport.close()
    if transport.rank:
        return None
    network.eval()
    per_rank = {name: [each[name] for each in everywhere] for name in figures}
    facts = {
        "recipe": config.recipe,
        "data": config.data.name if is_private(config) else dataset.name,
        "rows": {
            "training": sum(shape.rows),
            "validation": sum(shape.validation_rows),
            "test": len(dataset.y_test),
        },
        "seed": config.training.seed,
        "epochs": plan.epochs,
        "chapters": plan.chapters,
        "plan": config.plan.kind,
        "hint_age": plan.hint_age,
        "shards": len(plan.rows),
        "precision": precision,
        "placement": placement.name,
        "world_size": transport.num_ranks,
        "data_sha256": shape.data_sha256,
        **per_rank,
        "seconds": max(per_rank["seconds"]),
        "weights_sha256": weights_sha256(network),
        "versions": {
            "onward": VERSION,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "platform": platform.platform(),
            "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
    }
    return _test(network, dataset, log, facts, timeline)


def spans_kept(num_ranks: int) -> int:
    """Return the spans that each rank keeps for the timeline, so that its file stays small."""
    return min(10_000, max(200, 200_000 // num_ranks))


def _test(
    network: Network, dataset: Dataset, log: Log, facts: dict[str, Any], timeline: list[Span]
) -> Result:
    """Look at the test rows, once."""
    x, y = dataset.x_test, dataset.y_test
    test = evaluate(network, x, y)
    readouts: dict[str, float] = {}
    per_block = test.block_accuracy
    if network.sampler.negatives is not None:
        others: dict[str, Readout] = {}
        if all(isinstance(block.objective, Threshold) for block in network.line):
            others["goodness"] = GoodnessSweep(getattr(network.readout, "skip_first", True))
        if network.head is not None:
            others["softmax"] = SoftmaxHead()
        for name, readout in others.items():
            found = test if readout == network.readout else evaluate(network, x, y, readout)
            readouts[name] = found.correct / max(found.rows, 1)
            per_block = per_block or found.block_accuracy
    progress = sorted(log.entries, key=lambda e: (e.chapter, e.block is None, e.block or 0))
    validation = log.final_validation()
    return Result(network, test, validation, readouts, per_block, progress, facts, timeline)
