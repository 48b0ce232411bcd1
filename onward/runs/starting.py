"""What the ranks of a run agree on before its first task, and what is done already."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path

import torch

from onward.config import RunConfig
from onward.costs import budget, memory
from onward.data import Dataset
from onward.data.quoting import class_name, listed
from onward.devices import device_name, find_device, resolve_precision
from onward.digests import tensors_sha256
from onward.errors import FileError, OnwardWarning, SettingError, name_of
from onward.network.blocks import Block
from onward.network.networks import Network
from onward.network.stages import Stage
from onward.placement import Placement
from onward.plan.tasks import Plan
from onward.runs.first_step import signs
from onward.runs.idle import idle
from onward.runs.preparation import arrange, make_settings, resolve_memory_format
from onward.runs.results import Listener
from onward.runs.sharding import DataSummary, without_labels
from onward.runtime.resume import Holders, agree_on_rest, open_store
from onward.runtime.runtime import make_worker
from onward.runtime.store import Store
from onward.runtime.workers import Shard, bytes_there
from onward.settings import PlacementConfig
from onward.transport.messages import Transport
from onward.version import VERSION
from onward.world import max_restarts

VERSIONS = f"onward {VERSION}, torch {torch.__version__}"
"""What decides the bits beside settings and data, on machines of one type."""


@dataclass(frozen=True)
class Ready:
    """All that a rank needs to train, beside its network."""

    stage: Stage
    """What is trained; its network may have no weights."""

    config: RunConfig
    """Settings."""

    dataset: Dataset
    """What is learned from, and tested on."""

    shards: dict[int, Shard]
    """The shards that this rank has, by number."""

    summary: DataSummary
    """What all ranks know of the data."""

    plan: Plan
    """What is computed."""

    placement: Placement
    """Where."""

    memory: int
    """Bytes that this rank will hold at its peak, about, what is on a GPU left out."""

    on_device: int
    """Bytes that it will hold on a GPU at its peak, about."""

    held: list[budget.Held]
    """Outputs of frozen blocks on each rank, and how they are held."""

    transport: Transport
    """The way to the others."""

    store: Store | None
    """Keeps what is finished."""

    holders: Holders
    """The ranks that can read what an earlier part of the run has left."""


def get_ready(
    stage: Stage,
    config: RunConfig,
    dataset: Dataset,
    shards: dict[int, Shard],
    summary: DataSummary,
    transport: Transport,
    folder: Path | None,
    listener: Listener,
    given: Placement | None = None,
    later: Sequence[tuple[Stage, RunConfig]] = (),
    run: RunConfig | None = None,
    *,
    warns: bool = True,
) -> Ready:
    """Make plan and placement, find what is done already, and refuse a run without room.

    The weights of the network may be released. Mistakes in later stages, and what they need, are
    found as well. A cut run goes on from the settings `run`, if those differ from those of the
    stage. Where it `warns`, it tells of settings that have no effect in any of the stages.
    """
    network, idles = stage.network, []
    _check_kept(config, later)
    if transport.carries and not all(transport.all_gather("keeps", folder is not None)):
        folder = None  # Ranks that keep nothing could not say what is done.
    keeps = folder is not None or not transport.carries
    peak = memory.resident()
    device, on_device = find_device(config.training.device), 0
    own_place = budget.place(config.placement.memory, device)
    places = [budget.Place(*other) for other in transport.all_gather("place", own_place)]
    # This one last: stages may have blocks in common, which take on its precision.
    for each, own in (*later, (stage, config)):
        training = dataset.training if each.sees_labels else without_labels(dataset.training)
        seen, ranks = summary.of(sees_labels=each.sees_labels), transport.num_ranks
        _check_labelled(own, seen)
        plan, placement = arrange(own, each.network, training, seen, ranks, given)
        before, settings = memory.beside(each.network), make_settings(own)
        held, needed = budget.estimate(
            plan, placement, each.network, training, settings, places, keeps=keeps
        )
        idles.append(idle(own, each.network, plan, ranks))
        budget.check(held, places)
        if device.type == "cpu":
            peak = max(peak, before + needed[transport.rank])
        else:
            there = needed[transport.rank] + bytes_there(training, device, plan)
            on_device = max(on_device, there)
            peak = max(peak, before)
    room = memory.room(peak)
    memory.check([memory.Room(*other) for other in transport.all_gather("room", room)])
    rooms = transport.all_gather("room of devices", memory.device_room(on_device, device))
    memory.check([memory.Room(*other) for other in rooms], memory.LESS_ON_GPUS)
    store: Store | None = None
    holders: Holders = {}
    if warns and transport.rank == 0:
        common = [text for text in idles[-1] if all(text in others for others in idles)]
        for text in (*common, *_not_learned(dataset, summary)):
            warnings.warn(text, OnwardWarning, stacklevel=5)
        if summary.class_names is not None:
            listener.note(f"{summary.num_classes} classes: {listed(summary.class_names)}.")
    if max_restarts() > 0 and not keeps and transport.rank == 0:
        listener.note(
            "Nothing is kept, and a restart would begin anew. Name a folder: --out RUN, or "
            "ow.train(..., folder=FOLDER)."
        )
    own_held = held[transport.rank]
    if own_held.way == "file" and transport.rank == 0:
        listener.note(
            f"The outputs of frozen blocks, about {budget.told_size(own_held.bytes)}, are held in "
            f"a file in {places[0].folder}: no more than {budget.told_size(own_held.memory)} may "
            f"be held in memory (placement.memory)."
        )
    if not transport.carries:
        folder = Path(config.placement.directory or "")
    if folder is not None:
        text = _settings(stage, _of_any_length(stage, config))
        text += f"\n{VERSIONS}\ndata {seen.every_sha256}"
        every = config.placement.checkpoint_every or max(1, plan.chapters // plan.epochs)
        if not transport.carries:
            every = 1
        store = open_store(
            folder,
            transport.rank,
            (run or config).to_toml(),
            text,
            _first_weights(network),
            every,
            is_kept=config.placement.keep_state,
            held_out=seen.held_out_sha256,
        )
        worker = make_worker(plan, network, shards, make_settings(config))
        with closed_on_error(store):
            plan, holders, damaged = agree_on_rest(store, plan, worker, transport)
        if transport.rank == 0:
            for text in damaged:
                listener.note(f"{text} It is not used.")
            if holders:
                num_tasks = sum(1 for _ in plan.all_tasks())
                listener.note(
                    f"Resuming: {num_done(plan):,} of {num_tasks:,} tasks are done already."
                )
    return Ready(
        stage,
        config,
        dataset,
        shards,
        seen,
        plan,
        placement,
        room.needed,
        on_device,
        held,
        transport,
        store,
        holders,
    )


def _not_learned(dataset: Dataset, summary: DataSummary) -> list[str]:
    """Return which classes are asked for in validation and test, and have no training samples."""
    lacking = [label for label, samples in enumerate(summary.class_samples) if not samples]
    found = []
    for part, batch in (("validation", dataset.validation), ("test", dataset.test)):
        if batch is None or "label" not in batch.targets:
            continue
        label = batch.targets["label"]
        counted = label if batch.index is None else label[batch.index]
        asked = counted.bincount(minlength=summary.num_classes)
        names = [class_name(summary.class_names, number) for number in lacking if asked[number]]
        if names:
            total, is_one = int(asked[lacking].sum()), len(names) == 1
            found.append(
                f"Class{' ' if is_one else 'es '}{', '.join(names[:5])}"
                f"{', ...' if len(names) > 5 else ''} {'has' if is_one else 'have'} {total:,} "
                f"{part} sample{'' if total == 1 else 's'} and no training samples, so the network "
                f"cannot learn {'it' if is_one else 'them'}. Check how classes are named."
            )
    return found


def _check_kept(config: RunConfig, later: Sequence[object]) -> None:
    """Refuse to keep the state of a run that could not be given more epochs.

    Raises:
        SettingError: It has several stages, or its ranks share a folder.
    """
    if not config.placement.keep_state:
        return
    if later:
        raise SettingError(
            "placement.keep_state is for runs of one stage: more epochs of the first would change "
            "what the others begin with. Leave it out."
        )
    if config.placement.directory is not None:
        raise SettingError(
            "placement.keep_state keeps the state in the run folder, and with placement.directory "
            "it is in the shared one. Leave one of them out."
        )


def _check_labelled(config: RunConfig, summary: DataSummary) -> None:
    """Refuse mini-batches that are larger than the samples whose labels are kept.

    Raises:
        SettingError: They are.
    """
    size, samples = config.training.batch_size, min(summary.samples)
    if size > samples and sum(summary.samples) < sum(summary.every_samples):
        where = f" of shard {summary.samples.index(samples)}" if len(summary.samples) > 1 else ""
        raise SettingError(
            f"data.labelled is {config.data.labelled} and keeps the labels of {samples} training "
            f"samples{where}, and training.batch_size is {size}. Keep more labels, or set "
            f"it to {samples} or less."
        )


def _settings(stage: Stage, config: RunConfig) -> str:
    """Return all settings that decide the weights, a line each."""
    network, training = stage.network, config.training
    device = find_device(training.device)
    # Where data lie may differ, and their content has been compared.
    settings = config.with_settings(
        {
            "data.name": "",
            "data.dir": None,
            "training.device": "cpu",
            "training.precision": resolve_precision(training.precision, device),
            "plan.memory_format": resolve_memory_format(config.plan.memory_format, network),
        }
    )
    settings = replace(settings, placement=PlacementConfig())
    # The settings do not know what a user has built.
    parts = [
        f"device: {device.type}",
        f"sees labels: {stage.sees_labels}",
        f"sampler: {_described(network.sampler)}",
        f"ticks: {network.ticks}",
        f"augmentation: {', '.join(map(name_of, config.augment))}",
        f"inputs: {network.inputs} {tensors_sha256(network.inputs.arrays)}",
        f"preprocessing: {_preprocessing(network)}",
    ]
    for number, block in enumerate(network.all_blocks):
        objective = f"{type(block.objective).__name__} {block.objective.describe()}"
        module = " ".join(repr(block.module).split())
        parts += [
            f"block {number}: {_rules(block)}",
            f"block {number} schedule: {_schedule(block)}",
            f"block {number} learns {objective} with {module}",
            f"block {number} reads {network.edges[number]}",
        ]
    return "\n".join([settings.to_toml(), *parts])


def _of_any_length(stage: Stage, config: RunConfig) -> RunConfig:
    """Return settings without the number of epochs, where no weights of a chapter depend on it."""
    learning = [block for block in stage.network.all_blocks if not block.is_frozen]
    if any((block.schedule or config.training.schedule) != "constant" for block in learning):
        return config
    epochs = config.training.epochs
    chapters = config.plan.chapters or epochs
    each = math.gcd(epochs, chapters)
    return config.with_settings(
        {"training.epochs": epochs // each, "plan.chapters": chapters // each}
    )


def _preprocessing(network: Network) -> str:
    own = network.preprocessing
    return "" if own is None else f"{own} {tensors_sha256(own.state_dict())}"


def _rules(block: Block) -> str:
    """Return the optimizers of a block, and what each is for where there are several."""
    names: dict[str, list[str]] = {}
    for name, rule in block.rules.items():
        names.setdefault(str(rule), []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{rule} for {', '.join(own)}" for rule, own in names.items())


def _schedule(block: Block) -> str:
    """Return the schedule of a block by its name, or by the values of its function."""
    if block.schedule is None or isinstance(block.schedule, str):
        return str(block.schedule)
    return " ".join(f"{block.schedule(place / 32):.6g}" for place in range(1, 33))


def _described(part: object) -> str:
    """Return a part with its fields, if it is a dataclass, else the name of its class."""
    return repr(part) if is_dataclass(part) else type(part).__name__


def _first_weights(network: Network) -> list[str | None]:
    """Return a digest of each block that this rank has."""
    return [
        None if block.is_released else tensors_sha256(block.state_dict())
        for block in network.all_blocks
    ]


def check_start(ready: Ready) -> None:
    """Refuse ranks that are not alike, and parts that cannot be meant; warn of what hardly is."""
    stage, config, transport = ready.stage, ready.config, ready.transport
    check_alike(stage, config, ready.placement, transport)
    training = next((shard.training for shard in ready.shards.values()), None)
    settings = config.training
    own = signs(stage.network, training, settings.seed, settings.batch_size)
    notes = transport.all_gather("signs", [(sign.is_certain, sign.text) for sign in own])
    for is_certain, text in dict.fromkeys(tuple(sign) for note in notes for sign in note):
        if is_certain:
            raise SettingError(text)
        if transport.rank == 0:
            warnings.warn(text, OnwardWarning, stacklevel=5)


def check_alike(
    stage: Stage, config: RunConfig, placement: Placement, transport: Transport
) -> None:
    """Refuse ranks that would train something else than the others."""
    placed = f"{placement.name} with {','.join(map(str, placement.teams))} ranks a task"
    placed += f" and blocks of {','.join(map(str, placement.owners)) or 'no team'}"
    notes = transport.all_gather(
        "start from",
        {
            "settings": _settings(stage, config),
            "placements": placed,
            "versions": f"{VERSIONS}, {device_name(find_device(config.training.device)) or 'cpu'}",
            "weights": _first_weights(stage.network),
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


@contextmanager
def closed_on_error(store: Store | None) -> Iterator[None]:
    """Where something fails, let what is finished be written; leave nothing where nothing is."""
    try:
        yield
    except BaseException:
        if store is not None:
            with suppress(FileError):
                store.close()
            if store.is_new and not any(store.own.glob("weights-*")):
                store.remove()
        raise


def num_done(plan: Plan) -> int:
    """Return how many tasks of a plan were done in earlier parts of the run."""
    return sum(1 for _ in plan.all_tasks()) - len(plan.rest) if plan.held else 0
