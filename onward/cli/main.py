"""The command: reads settings, calls one function, prints.

Exit status: 0 done, 2 something the user can put right (the message says what), 130 interrupted,
143 ended by SIGTERM, 141 nobody reads the output. Anything else is a bug and shows its traceback;
what fails in the code of a user's recipe is none.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from onward import costs, data, preparation, runs, sharding, training, world
from onward.cli import doctor, exits, inference, recipes
from onward.cli.drawing import (
    advice,
    choices_table,
    forecast_table,
    legend,
    plan_table,
    staircase,
)
from onward.cli.flags import FLAGS, add_flag, add_recipe, add_settings, read_config
from onward.cli.output import Output, close_output
from onward.cli.planner import choices, read_links, read_speeds
from onward.cli.progress import Bars
from onward.cli.report import draw_timelines
from onward.cli.results import print_result
from onward.config import CUSTOM, RunConfig, read_run, read_settings
from onward.errors import (
    FileError,
    OnwardError,
    OnwardWarning,
    SettingError,
    Stopped,
    line_of_user,
    told,
)
from onward.launcher import launch
from onward.placement import stall
from onward.recipes.user import load_recipe
from onward.settings import nearest
from onward.simulation import KnownCosts, simulate
from onward.transport.messages import exit_process
from onward.version import VERSION


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with these arguments, or those of the process."""
    options = argparse.Namespace()
    try:
        with _stoppable(), _warnings_as_sentences():
            options = parse(arguments)
            options.command(options)
            sys.stdout.flush()
    except BrokenPipeError:
        close_output()
        exit_process(141)
        sys.exit(141)
    except Exception as error:
        text = _sentence(error, options)
        if text is None:
            raise
        where = f"rank {world.current_rank()}: " if world.is_distributed() else ""
        print(f"onward: {where}{text}", file=sys.stderr)
        exit_process(2)
        sys.exit(2)
    except Stopped as stopped:
        status = 128 + stopped.args[0]
        if not world.is_distributed():
            print("onward: stopped.", *getattr(stopped, "__notes__", ()), file=sys.stderr)
        exit_process(status)
        sys.exit(status)
    sys.exit(0)


