"""What a comparison is between: recipes with their settings, finished runs, and their twins."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onward.arguments import fits
from onward.config import CUSTOM, RENAMED, RunConfig, no_recipe, read_run, read_settings
from onward.devices import find_device, resolve_precision
from onward.errors import FileError, SettingError
from onward.recipes import RECIPES, Recipe
from onward.recipes.user import is_named, load_recipe
from onward.runs.folders import is_finished
from onward.settings import Section
from onward.values import nearest, written

Given = str | Path | RunConfig
"""A recipe, with settings or without; a run file; the folder of a finished run; or settings."""

ALONE = ("name", "processes", "replicas", "iface", "directory")
"""Settings of a placement that one process has no use for."""

ALIKE = ("epochs", "batch_size", "drop_last", "seed", "precision", "threads")
"""Settings of the training that the twin of dense blocks takes over from them."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a comparison."""

    name: str
    """What it is called there."""

    config: RunConfig
    """Its settings; the seed is that of the first run."""

    without: tuple[str, ...] = ()
    """Settings common to all that its recipe does not have."""

    folders: tuple[Path, ...] = ()
    """Finished runs that it consists of; none where its runs are found by name, or trained."""

    @property
    def is_twin(self) -> bool:
        """Whether it is trained by backpropagation through all layers."""
        return bool(getattr(self.config.network, "is_backpropagation", False))

    @property
    def twin(self) -> str | Mapping[str, Any] | Recipe:
        """What its twin is: a recipe, or settings of its own."""
        return (self.config.method or Recipe).twin

    @property
    def layer_sizes(self) -> dict[str, Any]:
        """The settings that say how large its layers are; None for those without effect."""
        network = self.config.network
        idle: dict[str, str] = getattr(network, "without_effect", dict)()
        names = getattr(network, "layer_sizes", Section.layer_sizes)
        return {
            name: None if name in idle else getattr(network, name)
            for name in names
            if hasattr(network, name)
        }

    @property
    def kin(self) -> str:
        """The dataclass that the settings of all extend that share its twin, by name.

        The class itself is another one each time that a user's file is read.
        """
        twin = self.twin
        config = self.config if self.is_twin or isinstance(twin, Mapping) else _usual(twin)
        kin = next(c for c in reversed(type(config.network).__mro__) if is_dataclass(c))
        return f"{kin.__module__}.{kin.__qualname__}"


