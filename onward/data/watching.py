"""A bar beside what takes time to read, where somebody watches."""

from collections.abc import Iterable
from typing import TypeVar

Value = TypeVar("Value")


def watched(values: Iterable[Value], what: str, total: int | None) -> Iterable[Value]:
    """Return values one after the other; the bar is gone after the last.

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
        disable=not (console.is_terminal or console.is_jupyter),
    )