def _sentence(error: Exception, options: argparse.Namespace) -> str | None:
    """Say what a user can put right, and where in the recipe that is; None for a bug of ours."""
    is_ours = isinstance(error, OnwardError)
    if getattr(options, "code", None) is None:
        return str(error) if is_ours else None
    place, cause, more = line_of_user(error), error.__cause__ if is_ours else error, ""
    if options.traceback:
        traceback.print_exception(error)
    elif cause is not None and line_of_user(cause) is not None:
        more = " --traceback shows how it came there."
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


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let signals end what is going on; when asked twice, at once."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line.

    Raises:
        SettingError: A flag is unknown, or something is left over.
    """
    options, unknown = make_parser().parse_known_args(arguments)
    if unknown:
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            raise SettingError(f"There is one argument too many: {flag}.")
        raise SettingError(f"There is no flag {flag}.{nearest(flag, options.flags)}")
    return options


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="onward", description="Train neural networks layer by layer, on one machine or many."
    )
    parser.add_argument("--version", action="version", version=f"onward {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        # An abbreviated flag would change its meaning with the next flag that begins like it.
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(command=function)
        return made

    train = command("train", train_command, "Train a network, test it once, write a run folder.")
    add_settings(train)
    train.add_argument(
        "--out", type=Path, metavar="RUN", help="run folder (default: runs/DATE-RECIPE-DATA)"
    )
    train.add_argument("--overwrite", action="store_true", help="replace a run in that folder")
    train.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run that was cut, from its folder"
    )

    plan = command("plan", plan_command, "Show plan and placement of a run; trains nothing.")
    add_settings(plan)
    plan.add_argument(
        "--measure", action="store_true", help="time a few steps here, and say how the run would go"
    )
    plan.add_argument(
        "--costs",
        type=Path,
        metavar="FILE.json",
        help="file with measured times: read, or, with --measure, written",
    )
    plan.add_argument(
        "--link",
        metavar="BANDWIDTH[,LATENCY]",
        action="append",
        help="the network of each rank, such as 1gbit or 100mbit,20ms (default: no limit); "
        "given once for all ranks, or once for each in order",
    )
    plan.add_argument(
        "--speeds",
        metavar="S,S,...",
        help="speed of each rank, 1 being that of the machine of the times",
    )

    inference.add_evaluate(
        command("evaluate", inference.evaluate_command, "Test a trained network.")
    )
    exits.add_exits(
        command(
            "exits",
            exits.exits_command,
            "Find out when inference may stop early, from the validation rows of a run.",
        )
    )
    trace = command("trace", trace_command, "Draw what each rank of a run did, and when.")
    trace.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_recipe(trace)
    trace.add_argument(
        "--out", type=Path, metavar="FILE.png", help="picture (default: RUN/trace.png)"
    )
    trace.add_argument(
        "--simulate", action="store_true", help="draw beside it how it would go with free messages"
    )

    exits.add_export(
        command("export", exits.export_command, "Write a network as ONNX files, one a stage.")
    )
    inference.add_predict(
        command("predict", inference.predict_command, "Predict the classes of rows.")
    )

    check = command("doctor", doctor_command, "Check this machine, and the way between ranks.")
    for flag in ("--processes", "--iface"):
        add_flag(check, flag)

    recipes.add_recipes(
        command(
            "recipes",
            recipes.recipes_command,
            "List the recipes, each with its paper, or the settings of one.",
        )
    )
    listing = command("data", data_command, "List the data sets, and where they are found.")
    listing.add_argument("--data-dir", metavar="DIR", help=FLAGS["--data-dir"][1])
    for made in commands.choices.values():
        made.set_defaults(flags=re.findall(r"--[a-z-]+", made.format_usage()))
    return parser


def train_command(options: argparse.Namespace) -> None:
    """Train, in this process or in several."""
    if options.resume is not None and options.out is not None:
        raise SettingError("--resume names the run folder already; leave --out away.")
    if options.resume is not None and options.recipe is None:
        options.recipe = str(runs.unfinished_config(options.resume))
    config = read_config(options)
    if options.resume is None and world.may_restart_apart():
        raise SettingError(
            "Agents of several machines count restarts each for themselves, and after one this "
            "run would begin anew. Give --resume RUN in place of --out RUN: it begins where there "
            "is nothing yet."
        )
    folder = options.resume or options.out or _new_folder(config)
    resume = options.resume is not None or world.attempt() > 0
    is_first = world.current_rank() == 0
    if is_first:
        _check_folder(folder, config, resume=resume, overwrite=options.overwrite)
    try:
        if config.placement.processes > 1 and not world.is_distributed():
            with runs.prepared(folder, overwrite=True):
                _launch(config, options, folder, resume=resume)
            return
        # Ranks of several machines know no common name where none is given.
        is_named = is_first or options.out or options.resume
        listener = Bars(Console(stderr=True))
        result = training.run(config, listener, folder if is_named else None, overwrite=True)
        if result is not None:
            print_result(result.to_json(), folder)
    except Stopped as stopped:
        if runs.is_unfinished(folder):
            code = "" if options.code is None else f" --recipe {options.code}"
            code += " --changed-recipe" if options.changed_recipe else ""
            stopped.add_note(f"Go on with: onward train --resume {folder}{code}")
        raise


def _check_folder(folder: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with a run that is not to go on, or not to be replaced.

    Raises:
        FileError: It holds one, or another process writes into it.
    """
    if resume:
        runs.check_unfinished(folder)
    elif runs.is_unfinished(folder):
        if not overwrite:
            raise FileError(
                f"The folder {folder} holds a run that is not finished. Go on with `onward train "
                f"--resume {folder}`, or begin anew with --overwrite."
            )
        if not world.is_distributed():
            # Mistakes show before the run that is there goes.
            preparation.preview(config, config.placement.processes)
        runs.remove_state(folder, None)
    elif runs.is_finished(folder) and not overwrite:
        raise FileError(
            f"The folder {folder} holds a run already. Name another with --out, or replace it "
            f"with --overwrite."
        )


def _new_folder(config: RunConfig) -> Path:
    """Return the name of a folder that does not exist."""
    data_name = Path(config.data.name).stem.replace("{rank}", "")
    recipe = config.recipe.replace(":", "-")  # Not all disks have names with a colon.
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe}-{data_name.strip('-_')}"
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


