"""How accurate are convolutions and dense networks on images, and what does it cost?

    python benchmarks/vision.py --data-dir DIR                      all cases, most of two days
    python benchmarks/vision.py --data-dir DIR --cases cifar10      one case, three seeds
    python benchmarks/vision.py --quick                             digits, one seed, under a minute

Each run trains on all training samples, with none held out, and asks the test samples once, after
the last epoch. Settings were chosen on validation samples of CIFAR-10; those of dense layers on
10,000 of MNIST. One thread. Runs, with their models, go to --runs: one that was cut goes on, and
one whose result is in the folder of results is not made again.

PFLOP are counted with torch's counter over a real training step of each block, times the number of
mini-batches: blocks, heads, gradients, what Muon computes, and passes through frozen blocks below.
Core-seconds are processor time of training. `twin` is the same network in one block, trained by
backpropagation: same layers, data, schedule and epochs.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np

import onward as ow


class Case(NamedTuple):
    """What is trained, on what, and how often."""

    data: str
    recipe: str
    settings: dict[str, Any]
    seeds: int = 3
    first: int | None = None
    """How many training samples are used, the first, and a fifth as many of the test; None: all."""


SHIFTED = {"data.shift": 2, "network.widths": (2000,) * 4}
FLIPPED = {"data.flip": "alternating"}
FF = {
    "network.channels": (48, 96, 192),
    "network.pooled": (1, 2, 3),
    "network.readout": "softmax",
    "training.epochs": 4,
}
WIDE = {"network.channels": (96, 192, 192, 384, 384, 384), "training.epochs": 16}
DENSE = {
    "network.layers": "dense",
    "network.channels": (1024,) * 3,
    "optimizer.lr": 1e-3,
    "training.epochs": 40,
}
WIDER = {"network.channels": (56, 112, 112, 224, 224, 224)}
TWIN = {"network.layers_per_block": "all"}
CASES = {
    "cifar10": Case("cifar10", "conv", {}),
    "cifar10, 13 epochs": Case("cifar10", "conv", {"training.epochs": 13}, 1),
    "cifar10, wider": Case("cifar10", "conv", WIDER, 1),
    "cifar10, wide": Case("cifar10", "conv", WIDE),
    "cifar10, two layers a block": Case("cifar10", "conv", {"network.layers_per_block": 2}, 1),
    "cifar10, three layers a block": Case("cifar10", "conv", {"network.layers_per_block": 3}, 1),
    "cifar10, twin": Case("cifar10", "conv", TWIN, 1),
    "cifar10, predsim": Case("cifar10", "predsim", {}, 1),
    "cifar10, channel goodness": Case("cifar10", "channel-goodness", {}, 1),
    "cifar10, ff-conv": Case("cifar10", "ff-conv", FF),
    "mnist": Case("mnist", "conv", {}),
    "mnist, twin": Case("mnist", "conv", TWIN, 1),
    "mnist, dense": Case("mnist", "one-pass", SHIFTED | {"training.epochs": 40}),
    "mnist, dense, predsim": Case("mnist", "predsim", DENSE),
    "mnist, dense, predsim, twin": Case("mnist", "predsim", DENSE | TWIN, 1),
    "cifar10, dense": Case("cifar10", "one-pass", SHIFTED | FLIPPED | {"training.epochs": 20}),
}
"""All cases by name."""

SMALL = Case("digits", "conv", {"network.channels": (16, 32, 32), "network.pooled": (1, 3)}, 1)
"""That of the quick form."""


def trained(
    case: Case, seed: int, data_dir: str | None, epochs: int | None, folder: Path | None = None
) -> dict[str, Any]:
    """Train once, or go on in a run's folder, and return what came out."""
    changes = {"data.validation": 0} | case.settings
    changes |= {"data.name": case.data, "data.dir": data_dir, "training.seed": seed}
    if epochs is not None:
        changes["training.epochs"] = epochs
    if case.first is not None:
        assert folder is not None
        changes["data.name"] = str(part(case.data, case.first, data_dir, folder.parent))
    config = ow.RunConfig(recipe=case.recipe).with_settings(changes)
    result = ow.run(config, folder=folder, overwrite=True)
    assert result is not None
    return {
        "accuracy": result.accuracy,
        "readouts": dict(result.readouts),
        "per_block": list(result.per_block),
        "validations": [
            {"chapter": each.chapter + 1, "accuracy": each.figures["validation_accuracy"]}
            for each in result.progress
            if each.block is None
        ],
        "pflop": common.pflop(config),
        "core_seconds": core_seconds((*result.earlier, result)),
        "parameters": sum(p.numel() for p in result.network.parameters()),
        "precision": result.facts["precision"],
        # Where the data lie says nothing of a figure.
        "settings": config.with_settings({"data.name": case.data, "data.dir": None}).to_toml(),
        "first": case.first,
    }


