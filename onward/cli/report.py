"""Pictures of runs, for people who would rather look than read; needs the extra `report`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.comparison.figures import Comparison
from onward.errors import FileError, SettingError
from onward.timeline import Span

COLOURS = {
    "train": "#2a78b5",
    "forward": "#8ec4ea",
    "score": "#e9a23b",
    "validate": "#9b6fc0",
    "gather": "#666666",
    "wait": "#eeeeee",
    "send": "#4a9d5b",
    "receive": "#c0392b",
}
"""Colour of what a rank does, in the order of the legend."""

LEAST_SHARE = 0.03
"""Part of the width that a task must have for its name to be written on it."""

GREY = "#bbbbbb"
"""Colour of what is there to compare with."""

MOST_TASKS = 300
"""Spans of a rank that are drawn one by one; where there are more, their shares are drawn."""

PARTS = 300
"""Parts of the time that such shares are of."""

LETTERS: dict[str, Any] = {"color": "white", "fontsize": 7, "clip_on": True}
"""How names of tasks are written."""

SPREAD_OF_ERRORS = 4
"""How many times the smallest error the largest is, where errors get a logarithmic scale."""

TICKS = (0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
"""Accuracies that such a scale names."""

MOST_RANKS = 64
"""Ranks that a picture shows; the lanes of more would be too thin to see."""


def draw_timelines(timelines: Mapping[str, Sequence[Span]], path: Path) -> None:
    """Draw timelines below each other, on one scale, a lane a rank.

    Of a rank with more spans than can be told apart, the height of each colour is the share of the
    time that went to it, and messages received are left out.

    Args:
        timelines: Spans by title.
        path: File that is written, whose ending says the format: .png, .svg or .pdf.

    Raises:
        SettingError: matplotlib is not installed.
        FileError: The file cannot be written.
    """
    pyplot = _pyplot()
    from matplotlib.patches import Patch

    lanes = {
        title: min(1 + max((s.rank for s in spans), default=0), MOST_RANKS)
        for title, spans in timelines.items()
    }
    figure, axes = pyplot.subplots(
        len(timelines),
        squeeze=False,
        sharex=True,
        figsize=(12, 1.2 + sum(0.5 + 0.45 * n for n in lanes.values())),
        height_ratios=list(lanes.values()),
        layout="constrained",
    )
    seen: set[str] = set()
    for axis, (title, spans) in zip(axes[:, 0], timelines.items(), strict=True):
        seen |= _draw(axis, title, spans, lanes[title])
    axes[-1, 0].set_xlabel("seconds")
    handles = [Patch(color=colour, label=what) for what, colour in COLOURS.items() if what in seen]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(COLOURS), frameon=False)
    _save(figure, path)


def _draw(axis: Any, title: str, spans: Sequence[Span], lanes: int) -> set[str]:
    """Draw the lanes of one timeline: tasks in the upper part of a lane, messages below.

    Returns:
        The kinds of spans that are drawn.
    """
    whole = max((span.end for span in spans), default=0.0)
    crowded = {
        rank
        for rank, number in Counter(span.rank for span in spans).items()
        if number > MOST_TASKS and rank < lanes
    }
    for rank in crowded:
        _draw_shares(axis, rank, [span for span in spans if span.rank == rank], whole)
    for what, colour in COLOURS.items():
        for rank in set(range(lanes)) - crowded:
            own = [s for s in spans if s.rank == rank and s.what == what]
            if what == "receive":
                axis.plot([s.end for s in own], [rank + 0.38] * len(own), "^", color=colour, ms=3)
                continue
            place = (rank + 0.22, 0.16) if what == "send" else (rank - 0.4, 0.6)
            bars = [(s.start, s.end - s.start) for s in own]
            axis.broken_barh(bars, place, facecolors=colour, edgecolor="white", linewidth=0.4)
            for span in own if what in ("train", "score") else ():
                if span.end - span.start > LEAST_SHARE * whole:
                    middle = (span.start + span.end) / 2
                    axis.text(middle, rank - 0.1, span.label, ha="center", va="center", **LETTERS)
    if crowded:
        title += "; heights are shares of the time, since there are too many tasks to draw each"
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_yticks(range(lanes), [f"rank {rank}" for rank in range(lanes)])
    axis.set_ylim(lanes - 0.4, -0.6)
    axis.spines[["top", "right"]].set_visible(False)
    hidden = {"receive"} if len(crowded) == lanes else set()
    return {span.what for span in spans} - hidden


def _draw_shares(axis: Any, rank: int, spans: Sequence[Span], whole: float) -> None:
    """Draw which share of each part of the time went to what."""
    edges = np.linspace(0, whole, PARTS + 1)
    bottom = np.full(PARTS, rank + 0.2)
    for what, colour in COLOURS.items():
        shares = shares_of([s for s in spans if s.what == what], edges)
        if what == "send":
            low, high = np.full(PARTS, rank + 0.38), rank + 0.38 - 0.16 * shares
        elif what != "receive":
            low, high = bottom, bottom - 0.6 * shares
            bottom = high
        else:
            continue
        axis.fill_between(edges[:-1], low, high, step="post", color=colour, linewidth=0)


def shares_of(spans: Sequence[Span], edges: NDArray[Any]) -> NDArray[Any]:
    """Return which share of each part of the time some spans take.

    Args:
        spans: The spans.
        edges: Where parts begin, and where the last one ends.

    Example:
        >>> shares_of([Span(0, "train", "", 0.5, 2.0)], np.array([0.0, 1.0, 2.0, 3.0]))
        array([0.5, 1. , 0. ])
    """
    start, end = np.array([(span.start, span.end) for span in spans]).reshape(-1, 2).T
    before = np.clip(edges[:, None] - start, 0, end - start).sum(axis=1)
    # Several messages may be on their way at once.
    found: NDArray[Any] = np.minimum(np.diff(before) / np.diff(edges), 1.0)
    return found


@dataclass(frozen=True)
class Curve:
    """Error against cost, for policies of one kind."""

    title: str
    """What they are."""

    points: Sequence[tuple[float, float]]
    """Mean MACs a sample, and share of samples that are wrong."""

    form: str
    """How they are drawn: a line style, or a marker."""


def draw_exits(curves: Sequence[Curve], path: Path, samples: str, confidence: str) -> None:
    """Draw error against cost.

    Args:
        curves: What is drawn.
        path: File that is written, see `draw_timelines`.
        samples: Which samples they are of.
        confidence: The line that stands out; others are grey, and have one entry in the legend.

    Raises:
        SettingError: matplotlib is not installed.
        FileError: The file cannot be written.
    """
    pyplot = _pyplot()
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axis = pyplot.subplots(figsize=(9, 6), layout="constrained")
    others = 0
    for number, curve in enumerate(curves):
        cost, error = ([point[n] for point in curve.points] for n in (0, 1))
        is_line = curve.form in ("-", ":")
        is_other = is_line and curve.title != confidence
        label = "other confidence measures" if is_other else curve.title
        axis.plot(
            [value * 1e-6 for value in cost],
            [value * 100 for value in error],
            linestyle=("-" if is_other else curve.form) if is_line else "none",
            marker=None if is_line else curve.form,
            markersize=13 if curve.form == "*" else 7,
            linewidth=1 if is_other else 3,
            color=GREY if is_other else f"C{number % 10}",
            zorder=1 if is_other else 3 if curve.form == "*" else 2,
            label=None if is_other and others else label,
        )
        others += is_other
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("million MACs a sample, mean")
    axis.set_ylabel("error, %")
    axis.set_title(f"early exit, {samples}", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    _save(figure, path)


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draw how recipes learned, and accuracy against what it cost.

    Args:
        found: The comparison.
        path: File that is written, see `draw_timelines`.

    Raises:
        SettingError: matplotlib is not installed.
        FileError: The file cannot be written.
    """
    pyplot = _pyplot()
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    # Half an error is as close to none as a logarithm can come.
    best = 1 - 0.5 / max(1, *(entry.samples.get("test", 0) for entry in found.entries))
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    learned, *costs = axes
    paired = pyplot.get_cmap("tab20").colors
    # Dark ones first: a light one would look like the partner of a dark one.
    colours = (*paired[::2], *paired[1::2])
    kinds = {entry.curve.what for entry in found.entries if entry.curve}
    # The two kinds of curves would be read as one: training samples are learned by heart.
    kind = "validation" if "validation" in kinds else "training"
    # Also of runs whose time is not known.
    named: dict[str, Any] = {}
    for number, entry in enumerate(found.entries):
        look = {"color": colours[number % len(colours)], "marker": "s" if entry.is_twin else "o"}
        curve, accuracy = entry.curve, entry.spread("accuracy")
        if curve is not None and curve.what == kind:
            shown = [min(share, best) for share in curve.accuracy]
            learned.plot(curve.epochs, shown, color=look["color"])
        spent = entry.spread("core_seconds")
        if accuracy is None:
            continue
        named[entry.name] = Line2D([], [], linestyle="none", **look)
        both = (spent and spent.mean, entry.training_flops)
        for axis, cost in zip(costs, both, strict=True):
            if cost is not None:
                mean = min(accuracy.mean, best)
                axis.plot(cost, mean, linestyle="none", **look)
                if accuracy.deviation is not None:
                    ends = (mean - accuracy.deviation, min(mean + accuracy.deviation, best))
                    axis.plot((cost, cost), ends, color=look["color"])
    learned.set_xlabel("epochs")
    learned.xaxis.set_major_locator(MaxNLocator(integer=True))
    learned.set_ylabel(f"{kind} accuracy" + (", last block" if kind == "training" else ""))
    for axis, unit in zip(costs, ("core-seconds of training", "FLOP of training"), strict=True):
        low, high = axis.get_xlim()
        if low <= 0 or high > 10 * low:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(EngFormatter() if "FLOP" in unit else "{x:g}")
        axis.set_xlabel(unit)
        axis.set_ylabel("test accuracy")
    for axis in axes:
        _scale_accuracy(axis)
        axis.spines[["top", "right"]].set_visible(False)
    runs = sorted({len(entry.runs) for entry in found.entries if entry.runs})
    text = f"{found.data}, n = {' or '.join(map(str, runs))}"
    text += ", means; bars are standard deviations" if max(runs, default=1) > 1 else ""
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)
    if named:
        figure.legend(
            [*named.values()], [*named], loc="outside lower center", ncols=4, frameon=False
        )
    _save(figure, path)


def _scale_accuracy(axis: Any) -> None:
    """Give a vertical axis percent, and a logarithmic scale of errors where they differ much."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shares = [value for line in axis.lines for value in line.get_ydata()]
    if shares and 1 - min(shares) > SPREAD_OF_ERRORS * (1 - max(shares)):
        axis.set_yscale("logit")
        axis.set_ylim(0.9 * min(shares), 1 - 0.7 * (1 - max(shares)))
        axis.yaxis.set_major_locator(FixedLocator(TICKS))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))


def _pyplot() -> Any:
    """Return matplotlib's plotting module, for files."""
    try:
        import matplotlib
    except ImportError as error:
        raise SettingError(
            "Pictures are drawn with matplotlib, which is not installed. Install it with:\n"
            '    pip install "onward[report]"'
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    """Write a figure to a file, and forget it."""
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise FileError(f"The picture cannot be written to {path}: {error}.") from error
    finally:
        _pyplot().close(figure)