def read_entries(
    given: Sequence[Given], common: Mapping[str, Any], *, twin: bool = True
) -> list[Entry]:
    """Return what is compared, twins at the end.

    Args:
        given: Recipes, run files, folders of finished runs, or settings. A text may go on with
            settings of this entry alone: `RECIPE:SECTION.NAME=VALUE:SECTION.NAME=VALUE`.
        common: Settings by full name, for all entries whose recipes have them.
        twin: Whether twins are added.

    Raises:
        SettingError: There is no such recipe or setting, or two entries have one name.
    """
    common = {RENAMED.get(name, name): value for name, value in common.items()}
    _check_alone(common)
    of_folders = _of_folders([Path(str(each)) for each in given if _is_folder(each)])
    entries: list[Entry] = []
    for each in given:
        if not _is_folder(each):
            entries.append(_read(each, common))
            continue
        entry = next(e for e in of_folders if Path(str(each)) in e.folders)
        entries += [entry] if entry not in entries else []
    trained = [entry for entry in entries if not entry.folders]
    for name in common:
        if trained and all(name in entry.without for entry in trained):
            known = sorted({full for entry in trained for full in entry.config.setting_names()})
            own = ", ".join(full for full in known if full.startswith("network."))
            raise SettingError(
                f"{name} is no setting of {', '.join(entry.config.recipe for entry in trained)}."
                f"{nearest(name, known) or f' There are {own}.'}"
            )
    if twin:
        entries += _twins(entries, common)
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise SettingError(
                f"{name} is compared with itself: it is named {names.count(name)} times. Name "
                f"recipes, settings or folders that differ."
            )
    return entries


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return all settings of a run by full name, those of the placement left out.

    Arithmetic that depends on the machine is written out.
    """
    found: dict[str, Any] = {"recipe": config.recipe}
    for section, settings in vars(config).items():
        if is_dataclass(settings) and section not in ("method", "placement"):
            found |= {f"{section}.{name}": value for name, value in asdict(settings).items()}  # type: ignore[arg-type]
    training = config.training
    # Where it is named, there may be none: a run on a GPU is compared on any machine.
    device = find_device("auto") if training.device == "auto" else torch.device(training.device)
    found["training.device"] = device.type
    if training.precision == "auto":
        found["training.precision"] = resolve_precision("auto", find_device(training.device))
    return found


def differences(ours: RunConfig, theirs: RunConfig) -> list[str]:
    """Return in which settings a run differs from another, in words; where data lie is no matter.

    Args:
        ours: What is asked for.
        theirs: What there is.
    """
    here, there = settings_of(ours), settings_of(theirs)
    # Where data lie changes no weight, nor do validations that decide nothing.
    ignored = {"data.name", "data.dir"}
    if not (ours.plan.is_judged or theirs.plan.is_judged):
        ignored.add("plan.validate_every")
    names = sorted((here.keys() | there.keys()) - ignored)
    return [
        f"{name} is {there.get(name)} there, and here {here.get(name)}"
        for name in names
        if here.get(name) != there.get(name)
    ]


def _is_folder(given: Given) -> bool:
    return not isinstance(given, RunConfig) and str(given) not in RECIPES and os.path.isdir(given)


def _check_alone(names: Iterable[str]) -> None:
    idle = [name for name in names if name in {f"placement.{each}" for each in ALONE}]
    if idle:
        raise SettingError(
            f"{idle[0]} has no effect here: the runs of a comparison are trained one after the "
            f"other, each in this process. Leave it out."
        )


def _read(given: Given, common: Mapping[str, Any]) -> Entry:
    """Return the entry of a recipe, of a run file, or of settings."""
    if isinstance(given, RunConfig):
        known, lacking = _known(given, common)
        return Entry(name=given.recipe, config=_alone(given.with_settings(known)), without=lacking)
    # A path may have an equals sign, and what stands first is one, or a recipe.
    first, *pieces = str(given).split(":")
    while pieces and "=" not in pieces[0]:
        first += f":{pieces.pop(0)}"
    own: dict[str, Any] = {}
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if not equals:
            raise SettingError(
                f"Settings of one entry are SECTION.NAME=VALUE, with colons between them; got "
                f"{piece} in {given}."
            )
        own[RENAMED.get(name.strip(), name.strip())] = value.strip()
    _check_alone(own)
    settings, method, name = {"recipe": first}, None, first
    if first.endswith(".toml"):
        settings, name = read_settings(Path(first)), Path(first).name
        settings = {RENAMED.get(full, full): value for full, value in settings.items()}
    elif first not in RECIPES and is_named(first):
        method = load_recipe(first)
        settings, name = {}, method.name
    known, lacking = _known(read_run(settings, method), common)
    # One that is named for an entry alone counts more.
    config = read_run(settings | known | own, method)
    if "{rank}" in config.data.name:
        raise SettingError(
            f"{config.data.name} names a file for each rank, and the runs of a comparison have "
            f"one. Name one file."
        )
    return Entry(name=":".join([name, *pieces]), config=_alone(config), without=lacking)


def _known(config: RunConfig, common: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the common settings that a recipe has, and the names of those that it has not."""
    names = {name for name in config.setting_names() if "." in name}
    if config.method is None or not config.method.takes("optimizer"):
        names = {name for name in names if not name.startswith("optimizer.")}
    known = {name: value for name, value in common.items() if name in names}
    return known, tuple(name for name in common if name not in names)


def _alone(config: RunConfig) -> RunConfig:
    """Return a run as one process does it."""
    usual = type(config.placement)()
    own = replace(config.placement, **{name: getattr(usual, name) for name in ALONE})
    return replace(config, placement=own)


