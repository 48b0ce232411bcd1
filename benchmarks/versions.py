"""Is this version of the library as fast as an earlier one, and as accurate?

    git worktree add ../old COMMIT
    python benchmarks/versions.py --old ../old step_speed           7 alternating pairs of --quick
    python benchmarks/versions.py --old ../old --pairs 3 emulated_ranks
    python benchmarks/versions.py --old ../old --data-dir DIR accuracy

Runs a benchmark of both checkouts in its quick form, one after the other in turn, each with the
library and the script of its own checkout. The figures are those of the benchmark's last line,
which are ratios to something that was timed in the same run, so that a machine whose speed drifts
harms them little. Printed: for each figure the median of each version and its range, and the median
and range of this version's over the earlier one's, pair by pair.

`accuracy` trains every recipe on digits with three seeds, and on MNIST with one, in both checkouts:
shorter and narrower than the recipe says, so that it takes minutes. It prints the test accuracies,
and whether the weights are the same bit for bit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import common

HERE = Path(__file__).parent.parent


def figures(root: Path, benchmark: str, form: str) -> dict[str, float]:
    """Run a benchmark of a checkout; return its figures by name."""
    script = root / "benchmarks" / f"{benchmark}.py"
    done = subprocess.run(
        [sys.executable, str(script), f"--{form}"],
        env={**os.environ, "PYTHONPATH": str(root.resolve())},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(flat(json.loads(done.stdout.splitlines()[-1])))


TRAININGS = [
    *(("digits", seed, ["--widths", "200,200,200,200", "--epochs", "12"]) for seed in range(3)),
    ("mnist", 0, ["--widths", "500,500,500,500", "--epochs", "2"]),
]
"""Data, seed and further flags of each training of a recipe."""


def trained(root: Path, recipe: str, data: str, seed: int, flags: list[str]) -> dict[str, Any]:
    """Train a recipe with the library of a checkout; return what its result says."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = ["-m", "onward", "train", recipe, "--data", data, *flags, "--out", str(out)]
        subprocess.run(
            [sys.executable, *command, "--set", f"training.seed={seed}"],
            env={**os.environ, "PYTHONPATH": str(root.resolve())},
            # Python looks for modules here first.
            cwd=root,
            capture_output=True,
            check=True,
        )
        found: dict[str, Any] = json.loads((out / "result.json").read_text())
        return found


def accuracies(old: Path, out: Path) -> dict[str, Any]:
    """Compare the accuracy of all recipes; return the largest difference and the share alike."""
    rows: list[dict[str, Any]] = []
    for recipe in ("one-pass", "hinton", "pff", "backprop"):
        for data, seed, flags in TRAININGS:
            each = [trained(root, recipe, data, seed, flags) for root in (old, HERE)]
            before, now = (found["accuracy"]["test"] for found in each)
            is_same = each[0]["weights_sha256"] == each[1]["weights_sha256"]
            rows.append(
                {"recipe": recipe, "data": data, "seed": seed, "old": before, "new": now}
                | {"same_weights": is_same}
            )
            print(
                f"{recipe:9} {data:7} seed {seed}: {before:.2%}, {now:.2%}, same weights: {is_same}"
            )
    common.record(out / "versions-accuracy.json", {"trainings": rows})
    return {
        "largest_difference": max(abs(row["new"] - row["old"]) for row in rows),
        "same_weights": sum(row["same_weights"] for row in rows) / len(rows),
    }


def flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested object, by the names on the way to them.

    Example:
        >>> dict(flat({"a": {"100": 1.5}, "form": "quick"}))
        {'a 100': 1.5}
    """
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name} ")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def text(values: list[float]) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", help="such as step_speed, or accuracy")
    parser.add_argument("--old", type=Path, required=True, help="checkout of the earlier version")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--form", choices=("quick", "smoke"), default="quick")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    parser.add_argument("--data-dir", default=os.environ.get("ONWARD_DATA"))
    options = parser.parse_args()
    if options.data_dir is not None:
        os.environ["ONWARD_DATA"] = str(Path(options.data_dir).resolve())
    if options.benchmark == "accuracy":
        return common.last_line(accuracies(options.old, options.out), "full")
    pairs = []
    for number in range(options.pairs):
        roots = [("old", options.old), ("new", HERE)]
        # Each goes first in turn.
        for name, root in roots if number % 2 == 0 else roots[::-1]:
            found = figures(root, options.benchmark, options.form)
            print(f"pair {number}, {name}: {json.dumps(found)}", flush=True)
            pairs.append((number, name, found))
    by_name = {
        version: [found for _, name, found in pairs if name == version]
        for version in ("old", "new")
    }
    ratios = {}
    for figure in by_name["old"][0]:
        old, new = ([found[figure] for found in by_name[version]] for version in ("old", "new"))
        each = [n / o for n, o in zip(new, old, strict=True) if o]
        if each:
            ratios[figure] = round(statistics.median(each), 4)
            print(f"{figure:32} old {text(old)}, new {text(new)}, new / old {text(each)}")
    if options.form == "quick":
        runs = [{"pair": number, "version": name, **found} for number, name, found in pairs]
        path = options.out / f"versions-{options.benchmark}.json"
        common.record(path, {"ratios": ratios, "runs": runs})
    return common.last_line(ratios, options.form)


if __name__ == "__main__":
    main()
