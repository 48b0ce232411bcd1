"""Do the recipes learn data as they are loaded, without anybody scaling them?

    python benchmarks/raw_data.py --data-dir DIR      wine and breast cancer over three seeds, and
                                                      CIFAR-10, one seed: half an hour
    python benchmarks/raw_data.py --quick             wine and breast cancer, one seed, a minute

Wine and breast cancer come with scikit-learn: features in units that differ by up to 10,000. Two
blocks of 100 units, 30 epochs, mini-batches of 20. CIFAR-10 as bytes, three channels: four blocks
of 500 units, ten epochs, `hinton` and `pff`. Nothing else is set. A fifth of wine and breast cancer
is held out for the test, by class; which samples depends on no seed. Figures: the lowest test
accuracy of each recipe and data set.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np
from sklearn.datasets import load_breast_cancer, load_wine

import onward as ow

TABLES = {"wine": load_wine, "breast cancer": load_breast_cancer}
SMALL = {"network.widths": (100, 100), "training.epochs": 30, "training.batch_size": 20}
IMAGES = {"network.widths": (500,) * 4, "training.epochs": 10}


def accuracy(recipe: str, name: str, settings: dict[str, Any], seed: int) -> tuple[float, float]:
    """Return test and validation accuracy of a run of the recipe."""
    changes = {**settings, "data.name": name, "training.seed": seed}
    result = ow.run(ow.RunConfig(recipe=recipe).with_settings(changes))
    assert result is not None
    return float(result.accuracy or 0), float(result.validation.accuracy or 0)


def table(name: str, folder: Path) -> str:
    """Write a table of scikit-learn to a file, as it is, and return its path."""
    found = TABLES[name]()
    np.savez(folder / f"{name}.npz", x=found.data, y=found.target)
    return str(folder / f"{name}.npz")


def main() -> None:
    parser = common.parser(__doc__)
    options = parser.parse_args()
    form = common.form_of(options)
    seeds = range(3 if form == "full" else 1)
    settings = {**SMALL, "training.epochs": 2} if form == "smoke" else SMALL
    figures: dict[str, float] = {}
    samples = []
    for name in TABLES:
        for recipe in ("one-pass", "hinton", "pff", "backprop"):
            with tempfile.TemporaryDirectory() as folder:
                path = table(name, Path(folder))
                found = [accuracy(recipe, path, settings, seed) for seed in seeds]
            tests = [test for test, _ in found]
            figures[f"{name}, {recipe}"] = round(min(tests), 4)
            samples.append({"data": name, "recipe": recipe, "test": tests})
            print(f"{name:14} {recipe:9} {common.spread(tests)}", flush=True)
    if form == "full":
        common.need("cifar10", options.data_dir)
        images = {**IMAGES, "data.dir": options.data_dir}
        for recipe in ("hinton", "pff"):
            test, validation = accuracy(recipe, "cifar10", images, 0)
            figures[f"cifar10, {recipe}"] = round(test, 4)
            samples.append({"data": "cifar10", "recipe": recipe, "test": [test]})
            print(f"cifar10        {recipe:9} {test:.4f}, validation {validation:.4f}", flush=True)
        common.record(options.out / "raw_data.json", {"samples": samples})
    figures["mean"] = round(statistics.mean(figures.values()), 4)
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