def _of_folders(folders: Sequence[Path]) -> list[Entry]:
    """Return the entries of finished runs; those that differ in the seed alone are one."""
    groups: dict[str, list[tuple[Path, RunConfig]]] = {}
    for folder in folders:
        if not is_finished(folder):
            raise FileError(
                f"There is no finished run in {folder}. Give one, or a recipe, which is trained."
            )
        settings = read_settings(folder / "config.toml")
        name = str(settings.get("recipe"))
        if name not in RECIPES:
            raise SettingError(
                f"The run in {folder} "
                + ("was built by a script" if name == CUSTOM else f"is of the recipe {name}")
                + ", and folders of recipes that come with Onward alone are compared. "
                + (no_recipe(name) if name != CUSTOM else "Give a recipe of your own by its file.")
            )
        config = _alone(read_run(settings))
        same = replace(config, training=replace(config.training, seed=0))
        key = str(sorted(settings_of(same).items()))
        groups.setdefault(key, []).append((folder, config))
    entries = []
    for group in groups.values():
        seeds = [config.training.seed for _, config in group]
        for (folder, _), seed in zip(group, seeds, strict=True):
            if seeds.count(seed) > 1:
                raise SettingError(f"{folder} and another run have the same settings and seed.")
        name = group[0][0].resolve().name
        entries.append(
            Entry(
                name=name.removesuffix(f"-{seeds[0]}") if len(group) > 1 else name,
                config=group[0][1],
                folders=tuple(folder for folder, _ in group),
            )
        )
    return entries


def _twins(entries: Sequence[Entry], common: Mapping[str, Any]) -> list[Entry]:
    """Return the twins that are to be added: of other recipes, and then of the same ones."""
    found = []
    has_twin = {entry.kin for entry in entries if entry.is_twin}
    missing = dict.fromkeys(entry.kin for entry in entries if entry.kin not in has_twin)
    firsts = [next(entry for entry in entries if entry.kin == kin) for kin in missing]
    for like in sorted(firsts, key=lambda entry: isinstance(entry.twin, Mapping)):
        if isinstance(like.twin, Mapping):
            own = [f"{full}={written(value)}" for full, value in like.twin.items()]
            config = like.config.with_settings(like.twin)
            name = ":".join([like.config.recipe, *own])
            found.append(Entry(name=name, config=config, without=like.without))
        else:
            found.append(_of_recipe(_usual(like.twin), like, common))
        if not found[-1].is_twin:
            raise SettingError(
                f"{found[-1].name} is to be the twin of {like.name}, but its settings do not say "
                f"that they are backpropagation. Give {type(found[-1].config.network).__name__} a "
                f"property is_backpropagation which is true for them."
            )
    return found


def _usual(recipe: str | Recipe) -> RunConfig:
    """Return a run of a recipe, with the settings that it has by default."""
    return RunConfig(recipe=recipe) if isinstance(recipe, str) else RunConfig(method=recipe)


def _of_recipe(twin: RunConfig, like: Entry, common: Mapping[str, Any]) -> Entry:
    """Return the twin of an entry that is another recipe."""
    usual = Entry(name=twin.recipe, config=twin)
    known, lacking = _known(usual.config, common)
    changes = {f"training.{name}": getattr(like.config.training, name) for name in ALIKE}
    changes["plan.monitor"] = like.config.plan.monitor
    # As many updates, where weights are updated several times for a mini-batch.
    changes["training.epochs"] *= getattr(like.config.network, "ticks", 1)
    for name in usual.layer_sizes.keys() & like.layer_sizes.keys():
        size = getattr(like.config.network, name)
        if fits(size, tuple[int, ...]):
            changes[f"network.{name}"] = size
    if isinstance(usual.twin, Mapping):
        changes |= usual.twin  # Whatever is common to all.
    config = usual.config.with_settings(known | changes)
    return replace(usual, config=replace(config, data=like.config.data), without=lacking)


def twin_of(entry: Entry, entries: Sequence[Entry]) -> tuple[str | None, bool]:
    """Return the name of the twin of an entry, and whether that has the same layers.

    The name is None where there is none, or it is one itself.
    """
    twins = (e for e in entries if e.is_twin and e.kin == entry.kin)
    twin = None if entry.is_twin else next(twins, None)
    if twin is None:
        return None, False
    is_alike = (entry.config.method or Recipe).is_twin_alike
    return twin.name, is_alike and twin.layer_sizes == entry.layer_sizes
