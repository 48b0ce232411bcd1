"""Does a network train on samples that are larger than memory, and how much slower are its steps?

    sudo python benchmarks/larger_than_memory.py            2 GB of images within 1 GB, ten minutes
    sudo python benchmarks/larger_than_memory.py --quick    0.3 GB within 0.8 GB, two minutes

Images of type uint8 lie in an .npy file. `conv` with two small blocks, so that reading counts for
as much as it can, learns from them as a stream for an epoch: once in a control group (cgroup v1,
memory controller, root only) with a limit, from the file, and once without a limit, from memory.
The pages of the file are in the page cache before, which the limit does not count. One thread.

    ratio        seconds a step from the file, over those from memory
    from_file    seconds of a step
    peak         most bytes of the control group
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import common
import control_groups
import numpy as np
import torch

import onward as ow
from onward.launcher import launch

SHAPE = (3, 32, 32)
CLASSES = 10
TEST = 2000
WRITTEN = 10_000
"""Images that are made together."""


def write(folder: Path, images: int) -> None:
    """Write images whose brightness tells their class, and their classes."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, images)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (images, *SHAPE))
    for first in range(0, images, WRITTEN):
        part = y[first : first + WRITTEN]
        noise = draw.integers(0, 128, (len(part), *SHAPE))
        x[first : first + len(part)] = noise + 12 * part[:, None, None, None]
    x.flush()
    np.save(folder / "y.npy", y)


def body(work: dict[str, Any]) -> None:
    """Train, within a limit or without one, and write what came out."""
    torch.set_num_threads(1)
    control_groups.join(work["group"])
    folder = Path(work["folder"])
    x = np.load(folder / "x.npy", mmap_mode="r" if work["group"] else None)
    y = np.load(folder / "y.npy")
    dataset = ow.dataset(x, y, test=TEST, name="images")
    del x
    config = ow.RunConfig(recipe="conv").with_settings(
        {
            "data.validation": 0,
            "network.channels": (8, 8),
            "network.pooled": (1, 2),
            "training.epochs": 1,
            "plan.kind": "stream",
        }
    )
    result = ow.run(config, ow.Listener(), dataset=dataset)
    assert result is not None
    steps = -(-len(dataset.training) // config.training.batch_size)
    usage = Path(work["group"], "memory.max_usage_in_bytes") if work["group"] else None
    found = {
        "step": result.facts["seconds"] / steps,
        "steps": steps,
        "accuracy": result.accuracy,
        "weights": result.facts["weights_sha256"],
        "peak": int(usage.read_text()) if usage else result.facts["peak_memory_bytes"][0],
    }
    (folder / "found.json").write_text(json.dumps(found))


def train(folder: Path, group: str | None) -> dict[str, Any]:
    """Train in a process of its own, and return what came out."""
    given = json.dumps({"folder": str(folder), "group": group})
    if launch(1, [__file__, "--body", given]):
        raise SystemExit("The training has failed.")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--body", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.body:
        return body(json.loads(options.body))
    form = common.form_of(options)
    control_groups.need("memory")
    size, limit = {"full": (2.0, 1.0), "quick": (0.3, 0.8), "smoke": (0.1, 0.8)}[form]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, round(size * 1e9) // int(np.prod(SHAPE)))
        with control_groups.limits(1, round(limit * 1e9)) as groups:
            left = train(folder, groups[0])
        print(f"from a file of {size} GB within {limit} GB: {told(left)}", flush=True)
        held = train(folder, None)
        print(f"from memory, no limit: {told(held)}", flush=True)
    assert left["weights"] == held["weights"]
    figures = {
        "ratio": round(left["step"] / held["step"], 3),
        "from_file": round(left["step"], 5),
        "from_memory": round(held["step"], 5),
        "peak": left["peak"],
        "limit": round(limit * 1e9),
        "accuracy": left["accuracy"],
    }
    if form == "full":
        common.record(options.out / "larger_than_memory.json", figures)
    common.last_line(figures, form)


def told(found: dict[str, Any]) -> str:
    """Return what came out in a line."""
    return (
        f"{1000 * found['step']:.2f} ms a step (n = {found['steps']:,} steps), "
        f"peak {found['peak'] / 1e6:,.0f} MB, test accuracy {found['accuracy']:.2%}"
    )


if __name__ == "__main__":
    main()
