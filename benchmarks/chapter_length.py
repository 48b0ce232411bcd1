"""What do shorter chapters cost, in accuracy and bytes, and what do they gain in time?

    python benchmarks/chapter_length.py --data-dir DIR            MNIST, three seeds: 20 minutes
    python benchmarks/chapter_length.py --data-dir DIR --quick    6,000 samples, one seed

One-pass, four blocks of 500 units, six epochs. Chapters of two epochs, of one, and of a half, a
quarter, a tenth of an epoch, down to a single mini-batch: the first item of future work of
Aktemur et al. 2024 (arXiv:2404.08573, section 6). Accuracy is measured, on test samples that are
looked at once a run; time and bytes on four ranks (all-layers, links of 1 Gbit/s) are simulated
from steps timed on this machine. Figures: mean accuracy, speed-up over one rank and megabytes sent,
by number of chapters an epoch.
"""

import json
import statistics
from typing import Any

import common
import torch

import onward as ow
from onward.costs.times import BlockCosts, measure
from onward.placement import place
from onward.runs.preparation import preview
from onward.runs.training import run
from onward.simulation import Link, simulate

RANKS = 4
EPOCHS = 6
PER_EPOCH = {"half": 0.5, "1": 1, "2": 2, "4": 4, "10": 10, "every mini-batch": None}
"""Chapters an epoch, by name."""


def settings(name: str, seed: int, options: Any, form: str) -> ow.RunConfig:
    """Return the run with so many chapters an epoch."""
    epochs = 2 if form == "smoke" else EPOCHS
    config = ow.RunConfig(recipe="one-pass").with_settings(
        {
            "data.name": "digits" if form == "smoke" else "mnist",
            "data.dir": options.data_dir,
            "data.validation": 0 if form == "full" else 0.9 if form == "quick" else 0.1,
            "network.widths": (500,) * 4,
            "training.epochs": epochs,
            "training.seed": seed,
        }
    )
    per_epoch = PER_EPOCH[name]
    if per_epoch is None:
        per_epoch = preview(config, 1)[0].plan.batches(0)
    return config.with_settings({"plan.chapters": int(epochs * per_epoch)})


def forecast(config: ow.RunConfig, costs: BlockCosts | None) -> tuple[BlockCosts, float, float]:
    """Return costs, speed-up of four ranks over one, and megabytes sent."""
    begun = preview(config, 1, with_weights=True)[0]
    plan = begun.plan
    if costs is None:
        costs = measure(begun.network, begun.shard, plan.batch_size, begun.settings)
    link = Link(bytes_per_second=125e6)
    alone, four = (
        simulate(plan, place(plan, name, ranks, begun.costs), costs, link)
        for name, ranks in (("sequential", 1), ("all-layers", min(RANKS, plan.chapters)))
    )
    return costs, alone.seconds / four.seconds, sum(four.bytes_by_link.values()) / 1e6


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    form = common.form_of(options)
    torch.set_num_threads(1)
    if form != "smoke":
        common.need("mnist", options.data_dir)
    figures: dict[str, dict[str, float]] = {"accuracy": {}, "speedup": {}, "megabytes": {}}
    costs = None
    for name in PER_EPOCH:
        path = options.out / f"chapter-length-{name.replace(' ', '-')}.json"
        if form == "full" and path.exists():
            found = json.loads(path.read_text())
        else:
            config = settings(name, 0, options, form)
            costs, speedup, megabytes = forecast(config, costs)
            accuracy = []
            for seed in range(options.seeds if form == "full" else 1):
                result = run(settings(name, seed, options, form))
                assert result is not None
                assert result.accuracy is not None
                accuracy.append(result.accuracy)
            found = {
                "accuracy": accuracy,
                "speedup": speedup,
                "megabytes": megabytes,
                "chapters": config.plan.chapters,
            }
            if form == "full":
                common.record(path, found)
        print(
            f"chapters an epoch: {name:17} {common.spread(found['accuracy'])}, "
            f"{found['speedup']:.2f} times one rank, {found['megabytes']:,.0f} MB",
            flush=True,
        )
        figures["accuracy"][name] = round(statistics.mean(found["accuracy"]), 4)
        figures["speedup"][name] = round(found["speedup"], 2)
        figures["megabytes"][name] = round(found["megabytes"], 1)
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
