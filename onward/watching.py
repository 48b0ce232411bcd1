"""Somebody who watches: in a terminal, or in a notebook."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Value = TypeVar("Value")


def is_watched(console: "Console") -> bool:
    """Return whether somebody sees a console, and lines on it can change."""
    return console.is_interactive or console.is_jupyter


def watched(values: Iterable[Value], what: str, total: int | None) -> Iterable[Value]:
    """Return values that take time to read, one after the other, with a bar for who watches.

    Args:
        values: The values.
        what: What is read.
        total: How many there are; None where that is not known.
    """
    from rich.console import Console  # Takes a tenth of a second.
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        values,
        description=f"reading {what}",
        total=total,
        console=console,
        transient=True,
        disable=not is_watched(console),
    )
