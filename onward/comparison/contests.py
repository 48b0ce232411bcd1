"""A comparison: recipes on the same data, trained where they are not yet, with their figures."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onward import world
from onward.arguments import check_arguments
from onward.checkpoint import load, shipped, weights_sha256
from onward.comparison.entries import Entry, Given, differences, read_entries, settings_of, twin_of
from onward.comparison.figures import (
    ALLOWED,
    Comparison,
    EarlyExit,
    EntryFigures,
    early_exit,
    figures_of,
)
from onward.config import RunConfig, read_run, read_settings
from onward.costs import flops, memory
from onward.costs.times import BlockCosts
from onward.data import Dataset
from onward.errors import DataError, OnwardError, SettingError, told
from onward.files import write_text
from onward.network.networks import Network
from onward.runs import folders
from onward.runs.preparation import Preview, preview
from onward.runs.progress import usual_listener
from onward.runs.results import Listener
from onward.runs.sharding import Known, counted, read, with_data
from onward.runs.training import run, threads_kept
from onward.runs.trial import block_costs

FILE = "compare.json"
"""All figures of a comparison, in its folder."""

EARLY = "early-exit.json"
"""What early exit saves each run of a comparison, in its folder."""

RANKS = 4
"""Ranks of which is said what they would send."""

VALIDATIONS = 5
"""Validations of a run, about, from which its curve is drawn."""

PETA = 1e15
"""Operations of a PFLOP."""


def compare(
    recipes: Sequence[Given],
    *,
    folder: Path | str,
    seeds: int = 3,
    settings: Mapping[str, Any] | None = None,
    pflop: float | None = None,
    twin: bool = True,
    listener: Listener | None = None,
) -> Comparison:
    """Compare recipes, and train them where that has not been done.

    Runs are trained one after the other in this process, each into a folder of its own in `folder`:
    RECIPE-SEED. One that is finished is read, one that was cut goes on. Nothing is chosen by test
    samples.

    Args:
        recipes: What is compared: names of recipes, TOML run files, folders of finished runs, or
            `ow.RunConfig`. A name or a file may go on with settings of its own, such as
            `"pff:network.negatives=random"`.
        folder: Where runs are, and `compare.json` is written.
        seeds: Runs of each, with seeds from that of the settings on.
        settings: Settings by full name, such as `{"data.name": "mnist"}`, of all recipes that have
            them.
        pflop: Operations of a training in 1e15: each recipe trains for as many epochs as these
            are enough for, at least one. None: as long as its settings say.
        twin: Whether the same layers trained by backpropagation are added: what a recipe says that
            its twin is, such as `backprop` for dense blocks.
        listener: See `ow.train`.

    Raises:
        OnwardError: Settings or data cannot be used, or a folder holds a run that was made with
            other ones. A run that fails is listed, and the others go on.

    Example:
        >>> import tempfile, onward as ow
        >>> small = {"training.epochs": 2, "network.widths": (32, 32)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = ow.compare(["one-pass"], folder=folder, seeds=1, settings=small)
        >>> [entry.name for entry in found.entries]
        ['one-pass', 'backprop']
    """
    check_arguments(compare, locals())
    _check(recipes, seeds, pflop)
    folder, listener = Path(folder), listener or usual_listener()
    entries = read_entries(recipes, settings or {}, twin=twin)
    contests = _prepare(entries, folder, seeds, pflop)
    data = _check_data(contests)
    for contest in contests:
        for seed, path in contest.folders.items() if not contest.error else ():
            _check_folder(contest, seed, path)
    errors = _train(contests, listener)
    folder.mkdir(parents=True, exist_ok=True)
    measured = _Measured(folder / EARLY, listener)
    found = Comparison(
        data,
        tuple(
            _figures(contest, entries, errors[contest.entry.name], measured) for contest in contests
        ),
        pflop,
    )
    _write(folder / FILE, found.to_json())
    return found


def _write(path: Path, found: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(found, indent=1) + "\n")


class _Measured:
    """What early exit saves, kept in a file: to measure it may take as long as the training.

    Args:
        path: The file.
        listener: Told what takes time.
    """

    def __init__(self, path: Path, listener: Listener) -> None:
        self.path, self.listener = path, listener
        try:
            self.known: dict[str, Any] = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # Nothing is there yet, or it is measured again.
            self.known = {}

    def of(self, name: str, network: Network, dataset: Dataset) -> EarlyExit | None:
        """Return what early exit saves a network, on the test samples of the data."""
        key = f"{name} {weights_sha256(network)} {dataset.sha256()} "
        key += f"{dataset.held_out_sha256()} {ALLOWED}"
        if key not in self.known:
            self.listener.note(f"Early exit of {name} is measured.")
            found = early_exit(network, dataset)
            self.known[key] = found and asdict(found)
            _write(self.path, self.known)
        known = self.known[key]
        return known and EarlyExit(**known)


def _check(recipes: Sequence[Given], seeds: int, pflop: float | None) -> None:
    """Refuse what cannot be compared, whatever the data."""
    if not recipes:
        raise SettingError("Nothing is named that could be compared. Name a recipe or two.")
    if seeds < 1:
        raise SettingError(f"seeds is {seeds}; it is the number of runs of each recipe, 1 or more.")
    if pflop is not None and not pflop > 0:
        raise SettingError(f"PFLOP are a number above 0; got {pflop}.")
    if world.is_distributed():
        raise SettingError(
            "A comparison trains in one process, and there are several. Start it without torchrun."
        )


@dataclass(frozen=True, kw_only=True)
class _Contest:
    """An entry, ready to be trained or read."""

    entry: Entry
    config: RunConfig
    """Its settings with what follows from the data, and its epochs."""
    folders: Mapping[int, Path]
    """Folder of each run, by seed."""
    dataset: Dataset | None = None
    training_flops: float | None = None
    traffic: flops.Traffic | None = None
    error: str | None = None
    """Why nothing can be trained."""


def _prepare(
    entries: Sequence[Entry], folder: Path, seeds: int, pflop: float | None
) -> list[_Contest]:
    """Return entries ready to be trained or read; data that several learn from are read once."""
    known: dict[tuple[Any, ...], Known] = {}
    return [_prepared(entry, folder, seeds, pflop, known) for entry in entries]


def _known(config: RunConfig, known: dict[tuple[Any, ...], Known]) -> Known:
    """Return the data of a run, those that are known already where it has the same."""
    # What changes samples as they are learned from is no matter here.
    same = replace(
        config.data, shift=0, shift_fill="zeros", flip="none", cutout=0, class_weights=None
    )
    plan = config.plan
    key = (repr(same), plan.shards, plan.shard_by, plan.shard_alpha, config.training.seed)
    if key not in known:
        config.check()
        known[key] = read(config, 1)
    return known[key]


def _prepared(
    entry: Entry,
    folder: Path,
    seeds: int,
    pflop: float | None,
    known: dict[tuple[Any, ...], Known],
) -> _Contest:
    """Return an entry with what its training costs, or with the reason why there is none.

    Args:
        entry: The entry.
        folder: Where its runs are.
        seeds: Number of its runs.
        pflop: What each is to cost.
        known: Data that have been read, by what they depend on.
    """
    config, first = entry.config, entry.config.training.seed
    name = re.sub(r"[^\w.=,+-]+", "-", entry.name)
    folders = {seed: folder / f"{name}-{seed}" for seed in range(first, first + seeds)}
    if entry.folders:
        folders = {_seed(path): path for path in entry.folders}
    budget = None if pflop is None or entry.folders else pflop * PETA
    if budget is not None:
        config = config.with_settings({"training.epochs": config.plan.chapters or 1})
    try:
        data = _known(config, known)
        begun = preview(config, 1, with_weights=True, known=data)
        costs = [flops.count_steps(b.plan, b.network, b.shard, b.settings) for b in begun]
        if budget is not None:
            epochs = _affordable(config, costs, budget, data)
            config = config.with_settings({"training.epochs": epochs})
            begun = preview(config, 1, with_weights=True, known=data)
        if not entry.folders:
            config = _validated(config)
        traffics = [
            flops.traffic(b.plan, own, block_costs(b.network, b.dataset.training), RANKS)
            for b, own in zip(begun, costs, strict=True)
        ]
    except DataError:
        raise  # Others learn from the same.
    except Exception as error:
        return _Contest(entry=entry, config=config, folders=folders, error=_line(error))
    dataset = begun[0].dataset
    return _Contest(
        entry=entry,
        config=with_data(config, dataset, 1),
        folders=folders,
        dataset=dataset,
        training_flops=_operations(begun, costs),
        traffic=_summed(traffics),
    )


def _validated(config: RunConfig) -> RunConfig:
    """Return a run that is validated some times for its curve, if nothing else is asked for."""
    if config.plan.validate_every is not None or not config.data.validation:
        return config
    chapters = config.plan.chapters or config.training.epochs
    return config.with_settings({"plan.validate_every": max(1, chapters // VALIDATIONS)})


def _seed(folder: Path) -> int:
    return int(folders.read_result(folder)["seed"])


def _operations(begun: Sequence[Preview], costs: Sequence[BlockCosts]) -> float:
    """Return the operations of all stages."""
    return sum(flops.of_training(b.plan, own) for b, own in zip(begun, costs, strict=True))


def _summed(each: Sequence[flops.Traffic | None]) -> flops.Traffic | None:
    """Return what the stages send together, on as many ranks as the widest has work for."""
    known = [traffic for traffic in each if traffic is not None]
    if not known:
        return None
    widest = max(known, key=lambda traffic: traffic.ranks)
    return widest._replace(num_bytes=sum(traffic.num_bytes for traffic in known))


def _affordable(config: RunConfig, costs: Sequence[BlockCosts], most: float, known: Known) -> int:
    """Return the most epochs that take no more operations than these, at least one.

    Where chapters are given, one is the least that a chapter may have.
    """
    least = config.plan.chapters or 1

    def operations(times: int) -> float:
        changed = config.with_settings({"training.epochs": times * least})
        return _operations(preview(changed, 1, known=known), costs)

    times = max(1, int(most // operations(1)))
    # Later epochs may cost more: the first have no hints.
    while times > 1 and (needed := operations(times)) > most:
        times = max(1, min(times - 1, int(times * most / needed)))
    while operations(times + 1) <= most:
        times += 1
    return times * least


def _line(error: Exception) -> str:
    """Return an error in one line."""
    return " ".join(str(error).split()) if isinstance(error, OnwardError) else told(error)


def _check_data(contests: Sequence[_Contest]) -> str:
    """Return the name of the data; refuse entries that learn from others.

    Raises:
        SettingError: There are.
    """
    known = [(c, c.dataset) for c in contests if c.dataset is not None]
    for contest, dataset in known:
        first, data = known[0]
        if dataset.sha256() != data.sha256():
            raise SettingError(
                f"{contest.entry.name} is of other data ({dataset.name}) than {first.entry.name} "
                f"({data.name}), and accuracies on different data do not compare."
            )
        if dataset.held_out_sha256() != data.held_out_sha256():
            raise SettingError(
                f"{contest.entry.name} ({dataset.name}) has other test or validation samples than "
                f"{first.entry.name} ({data.name}), though the same training samples. Accuracies "
                f"on different samples cannot be compared."
            )
    return known[0][1].name if known else contests[0].config.data.name


def _check_folder(contest: _Contest, seed: int, folder: Path) -> None:
    """Refuse a folder with a run that is another one than is asked for.

    Raises:
        SettingError: It is.
        FileError: It cannot be read.
    """
    finished = folders.is_finished(folder)
    if finished:
        file = folder / folders.FILES[0]
    elif folders.is_unfinished(folder):
        file = folders.unfinished_config(folder)
    else:
        return
    assert contest.dataset is not None
    method, name = contest.config.method, contest.config.recipe
    own = method if method is not None and method.sha256 is not None else None
    try:
        theirs = read_run(read_settings(file), own)
    except SettingError as error:
        raise SettingError(f"The run in {folder} is not one of {name}: {error}") from error
    result = folders.read_result(folder) if finished else {}
    if result.get("data_sha256") not in (None, contest.dataset.sha256()):
        raise SettingError(
            f"The run in {folder} is of other data than {contest.dataset.name} is now. Name "
            f"another folder, or remove that one."
        )
    if result.get("held_out_sha256") not in (None, contest.dataset.held_out_sha256()):
        raise SettingError(
            f"The run in {folder} had other test or validation samples than {contest.dataset.name} "
            f"has now, though the same training samples. Name another folder, or remove that one."
        )
    ours = contest.config.with_settings({"training.seed": seed})
    found = differences(ours, theirs) if not contest.entry.folders else []
    if found:
        raise SettingError(
            f"The run in {folder} was made with other settings: {'; '.join(found)}. Name another "
            f"folder, or remove that one."
        )


def _train(contests: Sequence[_Contest], listener: Listener) -> dict[str, dict[int, str]]:
    """Train what is missing, seed by seed; return why runs failed, by entry and seed."""
    errors: dict[str, dict[int, str]] = {contest.entry.name: {} for contest in contests}
    most = max(len(contest.folders) for contest in contests)
    missing = []
    for contest in contests:
        if contest.error is not None:
            # Told before the others are trained, which may take long; and once.
            listener.note(f"{contest.entry.name} cannot be trained: {contest.error}")
            errors[contest.entry.name][min(contest.folders)] = contest.error
    for number in range(most):
        for contest in contests:
            for seed, folder in list(contest.folders.items())[number : number + 1]:
                if contest.error is None and not folders.is_finished(folder):
                    missing.append((contest, seed, folder))
    for setting in dict.fromkeys(name for c in contests for name in c.entry.without):
        names = [c.entry.name for c in contests if setting in c.entry.without]
        listener.note(f"{setting} is no setting of {', '.join(names)}, and changes nothing there.")
    for number, (contest, seed, folder) in enumerate(missing, 1):
        name = contest.entry.name
        listener.note(f"Run {number} of {len(missing)}: {name}, seed {seed}, in {folder}.")
        memory.forget_peak()
        try:
            run(contest.config.with_settings({"training.seed": seed}), listener, folder)
        except Exception as error:
            errors[name][seed] = _line(error)
    return errors


def _figures(
    contest: _Contest, entries: Sequence[Entry], errors: Mapping[int, str], measured: _Measured
) -> EntryFigures:
    """Return the figures of an entry, read from the folders of its runs."""
    entry, config, dataset = contest.entry, contest.config, contest.dataset
    found, failed = [], dict(errors)
    inference = parameters = None
    for seed, folder in contest.folders.items():
        if seed in failed or contest.error is not None:
            continue
        try:
            method = config.method if config.recipe_sha256 is not None else None
            network = load(folder, recipe=method)
            assert dataset is not None
            with threads_kept(config.training.threads):
                early = measured.of(f"{entry.name}, seed {seed}", network, dataset)
            found.append(figures_of(folder, network, early))
        except Exception as error:
            failed[seed] = _line(error)
            continue
        learned = {name for name, _ in network.named_parameters()}
        parameters = sum(t.numel() for name, t in shipped(network).items() if name in learned)
        # A graph is asked about as a whole.
        like = dataset.test if dataset.test.structure else None
        inference = None if network.readout is None else flops.of_inference(network, like)
    samples = {}
    if dataset is not None:
        assert dataset.validation is not None
        parts = {
            "training": dataset.training,
            "validation": dataset.validation,
            "test": dataset.test,
        }
        samples = {name: counted(batch) for name, batch in parts.items()}
    twin, is_alike = twin_of(entry, entries)
    return EntryFigures(
        name=entry.name,
        recipe=config.recipe,
        is_twin=entry.is_twin,
        twin=twin,
        is_twin_alike=is_alike,
        without=entry.without,
        settings=settings_of(config),
        epochs=config.training.epochs,
        samples=samples,
        training_flops=contest.training_flops,
        inference_flops=inference,
        parameters=parameters,
        traffic=contest.traffic,
        runs=tuple(found),
        errors=failed,
    )
