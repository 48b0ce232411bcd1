"""Flags, and the settings that they stand for."""

import argparse
import sys
from pathlib import Path
from typing import Any

from onward import world
from onward.config import RENAMED, RunConfig, no_recipe, read_run, read_settings
from onward.errors import SettingError
from onward.recipes import RECIPES, Recipe
from onward.recipes.user import is_named, load_recipe
from onward.settings import DataConfig, PlacementConfig, PlanConfig, Section, TrainingConfig

FLAGS = {
    "--data": (
        "data.name",
        "a name that `onward data` lists, a file (.npz, .npy, .csv, "
        ".tsv, .parquet, .txt), or a folder of images by class",
    ),
    "--label": ("data.label", "column of a table with the classes; for .npy, the file with them"),
    "--data-dir": ("data.dir", "folder with data sets (or the variable ONWARD_DATA)"),
    "--validation": ("data.validation", "training samples held out: a share, or a number; 0: none"),
    "--shift": (
        "data.shift",
        "largest random shift of training images or signals, in pixels, or auto",
    ),
    "--widths": ("network.widths", "units of each block, first to last: 500,500,500,500"),
    "--heads": ("network.heads", "whose heads are added up: all or last"),
    "--negatives": (
        "network.negatives",
        "fixed, random, adaptive, hard, gradual, nearest or mixed",
    ),
    "--readout": ("network.readout", "heads, goodness or softmax"),
    "--dropout": ("network.dropout", "share of each block's inputs dropped in training"),
    "--lr": ("optimizer.lr", "learning rate of the blocks"),
    "--init": ("training.init", "finished run, or model file, whose weights are the first ones"),
    "--epochs": ("training.epochs", "passes of each block over the samples"),
    "--batch-size": ("training.batch_size", "samples of a mini-batch"),
    "--seed": ("training.seed", "decides all randomness"),
    "--device": ("training.device", "cpu, cuda, auto or mps"),
    "--precision": ("training.precision", "auto, fp32 or bf16"),
    "--threads": ("training.threads", "threads of each rank"),
    "--plan": ("plan.kind", "chapters or stream"),
    "--chapters": ("plan.chapters", "turns of each block"),
    "--hint-age": ("plan.hint_age", "age of hints: a number, or never"),
    "--slices": ("plan.slices", "parts of every mini-batch, which as many ranks can share"),
    "--cut": ("plan.cut", "what a slice is a part of: samples, or units"),
    "--shards": ("plan.shards", "parts of the samples, for a federated run"),
    "--shard-by": ("plan.shard_by", "iid, class or dirichlet"),
    "--validate-every": ("plan.validate_every", "chapters between validations"),
    "--patience": ("plan.patience", "early stopping: validations without a better one"),
    "--keep-best": ("plan.keep_best", "end with the weights that validated best"),
    "--placement": ("placement.name", "sequential, single-layer, all-layers, federated or stream"),
    "--replicas": (
        "placement.replicas",
        "ranks that share each task, of a plan with slices (default: one, or by cost)",
    ),
    "--processes": ("placement.processes", "processes to start on this machine"),
    "--directory": ("placement.directory", "shared folder for messages, instead of a network"),
    "--iface": ("placement.iface", "network interface between machines"),
}
"""Flags of `train` and `plan`, the settings they stand for, and what they say."""

GROUPS = {
    "data": ("data", "What is learned from."),
    "network": ("network", "What is trained; defaults are those of the recipe."),
    "training": ("training", "How long; recipes have defaults of their own."),
    "plan": ("plan", "What is computed, and in which order: this changes the weights."),
    "placement": ("machines", "Where it is computed: this changes time and traffic only."),
}
"""Groups of flags in help, by the section of their settings: title, and what they are about."""

SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "training": TrainingConfig,
    "plan": PlanConfig,
    "placement": PlacementConfig,
}
"""Sections whose defaults help names."""

SWITCHES = ("--keep-best",)
"""Flags that take no value: the setting is on where they are given."""

SHORT_FLAGS = {"--processes": ["-n"]}
"""Flags that have a short form."""

