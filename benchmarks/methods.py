"""How accurate are all recipes of images for the same number of operations?

    python benchmarks/methods.py --data-dir DIR                  MNIST and CIFAR-10, hours each
    python benchmarks/methods.py --data-dir DIR --data mnist     one of them
    python benchmarks/methods.py --quick                         digits, one seed, a minute

`onward compare` over them, each for as many epochs as 0.03 PFLOP are enough for (about three
core-minutes a run), at least one, with three seeds and the twins. Dense recipes have four layers of
1000 units; all else is as they come. So few operations favour methods that learn fast, and settings
were chosen for other budgets: this says how recipes do at that price, and not how well they can do.
Nothing was chosen by test samples.

Run folders, each with a model, go to --runs, and what is there is not trained again. Tables as
JSON, and pictures, go to the results. The last line gives, by recipe (and data, where there are
several), the mean test accuracy over the seeds.
"""

import tempfile
from pathlib import Path
from typing import Any

import common
from rich.console import Console

import onward as ow
from onward.cli.compare import remarks, table
from onward.cli.report import draw_comparison
from onward.recipes.catalog import FAMILIES
from onward.runs.progress import Bars

PFLOP = 0.03
"""Operations of a training, in 1e15."""

QUICK_PFLOP = 1e-4
"""The same of the quick form."""

OF_OTHER_DATA = ("byte-lm", "gnn-backprop", *(recipe.name for recipe in FAMILIES["graphs"]))
"""Recipes for text and for graphs."""

IMAGES = [name for name in ow.RECIPES if name not in OF_OTHER_DATA]
"""Recipes that learn from images."""

LAYERS = {"network.widths": (1000,) * 4}
"""Settings common to all recipes that have them."""

QUICK = {"network.widths": (500,) * 4, "network.pooled": (1, 3)}
"""The same of the quick form, whose images are small."""

SMALL = {"network.widths": (24, 16), "training.epochs": 1}
"""Settings of the smoke test."""


def compared(
    recipes: list[str], folder: Path, seeds: int, settings: dict[str, Any], pflop: float | None
) -> ow.Comparison:
    """Return a comparison, and print it."""
    console = Console(width=160)
    found = ow.compare(
        recipes,
        folder=folder,
        seeds=seeds,
        settings=settings,
        pflop=pflop,
        listener=Bars(Console(stderr=True)),
    )
    console.print(table(found))
    for text in (*remarks(found), *found.errors):
        console.print(text, highlight=False)
    return found


def accuracies(found: ow.Comparison) -> dict[str, float | None]:
    """Return the mean accuracy of each recipe."""
    each = {entry.name: entry.spread("accuracy") for entry in found.entries}
    return {name: spread and round(spread.mean, 4) for name, spread in each.items()}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", choices=("mnist", "cifar10"), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    form = common.form_of(options)
    settings: dict[str, Any]
    if form != "full":
        recipes, settings, pflop = IMAGES, QUICK, QUICK_PFLOP
        if form == "smoke":
            recipes, settings, pflop = ["one-pass", "pff"], SMALL, None
        with tempfile.TemporaryDirectory() as folder:
            found = compared(recipes, Path(folder), 1, settings, pflop)
        common.last_line(accuracies(found), form)
        return
    figures: dict[str, Any] = {}
    for name in options.data or ("mnist", "cifar10"):
        common.need(name, options.data_dir)
        settings = LAYERS | {"data.name": name, "data.dir": options.data_dir}
        found = compared(IMAGES, options.runs / name, options.seeds, settings, PFLOP)
        told = found.to_json()
        for entry in told["entries"]:
            # Where things lie says nothing of a figure.
            entry["settings"]["data.dir"] = None
            for run in entry["runs"]:
                run["folder"] = Path(run["folder"]).name
        common.record(options.out / f"methods-{name}.json", told)
        draw_comparison(found, options.out / f"methods-{name}.png")
        figures |= {f"{name}, {each}": value for each, value in accuracies(found).items()}
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
