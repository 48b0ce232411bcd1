"""Errors a user can act on.

- OnwardError
  - SettingError        a setting, flag or run file is wrong
  - DataError           the data cannot be used as they are
  - PlacementError      plan, placement and number of ranks do not fit together
  - FileError           a run folder or model file cannot be read or written
  - DivergedError       a loss is no longer finite
  - PeerLostError       the connection to another rank is lost

Each also inherits from the builtin that fits, so that code which catches builtins keeps working.
The command prints the message alone and exits with status 2.
"""

import sys
import traceback
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path

NOT_USERS = ("onward", "torch", "numpy", "scipy", "sklearn", "jaxtyping", "beartype")
"""Packages whose code is never a user's own."""


class Stopped(BaseException):
    """The process was asked to end, by Ctrl-C or a signal; `args` holds its number."""


class OnwardError(Exception):
    """Something the user can put right; the message says what and how."""


class OnwardWarning(UserWarning):
    """Something that works, and is probably not what was meant."""


class SettingError(OnwardError, ValueError):
    """A setting is unknown, has the wrong type, or does not fit the others."""


class DataError(OnwardError, ValueError):
    """The data are missing, damaged, or cannot be learned from."""


class PlacementError(OnwardError, ValueError):
    """A placement cannot run this plan on this number of ranks."""


class FileError(OnwardError, OSError):
    """A file or folder cannot be read, written, or understood."""


class MisfitError(FileError):
    """The weights in a file are those of another network."""


class PeerLostError(OnwardError, ConnectionError):
    """Another rank has ended, or cannot be reached any more."""


class DivergedError(OnwardError, ArithmeticError):
    """Training left the finite numbers."""


def line_of_user(error: BaseException) -> str | None:
    """Return the file and line of a user's code that an error came through last; None for none."""
    found: list[tuple[Path, int]] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in (*NOT_USERS, *sys.stdlib_module_names) and path.is_file():
            found.append((path, line))
    # An installed package may hold a recipe; else it is only called by one.
    own = [place for place in found if "site-packages" not in place[0].parts] or found
    if not own:
        return None
    return _place(*own[-1])


def line_of(function: object) -> str | None:
    """Return the file and line where a function, or the class of what is called, is written."""
    function = getattr(function, "func", function)  # That of functools.partial.
    called = function if hasattr(function, "__code__") else vars(type(function)).get("__call__")
    code = getattr(called, "__code__", None)
    return None if code is None else _place(Path(code.co_filename), code.co_firstlineno)


def name_of(function: object) -> str:
    """Return the name of a function or its class, with its fields or arguments where it has some.

    Example:
        >>> name_of(partial(sorted, reverse=True))
        'sorted(reverse=True)'
    """
    if is_dataclass(function):
        return repr(function)
    if isinstance(function, partial):
        given = [*map(repr, function.args), *(f"{n}={v!r}" for n, v in function.keywords.items())]
        return f"{name_of(function.func)}({', '.join(given)})"
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _place(path: Path, line: int) -> str:
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


def told(error: BaseException) -> str:
    """Return an error in one line: where in a user's code, its type and its text."""
    place, text = line_of_user(error), " ".join(str(error).split())
    what = type(error).__name__ + (f": {text}" if text else "")
    return (f"{place}: {what}" if place else what).removesuffix(".") + "."
