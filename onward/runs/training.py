"""Training: the one entry, for one process or, under torchrun, for many."""

import platform
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from onward.arguments import check_arguments
from onward.checkpoint import weights_sha256
from onward.config import CUSTOM, RunConfig
from onward.costs import memory
from onward.data import Dataset
from onward.data.augmentation import Augmentation
from onward.devices import find_device, machine, peak_bytes, resolve_precision, why_no_gpu
from onward.errors import OnwardWarning, SettingError, name_of
from onward.evaluation import block_metrics, evaluate
from onward.network.moving import moved
from onward.network.networks import Network
from onward.network.stages import Stage
from onward.network.trained_on import TrainedOn
from onward.placement import Placement, first_blocks
from onward.runs import folders
from onward.runs.doubts import doubts
from onward.runs.fitting import fit_inputs, fit_preprocessing, inputs_kept_on_error
from onward.runs.joining import join_ranks
from onward.runs.listeners import Listeners
from onward.runs.preparation import (
    make_settings,
    make_stages,
    of_stage,
    resolve_memory_format,
    set_arithmetic,
)
from onward.runs.results import Listener, Log, Result
from onward.runs.sharding import (
    DataSummary,
    counted,
    handed_over,
    is_private,
    load_data,
    load_shards,
    seen,
    split,
    with_data,
)
from onward.runs.starting import Ready, check_start, closed_on_error, get_ready, num_done
from onward.runtime.runtime import Runtime, make_worker
from onward.runtime.workers import report_fields
from onward.seeds import global_generators_kept
from onward.settings import DataConfig, PlacementConfig, PlanConfig, Standardize, TrainingConfig
from onward.timeline import Recorder, Span, is_whole, merged, spans_kept
from onward.version import VERSION
from onward.world import current_rank


def run(
    config: RunConfig,
    listener: Listener | Sequence[Listener] | None = None,
    folder: Path | str | None = None,
    *,
    dataset: Dataset | None = None,
    overwrite: bool = False,
) -> Result | None:
    """Do a run from its settings: load data, build the network, train, test.

    Under torchrun every process calls this, and rank 0 gets the result.

    Args:
        config: The run.
        listener: See `train`.
        folder: See `train`.
        dataset: What is learned from, in place of what `data.name` says. Its name is recorded, and
            is no file: `onward evaluate` and others then need one, `--data FILE`.
        overwrite: See `train`.

    Returns:
        The result on rank 0; None on others.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.

    Example:
        >>> import numpy as np, onward as ow
        >>> y = np.arange(200) % 2
        >>> blobs = ow.dataset(np.random.default_rng(0).normal(3 * y[:, None], 1, (200, 4)), y)
        >>> config = ow.RunConfig(recipe="symba").with_settings({"network.widths": (20, 20)})
        >>> result = ow.run(config.with_settings({"training.batch_size": 20}), dataset=blobs)
        >>> result.accuracy > 0.9
        True
    """
    check_arguments(run, locals())
    if dataset is None:
        return _train_stages(config, load_data, make_stages, listener, folder, overwrite=overwrite)
    given, config = dataset, handed_over(config, dataset)
    return _train_stages(
        config, lambda *_: given, make_stages, listener, folder, overwrite=overwrite
    )


def _prepared(folder: Path | None, epochs: int, *, overwrite: bool) -> AbstractContextManager[None]:
    """Prepare the folder of a run, on the rank that writes it."""
    if folder is None or current_rank() != 0:
        return nullcontext()
    return folders.prepared(folder, epochs, overwrite=overwrite)