def core_seconds(stages: Sequence[ow.Result]) -> float | None:
    """Return the processor time of all stages; None if one was cut, as part of it is not known."""
    if any(stage.facts["tasks_done_before"] for stage in stages):
        return None
    return sum(sum(stage.facts["cpu_seconds"]) for stage in stages)


def part(data: str, first: int, data_dir: str | None, folder: Path) -> Path:
    """Write the first samples of a data set into a file, and return it."""
    whole, tests = ow.load_data(data, data_dir=data_dir), first // 5
    arrays = {"x": whole.x[:first], "y": whole.y[:first]}
    arrays |= {"x_test": whole.x_test[:tests], "y_test": whole.y_test[:tests]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{data}-{first}.npz"
    np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()})
    return path


def measured(
    cases: Mapping[str, Case], options: argparse.Namespace, script: str
) -> dict[str, float]:
    """Print a line for each case that is asked for, trained or read; return mean accuracies.

    Args:
        cases: Those there are.
        options: Of the command line; `cases` and `seeds` choose some, `runs` holds their folders.
        script: How the files of its results begin.
    """
    names = options.cases.split(";") if options.cases else list(cases)
    unknown = [name for name in names if name not in cases]
    if unknown:
        raise SystemExit(f"There is no case {unknown[0]!r}; there are {'; '.join(cases)}.")
    figures: dict[str, float] = {}
    for name in names:
        case = cases[name]
        common.need(case.data, options.data_dir)
        seeds = [int(s) for s in options.seeds.split(",")] if options.seeds else range(case.seeds)
        each = []
        for seed in seeds:
            words = "-".join(name.replace(",", "").replace("%", "").split())
            path: Path = options.out / f"{script}-{words}-{seed}.json"
            if not path.exists():
                folder = options.runs / f"{words}-{seed}"
                common.record(path, trained(case, seed, options.data_dir, None, folder))
            each.append(json.loads(path.read_text()))
        figures[name] = round(statistics.mean(found["accuracy"] for found in each), 4)
        print(told(name, each), flush=True)
    return figures


def told(name: str, found: list[dict[str, Any]]) -> str:
    """Return a line of the table."""
    pflop, times = statistics.mean(f["pflop"] for f in found), [f["core_seconds"] for f in found]
    seconds = "?" if None in times else f"{statistics.mean(times):.0f}"
    spread = common.spread([f["accuracy"] for f in found])
    each = [statistics.mean(per) for per in zip(*(f["per_block"] for f in found), strict=True)]
    blocks = " ".join(f"{100 * accuracy:.1f}" for accuracy in each)
    return f"{name:32} {spread}  {pflop:.3f} PFLOP {seconds:>6} core-s  blocks {blocks}"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cases", help="names with semicolons between them (default: all)")
    parser.add_argument("--seeds", help="seeds with commas between them (default: 0, 1, 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/vision"))
    options = parser.parse_args()
    form = common.form_of(options)
    if form != "full":
        found = trained(SMALL, 0, None, 1 if form == "smoke" else 5)
        print(told("digits", [found]), flush=True)
        common.last_line({key: found[key] for key in ("accuracy", "pflop")}, form)
        return
    common.last_line(measured(CASES, options, "vision"), form)


if __name__ == "__main__":
    main()
