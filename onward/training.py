"""Training: the one entry, for one process or, under torchrun, for many."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from onward import memory
from onward.checkpoint import PRECISIONS, tensors_sha256, weights_sha256
from onward.config import PlacementConfig, PlanConfig, RunConfig, TrainingConfig
from onward.data import Dataset
from onward.dealing import (
    Shape,
    deal,
    is_private,
    load_data,
    with_private_shards,
)
from onward.errors import FileError, SettingError
from onward.networks import Network, evaluate
from onward.objectives import Threshold
from onward.placement import Placement, begun_on
from onward.plan.tasks import Plan
from onward.preparation import (
    arrange,
    build_network,
    make_arithmetic,
    resolve_precision,
)
from onward.readouts import GoodnessSweep, Readout, SoftmaxHead
from onward.results import Listener, Log, Result
from onward.runtime.resume import Holders, open_store, take_up
from onward.runtime.runtime import Runtime, make_worker
from onward.runtime.store import Store
from onward.runtime.workers import Rows
from onward.seeds import global_generator_kept
from onward.timeline import Recorder, Span, is_whole, merged
from onward.trained_on import TrainedOn
from onward.transport.messages import Transport
from onward.version import VERSION
from onward.world import joined, max_restarts

VERSIONS = f"onward {VERSION}, torch {torch.__version__}"
"""What decides the bits beside settings and data, on machines of one type."""


def run(
    config: RunConfig, listener: Listener | None = None, folder: Path | None = None
) -> Result | None:
    """Do a run from its settings: load data, build the network, train, test.

    Under torchrun every process calls this, and rank 0 gets the result.

    Args:
        config: The run.
        listener: Told how training goes.
        folder: See `train`.

    Returns:
        The result on rank 0; None on others.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.
    """
    config.check()
    listener = listener or Listener()
    with joined(config, listener) as transport:
        dataset = load_data(config, transport.rank)
        config = with_private_shards(config, transport.num_ranks)
        held, shape = deal(config, dataset, transport)
        # A rank may have no room for all blocks: it makes those that it trains first.
        network = build_network(config, dataset, shape, held=())
        ready = _ready(network, config, dataset, held, shape, transport, folder, listener)
        own = begun_on(ready.plan, ready.placement, transport.rank)
        network = build_network(config, dataset, shape, held=own)
        network.set_precision(PRECISIONS[resolve_precision(config.training.precision)])
        with left_tidy(ready.store):
            trained = _train(network, ready, listener)
    return _test(network, dataset, trained) if transport.rank == 0 else None


@contextmanager
def threads_kept(number: int) -> Iterator[None]:
    """Compute with some threads, and go back to as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _settings(network: Network, config: RunConfig) -> str:
    """Return all settings that decide the weights, a line each."""
    # Where data lie may differ, and their content has been compared.
    precision = resolve_precision(config.training.precision)
    settings = config.with_settings(
        {"data.name": "", "data.dir": None, "training.precision": precision}
    )
    settings = replace(settings, placement=PlacementConfig())
    # The settings do not know the optimizers of a network that a user has built.
    optimizers = [f"block {n}: {b.optimizer}" for n, b in enumerate(network.all_blocks)]
    return "\n".join([settings.to_toml(), *optimizers])


def _first_weights(network: Network) -> list[str | None]:
    """Return a digest of each block that this rank has."""
    return [
        None if block.is_released else tensors_sha256(block.state_dict())
        for block in network.all_blocks
    ]


def _check_alike(network: Network, config: RunConfig, placed: str, transport: Transport) -> None:
    """Refuse ranks that would train something else than the others."""
    notes = transport.exchange(
        "start from",
        {
            "settings": _settings(network, config),
            "placements": placed,
            "versions": VERSIONS,
            "weights": _first_weights(network),
        },
    )
    ours = notes[transport.rank]
    for rank, theirs in enumerate(notes):
        for what in ("versions", "settings", "placements"):
            if theirs[what] != ours[what]:
                raise SettingError(
                    _difference(what, transport.rank, ours[what], rank, theirs[what])
                )
        for mine, other in zip(ours["weights"], theirs["weights"], strict=True):
            if None not in (mine, other) and mine != other:
                raise SettingError(
                    "The ranks start from different weights. Seed torch before the network is "
                    "built, the same on all ranks."
                )


