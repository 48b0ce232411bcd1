"""Results of exits.py as the tables of the README and as a picture."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onward.cli.report import Curve, draw_exits
from onward.exits.policies import CONFIDENCES

WHO = ("full_on_test", "policy_on_test")
"""What a result says of the test samples at full depth, and under the calibrated policy."""


def picture(result: dict[str, Any], path: Path) -> None:
    """Draw error against cost, of test samples."""
    curves = [Curve(name, points, "-") for name, points in result["curves"].items()]

    def point(title: str, form: str, *those: dict[str, float]) -> Curve:
        return Curve(title, [(each["macs"], each["error"]) for each in those], form)

    early = result["policy_on_test"]
    curves += [
        point("mean - std", "D", result["mean_minus_std"]),
        point("fixed depth", "s", *result["fixed_depths"]),
        point("as many, any samples", "x", result["any_samples_as_many"]),
        point("oracle (knows the classes; drops no labels)", "^", result["oracle"]),
        point("calibrated margin", "*", early),
    ]
    draw_exits(curves, path, f"{result['case']}, {result['samples']:,} test samples", "margin")


def told_of(values: Sequence[float], form: str = ".2f") -> str:
    """Return mean and standard deviation as text, or the one value."""
    mean = f"{statistics.mean(values):{form}}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}"


def points(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return error and mean MACs under each policy, by name."""
    depths = result["fixed_depths"][:-1]
    return {
        "full depth": result["full_on_test"],
        **{name: result["policies"][name] for name in CONFIDENCES},
        "mean - std": result["mean_minus_std"],
        **{f"all leave after block {number}": depth for number, depth in enumerate(depths)},
        "as many as under the margin, any samples": result["any_samples_as_many"],
        "oracle (knows the classes; drops no labels)": result["oracle"],
    }


def tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return all results as the tables of the README.

    A row a case; then a column a case: error in % and million MACs under each policy.
    """
    lines = [
        "| case | n | one class, error | error, % | early exit | change | macro-F1 | early "
        "exit | million MACs | early exit | times fewer | batch 1, median | 1,024, samples a "
        "second |",
        "| --- " * 2 + "| ---: " * 11 + "|",
    ]
    for case, results in found.items():
        full, early = ([result[who] for result in results] for who in WHO)
        speeds = [result["speed"] for result in results]
        cells = [
            case,
            str(len(results)),
            f"{100 * results[0]['majority_error']:.1f}",
            told_of([100 * each["error"] for each in full]),
            told_of([100 * each["error"] for each in early]),
            told_of([100 * result["error_increase"] for result in results], "+.2f"),
            told_of([each["macro_f1"] for each in full], ".3f"),
            told_of([each["macro_f1"] for each in early], ".3f"),
            told_of([result["plain_macs"] * 1e-6 for result in results]),
            told_of([each["macs"] * 1e-6 for each in early]),
            told_of([result["plain_macs_ratio"] for result in results], ".1f"),
            told_of([figure(speed, "1", "median_ms") for speed in speeds], ".1f"),
            told_of([1 / figure(speed, "1024", "samples_a_second") for speed in speeds], ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| | {' | '.join(found)} |", "| --- " + "| ---: " * len(found) + "|"]
    every = [[points(result) for result in results] for results in found.values()]
    for name in every[0][0]:
        cells = [name]
        for seen in every:
            error = told_of([100 * each[name]["error"] for each in seen])
            cells.append(f"{error}; {told_of([each[name]['macs'] * 1e-6 for each in seen])}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(speed: dict[str, Any], size: str, name: str) -> float:
    """Return a figure of the speed at full depth over that under the policy."""
    full, policy = (speed[size][who][name] for who in ("full", "policy"))
    return float(full / policy)
