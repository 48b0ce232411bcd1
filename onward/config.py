"""A run, complete, and as TOML."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import tomli_w

from onward.arguments import check_arguments, said
from onward.errors import FileError, SettingError
from onward.recipes import RECIPES, Recipe
from onward.settings import DataConfig, OptimizerConfig, PlacementConfig, PlanConfig, TrainingConfig
from onward.values import NONE, changed, kinds, nearest, read_value

CUSTOM = "custom"
"""What takes the place of a recipe in a run of a network that a script has built."""

RENAMED = {
    "placement.keep_every": "placement.checkpoint_every",
    "placement.nodes": "placement.processes",
}
"""Old names of settings, which are still read, and their names of now."""

RENAMED_VALUES = {("plan.cut", "rows"): "samples"}
"""Old values of settings, which are still read, and what they are called now."""

SECTIONS = {
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "plan": PlanConfig,
    "placement": PlacementConfig,
}
"""Sections of a run, and their types; that of `network` is its recipe's."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete.

    What a recipe, a run file, a flag or `--set section.name=value` changes is a field of this. A
    section that is left out is as the recipe sets it; one that is given counts as it is, without
    what the recipe sets there, such as augmentation in `data`. `with_settings` changes some
    settings and keeps the others.

    Raises:
        SettingError: There is no such recipe.

    Example:
        >>> import onward as ow
        >>> run = ow.RunConfig(recipe="conv").with_settings({"data.name": "cifar10"})
        >>> run.data.flip, run.training.epochs
        ('auto', 10)
    """

    recipe: str = field(default=cast(str, None))
    """Name of the method. None: that of `method`, else conv for images of three channels, where
    the data are known, and one-pass for everything else."""

    recipe_sha256: str | None = None
    """Digest of the file that the recipe was read from. None: that of `method`."""

    data: DataConfig = field(default=cast(DataConfig, None))
    """What is learned from."""

    network: Any = None
    """What is trained: settings of the recipe."""

    optimizer: OptimizerConfig = field(default=cast(OptimizerConfig, None))
    """How weights follow their gradients."""

    training: TrainingConfig = field(default=cast(TrainingConfig, None))
    """How long, and with which arithmetic."""

    plan: PlanConfig = field(default=cast(PlanConfig, None))
    """What is computed."""

    placement: PlacementConfig = field(default=cast(PlacementConfig, None))
    """Where it is computed."""

    augment: tuple[Callable[..., Any], ...] = field(default=(), repr=False, compare=False)
    """What a script does to training mini-batches, after what `data` says; see `ow.train`."""

    method: Recipe | None = field(default=None, repr=False, compare=False)
    """The recipe itself; None: the one that comes with Onward under that name."""

    def __post_init__(self) -> None:
        check_arguments(RunConfig, {"method": self.method})
        if self.recipe is None:
            usual = "one-pass" if self.data is None else usual_recipe(self.data.name)
            object.__setattr__(self, "recipe", self.method.name if self.method else usual)
        check_arguments(RunConfig, {"recipe": self.recipe})
        method = self.method or RECIPES.get(self.recipe)
        if method is None and ":" in self.recipe:
            raise SettingError(
                f"The recipe {self.recipe} does not come with Onward. Load it, and pass it as the "
                f"method: ow.RunConfig(method=ow.load_recipe({self.recipe!r}))."
            )
        if method is None and self.recipe != CUSTOM:
            raise SettingError(no_recipe(self.recipe))
        if self.augment and self.recipe != CUSTOM:
            raise SettingError(
                "Functions that augment are for networks that a script has built: "
                "ow.train(network, dataset, augment=...). A run of a recipe has data.shift, "
                "data.flip and data.cutout."
            )
        if method is not None and method.name != self.recipe:
            raise SettingError(
                f"recipe is {self.recipe}, but method is the recipe {method.name}. Give the method "
                f"alone: ow.RunConfig(method=method)."
            )
        owners: dict[str, type] = dict(SECTIONS)
        if method is not None:
            owners["network"] = method.settings
        start = {section: owner() for section, owner in owners.items()}
        defaults: dict[str, dict[str, Any]] = {section: {} for section in start}
        for full, value in method.defaults.items() if method is not None else ():
            section, _, name = full.partition(".")
            if section not in start:
                raise SettingError(
                    f"The recipe {self.recipe} has a default for {full}; defaults are for "
                    f"{', '.join(f'{known}.NAME' for known in start)}."
                )
            defaults[section][name] = value
        for section, settings in start.items():
            if getattr(self, section) is None:
                settings = changed(settings, defaults[section], section)
                object.__setattr__(self, section, settings)
        check_arguments(RunConfig, vars(self))
        if method is not None:
            self._check_network(method)
            if self.recipe_sha256 is None:
                object.__setattr__(self, "recipe_sha256", method.sha256)
        object.__setattr__(self, "method", method)

    def _check_network(self, method: Recipe) -> None:
        """Refuse settings of the network that are not those of its recipe, or cannot be used."""
        if not isinstance(self.network, method.settings):
            raise SettingError(
                f"ow.RunConfig: network must be a {method.settings.__name__}, the settings of the "
                f"recipe {method.name}; got {said(self.network)}."
            )
        for name, kind in kinds(method.settings).items():
            value = getattr(self.network, name)
            if read_value(f"network.{name}", value, kind) != value:
                network = changed(self.network, {name: value}, "network")
                object.__setattr__(self, "network", network)

    @property
    def has_changed(self) -> bool:
        """Whether the file of the recipe has been edited since the settings were written."""
        return self.method is not None and self.method.sha256 != self.recipe_sha256

    def with_settings(self, settings: Mapping[str, Any]) -> "RunConfig":
        """Return a copy with some settings changed.

        Args:
            settings: Values by full name, such as `{"training.epochs": 5}`. Strings are read as
                the type of the setting, so that flags and run files need not know types.

        Raises:
            SettingError: A name is unknown, or a value has the wrong type.
        """
        known = self.setting_names()
        sections: dict[str, dict[str, Any]] = {}
        changes: dict[str, Any] = {}
        for given, value in settings.items():
            name = RENAMED.get(given, given)
            if name not in known:
                end = name.rpartition(".")[2]
                same_end = [full for full in known if full.rpartition(".")[2] == end]
                guess = f" Did you mean {same_end[0]}?" if same_end else nearest(name, known)
                raise SettingError(f"Unknown setting {name}.{guess}{self._instead_of(name)}")
            value = RENAMED_VALUES.get((name, value), value) if isinstance(value, str) else value
            section, _, key = name.rpartition(".")
            if section:
                sections.setdefault(section, {})[key] = value
            elif name == "recipe" and value != self.recipe:
                raise SettingError(
                    f"A run of the recipe {self.recipe} cannot be changed to {value}. "
                    f"Start from ow.RunConfig(recipe={value!r})."
                )
            elif name == "recipe_sha256":
                changes[name] = read_value(name, value, str | None)
        for section, values in sections.items():
            changes[section] = changed(getattr(self, section), values, section)
        return replace(self, **changes)

    def _instead_of(self, name: str) -> str:
        """Say which settings of the network there are, where one is asked for that is not."""
        own = [full for full in self.setting_names() if full.startswith("network.")]
        if not name.startswith("network."):
            return ""
        return f" The recipe {self.recipe} has {', '.join(own) or 'no settings of its own'}."

    def setting_names(self) -> list[str]:
        """Return the full names of all settings."""
        names = []
        for section in fields(self):
            settings = getattr(self, section.name)
            if is_dataclass(settings) and section.name != "method":
                names += [f"{section.name}.{setting.name}" for setting in fields(settings)]
            elif section.name in ("recipe", "recipe_sha256"):
                names.append(section.name)
        return names

    def check(self) -> None:
        """Raise a `SettingError` where two settings do not go together, whatever the data."""
        if self.placement.directory is not None and self.plan.kind == "stream":
            raise SettingError(
                "placement.directory is for chapter plans: a stream would write a file for every "
                "mini-batch of every block. Use --plan chapters, or leave it out."
            )
        if self.placement.directory is not None and (self.placement.replicas or 1) > 1:
            raise SettingError(
                "placement.directory is for ranks that work alone: replicas would write files for "
                "every mini-batch. Leave out one of the two."
            )
        if self.plan.kind != "stream" and self.plan.wire is not None:
            raise SettingError(
                "plan.wire is for stream plans: in a chapter plan activities stay where they are. "
                "Use --plan stream, or leave it out."
            )
        if self.plan.kind == "stream" and self.plan.slices > 1:
            raise SettingError(
                f"plan.slices is {self.plan.slices}, but the steps of a stream plan are not cut. "
                f"Slices go with --plan chapters."
            )

    def to_toml(self) -> str:
        """Return the run as TOML; None, which TOML does not know, is written as a word.

        The section `optimizer` is left out where the recipe chooses its optimizers itself.
        """
        tables: dict[str, Any] = {"recipe": self.recipe}
        idle = ["method"]
        if self.method is None or not self.method.takes("optimizer"):
            idle.append("optimizer")  # It would have no effect.
        if self.recipe_sha256 is not None:
            tables["recipe_sha256"] = self.recipe_sha256
        for section in fields(self):
            settings = getattr(self, section.name)
            if is_dataclass(settings) and section.name not in idle:
                tables[section.name] = asdict(settings)  # type: ignore[arg-type]
        return tomli_w.dumps(_none_as_word(tables))


def usual_recipe(data: str) -> str:
    """Return what is trained where no recipe is named.

    Args:
        data: Name or path of a data set.

    Example:
        >>> usual_recipe("cifar10"), usual_recipe("mnist")
        ('conv', 'one-pass')
    """
    if data.endswith(".txt"):
        return "byte-lm"
    from onward.data.catalog import is_graph, row_shape  # Imports torch.

    if is_graph(data):
        return "forwardgnn-sf"
    shape = row_shape(data) or ()
    return "conv" if len(shape) == 3 and shape[0] == 3 else "one-pass"


def no_recipe(name: str) -> str:
    """Say that a recipe does not come with Onward, or that a path is none of a run."""
    if name.endswith(".py"):
        return f"{name} is a file. Add which of its functions is the recipe: {name}:FUNCTION."
    if ":" in name:
        return (
            f"The recipe {name} does not come with Onward, and files do not name code that is run. "
            f"Name it on the command line, with the path of its file: --recipe {name}."
        )
    if "/" in name:
        if Path(name).is_dir():
            return (
                f"{name} is a folder. To repeat the run in it, give {Path(name) / 'config.toml'}."
            )
        return f"There is no run folder {name}. To repeat a run, give its RUN/config.toml."
    return (
        f"There is no recipe {name}.{nearest(name, RECIPES)} There are {', '.join(RECIPES)}. For a "
        f"recipe of your own give FILE.py:FUNCTION; to repeat a run, its RUN/config.toml."
    )


def read_run(
    settings: Mapping[str, Any], method: Recipe | None = None, *, may_differ: bool = False
) -> RunConfig:
    """Return the run that settings by full name describe, the recipe among them.

    Args:
        settings: What a run file or a command line says.
        method: The recipe, where it does not come with Onward. Settings alone cause no import.
        may_differ: Whether its file may have been edited since the settings were written.

    Raises:
        SettingError: There is no such recipe, it is another one, or a setting cannot be used.
    """
    settings = dict(settings)
    data = str(settings.get("data.name", DataConfig.name))
    usual = method.name if method else usual_recipe(data)
    is_named = "recipe" in settings
    name = str(settings.pop("recipe", usual))
    if name == CUSTOM:
        raise SettingError(
            "The network of this run was built by a script: start that script again. An unfinished "
            "run resumes from its folder."
        )
    if method is None:
        if name not in RECIPES:
            raise SettingError(no_recipe(name))
        own = RunConfig(recipe=name)
        unknown = [full for full in settings if full not in own.setting_names()]
        for full in () if is_named else unknown:
            others = [r for r in RECIPES if full in RunConfig(recipe=r).setting_names()]
            if others:
                raise SettingError(_no_setting_of_usual(full, name, data, others))
        return _checked(own, settings)
    digest = settings.pop("recipe_sha256", method.sha256)
    check_same(method, name, digest, may_differ=may_differ)
    return _checked(RunConfig(recipe=method.name, recipe_sha256=digest, method=method), settings)


def _no_setting_of_usual(full: str, usual: str, data: str, others: list[str]) -> str:
    """Say that a setting is one of other recipes than that of the data.

    Raises:
        DataError: The samples are images with channels last, for which no recipe is meant.
    """
    from onward.data.catalog import row_shape  # Imports torch.
    from onward.data.dataset import check_channels

    shape = row_shape(data)
    if shape is not None:
        check_channels(shape, data)
    of_shape = "" if shape is None else f" (samples of shape {shape})"
    return (
        f"{full} is no setting of {usual}, the default recipe for {data}{of_shape}. Name a recipe "
        f"that has it, such as: onward train {others[0]}. It is a setting of: {', '.join(others)}."
    )


def _checked(own: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return a run with some settings changed.

    Raises:
        SettingError: The recipe chooses its optimizers itself, and settings of them are changed.
    """
    run, method = own.with_settings(settings), own.method
    if method is not None and run.optimizer != own.optimizer and not method.takes("optimizer"):
        given = sorted(full for full in settings if full.startswith("optimizer."))
        names = ", ".join(setting.name for setting in fields(method.settings))
        raise SettingError(
            f"{', '.join(given)} would have no effect: the recipe {method.name} chooses its "
            f"optimizers itself. Its settings are {names}."
        )
    return run


