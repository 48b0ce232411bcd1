"""How old may hints be before hard negatives lose their worth?

    python benchmarks/hint_age.py --data-dir DIR            MNIST, three seeds: half an hour
    python benchmarks/hint_age.py --data-dir DIR --quick    one seed, few epochs

Hints are class scores from which negatives are drawn; their age is a setting of the plan. On 10,000
samples of MNIST and four blocks of 500 units: `pff` with adaptive negatives and the softmax
readout, 40 chapters of an epoch, ages of 1, 2, 4 and 8 chapters and never (random negatives);
`hinton`, 20 epochs, ages of 0, 1, 8 and 64 mini-batches and never. Test samples are looked at once
a run. Figures: mean test accuracy by age.
"""

import json
import statistics
from dataclasses import replace
from typing import Any

import common
import torch

import onward as ow

ROWS = 10_000
CASES: dict[str, tuple[str, tuple[int | str, ...], dict[str, Any]]] = {
    "chapters": (
        "pff",
        (1, 2, 4, 8, "never"),
        {"training.epochs": 40, "network.readout": "softmax", "optimizer.lr": 1e-3},
    ),
    "mini_batches": ("hinton", (0, 1, 8, 64, "never"), {"training.epochs": 20}),
}
"""Recipe, ages and settings, by what age is counted in."""


def accuracy(unit: str, age: int | str, seed: int, options: Any, form: str) -> float:
    recipe, _, settings = CASES[unit]
    config = ow.RunConfig(recipe=recipe).with_settings(
        {**settings, "network.widths": (500,) * 4, "plan.hint_age": age, "training.seed": seed}
    )
    if form == "smoke":
        dataset = ow.load_data("digits")
    else:
        whole = ow.load_data("mnist", data_dir=options.data_dir)
        dataset = replace(whole, x=whole.x[:ROWS], y=whole.y[:ROWS])
    if form != "full":
        epochs = {"quick": 3, "smoke": 1}[form]
        config = config.with_settings({"training.epochs": epochs})
    network = ow.mlp(
        dataset.input_shape,
        num_classes=dataset.num_classes,
        is_image=dataset.is_image,
        optimizer=config.optimizer,
        seed=seed,
        **{name: getattr(config.network, name) for name in config.network.__dataclass_fields__},
    )
    result = ow.train(network, dataset, training=config.training, plan=config.plan, validation=0)
    assert result is not None
    assert result.accuracy is not None
    return result.accuracy


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    form = common.form_of(options)
    torch.set_num_threads(1)
    if form != "smoke":
        common.need("mnist", options.data_dir)
    figures: dict[str, dict[str, float]] = {}
    for unit, (_, ages, _) in CASES.items():
        figures[unit] = {}
        for age in ages:
            path = options.out / f"hint-age-{unit}-{age}.json"
            if form == "full" and path.exists():
                found = json.loads(path.read_text())["accuracy"]
            else:
                seeds = range(options.seeds if form == "full" else 1)
                found = [accuracy(unit, age, seed, options, form) for seed in seeds]
                if form == "full":
                    common.record(path, {"accuracy": found})
            print(f"{unit:13} age {age!s:6} {common.spread(found)}", flush=True)
            figures[unit][str(age)] = round(statistics.mean(found), 4)
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
