"""A recipe: a method as a function from settings and a description of the data to a network."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from onward.errors import SettingError, told
from onward.settings import OptimizerConfig
from onward.values import is_readable, kinds

Function = Callable[..., Any]
"""Takes settings and a `DataInfo` and returns a `Network`, or a sequence of `Stage`; by name, where
it has them, it takes `optimizer` (an `OptimizerConfig`) and `held` (numbers of the blocks that get
weights, where others may be released). Where it returns stages, also `training` (a
`TrainingConfig`) and, where it has it, `plan` (a `PlanConfig`): those of the run, of which it makes
those of each stage."""

BESIDE = ("optimizer", "held", "training", "plan")
"""Parameters that a function may have beside settings and a description of the data."""

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""Kinds of parameters that need not be given."""

ONE_BLOCK = {"network.layers_per_block": "all"}
"""What makes a twin of recipes whose layers are grouped into blocks."""


@dataclass(frozen=True)
class Recipe:
    """A method: a function that builds its network, with default settings and a source.

    Made by `recipe`. Called like the function; the optimizer may be left out.
    """

    name: str
    """What to type."""

    function: Function
    """Builds the network, or those of several stages."""

    settings: type
    """Frozen dataclass of its own settings, the section `network` of a run."""

    summary: str
    """What it does, in a sentence or two."""

    source: str
    """Paper and section."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the defaults of a run, by full name."""

    twin: "str | Mapping[str, Any] | Recipe" = "backprop"
    """What trains the same layers by backpropagation: a recipe, itself or by its name, or this one
    with some settings, by full name. Settings that do so already say it by `is_backpropagation`."""

    is_twin_alike: bool = True
    """Whether that has the same layers; where not, it is only a network of similar size."""

    sha256: str | None = None
    """Digest of the file that it was read from; None for those that come with Onward."""

    def takes(self, name: str) -> bool:
        """Return whether the function has a parameter of a name."""
        return name in inspect.signature(self.function).parameters

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        given = inspect.signature(self.function).bind_partial(*arguments, **keywords).arguments
        if self.takes("optimizer") and "optimizer" not in given:
            parts = [(*name.split("."), value) for name, value in self.defaults.items()]
            own = {name: value for section, name, value in parts if section == "optimizer"}
            keywords["optimizer"] = OptimizerConfig(**own)
        return self.function(*arguments, **keywords)


def recipe(
    *bare: object,
    source: str = "",
    name: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    twin: str | Mapping[str, Any] | Recipe = "backprop",
    is_twin_alike: bool = True,
) -> Callable[[Function], Recipe]:
    """Make a recipe of a function from settings and a `DataInfo` to a network.

    Its settings are the frozen dataclass that its first parameter is annotated with; its summary is
    the first paragraph of its docstring. Before it is called, torch, numpy and random are seeded
    with the seed of the run. A function that skips blocks that are not `held` draws those that it
    makes from seeds of their own, so that they do not depend on which are skipped.

    Args:
        bare: Nothing; catches `@ow.recipe` without parentheses.
        source: Paper and section, or what else the method is from.
        name: What to type. None: the name of the function.
        defaults: What differs from the defaults of a run, by full name.
        twin: What trains the same layers by backpropagation: the name of a recipe that comes with
            Onward, a recipe of your own, or settings of this one, such as
            `{"network.layers_per_block": "all"}`.
        is_twin_alike: Whether that has the same layers.

    Raises:
        SettingError: The function is none of these.

    Example:
        >>> import onward as ow
        >>> from torch import nn
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Settings:
        ...     units: int = 32
        >>> @ow.recipe(source="an example", defaults={"training.epochs": 3})
        ... def perceptron(settings: Settings, data: ow.DataInfo) -> ow.Network:
        ...     "A layer and its head."
        ...     layer = nn.Sequential(nn.Flatten(), nn.Linear(data.num_inputs, settings.units))
        ...     head = ow.CrossEntropy(nn.Linear(settings.units, data.num_classes))
        ...     blocks = [ow.Block(layer, head, ow.Adam(lr=0.01))]
        ...     return ow.Network(
        ...         blocks, ow.Plain(), ow.SumOfHeads(), num_classes=data.num_classes
        ...     )
        >>> perceptron.summary, perceptron.settings.__name__
        ('A layer and its head.', 'Settings')
    """
    if bare or not source:
        raise SettingError(
            'A recipe says where its method is from: @ow.recipe(source="paper and section"), with '
            "parentheses."
        )

    def make(function: Function) -> Recipe:
        text = (inspect.getdoc(function) or "").partition("\n\n")[0]
        made = Recipe(
            name=name or function.__name__,
            function=function,
            settings=_settings(function),
            summary=" ".join(text.split()),
            source=source,
            defaults=defaults or {},
            twin=twin,
            is_twin_alike=is_twin_alike,
        )
        idle = [full for full in made.defaults if full.startswith("optimizer.")]
        if idle and not made.takes("optimizer"):
            raise SettingError(
                f"The recipe {made.name} has a default for {idle[0]}, which has no effect: its "
                f"function has no parameter `optimizer`."
            )
        return made

    return make


def _settings(function: Function) -> type:
    """Return the settings that a function takes."""
    parameters = inspect.signature(function).parameters
    names = [*parameters]
    hints = typing.get_type_hints(function)
    owner = hints.get(names[0]) if len(names) > 1 else None
    if not (isinstance(owner, type) and is_dataclass(owner) and _is_frozen(owner)):
        raise SettingError(
            f"The recipe {function.__name__} takes settings and a description of the data, and "
            f"its first parameter is annotated with a frozen dataclass: "
            f"def {function.__name__}(settings: Settings, data: ow.DataInfo) -> ow.Network."
        )
    needed = [n for n in names[2:] if parameters[n].default is inspect.Parameter.empty]
    unknown = [n for n in needed if n not in BESIDE and parameters[n].kind not in VARIADIC]
    if unknown:
        raise SettingError(
            f"The recipe {function.__name__} has the parameter {unknown[0]}, which nothing is "
            f"given for. Beside settings and data it may have {', '.join(BESIDE)}; make it a "
            f"setting, a field of {owner.__name__}."
        )
    for name, kind in kinds(owner).items():
        if not is_readable(kind):
            raise SettingError(
                f"The setting {name} of the recipe {function.__name__} is a {kind}; settings are "
                f"int, float, str, bool, tuples of one of these (tuple[int, ...]), a Literal of "
                f"words, or one of these or None."
            )
    bare = [f.name for f in fields(owner) if f.default is f.default_factory is MISSING]
    if bare:
        raise SettingError(
            f"All settings of the recipe {function.__name__} need defaults; {bare[0]} has none."
        )
    plain = [n for n, value in vars(owner).items() if isinstance(value, int | float | str | tuple)]
    idle = [n for n in plain if not n.startswith("_") and n not in owner.__annotations__]
    if idle:
        kind = type(vars(owner)[idle[0]]).__name__
        raise SettingError(
            f"{idle[0]} of the recipe {function.__name__} has no type, and so is no setting: "
            f"write {idle[0]}: {kind} = {vars(owner)[idle[0]]!r}."
        )
    try:
        owner()
    except Exception as error:
        raise SettingError(
            f"The settings of the recipe {function.__name__} refuse their defaults: {told(error)}"
        ) from error
    return owner


def _is_frozen(owner: type) -> bool:
    return bool(getattr(owner, "__dataclass_params__").frozen)  # noqa: B009 (mypy)
