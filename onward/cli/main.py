"""The command: reads settings, calls one function, prints.

Exit status: 0 done, 1 a run of a comparison has failed, 2 something the user can put right (the
message says what), 130 interrupted, 143 ended by SIGTERM, 141 nobody reads the output. Anything
else is a bug and shows its traceback; what fails in the code of a user's recipe is none.
"""

import argparse
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from onward import world
from onward.cli.output import close_output
from onward.cli.parser import parse
from onward.errors import OnwardError, OnwardWarning, Stopped, line_of_user, told

COMMANDS = {
    "train": "onward.cli.train:train_command",
    "compare": "onward.cli.compare:compare_command",
    "plan": "onward.cli.plan:plan_command",
    "evaluate": "onward.cli.inference:evaluate_command",
    "exits": "onward.cli.exits:exits_command",
    "trace": "onward.cli.trace:trace_command",
    "export": "onward.cli.exits:export_command",
    "predict": "onward.cli.inference:predict_command",
    "sample": "onward.cli.inference:sample_command",
    "doctor": "onward.cli.doctor:doctor_command",
    "recipes": "onward.cli.recipes:recipes_command",
    "data": "onward.cli.data:data_command",
}
"""What does each command. It is imported when it is asked for: most need torch, which takes more
than a second."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with these arguments, or those of the process."""
    options = argparse.Namespace()
    try:
        with _on_signals(_stop), _warnings_as_sentences():
            options = parse(arguments)
            module, _, function = COMMANDS[options.command].partition(":")
            # numpy and torch, cut off within their import, fail later in ways of their own.
            with _on_signals(_end_at_once):
                command = getattr(importlib.import_module(module), function)
            command(options)
            sys.stdout.flush()
    except BrokenPipeError:
        close_output()
        _leave(141)
    except Exception as error:
        text = _sentence(error, options)
        if text is None:
            raise
        where = f"rank {world.current_rank()}: " if world.is_distributed() else ""
        print(f"onward: {where}{text}", file=sys.stderr)
        _leave(2)
    except Stopped as stopped:
        status = 128 + stopped.args[0]
        if not world.is_distributed():
            print("onward: stopped.", *getattr(stopped, "__notes__", ()), file=sys.stderr)
        _leave(status)
    sys.exit(0)


def _leave(status: int) -> NoReturn:
    """End this process, and at once where it is a rank that others wait for."""
    # Where nobody has imported it, nothing is open.
    messages = sys.modules.get("onward.transport.messages")
    if messages is not None:
        messages.exit_process(status)
    sys.exit(status)


def _sentence(error: Exception, options: argparse.Namespace) -> str | None:
    """Say what a user can put right, and where in the recipe that is; None for a bug of ours."""
    is_ours = isinstance(error, OnwardError)
    if getattr(options, "code", None) is None:
        return str(error) if is_ours else None
    place, cause, more = line_of_user(error), error.__cause__ if is_ours else error, ""
    if options.traceback:
        traceback.print_exception(error)
    elif cause is not None and line_of_user(cause) is not None:
        more = " --traceback shows the full traceback."
    if is_ours:
        return (f"{place}: {error}" if place else str(error)) + more
    return f"The recipe fails at {told(error)}{more}" if place else None


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Say warnings of Onward as its errors are said, each once, without where they come from."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
        if not issubclass(category, OnwardWarning):
            usual(message, category, *where, **rest)
        elif str(message) not in said:
            said.add(str(message))
            print(f"onward: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", OnwardWarning)
        usual, warnings.showwarning = warnings.showwarning, show
        yield


SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a command."""


@contextmanager
def _on_signals(handler: Callable[[int, FrameType | None], NoReturn]) -> Iterator[None]:
    """Let signals be handled."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End what is going on; when asked twice, at once."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """End a process that has begun nothing yet."""
    if not world.is_distributed():
        print("onward: stopped.", file=sys.stderr, flush=True)
    os._exit(128 + number)
