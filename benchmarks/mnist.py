"""How accurate is each recipe on MNIST, with four blocks of 2000 units?

    python benchmarks/mnist.py --data-dir DIR                  all cases, three seeds: hours
    python benchmarks/mnist.py --data-dir DIR --case one-pass  one case
    python benchmarks/mnist.py --data-dir DIR --quick          one case on 6,000 samples, a minute

Each run is a recipe with the settings named in CASES, on one thread. Every result goes to a JSON
file in --out, and a run whose file is there is not done again, so the script can be cut. The test
samples are looked at once a run; no setting was chosen by them. The last line gives, by case, the
mean test accuracy over the seeds.
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

import onward as ow

FAST = {"optimizer.lr": 1e-3}
"""The default rate of PFF when its figures here were measured."""

WIDTHS = {"network.widths": (2000, 2000, 2000, 2000)}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one-pass": ("one-pass", {"training.epochs": 5, "data.validation": 0}),
    "one-pass-shift": (
        "one-pass",
        {
            "training.epochs": 10,
            "data.validation": 0,
            "data.shift": 1,
        },
    ),
    "one-pass-last": (
        "one-pass",
        {"training.epochs": 5, "data.validation": 0, "network.heads": "last"},
    ),
    "backprop": ("backprop", {"training.epochs": 5, "data.validation": 0}),
    "hinton": ("hinton", {"data.validation": 3000, "plan.validate_every": 5}),
    "pff-adaptive-goodness": (
        "pff",
        {"training.epochs": 10, "data.validation": 3000, "plan.validate_every": 5} | FAST,
    ),
    "pff-random-softmax": (
        "pff",
        {
            "training.epochs": 30,
            "data.validation": 3000,
            "plan.validate_every": 5,
            "network.negatives": "random",
            "network.readout": "softmax",
        }
        | FAST,
    ),
}


class Printer(ow.Listener):
    """Prints a line a chapter."""

    def progress(self, progress: ow.Progress) -> None:
        known = {n: round(v, 4) for n, v in progress.figures.items() if v is not None}
        print(progress.chapter, progress.block, known, flush=True)


def run_case(case: str, seed: int, options: Any) -> dict[str, Any]:
    recipe, settings = CASES[case]
    config = ow.RunConfig(recipe=recipe).with_settings(
        {**WIDTHS, **settings, "data.name": "mnist", "data.dir": options.data_dir}
    )
    config = config.with_settings({"training.seed": seed})
    result = ow.run(config, Printer())
    assert result is not None
    curve = [(p.chapter + 1, p.figures) for p in result.progress if p.block is None]
    return {
        "case": case,
        "settings": config.with_settings({"data.dir": None}).to_toml(),
        **result.to_json(),
        "curve": curve,
    }


def quick(case: str, options: Any) -> float:
    """Train on a tenth of the samples, or, as a smoke test, on digits with small blocks."""
    recipe, settings = CASES[case]
    config = ow.RunConfig(recipe=recipe).with_settings({**WIDTHS, **settings})
    if options.smoke:
        dataset = ow.load_data("digits")
        config = config.with_settings({"network.widths": (32, 32)})
    else:
        whole = ow.load_data("mnist", data_dir=options.data_dir)
        dataset = replace(whole, x=whole.x[:6000], y=whole.y[:6000])
    network = ow.mlp(
        dataset.input_shape,
        num_classes=dataset.num_classes,
        is_image=dataset.is_image,
        optimizer=config.optimizer,
        **{name: getattr(config.network, name) for name in config.network.__dataclass_fields__},
    )
    training = replace(config.training, epochs=2)
    plan = replace(config.plan, validate_every=None)
    result = ow.train(network, dataset, training=training, plan=plan)
    assert result is not None
    return float(result.test.correct / result.test.samples)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    form = common.form_of(options)
    cases = options.case or (list(CASES) if form != "quick" else ["one-pass"])
    if form != "smoke":
        common.need("mnist", options.data_dir)
    figures: dict[str, Any] = {}
    for case in cases:
        if form != "full":
            figures[case] = quick(case, options)
            continue
        found = []
        for seed in range(options.seeds):
            path = Path(options.out) / f"mnist-{case}-seed{seed}.json"
            if not path.exists():
                common.record(path, run_case(case, seed, options))
            found.append(json.loads(path.read_text())["accuracy"]["test"])
        print(f"{case:24} {common.spread(found)}")
        figures[case] = statistics.mean(found)
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
