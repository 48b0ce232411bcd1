"""What does it cost in accuracy that samples never leave their owners?

    python benchmarks/federated.py --data-dir DIR               digits and MNIST, three seeds: hours
    python benchmarks/federated.py --data digits --seeds 1      one data set, one seed
    python benchmarks/federated.py --quick                      digits, one seed, under a minute

Four shards, assigned at random or by class (each owner has few classes), one-pass recipe. A chapter
learns from one shard for an epoch, and the shards take turns; there are four times as many epochs
as in the pooled run, over a quarter of the samples each, so that the number of updates is the same.
Placement never changes a bit, so all this runs in one process. Figures: mean test accuracy by data
set and way of sharding.
"""

import statistics
from typing import Any

import common

import onward as ow

SHARDS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"training.epochs": 20},
    "mnist": {"training.epochs": 5, "network.widths": (2000, 2000, 2000, 2000)},
}


def accuracy(name: str, assigned: str, seed: int, data_dir: str | None, epochs: int) -> float:
    config = ow.RunConfig(recipe="one-pass").with_settings(
        {
            **SETTINGS[name],
            "data.name": name,
            "data.dir": data_dir,
            "training.seed": seed,
            "training.epochs": epochs,
        }
    )
    if assigned != "pooled":
        config = config.with_settings(
            {
                "training.epochs": SHARDS * epochs,
                "plan.shards": SHARDS,
                "plan.shard_by": assigned,
            }
        )
    result = ow.run(config)
    assert result is not None
    return result.test.correct / result.test.samples


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", choices=SETTINGS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    form = common.form_of(options)
    seeds = options.seeds if form == "full" else 1
    names = options.data or (list(SETTINGS) if form == "full" else ["digits"])
    figures: dict[str, float] = {}
    for name in names:
        epochs = 1 if form == "smoke" else SETTINGS[name]["training.epochs"]
        try:
            ow.load_data(name, data_dir=options.data_dir)
        except ow.DataError as error:
            print(f"{name} is left out: {error}")
            continue
        every: dict[str, list[float]] = {}
        for assigned in ("pooled", "iid", "class"):
            found = [accuracy(name, assigned, s, options.data_dir, epochs) for s in range(seeds)]
            print(f"{name:8} {assigned:8} {common.spread(found)}", flush=True)
            every[assigned] = found
            figures[f"{name}_{assigned}"] = round(statistics.mean(found), 4)
        if form == "full":
            common.record(options.out / f"federated-{name}.json", {"accuracy": every})
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
