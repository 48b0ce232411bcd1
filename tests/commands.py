"""The command, run in this process, and the settings that its arguments stand for."""

import json

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


def assert_two_processes_end_as_one(folder, *given):
    """Run `onward train` in one process and in two, and compare the weights."""
    results = []
    for number in (1, 2):
        more = ["--processes", number] if number > 1 else []
        assert onward("train", *given, *more, "--out", folder / f"{number}") == 0
        results.append(json.loads((folder / f"{number}" / "result.json").read_text()))
    one, two = results
    assert one["weights_sha256"] == two["weights_sha256"]
    assert two["world_size"] == 2
