"""The command `compare`."""

import argparse
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from onward.cli.flags import given_settings
from onward.cli.output import Output
from onward.cli.report import draw_comparison
from onward.comparison.contests import FILE, compare
from onward.comparison.figures import ALLOWED, Comparison, EntryFigures, Spread
from onward.errors import SettingError, Stopped
from onward.runs.progress import Bars
from onward.settings import DataConfig

PICTURE = "compare.png"
"""The picture of a comparison, in its folder."""


def compare_command(options: argparse.Namespace) -> None:
    """Train what is missing, print a table, and draw it; end with status 1 where a run failed."""
    settings = given_settings(options)
    if options.flops is not None and "training.epochs" in settings:
        raise SettingError("Give --epochs or --flops, not both.")
    data = Path(str(settings.get("data.name", DataConfig.name))).stem
    folder = options.out or Path("runs") / f"compare-{data}"
    try:
        found = compare(
            options.recipes,
            folder=folder,
            seeds=options.seeds,
            settings=settings,
            pflop=options.flops,
            twin=not options.no_twin,
            listener=Bars(Console(stderr=True, markup=False)),
        )
    except Stopped as stopped:
        stopped.add_note("The same command goes on from there.")
        raise
    console, shown = Output(), table(found)
    needed = console.measure(shown, options=console.options.update(max_width=1000)).minimum
    # Long names give way in a narrow terminal; all figures stay whole.
    longest = max(len(entry.name) for entry in found.entries)
    needed -= max(0, longest - NAME)
    Output(width=max(console.width, needed)).print(shown)
    for text in remarks(found):
        console.print(text, soft_wrap=True, highlight=False)
    try:
        draw_comparison(found, folder / PICTURE)
        text = f"{folder / FILE} has all figures, {folder / PICTURE} shows them."
    except SettingError as error:  # The figures are there all the same.
        text = f"{folder / FILE} has all figures. There is no picture. {error}"
    console.print(text, soft_wrap=True, highlight=False)
    for line in found.errors:
        print(f"onward: failed: {line}", file=sys.stderr)
    if found.errors:
        sys.exit(1)


NAME = 18
"""Characters of a name that a line of the table has at least."""

COLUMNS = (
    "recipe",
    "test\naccuracy, %",
    "area under\nROC curve, %",
    "\nepochs",
    "core-\nseconds",
    "training,\nFLOP",
    "a sample,\nFLOP",
    "peak\nmemory, B",
    "parame-\nters",
    "sent,\nB",
    "early exit: times fewer\nMACs, change of error",
)
"""What the table shows of each recipe."""


