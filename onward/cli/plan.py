"""The command `plan`: what a run would compute, where, and how long it would take."""

import argparse
from collections.abc import Sequence
from functools import partial

from onward.cli.drawing import (
    advice,
    choices_table,
    forecast_table,
    legend,
    passed_on,
    plan_table,
    staircase,
)
from onward.cli.flags import read_config
from onward.cli.output import Output
from onward.cli.planner import choices, read_links, read_speeds
from onward.costs import times
from onward.devices import find_device
from onward.errors import SettingError
from onward.files import write_text
from onward.placement import stall
from onward.runs import preparation, training
from onward.simulation import Link, simulate


def plan_command(options: argparse.Namespace) -> None:
    """Print the tasks of each rank, and draw how they begin."""
    if (options.link or options.speeds) and not (options.measure or options.costs):
        raise SettingError(
            "--link and --speeds are for a forecast. Add --measure to time a few steps here, or "
            "--costs FILE.json with times measured elsewhere."
        )
    config = read_config(options)
    links = read_links(options.link or [], config.placement.processes)
    speeds = read_speeds(options.speeds, config.placement.processes) if options.speeds else None
    with_weights = bool(options.measure)
    ranks = config.placement.processes
    stages = preparation.preview(config, ranks, with_weights=with_weights, keeps=True)
    if len(stages) > 1 and options.costs:
        raise SettingError(
            f"--costs names a file with the times of one network, and the recipe {config.recipe} "
            f"trains {len(stages)}, one after the other. Use --measure alone."
        )
    for number, begun in enumerate(stages):
        if len(stages) > 1:
            Output().print(f"Stage {number + 1} of {len(stages)}", highlight=False)
        _show(begun, options, links, speeds)


def _show(
    begun: preparation.Preview,
    options: argparse.Namespace,
    links: Link | Sequence[Link],
    speeds: Sequence[float] | None,
) -> None:
    """Print the tasks of each rank in a stage, and where that is asked, how long they take."""
    plan, placement = begun.plan, begun.placement
    console = Output()
    console.print(plan_table(plan, placement, begun.memory))
    console.print(staircase(plan, placement, clocks=40, width=console.width), soft_wrap=True)
    console.print(legend(plan), soft_wrap=True)
    for text in passed_on(begun.held):
        console.print(text, soft_wrap=True, highlight=False)
    warning = stall(plan, placement)
    if warning:
        console.print(f"Note: {warning}", soft_wrap=True)
    if not (options.measure or options.costs):
        return
    if options.measure:
        with training.threads_kept(begun.config.training.threads):
            found = times.measure(
                begun.network,
                begun.shard,
                plan.batch_size,
                begun.settings,
                device=find_device(begun.config.training.device),
            )
        if options.costs:
            write_text(options.costs, found.to_json())
    else:
        found = times.read(options.costs)
    found.check(begun.network, plan.batch_size)
    simulation = simulate(plan, placement, found, links, speeds)
    console.print(forecast_table(simulation))
    others = choices(
        plan,
        placement,
        begun.costs,
        found,
        links,
        speeds,
        can_run=partial(preparation.can_run, begun.config, begun.network),
    )
    console.print(choices_table(plan, placement, others))
    console.print(advice(plan, others), soft_wrap=True)
    if not options.link:
        console.print(
            "Messages were taken to need no time: --link says what network the ranks have, and "
            "`onward doctor` measures it.",
            soft_wrap=True,
        )
