"""The command line: which commands there are, and what each takes."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from onward.cli.flags import FLAGS, add_flag, add_recipe, add_set, add_settings, add_traceback
from onward.errors import SettingError
from onward.values import nearest
from onward.version import VERSION

POLICIES = ("margin", "max-score", "probability", "entropy", "patience")
"""Names of `onward.exits.CONFIDENCES`, which need no torch here."""

BOUNDS = ("fixed-sequence", "ucb", "expectation")
"""As `onward.exits.BOUNDS`."""

RISKS = ("lost", "net")
"""As `onward.exits.RISKS`."""


EXAMPLES = """\
examples:
  onward train one-pass --data mnist --widths 2000,2000,2000,2000 --epochs 5
  onward train --data people.csv --label income --patience 5 --processes 4 --out runs/people
"""
"""What the help of `train` ends with."""


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
        hint = nearest(flag, options.flags)
        setting, _ = FLAGS.get(flag, ("", ""))
        if setting and "--set" in options.flags and not setting.startswith("placement."):
            given = unknown[0].partition("=")[2] or "".join(unknown[1:2])
            value = "VALUE" if not given or given.startswith("-") else given
            hint = f" Set it by its name: --set {setting}={value}."
        if flag == "--device":
            hint = " This command computes on the CPU, where a finished network is."
        raise SettingError(f"There is no flag {flag}.{hint}")
    return options


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="onward", description="Train neural networks layer by layer, on one machine or many."
    )
    parser.add_argument("--version", action="version", version=f"onward {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        # An abbreviated flag would change its meaning with the next flag that begins like it.
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(command=name)
        return made

    train = command("train", "Train a network, test it once, write a run folder.")
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.epilog = EXAMPLES
    add_settings(train)
    run = train.add_argument_group("run", "The folder that it writes.")
    run.add_argument(
        "--out", type=Path, metavar="RUN", help="run folder (default: runs/DATE-RECIPE-DATA)"
    )
    run.add_argument(
        "--tensorboard", action="store_true", help="write event files to the run folder"
    )
    run.add_argument("--overwrite", action="store_true", help="replace a run in that folder")
    run.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run that was cut, from its folder; or, with --epochs N, train a "
        "finished run for N epochs in all",
    )

    _add_compare(
        command(
            "compare",
            "Train recipes on the same data, and put accuracy and costs side by side.",
        )
    )
    plan = command("plan", "Show plan and placement of a run; trains nothing.")
    add_settings(plan)
    plan.add_argument(
        "--measure", action="store_true", help="time a few steps here, and say how the run would go"
    )
    plan.add_argument(
        "--costs",
        type=Path,
        metavar="FILE.json",
        help="file of measured step times; with --measure it is written, otherwise read",
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
        help="speed of each rank relative to the machine that was timed (1: the same)",
    )

    _add_evaluate(command("evaluate", "Test a trained network."))
    _add_exits(
        command(
            "exits",
            "Find out when inference may stop early, from the validation samples of a run.",
        )
    )
    trace = command("trace", "Draw what each rank of a run did, and when.")
    trace.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_recipe(trace)
    trace.add_argument(
        "--out", type=Path, metavar="FILE.png", help="picture (default: RUN/trace.png)"
    )
    trace.add_argument(
        "--simulate",
        action="store_true",
        help="also draw, below, the same tasks as if messages took no time",
    )

    _add_export(command("export", "Export a network to ONNX, one file per stage."))
    _add_predict(command("predict", "Predict the classes of samples."))
    _add_sample(command("sample", "Continue a text with a network that predicts the next byte."))

    check = command("doctor", "Check this machine and the links between ranks.")
    for flag in ("--processes", "--iface"):
        add_flag(check, flag)

    _add_recipes(
        command(
            "recipes",
            "List the recipes, each with its paper, or the settings of one.",
        )
    )
    listing = command("data", "List the data sets, and where they are found.")
    listing.add_argument("--data-dir", metavar="DIR", help=FLAGS["--data-dir"][1])
    for made in commands.choices.values():
        made.set_defaults(flags=re.findall(r"--[a-z-]+", made.format_usage()))
    return parser


def _add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    parser.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE|RUN",
        help="a recipe, FILE.py:FUNCTION, a TOML run file, or the folder of a finished run; the "
        "first three may go on with settings of their own, as in pff:network.negatives=random",
    )
    for flag in (
        "--data",
        "--data-dir",
        "--label",
        "--validation",
        "--epochs",
        "--seed",
        "--device",
    ):
        add_flag(parser, flag)
    add_set(parser, "any setting, of all recipes that have it")
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="runs of each recipe, with seeds from --seed on (default: 3)",
    )
    parser.add_argument(
        "--flops",
        type=float,
        metavar="PFLOP",
        help="train each recipe for as many epochs as fit into this many PFLOP (at least one), "
        "instead of --epochs",
    )
    parser.add_argument(
        "--no-twin",
        action="store_true",
        help="do not add the same layers trained by backpropagation",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for all runs, compare.json and compare.png; finished runs in it are reused "
        "and interrupted ones resumed (default: runs/compare-DATA)",
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `evaluate`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_recipe(parser)
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="another data set than that of the run: its test samples, or all, if it has none",
    )
    parser.add_argument(
        "--label", metavar="NAME", help="see `onward train`; default: that of the run"
    )
    parser.add_argument("--data-dir", metavar="DIR", help=FLAGS["--data-dir"][1])
    parser.add_argument(
        "--measure", action="store_true", help="also time batches of 1, 32 and 1,024 samples here"
    )
    _add_full_depth(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `predict`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or model file")
    add_recipe(parser)
    parser.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="samples: an .npz file with the member `x`, an .npy, .csv or .parquet file, an image, "
        "or a folder of images",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUTPUT.npz",
        help="file for `labels`, `scores` and, where exits are calibrated, `exits` (default: CSV "
        "on the screen)",
    )
    _add_full_depth(parser)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `sample`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or model file")
    add_recipe(parser)
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT", help="how the text begins: one byte or more"
    )
    parser.add_argument(
        "--bytes", type=int, default=200, metavar="NUMBER", help="bytes to add (default: 200)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="what log-probabilities are divided by; 0 takes the most likely byte (default: 1)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        metavar="SHARE",
        help="probability of the most likely byte from which on an earlier block decides (default: "
        "the last block always does)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="SEED", help="decides what is drawn (default: 0)"
    )


def _add_full_depth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--full-depth", action="store_true", help="do not stop early, where exits are calibrated"
    )


def _add_exits(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `exits`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_recipe(parser)
    parser.add_argument(
        "--max-error-increase",
        type=float,
        metavar="SHARE",
        help="share of samples that may become wrong (default: 0.001)",
    )
    parser.add_argument(
        "--target-macs",
        type=float,
        metavar="MACS",
        help="mean MACs per sample, instead: operations, not millions",
    )
    parser.add_argument(
        "--delta",
        type=float,
        metavar="SHARE",
        help="probability with which the guarantee may fail",
    )
    parser.add_argument(
        "--bound",
        choices=BOUNDS,
        help="what guarantees it: a binomial test (fixed-sequence; the default with --delta), an "
        "upper confidence bound (ucb), or conformal risk control (expectation, without --delta), "
        "which bounds the mean over calibrations only",
    )
    parser.add_argument(
        "--risk",
        choices=RISKS,
        default="lost",
        help="what the increase is: samples that become wrong (lost), or those less the samples "
        "that become right (net) (default: lost)",
    )
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="margin",
        help="measure of confidence (default: margin)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help=FLAGS["--data-dir"][1])
    parser.add_argument(
        "--out", type=Path, metavar="FILE.png", help="picture (default: RUN/exits.png)"
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `export`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_recipe(parser)
    parser.add_argument(
        "--onnx", type=Path, metavar="DIR", required=True, help="folder for the files"
    )
    parser.add_argument("--int8", action="store_true", help="weights and activations in eight bits")
    parser.add_argument(
        "--one-graph",
        action="store_true",
        help="also network.onnx: all stages in one graph, for one sample at a time",
    )
    parser.add_argument("--data-dir", metavar="DIR", help=FLAGS["--data-dir"][1])


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `recipes`."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="show the settings of this one: a name, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION",
    )
    add_traceback(parser)
