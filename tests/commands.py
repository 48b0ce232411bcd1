"""The command, run in this process, and the settings that its arguments stand for."""

import pytest

from onward.cli.flags import read_config
from onward.cli.main import main
from onward.cli.parser import parse

SMALL = ("--epochs", "2", "--widths", "24,16", "--batch-size", "200")
"""Flags of a short run."""


def onward(*arguments):
    """Run the command in this process, and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def config_of(*arguments):
    """Return the settings that arguments of `onward train` stand for."""
    return read_config(parse(["train", *arguments]))
