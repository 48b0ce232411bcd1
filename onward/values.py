"""Values of settings, read by the types of their fields."""

import ast
import difflib
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin

from onward.errors import OnwardError, SettingError, told

NONE = "none"
"""How a run file or a flag says None."""


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may have: `low` or more (or more than `low`), and below `high`."""

    low: int
    """Smallest number."""

    high: int | float = math.inf
    """The number that is too large."""

    above: bool = False
    """Whether `low` itself is too small."""

    def holds(self, number: int | float) -> bool:
        """Return whether a number is in the range; NaN is not."""
        return (self.low < number if self.above else self.low <= number) and number < self.high

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"of {self.low:g} or more"
        return low if self.high == math.inf else f"{low} and below {self.high:g}"


@dataclass(frozen=True)
class NotEmpty:
    """Lists that a setting may have: with one entry at least."""

    def holds(self, entries: Sequence[Any]) -> bool:
        """Return whether there is an entry."""
        return bool(entries)

    def __str__(self) -> str:
        return "(at least one)"


def changed(settings: Any, values: Mapping[str, Any], section: str) -> Any:
    """Return settings of which some are changed.

    Args:
        settings: A frozen dataclass.
        values: By the names of its fields; read as their types, where they are strings.
        section: What the settings are called in run files.

    Raises:
        SettingError: A value is none that its field can have.
    """
    known = kinds(type(settings))
    unknown = [name for name in values if name not in known]
    if unknown:
        names = [f"{section}.{name}" for name in known]
        full = f"{section}.{unknown[0]}"
        raise SettingError(f"There is no setting {full}.{nearest(full, names)}")
    read = {name: read_value(f"{section}.{name}", v, known[name]) for name, v in values.items()}
    try:
        return replace(settings, **read)
    except OnwardError:
        raise
    except Exception as error:
        # Settings of a recipe may check themselves.
        given = ", ".join(f"{section}.{name} = {value!r}" for name, value in read.items())
        raise SettingError(f"{given} cannot be used: {told(error)}") from error


def kinds(owner: type) -> dict[str, Any]:
    """Return the type of each setting of a dataclass."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {field.name: hints[field.name] for field in fields(owner)}


USUAL = {"learning_rate": "lr", "wd": "weight_decay", "batchsize": "batch_size"}
USUAL |= {"one_block": "layers_per_block", "heads": "attention_heads"}
USUAL |= dict.fromkeys(("gpu", "gpus", "cuda", "accelerator"), "device")
"""What settings are called elsewhere, or were before, and what they are called here."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Ask whether something known was meant that is spelled much like a name."""
    section, _, given = name.lstrip("-").rpartition(".")
    last = USUAL.get(given.lower(), given)
    if last == "device" and "cuda" in known:
        # A GPU among several is chosen before torch starts.
        return " Did you mean cuda? CUDA_VISIBLE_DEVICES=1 makes the second GPU the only one seen."
    # A section that is right says nothing of which of its settings was meant.
    inside = [full for full in known if section and full.startswith(f"{section}.")]
    ends = {full.rpartition(".")[2]: full for full in inside}
    close = [ends[end] for end in difflib.get_close_matches(last, ends, n=1)]
    spelled = name.removesuffix(given) + last
    found = close if inside else difflib.get_close_matches(spelled, known, n=1)
    return f" Did you mean {found[0]}?" if found else ""


def is_readable(kind: Any) -> bool:
    """Return whether settings of a type can be read from text and from files."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return is_readable(inner[0]) and isinstance(inner[1], Range | NotEmpty)
    if origin in (types.UnionType, typing.Union):
        return all(is_readable(each) for each in inner if each is not type(None))
    if origin is Literal:
        return all(type(each) in (int, str) for each in inner)
    if origin is tuple:
        return len(inner) == 2 and inner[1] is Ellipsis and is_readable(inner[0])
    return kind in (int, float, str, bool)


def read_value(name: str, value: Any, kind: Any) -> Any:
    """Return a value as the type of its setting, or say why it is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found = read_value(name, value, inner[0])
        if not inner[1].holds(found):
            raise _refused(name, value, kind)
        return found
    if origin in (types.UnionType, typing.Union):
        return _read_any(name, value, kind)
    if origin is Literal:
        for each in inner:
            if str(each) == str(value):
                return each
    elif origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and value != NONE:
            return tuple(read_value(name, part, inner[0]) for part in parts)
    elif isinstance(value, str) and kind is not str:
        parsed = _parse(value, kind)
        if parsed is not None:
            return parsed
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise _refused(name, value, kind)


def _read_any(name: str, value: Any, kind: Any) -> Any:
    """Return a value as the first type of a union that it fits, whole numbers first."""
    options = [option for option in get_args(kind) if option is not type(None)]
    if value in (None, NONE) and type(None) in get_args(kind):
        return None
    for option in sorted(options, key=lambda option: int not in (option, *get_args(option))):
        try:
            return read_value(name, value, option)
        except SettingError:
            continue
    raise _refused(name, value, kind)


def _parse(text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    try:
        return kind(text)
    except ValueError:
        return None


def _refused(name: str, value: Any, kind: Any) -> SettingError:
    guess = nearest(value, _words(kind)) if isinstance(value, str) else ""
    return SettingError(f"{name} must be {_say(kind)}; got {value!r}.{guess}")


def _words(kind: Any) -> list[str]:
    """Return the words that a setting of a type may be."""
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    return [word for inner in get_args(kind) for word in _words(inner)]


def _say(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind in names:
        return names[kind]
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        return f"{_say(inner[0])} {inner[1]}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, inner)) if len(inner) > 1 else str(inner[0])
    if get_origin(kind) is tuple:
        kind = get_args(inner[0])[0] if get_origin(inner[0]) is Annotated else inner[0]
        plural = {int: "whole numbers", float: "numbers", str: "words"}.get(kind, "values")
        return f"{plural} separated by commas"
    return ", or ".join(_say(option) for option in inner if option is not type(None))


def say_kind(kind: Any) -> str:
    """Say in words what a setting of a type may be.

    Example:
        >>> from onward.settings import Count
        >>> say_kind(Count | None), say_kind(tuple[int, ...])
        ('a whole number of 1 or more, or none', 'whole numbers separated by commas')
    """
    return _say(kind) + (f", or {NONE}" if type(None) in get_args(kind) else "")


def written(value: Any) -> str:
    """Return a value as a flag or `--set` takes it.

    Example:
        >>> written((500, 500)), written(True), written(None)
        ('500,500', 'true', 'none')
    """
    if isinstance(value, tuple | list):
        return ",".join(map(written, value))
    return NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def meanings(owner: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass; fields that have none are left out.

    Python does not keep them: they are read from the file that the dataclass is written in, and
    there are none where that cannot be read.

    Example:
        >>> from onward.settings import OptimizerConfig
        >>> meanings(OptimizerConfig)["lr"]
        'Learning rate of the blocks.'
    """
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for setting, text in pairwise(body):
            match setting, text:
                case (
                    ast.AnnAssign(target=ast.Name(name)),
                    ast.Expr(ast.Constant(str(meaning))),
                ):
                    found[name] = " ".join(meaning.split())
    return found