def _launch(config: RunConfig, options: argparse.Namespace, folder: Path, *, resume: bool) -> None:
    """Start the ranks of a run on this machine, and hand them the data."""
    # Mistakes show here, once, rather than on every rank.
    dataset = preparation.preview(config, config.placement.processes).dataset
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "config.toml"
        file.write_text(config.to_toml())
        code = [] if options.code is None else ["--recipe", options.code]
        code += ["--changed-recipe"] * options.changed_recipe
        code += ["--traceback"] * options.traceback
        variables = {}
        if not sharding.is_private(config):
            variables[sharding.SHARED] = f"{scratch}/data.safetensors"
            data.write_shared(dataset, Path(variables[sharding.SHARED]))
        del dataset
        where = ["--resume", str(folder)] if resume else ["--out", str(folder), "--overwrite"]
        command = ["-m", "onward", "train", str(file), *code, *where]
        status = launch(config.placement.processes, command, config.placement.restarts, variables)
    if status:
        sys.exit(status)


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
    begun = preparation.preview(config, ranks, with_weights=with_weights, keeps=True)
    plan, placement = begun.plan, begun.placement
    console = Output()
    console.print(plan_table(plan, placement, begun.memory))
    console.print(staircase(plan, placement, clocks=40, width=console.width), soft_wrap=True)
    console.print(legend(plan), soft_wrap=True)
    warning = stall(plan, placement)
    if warning:
        console.print(f"Note: {warning}", soft_wrap=True)
    if not (options.measure or options.costs):
        return
    if options.measure:
        with training.threads_kept(config.training.threads):
            found = costs.measure(begun.network, begun.shard, plan.batch_size, begun.settings)
        if options.costs:
            runs.write_atomically(options.costs, lambda file: file.write(found.to_json().encode()))
    else:
        found = costs.read(options.costs)
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
        can_run=partial(preparation.can_run, config, begun.network),
    )
    console.print(choices_table(plan, placement, others))
    console.print(advice(plan, others), soft_wrap=True)
    if not options.link:
        console.print(
            "Messages were taken to need no time: --link says what network the ranks have, and "
            "`onward doctor` measures it.",
            soft_wrap=True,
        )


def trace_command(options: argparse.Namespace) -> None:
    """Draw the timeline of a run, and the one that follows from its tasks alone."""
    timelines = {"measured": runs.read_timeline(options.run)}
    is_whole = runs.read_result(options.run).get("timeline_is_whole", True)
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
        begun = preparation.preview(config, config.placement.processes)
        known = KnownCosts.of(begun.plan, timelines["measured"])
        simulation = simulate(begun.plan, begun.placement, known, timeline=True)
        timelines["simulated: the same tasks, messages at no cost"] = simulation.spans
    path = options.out or options.run / "trace.png"
    draw_timelines(timelines, path)
    if not is_whole:
        print("The timeline does not hold all tasks: the run was long, or went on after a cut.")
    print(f"Picture: {path}. {options.run / 'trace.json'} opens in ui.perfetto.dev.")


def doctor_command(options: argparse.Namespace) -> None:
    """Say what is found, and what to do where something is not as it should be."""
    given = {name: getattr(options, name) for name in ("placement.processes", "placement.iface")}
    config = RunConfig().with_settings({n: v for n, v in given.items() if v})
    placement = config.placement
    if placement.processes > 1 and not world.is_distributed():
        command = ["-m", "onward", "doctor"]
        if placement.iface is not None:
            command += ["--iface", placement.iface]
        status = launch(placement.processes, command)
        if status:
            sys.exit(status)
        return
    # At once, since ranks that cannot meet wait for each other.
    is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    _print_findings(doctor.check_machine() if is_first_here else [])
    if world.is_distributed():
        with world.join_ranks(config, Bars(Console(stderr=True))) as transport:
            _print_findings(doctor.check_ranks(transport))


def _print_findings(findings: Sequence[doctor.Finding]) -> None:
    for finding in findings:
        print(f"{finding.what:14} {finding.found}")
        if finding.advice:
            print(f"{'':14} -> {finding.advice}")
    sys.stdout.flush()


def data_command(options: argparse.Namespace) -> None:
    """List the data sets."""
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("one row", no_wrap=True)
    for name in ("classes", "training rows", "test rows"):
        table.add_column(name, justify="right")
    table.add_column("where", overflow="fold")
    for listing in data.available(options.data_dir):
        figures = (listing.num_classes, listing.num_rows, listing.num_test_rows)
        shape = " x ".join(map(str, listing.shape))
        table.add_row(listing.name, shape, *(f"{f:,}" for f in figures), listing.where)
    Output().print(table)
