"""Does a network train over four ranks that is too large for one, and does the planner know it?

    sudo python benchmarks/memory_limit.py            four blocks of 6000 units, a minute
    sudo python benchmarks/memory_limit.py --quick    four blocks of 3000 units

Each rank is put into a control group (cgroup v1, memory controller, root only) with a limit halfway
between what the planner says that one rank needs for all blocks, and what it says that the largest
of four ranks needs which hold a block each (a stream plan). One rank must be refused before it
trains; four must train to the end. Without limits one rank is trained too, to see what it would
have held.

    refused       what one rank is told
    worst_error   largest difference of estimated and measured peak memory, over the measured
"""

import argparse
import json
import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import common
import control_groups
import numpy as np
import torch

import onward as ow
from onward.launcher import launch
from onward.runs.preparation import preview
from onward.runs.training import run

RANKS = 4
ROWS = 1000


def settings(work: dict[str, Any], ranks: int) -> ow.RunConfig:
    """Return a run on some ranks."""
    return ow.RunConfig(recipe="one-pass").with_settings(
        {
            "data.name": work["data"],
            "data.validation": 0,
            "network.widths": (work["width"],) * RANKS,
            "training.epochs": 2,
            "plan.kind": "stream",
            "placement.processes": ranks,
        }
    )


def body(work: dict[str, Any]) -> None:
    """Train as one rank under a limit; rank 0 writes what came out."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    control_groups.join(work["groups"][rank] if work["groups"] else None)
    try:
        result = run(settings(work, ranks).with_settings({"placement.processes": 1}))
        found = None if result is None else result.to_json()
    except ow.SettingError as error:
        found = {"refused": str(error)}
    if rank == 0:
        Path(work["out"]).write_text(json.dumps(found))


def train(ranks: int, work: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Train on some ranks, each with so many bytes at most, and return what came out."""
    shared = nullcontext([]) if limit is None else control_groups.limits(ranks, limit)
    with tempfile.TemporaryDirectory() as folder, shared as groups:
        out = f"{folder}/result.json"
        given = json.dumps({**work, "groups": groups, "out": out})
        status = launch(ranks, [__file__, "--body", given])
        if status:
            raise SystemExit(status)
        found: dict[str, Any] = json.loads(Path(out).read_text())
    return found


def compare(name: str, found: dict[str, Any]) -> float:
    """Print what was estimated and measured, and return the largest error."""
    pairs = list(zip(found["estimated_memory_bytes"], found["peak_memory_bytes"], strict=True))
    told = ", ".join(f"{peak / 1e6:.0f} ({needed / 1e6:.0f})" for needed, peak in pairs)
    print(f"{name}: peak MB of each rank (estimated): {told}", flush=True)
    return max(abs(needed - peak) / peak for needed, peak in pairs)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--body", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.body:
        return body(json.loads(options.body))
    form = common.form_of(options)
    control_groups.need("memory")
    torch.set_num_threads(1)
    width = {"full": 6000, "quick": 3000, "smoke": 3000}[form]
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/random.npz"
        x = draw.random((ROWS, width), dtype=np.float32)
        y = np.arange(ROWS) % 10
        np.savez(data, x=x, y=y, x_test=x[:100], y_test=y[:100])
        work = {"data": data, "width": width}
        alone = max(preview(settings(work, 1), 1)[0].memory)
        four = max(preview(settings(work, RANKS), RANKS)[0].memory)
        limit = (alone + four) // 2
        print(f"one rank needs {alone / 1e6:.0f} MB, each of four {four / 1e6:.0f} at most; limit")
        print(f"of each rank: {limit / 1e6:.0f} MB")
        refused = train(1, work, limit).get("refused")
        print(f"one rank: {refused}")
        over = train(RANKS, work, limit)
        unlimited = train(1, work, None)
    errors = [compare("four ranks", over), compare("one rank, no limit", unlimited)]
    assert refused, "one rank was not refused"
    assert over["weights_sha256"] == unlimited["weights_sha256"]
    figures = {
        "refused": refused,
        "limit": limit,
        "worst_error": round(max(errors), 4),
    }
    if form == "full":
        runs = {"four": over, "one": unlimited}
        common.record(options.out / "memory_limit.json", {"figures": figures, "runs": runs})
    common.last_line(figures, form)
    return None


if __name__ == "__main__":
    main()
