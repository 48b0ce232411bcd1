"""The command `trace`: what each rank of a run did, and when."""

import argparse

from onward.cli.report import draw_timelines
from onward.config import CUSTOM, read_run, read_settings
from onward.errors import FileError, SettingError
from onward.recipes.user import load_recipe
from onward.runs import folders, preparation
from onward.simulation import KnownCosts, simulate


def trace_command(options: argparse.Namespace) -> None:
    """Draw the timeline of a run, and the one that follows from its tasks alone."""
    timelines = {"measured": folders.read_timeline(options.run)}
    result = folders.read_result(options.run)
    is_whole = result.get("timeline_is_whole", True)
    if options.simulate and not is_whole:
        raise FileError(
            f"The timeline of {options.run} does not hold all tasks (the run was long, or went on "
            f"after a cut), and a simulation needs them. Draw it without --simulate."
        )
    if options.simulate:
        recipe = None if options.code is None else load_recipe(options.code)
        settings = read_settings(options.run / "config.toml")
        if settings.get("recipe") == CUSTOM:
            raise SettingError(
                f"A script has built the network of {options.run}, and a simulation needs it. "
                f"Draw the timeline without --simulate."
            )
        config = read_run(settings, recipe, may_differ=options.changed_recipe)
        stages = preparation.preview(config, config.placement.processes)
        number = result.get("stage", 0)
        if number not in range(len(stages)):
            raise FileError(
                f"The timeline of {options.run} is of stage {number}, and its recipe has "
                f"{len(stages)}, counted from 0. Draw it without --simulate."
            )
        begun = stages[number]
        known = KnownCosts.of(begun.plan, timelines["measured"])
        simulation = simulate(begun.plan, begun.placement, known, timeline=True)
        timelines["simulated: the same tasks, messages at no cost"] = simulation.spans
    path = options.out or options.run / "trace.png"
    draw_timelines(timelines, path)
    if not is_whole:
        print("The timeline does not hold all tasks: the run was long, or went on after a cut.")
    print(f"Picture: {path}. {options.run / 'trace.json'} opens in ui.perfetto.dev.")