@contextmanager
def threads_kept(number: int) -> Iterator[None]:
    """Compute with some threads, and go back to as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    network: Network | Sequence[Stage],
    dataset: Dataset,
    *,
    training: TrainingConfig | None = None,
    plan: PlanConfig | None = None,
    placement: PlacementConfig | Placement | None = None,
    validation: float | int = 0.1,
    standardize: Standardize = "auto",
    class_weights: float | Literal["balanced"] | None = None,
    labelled: float | None = None,
    shift: int = 0,
    augment: Augmentation | Sequence[Augmentation] = (),
    listener: Listener | Sequence[Listener] | None = None,
    folder: Path | str | None = None,
    overwrite: bool = False,
) -> Result | None:
    """Train a network, in this process or, under torchrun, on all its ranks.

    The same script runs either way, and ends in the same weights: every process builds the same
    network from the same data, and rank 0 gets the result.

    Args:
        network: What is trained, in place. Its first weights must be the same on all ranks. In the
            end rank 0 has the trained network; on others, blocks may be NaN or of earlier chapters.
            Or stages, which are trained one after the other.
        dataset: What is learned from, see `onward.data.from_arrays`.
        training: Epochs, batch size, seed, arithmetic; for stages, each has its own.
        plan: What is computed; for stages, each has its own.
        placement: Where; by default all-layers (or stream) where there are several ranks. Or a
            placement of one's own.
        validation: Training samples held out for validation: a share below 1, or a number.
        standardize: What gets a mean of 0 and a standard deviation of 1, see `ow.DataConfig`. A
            network that has been trained before keeps its input transformation.
        class_weights: `"balanced"`: each class has the same weight in the loss, however many
            samples it has. A power p below 1: a sample of a class of n counts as n^-p.
        labelled: Share of the training samples of each class whose labels are kept. The others are
            left out, except in stages that see no labels. None: all.
        shift: Largest random shift of training images or signals, in pixels.
        augment: What is done to each training mini-batch, after the input transformation and the
            shift: a function of a batch and a generator that returns a batch of as many samples,
            or several in order. One with a parameter `epoch` is told how many epochs have
            learned from these samples before. `ow.Translate`, `ow.Flip` and `ow.Cutout` are such
            functions. A run that resumes compares the names of others, and the arguments of a
            `functools.partial`, not their code.
        listener: Called with how training goes, or several: `[ow.Bars(), ow.CSVLog("run.csv")]`.
            None: `ow.Bars()` in a terminal or a notebook, nothing elsewhere; `ow.Listener()` shows
            nothing anywhere.
        folder: The run folder, which rank 0 writes as `onward train --out` does. Until the run is
            finished, each rank keeps in `state`, in its own folder or a shared one, what it has
            finished. An interrupted run resumes from there when the script is started again, on
            any number of ranks, to the same weights. Of several stages, the folder holds
            the last, and `stage-0` in it the first, and so on. None: nothing is kept or written;
            if rank 0 alone names a folder, nothing is kept, and the finished run is written.
        overwrite: Whether a finished run in that folder is replaced; otherwise it is refused.

    Returns:
        The result on rank 0, that of the last stage where there are several; None on others.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.

    Example:
        >>> import onward as ow
        >>> network = ow.mlp((1, 8, 8), num_classes=10, widths=(64, 64))
        >>> result = ow.train(network, ow.load_data("digits"), training=ow.TrainingConfig(epochs=8))
        >>> result.accuracy > 0.9
        True
    """
    check_arguments(train, locals())
    if isinstance(network, Network):
        training, plan = training or TrainingConfig(), plan or PlanConfig()
        stages = [Stage(network=network, training=training, plan=plan)]
    elif training is None and plan is None and network:
        stages = list(network)
    else:
        raise SettingError("Stages are a list of ow.Stage, each with its own training and plan.")
    if any(stage.training.init for stage in stages):
        raise SettingError(
            "training.init is for networks that a recipe builds. Load the weights into the network "
            "itself, ow.load(path, network), and train it."
        )
    given = placement if isinstance(placement, Placement) else None
    where = placement if isinstance(placement, PlacementConfig) else PlacementConfig()
    data = DataConfig(
        name=dataset.name,
        validation=validation,
        standardize=standardize,
        class_weights=class_weights,
        labelled=labelled,
        shift=shift,
    )
    config = RunConfig(
        recipe=CUSTOM,
        data=data,
        training=stages[0].training,
        plan=stages[0].plan,
        placement=where,
        augment=(augment,) if callable(augment) else tuple(augment),
    )
    return _train_stages(
        config,
        lambda *_: dataset,
        lambda *_: stages,
        listener,
        folder,
        overwrite=overwrite,
        given=given,
    )


def _train_stages(
    config: RunConfig,
    load: Callable[[RunConfig, int], Dataset],
    make: Callable[[RunConfig, Dataset, DataSummary, Collection[int]], Sequence[Stage]],
    listener: Listener | Sequence[Listener] | None,
    folder: Path | str | None,
    *,
    overwrite: bool,
    given: Placement | None = None,
) -> Result | None:
    """Train one stage after the other; mostly there is one.

    Args:
        config: The run, with the settings of its first stage where a script has built it.
        load: Returns the data of a rank.
        make: Builds the stages, of which some blocks need no weights yet.
        listener: See `train`.
        folder: See `train`.
        overwrite: See `train`.
        given: A placement of a user's own.
    """
    config.check()
    if listener is None:
        listener = _watched()
    elif not isinstance(listener, Listener):
        listener = Listeners(listener)
    folder = None if folder is None else Path(folder)
    results: list[Result] = []
    known = TrainedOn(frozenset(), 0.0)
    parts, number = [config], 0
    with _prepared(folder, config.training.epochs, overwrite=overwrite):
        while number < len(parts):
            with join_ranks(parts[number], listener) as transport:
                if number == 0:
                    dataset = split(config, load(config, transport.rank))
                    config = with_data(config, dataset, transport.num_ranks)
                    parts = [config]
                local, summary = load_shards(parts[number], dataset, transport)
                if number == 0:
                    # A rank may have no room for all blocks: it makes those that it trains first.
                    stages = make(config, dataset, summary, ())
                    before = stages[-1].network.trained_on
                    parts = [_of_stage(config, stage, n) for n, stage in enumerate(stages)]
                stage, part = stages[number], parts[number]
                # Wherever a user has put it: it is prepared on the processor.
                network = stage.network.to("cpu")
                shards = seen(part, local, summary, sees_labels=stage.sees_labels)
                name = f"stage-{number}" if len(stages) > 1 else ""
                is_last = number + 1 == len(stages)
                if name and transport.rank == 0:
                    listener.note(f"Stage {number + 1} of {len(stages)}.")
                with inputs_kept_on_error(stages):
                    if number == 0:
                        fit_inputs(stages, summary, dataset, config.data.standardize)
                    ready = get_ready(
                        stage,
                        part,
                        dataset,
                        shards,
                        summary,
                        transport,
                        folder and folder / folders.STATE / name,
                        listener,
                        given,
                        _later(stages, parts) if number == 0 else (),
                        config,
                        warns=number == 0,
                    )
                if not is_last:
                    # The next one begins on all ranks with what it has learned.
                    everywhere = replace(ready.placement, is_gathered_everywhere=True)
                    ready = replace(ready, placement=everywhere)
                if any(block.is_released for block in network.all_blocks):
                    own = first_blocks(ready.plan, ready.placement, transport.rank)
                    network = make(config, dataset, summary, own)[number].network
                    set_arithmetic(network, part)
                with closed_on_error(ready.store):
                    with threads_kept(part.training.threads):
                        fit_preprocessing(network, part, ready.shards, transport)
                    ready = replace(ready, stage=replace(ready.stage, network=network))
                    check_start(ready)
                    device = find_device(part.training.device)
                    with memory.advice(ready.on_device), moved(network, device):
                        trained = _train(network, ready, listener)
                        # A model knows what its blocks have learned from in any stage.
                        known = known.wider(trained.samples)
                        trained = trained._replace(samples=known.after(before))
                        if name:
                            trained.facts["stage"] = number
                        if transport.rank == 0:
                            results.append(_test(network, dataset, trained))
            if transport.rank == 0 and folder is not None:
                written = part if config.method is None else config
                folders.write(folder if is_last else folder / name, written, results[-1])
            number += 1
        if folder is not None and results:
            where = config.placement
            folders.remove_state(folder, where.directory, is_kept=where.keep_state)
    return replace(results[-1], earlier=tuple(results[:-1])) if results else None


def _watched() -> Listener:
    from onward.runs.progress import usual_listener  # Takes a tenth of a second.

    return usual_listener()


def _of_stage(config: RunConfig, stage: Stage, number: int) -> RunConfig:
    """Return the settings of a stage; ranks that share a folder have one in it for later stages."""
    own = of_stage(config, stage)
    own.check()
    if number == 0 or own.placement.directory is None:
        return own
    folder = Path(own.placement.directory) / f"stage-{number}"
    return replace(own, placement=replace(own.placement, directory=str(folder)))


def _later(stages: Sequence[Stage], parts: Sequence[RunConfig]) -> list[tuple[Stage, RunConfig]]:
    """Return the stages after the first, without those whose samples are not cut yet."""
    return [
        (stage, part)
        for stage, part in zip(stages[1:], parts[1:], strict=True)
        if part.plan.shards == parts[0].plan.shards
    ]


class Trained(NamedTuple):
    """What rank 0 knows of a training that all ranks have done."""

    log: Log
    facts: dict[str, Any]
    timeline: list[Span]
    samples: TrainedOn


def _train(network: Network, ready: Ready, listener: Listener) -> Trained:
    config, dataset, shards, summary = ready.config, ready.dataset, ready.shards, ready.summary
    plan, placement, transport = ready.plan, ready.placement, ready.transport
    if placement.name == "federated":
        team = placement.team_of(transport.rank)
        shards = {s: own for s, own in shards.items() if s % len(placement.teams) == team}
    # Others hear of reports where all ranks gather them.
    listening = listener if transport.rank == 0 else Listener()
    log = Log(plan, [report_fields(block) for block in network.all_blocks], listening)
    worker = make_worker(plan, network, shards, make_settings(config))
    worker.way = ready.held[transport.rank].way or worker.way
    recorder = Recorder(transport.rank, most=spans_kept(transport.num_ranks))
    store = ready.store
    runtime = Runtime(plan, placement, worker, transport, log.take, recorder, store, ready.holders)
    transport.all_gather("start", None)
    recorder.start()
    cpu_start = time.process_time()
    try:
        if transport.rank == 0:
            listener.begin(plan, placement)
            if config.training.device == "auto" and worker.device.type == "cpu":
                listener.note(f"training.device is auto, and {why_no_gpu()}; so it is cpu.")
        with global_generators_kept(network.device), threads_kept(config.training.threads):
            runtime.run()
        if store is not None:
            store.close()
    finally:
        worker.settle()
        if transport.rank == 0:
            listener.end()
    if transport.rank == 0 and (outcome := log.outcome()):
        listener.note(outcome)
    seconds = recorder.now()
    figures = {
        "cpu_seconds": time.process_time() - cpu_start,
        "idle_seconds": runtime.idle_seconds + worker.team.seconds,
        "bytes_sent": transport.bytes_sent,
        "validation_seconds": worker.validation_seconds,
        "validation_cpu_seconds": worker.validation_cpu_seconds,
        "estimated_memory_bytes": ready.memory,
        "peak_memory_bytes": memory.peak(),
        "estimated_device_bytes": ready.on_device,
        "peak_device_bytes": peak_bytes(worker.device),
        "seconds": seconds - worker.validation_seconds,
    }
    everywhere = transport.all_gather("figures", figures)
    text = transport.all_gather("timeline", recorder.note())
    # Rank 0 has written the last weights when the others hear of it.
    transport.all_gather("kept", None)
    if transport.rank and store is not None and 0 not in store.seen:
        # Rank 0 has the last weights on its own disk; on a shared one it removes them all.
        store.remove()
    per_rank = {name: [each[name] for each in everywhere] for name in figures}
    facts = {
        "recipe": config.recipe,
        "recipe_sha256": config.recipe_sha256,
        "recipe_has_changed": config.has_changed,
        "data": config.data.name if is_private(config) else dataset.name,
        "samples": {
            "training": summary.counted_samples,
            "validation": sum(summary.validation_samples),
            "test": counted(dataset.test),
        },
        "seed": config.training.seed,
        "augmentation": [name_of(each) for each in make_settings(config).augment],
        "epochs": plan.epochs,
        "chapters": plan.chapters,
        "block_epochs": log.block_epochs(),
        "chapters_trained": log.chapters_trained,
        "best_chapter": log.standing.best if log.standing else None,
        "plan": config.plan.kind,
        "hint_age": plan.hint_age,
        "activities": [each.way for each in ready.held],
        "shards": len(plan.samples),
        "slices": config.plan.slices,
        "teams": list(placement.teams),
        "device": worker.device.type,
        "precision": resolve_precision(config.training.precision, worker.device),
        "memory_format": resolve_memory_format(config.plan.memory_format, network),
        "placement": placement.name,
        "world_size": transport.num_ranks,
        "data_sha256": summary.data_sha256,
        "held_out_sha256": summary.held_out_sha256[0],
        **per_rank,
        "seconds": max(per_rank["seconds"]),
        "timeline_is_whole": is_whole(text) and not plan.held,
        "tasks_done_before": num_done(plan),
        "versions": {
            "onward": VERSION,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": machine(worker.device),
    }
    # Rank 0 has the network; of samples that stay where they are, not even digests travel.
    is_known = transport.rank == 0 and not is_private(config)
    known = [shard.training for shard in ready.shards.values()] if is_known else []
    return Trained(log, facts, merged(text), TrainedOn.of(known))


def _test(network: Network, dataset: Dataset, trained: Trained) -> Result:
    """Look at the test samples, once."""
    network.eval()
    network.trained_on = trained.samples
    log, facts, timeline = trained.log, trained.facts, trained.timeline
    facts["weights_sha256"] = weights_sha256(network)
    test = evaluate(network, dataset.test)
    readouts: dict[str, float] = {}
    per_block = test.block_accuracy
    for name, readout in network.readouts.items():
        is_known = readout == network.readout
        found = test if is_known else evaluate(network, dataset.test, readout)
        readouts[name] = found.correct / max(found.samples, 1)
        per_block = per_block or found.block_accuracy
    progress = sorted(log.entries, key=lambda e: (e.chapter, e.block is None, e.block or 0))
    frozen = [n for n, block in enumerate(network.all_blocks) if not [*block.trained()]]
    signs = doubts(progress, test, frozen, network.class_names, network.sampler.needs_hints)
    for text in signs:
        warnings.warn(text, OnwardWarning, stacklevel=3)
    return Result(
        network=network,
        test=test,
        validation=log.final_validation(),
        readouts=readouts,
        per_block=per_block,
        metrics=block_metrics(network, dataset.test),
        progress=progress,
        facts=facts,
        timeline=timeline,
        doubts=tuple(signs),
    )
