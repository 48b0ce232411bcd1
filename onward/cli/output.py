"""The standard output, where results go."""

import os
import sys

from rich.console import Console


class Output(Console):
    """A console that ends the command where nobody reads what it prints."""

    def on_broken_pipe(self) -> None:
        """Let the command end as it does for any other output that nobody reads."""
        raise BrokenPipeError


def close_output() -> None:
    """Drop what could not be written, or Python would try again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