def check_same(method: Recipe, name: str, sha256: str | None, *, may_differ: bool) -> None:
    """Refuse a recipe that is not the one that a file was made by.

    Raises:
        SettingError: It has another name, or its file has been edited since. The file may be a
            copy under another name.
    """
    is_alike = method.name.rpartition(":")[2] == name.rpartition(":")[2]
    if method.name != name and not (is_alike and (may_differ or method.sha256 == sha256)):
        advice = " With --changed-recipe (in Python, may_differ=True) it is used all the same."
        raise SettingError(
            f"This was made by the recipe {name}, and not by {method.name}."
            f"{advice if is_alike else ''}"
        )
    if method.sha256 != sha256 and not may_differ:
        raise SettingError(
            f"The file of the recipe {name} has been edited since: its sha256 was {sha256}, and is "
            f"now {method.sha256}. With --changed-recipe (in Python, may_differ=True) it is used "
            f"as it is now."
        )


def read_settings(path: Path) -> dict[str, Any]:
    """Read a TOML run file into settings by full name.

    Raises:
        FileError: The file cannot be read.
        SettingError: It is no TOML.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise FileError(f"The run file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"The run file {path} is not valid TOML: {error}.") from error
    settings: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            settings |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            settings[name] = value
    return settings


def _none_as_word(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _none_as_word(value) if isinstance(value, dict) else NONE if value is None else value
        for name, value in tree.items()
    }
