"""Do all placements of a plan end in the same bits, on MNIST and over real processes?

    python benchmarks/same_weights.py --data-dir DIR           every plan and placement, 20 minutes
    python benchmarks/same_weights.py --data-dir DIR --quick   one plan, two placements

Each run is the command a user would type, `onward train`, with four blocks of 200 units on 10,000
samples of MNIST (digits as a smoke test); chapter plans have six chapters of an epoch, so
that hints of age 4 draw the negatives of the last two, and stream plans one epoch. What is
compared is the digest of all weights, `weights_sha256` in result.json. Figures, by plan: the
number of different digests, which must be 1. Plans with hints are run once more without, which
must end in other weights: the hints did change labels.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import numpy as np

import onward as ow

CHAPTERS = (
    "sequential",
    *(f"{name} {ranks}" for name in ("single-layer", "all-layers") for ranks in (2, 3, 4)),
)
STREAM = ("sequential", "stream 2", "stream 4")
FEDERATED = ("sequential", "federated 2", "federated 4")
SHARDS = ("--shards", "4", "--shard-by", "class")
ROWS = 10_000

PLANS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "one-pass": (("one-pass",), CHAPTERS),
    **{
        f"pff {negatives} {readout}": (
            ("pff", "--negatives", negatives, "--readout", readout),
            CHAPTERS,
        )
        for negatives in ("adaptive", "random", "fixed")
        for readout in ("goodness", "softmax")
    },
    "one-pass, 4 shards": (("one-pass", *SHARDS), FEDERATED),
    "one-pass, stream": (("one-pass", "--plan", "stream"), STREAM),
    "hinton": (("hinton",), STREAM),
}


def write_samples(path: Path, data_dir: str | None) -> None:
    """Write the first samples of MNIST as a file that the command reads."""
    whole = ow.load_data("mnist", data_dir=data_dir)
    test = {"x_test": whole.x_test[:1000], "y_test": whole.y_test[:1000]}
    np.savez(path, x=whole.x[:ROWS], y=whole.y[:ROWS], **test)


def digest(arguments: tuple[str, ...], placement: str, data: str) -> str:
    """Train by the command, and return the digest of the weights."""
    name, _, ranks = placement.partition(" ")
    is_stream = "stream" in arguments or "hinton" in arguments
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "onward", "train", *arguments),
            *("--placement", name, "--processes", ranks or "1", "--out", f"{folder}/run"),
            *("--widths", "200,200,200,200", "--epochs", "1" if is_stream else "6"),
            *("--data", data),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        found = json.loads(Path(folder, "run", "result.json").read_text())
    assert (found["placement"], found["world_size"]) == (name, int(ranks or "1"))
    return str(found["weights_sha256"])


def main() -> None:
    options = common.parser(__doc__).parse_args()
    form = common.form_of(options)
    folder = tempfile.TemporaryDirectory()
    data = "digits"
    if form != "smoke":
        data = f"{folder.name}/mnist.npz"
        try:
            write_samples(Path(data), options.data_dir)
        except ow.DataError as error:
            common.skip(str(error))
    plans = PLANS
    if form != "full":
        arguments, _ = PLANS["pff adaptive goodness"]
        plans = {"pff adaptive goodness": (arguments, ("sequential", "all-layers 3"))}
    figures: dict[str, int] = {}
    every: dict[str, dict[str, str]] = {}
    for plan, (arguments, placements) in plans.items():
        found = {p: digest(arguments, p, data) for p in placements}
        figures[plan] = len(set(found.values()))
        print(f"{plan:24} {len(found)} placements, {figures[plan]} digest", flush=True)
        if "adaptive" in plan or plan == "hinton":
            without = digest((*arguments, "--hint-age", "never"), "sequential", data)
            assert without not in found.values(), "The hints changed no label."
            found["sequential, no hints"] = without
        every[plan] = found
    if form == "full":
        common.record(options.out / "same_weights.json", {"digests": every})
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