def _difference(what: str, here: int, ours: str, rank: int, theirs: str) -> str:
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
    folder: Path | None = None,
) -> Result | None:
    """Train a network, in this process or, under torchrun, on all its ranks.

    The same script runs either way, and ends in the same weights: every process builds the same
    network from the same data, and rank 0 gets the result.

    Args:
        network: What is trained, in place. Its first weights must be the same on all ranks. In the
            end rank 0 has the trained network; on others, blocks may be NaN or of earlier chapters.
        dataset: What is learned from, see `onward.data.from_arrays`.
        training: Epochs, batch size, seed, arithmetic.
        plan: What is computed.
        placement: Where; by default all-layers (or stream) where there are several ranks.
        validation: Training rows kept apart: a share below 1, or a number of rows.
        shift: Largest random shift of training images, in pixels.
        listener: Told how training goes.
        folder: Where each rank keeps what it has finished, on a disk of its own or a shared one. A
            run that was cut goes on from there when it is started again, on as many ranks or on
            others, to the same weights. None: nothing is kept.

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
    listener = listener or Listener()
    with joined(config, listener) as transport:
        held, shape = deal(config, dataset, transport)
        if shape.num_classes > network.num_classes:
            raise SettingError(
                f"The data have {shape.num_classes} classes, and the network was built for "
                f"{network.num_classes}. Give num_classes={shape.num_classes}."
            )
        ready = _ready(network, config, dataset, held, shape, transport, folder, listener)
        with left_tidy(ready.store):
            trained = _train(network, ready, listener)
    return _test(network, dataset, trained) if transport.rank == 0 else None


@dataclass(frozen=True)
class Ready:
    """All that a rank needs to train, beside its network."""

    config: RunConfig
    """Settings."""

    dataset: Dataset
    """What is learned from, and tested on."""

    held: dict[int, Rows]
    """Rows of the shards that this rank has, by shard."""

    shape: Shape
    """What all ranks know of the data."""

    plan: Plan
    """What is computed."""

    placement: Placement
    """Where."""

    memory: int
    """Bytes that this rank will hold at its peak, about."""

    transport: Transport
    """The way to the others."""

    store: Store | None
    """Keeps what is finished."""

    holders: Holders
    """The ranks that can read what an earlier part of the run has left."""


def _ready(
    network: Network,
    config: RunConfig,
    dataset: Dataset,
    held: dict[int, Rows],
    shape: Shape,
    transport: Transport,
    folder: Path | None,
    listener: Listener,
) -> Ready:
    """Make plan and placement, find what is done already, and refuse a run without room.

    The weights of the network may be released.
    """
    plan, placement, _ = arrange(config, network, dataset, shape, transport.num_ranks)
    blocks = [block for block in network.all_blocks if not block.is_released]
    now = memory.resident()
    before = now - sum(block.num_bytes for block in blocks)
    arithmetic = make_arithmetic(config)
    keeps = folder is not None or not transport.carries
    needed = memory.estimate(plan, placement, network, dataset.input_shape, arithmetic, keeps=keeps)
    room = memory.room(max(before + needed[transport.rank], now))
    memory.check([memory.Room(*other) for other in transport.exchange("room", room)])
    store: Store | None = None
    holders: Holders = {}
    if max_restarts() > 0 and not keeps and transport.rank == 0:
        listener.note(
            "Nothing is kept, and a restart would begin anew. Name a folder: --out RUN, or "
            "ow.train(..., folder=FOLDER)."
        )
    if not transport.carries:
        folder = Path(config.placement.directory or "")
    if folder is not None:
        settings = f"{_settings(network, config)}\n{VERSIONS}\ndata {shape.data_sha256}"
        every = config.placement.keep_every or max(1, plan.chapters // plan.epochs)
        if not transport.carries:
            every = 1
        store = open_store(
            folder, transport.rank, config.to_toml(), settings, _first_weights(network), every
        )
        worker = make_worker(plan, network, held, arithmetic)
        with left_tidy(store):
            plan, holders, damaged = take_up(store, plan, worker, transport)
        if transport.rank == 0:
            for text in damaged:
                listener.note(f"{text} It is not used.")
            if holders:
                num_tasks = sum(1 for _ in plan.all_tasks())
                listener.note(
                    f"Going on: {num_done(plan):,} of {num_tasks:,} tasks are done already."
                )
    return Ready(
        config, dataset, held, shape, plan, placement, room.needed, transport, store, holders
    )


class Trained(NamedTuple):
    """What rank 0 knows of a training that all ranks have done."""

    log: Log
    facts: dict[str, Any]
    timeline: list[Span]
    rows: TrainedOn


@contextmanager
def left_tidy(store: Store | None) -> Iterator[None]:
    """Where something fails, let what is finished be written; leave nothing where nothing is."""
    try:
        yield
    except BaseException:
        if store is not None:
            with suppress(FileError):
                store.close()
            if store.is_new and not store.files:
                store.remove()
        raise


def _train(network: Network, ready: Ready, listener: Listener) -> Trained:
    config, dataset, held, shape = ready.config, ready.dataset, ready.held, ready.shape
    plan, placement, transport = ready.plan, ready.placement, ready.transport
    precision = resolve_precision(config.training.precision)
    if placement.name == "federated":
        team = placement.team_of(transport.rank)
        held = {s: rows for s, rows in held.items() if s % len(placement.teams) == team}
    placed = f"{placement.name} with {','.join(map(str, placement.teams))} ranks a task"
    _check_alike(network, config, placed, transport)
    log = Log(plan, listener)
    worker = make_worker(plan, network, held, make_arithmetic(config))
    recorder = Recorder(transport.rank, most=spans_kept(transport.num_ranks))
    store, holders = ready.store, ready.holders
    runtime = Runtime(plan, placement, worker, transport, log.take, recorder, store, holders)
    transport.exchange("start", None)
    recorder.start()
    cpu_start = time.process_time()
    if transport.rank == 0:
        listener.begin(plan, placement)
    try:
        with global_generator_kept(), threads_kept(config.training.threads):
            runtime.run()
        if store is not None:
            store.close()
    finally:
        worker.settle()
        if transport.rank == 0:
            listener.end()
    seconds = recorder.now()
    figures = {
        "cpu_seconds": time.process_time() - cpu_start,
        "idle_seconds": runtime.idle_seconds + worker.team.seconds,
        "bytes_sent": transport.bytes_sent,
        "validation_seconds": worker.validation_seconds,
        "estimated_memory_bytes": ready.memory,
        "peak_memory_bytes": memory.peak(),
        "seconds": seconds - worker.validation_seconds,
    }
    everywhere = transport.exchange("figures", figures)
    told = transport.exchange("timeline", recorder.note())
    # Rank 0 has written the last weights when the others hear of it.
    transport.exchange("kept", None)
    if transport.rank and store is not None and 0 not in store.seen:
        # Rank 0 has the last weights on its own disk; on a shared one it removes them all.
        store.remove()
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
        "slices": config.plan.slices,
        "teams": list(placement.teams),
        "precision": precision,
        "placement": placement.name,
        "world_size": transport.num_ranks,
        "data_sha256": shape.data_sha256,
        **per_rank,
        "seconds": max(per_rank["seconds"]),
        "timeline_is_whole": is_whole(told) and not plan.held,
        "tasks_done_before": num_done(plan),
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
    # Rank 0 has the network; of rows that stay where they are, not even digests travel.
    is_known = transport.rank == 0 and not is_private(config)
    known = [rows.x for rows in ready.held.values()] if is_known else []
    return Trained(log, facts, merged(told), TrainedOn.of(known))


def num_done(plan: Plan) -> int:
    """Return how many tasks of a plan were done in earlier parts of the run."""
    return sum(1 for _ in plan.all_tasks()) - len(plan.rest) if plan.held else 0


def spans_kept(num_ranks: int) -> int:
    """Return the spans that each rank keeps for the timeline, so that its file stays small."""
    return min(10_000, max(200, 200_000 // num_ranks))


def _test(network: Network, dataset: Dataset, trained: Trained) -> Result:
    """Look at the test rows, once."""
    network.eval()
    network.trained_on = trained.rows
    log, facts, timeline = trained.log, trained.facts, trained.timeline
    x, y = dataset.x_test, dataset.y_test
    facts["weights_sha256"] = weights_sha256(network)
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
