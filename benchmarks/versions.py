"""Is this version of the library as fast as an earlier one?

    git worktree add ../old COMMIT
    python benchmarks/versions.py --old ../old step_speed           7 alternating pairs of --quick
    python benchmarks/versions.py --old ../old --pairs 3 emulated_ranks

Runs a benchmark of both checkouts in its quick form, one after the other in turn, each with the
library and the script of its own checkout. The figures are those of the benchmark's last line,
which are ratios to something that was timed in the same run, so that a machine whose speed drifts
harms them little. Printed: for each figure the median of each version and its range, and the median
and range of this version's over the earlier one's, pair by pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
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
    parser.add_argument("benchmark", help="such as step_speed")
    parser.add_argument("--old", type=Path, required=True, help="checkout of the earlier version")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--form", choices=("quick", "smoke"), default="quick")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    options = parser.parse_args()
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
    common.last_line(ratios, options.form)


if __name__ == "__main__":
    main()
