"""How close do methods come to what their papers state?

    python benchmarks/papers.py --data-dir DIR                         all cases: days of one core
    python benchmarks/papers.py --data-dir DIR --cases "mnist, uff, gan"    one case
    python benchmarks/papers.py --quick                                digits, one case, seconds

The settings of each case are the recipe's own but for what CASES names. Training samples, seeds,
what is counted, and how a run that was cut goes on, are as in vision.py.
"""

from typing import Any

import common
import vision
from vision import Case

MNIST_EPOCHS, FEWER_EPOCHS = 100, 30
NEGATIVES: dict[str, dict[str, Any]] = {
    "adaptive, goodness": {},
    "random, goodness": {"network.negatives": "random"},
    "fixed, goodness": {"network.negatives": "fixed"},
    "adaptive, softmax": {"network.readout": "softmax"},
    "random, softmax": {"network.negatives": "random", "network.readout": "softmax"},
    "fixed, softmax": {"network.negatives": "fixed", "network.readout": "softmax"},
}
"""What PFF compares, and what is changed for it."""

OPTIMIZED = {"network.widths": (2000,) * 4}
CELLS = ("autoencoder", "denoising", "convolutional", "gan")


def pff(data: str, epochs: int, seeds: int) -> dict[str, Case]:
    """Return the cases of PFF, by name."""
    length = {"training.epochs": epochs}
    found = {
        f"{data}, pff, {name}, {epochs} epochs": Case(data, "pff", changes | length, seeds)
        for name, changes in NEGATIVES.items()
    }
    for heads in ("all", "last"):
        changes = OPTIMIZED | {"network.heads": heads} | length
        name = f"{data}, optimized, {heads}, {epochs} epochs"
        found[name] = Case(data, "one-pass", changes, seeds)
    return found


LOCAL = {"network.layers": "local-fields"}
CASES = {
    "mnist, unsupervised, dense": Case("mnist", "hinton-unsupervised", {}),
    "mnist, unsupervised, local fields": Case("mnist", "hinton-unsupervised", LOCAL),
    "mnist, recurrent": Case("mnist", "hinton-recurrent", {}, 1),
    "mnist, hinton, shifts": Case("mnist", "hinton", {"data.shift": 2, "training.epochs": 100}, 1),
    **pff("mnist", MNIST_EPOCHS, 1),
    **pff("mnist", FEWER_EPOCHS, 3),
    **pff("cifar10", FEWER_EPOCHS, 1),
    **{
        f"{data}, uff, {cell}": Case(data, "uff", {"network.cell": cell})
        for data in ("mnist", "cifar10")
        for cell in CELLS
    },
    "mnist, ffcl": Case("mnist", "ffcl", {}),
    "mnist, ffcl, classes alone": Case(
        "mnist", "ffcl", {"network.local_epochs": 0, "network.global_epochs": 0}
    ),
    "mnist, iffcl": Case("mnist", "iffcl", {}),
    "mnist, symba": Case("mnist", "symba", {}),
    "mnist, mono-forward": Case("mnist", "mono-forward", {}),
    "cifar10, mono-forward": Case("cifar10", "mono-forward", {"network.widths": (2000,) * 3}),
    "mnist, supcon": Case("mnist", "supcon", {}),
    "mnist, tinyfoa": Case("mnist", "tinyfoa", {}),
    "mnist, tinyfoa, real": Case("mnist", "tinyfoa", {"network.binary": False}),
}
"""All cases by name."""

SMALL = Case("digits", "hinton-unsupervised", {"network.widths": (100, 100)}, 1)
"""That of the quick form."""


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cases", help="names with semicolons between them (default: all)")
    parser.add_argument("--seeds", help="seeds with commas between them (default: as in CASES)")
    options = parser.parse_args()
    form = common.form_of(options)
    if form != "full":
        found = vision.trained(SMALL, 0, None, 1 if form == "smoke" else 20)
        print(vision.told("digits", [found]), flush=True)
        common.last_line({key: found[key] for key in ("accuracy", "pflop")}, form)
        return
    common.last_line(vision.measured(CASES, options, "papers"), form)


if __name__ == "__main__":
    main()