OLD_FLAGS = {"--processes": "--nodes"}
"""Flags that had another name, which is still read, with a note."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Let a command take a recipe or a run file, and all flags."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help=f"{', '.join(RECIPES)}, one of your own as FILE.py:FUNCTION or "
        f"PACKAGE.MODULE:FUNCTION, or a TOML run file (default: conv for "
        f"images of three channels, byte-lm for text, forwardgnn-sf for graphs, else one-pass)",
    )
    groups = {section: parser.add_argument_group(*told) for section, told in GROUPS.items()}
    for flag, (name, _) in FLAGS.items():
        section = name.partition(".")[0]
        add_flag(groups.get(section, groups["network"]), flag, with_default=True)
    add_set(parser, "any setting")
    add_recipe(parser)


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """Let a command take settings by their full names; `what` says which, in its help."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help=f"{what}; may be given several times",
    )


def add_flag(parser: argparse._ActionsContainer, flag: str, *, with_default: bool = False) -> None:
    """Let a command take a flag, by each of its names; its help may say the default."""
    name, text = FLAGS[flag]
    if with_default:
        text += _told_default(name)
    names = [flag, *SHORT_FLAGS.get(flag, [])]
    metavar = name.rpartition(".")[2].upper()
    if flag in SWITCHES:
        parser.add_argument(*names, dest=name, help=text, action="store_const", const="true")
        return
    parser.add_argument(*names, dest=name, help=text, metavar=metavar)
    if flag in OLD_FLAGS:
        old = OLD_FLAGS[flag]

        def noted(value: str) -> str:
            _note_new_name(old, flag)
            return value

        parser.add_argument(old, dest=name, type=noted, help=argparse.SUPPRESS)


def _told_default(name: str) -> str:
    """Return the default of a setting for its help, where recipes leave it alone."""
    section, _, field = name.partition(".")
    if section not in SECTIONS:
        return ""
    value = getattr(SECTIONS[section], field)
    return "" if value is None or value is False else f" (default: {value})"


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Let a command take the recipe of a run, where that does not come with Onward."""
    parser.add_argument(
        "--recipe",
        dest="code",
        metavar="FILE.py:FUNCTION",
        help="your own recipe, where the run was made with one",
    )
    parser.add_argument(
        "--changed-recipe",
        action="store_true",
        help="use it though its file has been edited since the run",
    )
    add_traceback(parser)


def recipe_flags(options: argparse.Namespace) -> list[str]:
    """Return the flags with which another command takes the recipe that this one has taken."""
    code = [] if options.code is None else ["--recipe", options.code]
    return code + ["--changed-recipe"] * options.changed_recipe


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Let a command show where code of a user fails."""
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show the full traceback where code of your own recipe fails",
    )


def find_recipe(name: str) -> Recipe:
    """Return the recipe that comes with Onward under a name, or the code that is named.

    Raises:
        SettingError: There is none.
    """
    if name in RECIPES:
        return RECIPES[name]
    if not is_named(name):
        raise SettingError(no_recipe(name))
    return load_recipe(name)


def read_config(options: argparse.Namespace) -> RunConfig:
    """Return the run that a command line describes: recipe or file, then flags, then --set."""
    settings: dict[str, Any] = {}
    recipe, code = options.recipe, options.code
    if recipe and recipe.endswith(".toml"):
        read = read_settings(Path(recipe))
        settings = {_current_name(name): value for name, value in read.items()}
    elif recipe and recipe not in RECIPES and is_named(recipe):
        code = recipe
    elif recipe:
        settings["recipe"] = recipe
    # Ranks that are started are told of it.
    options.code = code
    method = None if code is None else load_recipe(code)
    return read_run(settings | given_settings(options), method, may_differ=options.changed_recipe)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that flags and --set stand for, by full name."""
    given = {name: getattr(options, name, None) for name, _ in FLAGS.values()}
    settings = {name: value for name, value in given.items() if value is not None}
    for assignment in options.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise SettingError(f"--set takes SECTION.NAME=VALUE; got {assignment}.")
        settings[_current_name(name.strip())] = value.strip()
    return settings


def _current_name(name: str) -> str:
    """Return what a setting is called now, and say so where that is not how it was given."""
    if name in RENAMED:
        _note_new_name(name, RENAMED[name])
    return RENAMED.get(name, name)


def _note_new_name(old: str, new: str) -> None:
    if world.current_rank() == 0:
        print(f"onward: note: {old} is now called {new}.", file=sys.stderr)
