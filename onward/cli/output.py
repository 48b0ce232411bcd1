"""The standard output, where results go."""

import os
import sys
from typing import Any

from rich.console import Console


class Output(Console):
    """A console that ends the command where nobody reads what it prints.

    Text is printed as it is: brackets in names of files and classes are no markup.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, **settings)

    def on_broken_pipe(self) -> None:
        """Let the command end as it does for any other output that nobody reads."""
        raise BrokenPipeError


def close_output() -> None:
    """Drop what could not be written, or Python would try again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