def table(found: Comparison) -> Table:
    """Return the figures of a comparison, a line each, twins last."""
    equal = "" if found.pflop is None else f", {found.pflop:g} PFLOP a training"
    shown = Table(title=f"{found.data}{equal}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    lines = [(entry.name, *_cells(entry)) for entry in found.entries]
    columns: tuple[str, ...] = COLUMNS
    if all(entry.spread("roc_auc") is None for entry in found.entries):
        # There are other classes than two.
        columns = tuple(name for name in COLUMNS if name != COLUMNS[2])
        lines = [(*line[:2], *line[3:]) for line in lines]
    for name, cells in zip(columns, zip(*lines, strict=True), strict=True):
        if name == COLUMNS[0]:
            shown.add_column(name, overflow="fold")
        else:
            width = max(len(line) for text in (name, *cells) for line in text.splitlines())
            shown.add_column(name, justify="right", no_wrap=True, min_width=width)
    for number, (entry, row) in enumerate(zip(found.entries, lines, strict=True)):
        if entry.is_twin and number and not found.entries[number - 1].is_twin:
            shown.add_section()
        shown.add_row(*row)
    return shown


def _cells(entry: EntryFigures) -> list[str]:
    traffic, memory = entry.traffic, entry.spread("peak_memory_bytes")
    early = told(entry.macs_ratio, 1, 2)
    if entry.error_change is not None:
        early += f", {100 * entry.error_change.mean:+.2f} points"
    return [
        told(entry.spread("accuracy"), 100, 2),
        told(entry.spread("roc_auc"), 100, 2),
        "-" if entry.training_flops is None else str(entry.epochs),
        told(entry.spread("core_seconds"), 1, 1),
        prefixed(entry.training_flops),
        prefixed(entry.inference_flops),
        prefixed(memory and memory.mean),
        prefixed(entry.parameters),
        prefixed(traffic and traffic.num_bytes),
        early,
    ]


def told(spread: Spread | None, unit: float | int, places: int) -> str:
    """Return mean and standard deviation in a unit; a dash where there is none.

    Example:
        >>> told(Spread(0.9867, 0.0006, 3), 100, 2), told(None, 1, 0)
        ('98.67 ± 0.06', '-')
    """
    if spread is None:
        return "-"
    mean = f"{spread.mean * unit:,.{places}f}"
    if spread.deviation is None:
        return mean
    return f"{mean} ± {spread.deviation * unit:,.{places}f}"


def prefixed(value: float | int | None) -> str:
    """Return a number with three digits and a prefix; a dash where there is none.

    Example:
        >>> prefixed(3_456_000), prefixed(30e12), prefixed(12), prefixed(None)
        ('3.46 M', '30.0 T', '12', '-')
    """
    if value is None:
        return "-"
    for size, prefix in (("1e15", "P"), ("1e12", "T"), ("1e9", "G"), ("1e6", "M"), ("1e3", "k")):
        # As it is after rounding: 999.9 k is 1.00 M.
        if float(f"{value:.3g}") >= float(size):
            return f"{value / float(size):#.3g}".rstrip(".") + f" {prefix}"
    return f"{value:.3g}"


def remarks(found: Comparison) -> list[str]:
    """Return what must be known to read the table, a sentence each."""
    lines = []
    samples: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for entry in found.entries:
        if entry.samples:
            samples.setdefault(tuple(entry.samples.items()), []).append(entry.name)
    for counts, names in samples.items():
        text = ", ".join(f"{number:,} {kind}" for kind, number in counts)
        lines.append(f"Samples: {text}" + (f" ({', '.join(names)})." if len(samples) > 1 else "."))
    runs = sorted({len(entry.runs) for entry in found.entries if entry.runs})
    lines.append(
        f"Mean ± standard deviation, n = {' or '.join(map(str, runs))}. Nothing was chosen by test "
        f"samples: early exit is calibrated on validation samples, and measured on test samples."
    )
    validation = [entry.samples.get("validation", 0) for entry in found.entries if entry.samples]
    if any(entry.error_change for entry in found.entries) and min(validation) * ALLOWED < 1:
        lines.append(
            f"Early exit may get {ALLOWED:.1%} of the validation samples wrong that the network "
            f"gets right, and of {min(validation):,} that is less than one: its figures are coarse."
        )
    ranks = sorted({entry.traffic.ranks for entry in found.entries if entry.traffic})
    if ranks:
        lines.append(f"Sent: by {' or '.join(map(str, ranks))} ranks together; simulated, not run.")
    cut = [e.name for e in found.entries if any(run.core_seconds is None for run in e.runs)]
    if cut:
        lines.append(
            f"Of runs that were cut and went on, time and memory are left out: {', '.join(cut)}."
        )
    for twin in (entry for entry in found.entries if entry.is_twin):
        own = [entry for entry in found.entries if entry.twin == twin.name]
        same = [entry.name for entry in own if entry.is_twin_alike]
        others = [entry.name for entry in own if not entry.is_twin_alike]
        if same:
            lines.append(f"{twin.name} is the backpropagation twin of {', '.join(same)}.")
        if others:
            lines.append(
                f"{twin.name} is backpropagation too, but with other layers than "
                f"{', '.join(others)}."
            )
    return lines
