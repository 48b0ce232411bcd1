"""How close do methods come to what their papers state?

    python benchmarks/papers.py --data-dir DIR                         all cases: days of one core
    python benchmarks/papers.py --data-dir DIR --cases "mnist, uff, gan"    one case
    python benchmarks/papers.py --quick                                digits, one case, seconds

The settings of each case are the recipe's own but for what CASES names. Training samples (all,
where CASES neither holds some out for a curve nor names a number), seeds, what is counted, and how
a run that was cut goes on, are as in vision.py.
"""

from pathlib import Path
from typing import Any, get_args

import common
import vision
from vision import Case

from onward.settings import Negatives

MNIST_EPOCHS, FEWER_EPOCHS = 100, 30
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "adaptive, goodness": {},
    "adaptive, softmax": {"network.readout": "softmax"},
    "random": {"network.negatives": "random", "network.readout": "softmax"},
    "fixed": {"network.negatives": "fixed", "network.readout": "softmax"},
}
"""What PFF compares. Blocks that need no hints learn the same with either classifier, so that one
run measures both: figures of both are in `readouts`."""

OPTIMIZED = {"network.widths": (2000,) * 4}
LONG: dict[str, Any] = {"optimizer.lr": 1e-4}
"""What wide blocks of PFF need in long training (docs/log.md, 2026-11-29)."""

FAST: dict[str, Any] = {"optimizer.lr": 1e-3}
"""The default rate of PFF when small networks were measured."""

SHORT = FAST | {"network.widths": (500,) * 4, "training.epochs": 15}
CELLS = ("autoencoder", "denoising", "convolutional", "gan")


def pff(data: str, epochs: int, seeds: int) -> dict[str, Case]:
    """Return the cases of PFF, by name."""
    length = {"training.epochs": epochs}
    found = {
        f"{data}, pff, {name}, {epochs} epochs": Case(data, "pff", changes | LONG | length, seeds)
        for name, changes in CLASSIFIERS.items()
    }
    # The last head alone is the last figure of `per_block`.
    found[f"{data}, optimized, {epochs} epochs"] = Case(data, "one-pass", OPTIMIZED | length, seeds)
    return found


def negatives(data: str, seeds: int) -> dict[str, Case]:
    """Return small networks of PFF with each way to choose wrong labels, by name."""
    return {
        f"{data}, negatives, {kind}": Case(data, "pff", SHORT | {"network.negatives": kind}, seeds)
        for kind in get_args(Negatives)
    }


PLAIN: dict[str, Any] = {"data.standardize": "none"}
WEAK: dict[str, Any] = {"network.label_strength": 1.0}
PRINTED: dict[str, Any] = {"network.threshold": 20.0, "network.slope": 1.0, "optimizer.lr": 0.01}
NEAR_CHANCE = {
    "not standardized": PLAIN,
    "weak label": WEAK,
    "not standardized, weak label": PLAIN | WEAK,
    "not standardized, weak label, printed": PLAIN | WEAK | PRINTED,
    "printed": PRINTED,
}
"""What may have left PFF's adaptive negatives at chance on CIFAR-10: pixels as they are, labels no
larger than a pixel, threshold and learning rate as printed."""


def near_chance() -> dict[str, Case]:
    """Return small networks of PFF with adaptive and with random negatives, by name."""
    found = {
        f"cifar10, {kind}, {name}": Case(
            "cifar10", "pff", SHORT | changes | {"network.negatives": kind}, 1
        )
        for name, changes in NEAR_CHANCE.items()
        for kind in ("adaptive", "random")
    }
    for data in ("mnist", "cifar10"):
        young = SHORT | {"plan.hint_age": 1}
        found[f"{data}, adaptive, hints of the chapter before"] = Case(data, "pff", young, 1)
    for kind in ("adaptive", "random"):
        changes = SHORT | PRINTED | {"network.negatives": kind}
        found[f"mnist, {kind}, printed"] = Case("mnist", "pff", changes, 1)
    return found


ALONE = {"network.local_epochs": 0, "network.global_epochs": 0}
EPOCHS: dict[float | None, dict[str, Any]] = {
    0.01: {"training.epochs": 50},
    0.1: {"training.epochs": 10},
    None: {},
}
"""Epochs of each stage of FFCL, by the share of the labels."""

CURVE = {"data.validation": 3000, "plan.validate_every": 4}
"""What draws a curve: validation samples, and how often they are asked."""

LOCAL = {"network.layers": "local-fields"}

SHARP: dict[str, Any] = {"network.slope": 20.0, "optimizer.lr": 3e-4, "training.epochs": 4}
"""With what `hinton-recurrent` learns CIFAR-10 soonest, see docs/log.md."""

FEW = {0.01: 200, 0.1: 40}
"""Epochs over the samples with labels, by their share."""


def few_labels(share: float) -> dict[str, Case]:
    """Return recipes that learn classes from a share of the labels, by name.

    The blocks of the first two learn from all training samples, the last has only those.
    """
    epochs, end = FEW[share], f"{share:.0%} of the labels"
    head = {"data.labelled": share, "network.head_epochs": epochs}
    cells = head | {"network.cell": "convolutional"}
    return {
        f"mnist, uff, convolutional, {end}": Case("mnist", "uff", cells),
        f"mnist, unsupervised, local fields, {end}": Case(
            "mnist", "hinton-unsupervised", LOCAL | head
        ),
        f"mnist, conv, {end}": Case(
            "mnist", "conv", {"data.labelled": share, "training.epochs": epochs}
        ),
    }


CASES = {
    "mnist, unsupervised, dense": Case("mnist", "hinton-unsupervised", {}),
    "mnist, unsupervised, local fields": Case("mnist", "hinton-unsupervised", LOCAL),
    "mnist, recurrent": Case("mnist", "hinton-recurrent", CURVE, 1),
    "cifar10, recurrent, local fields": Case("cifar10", "hinton-recurrent", LOCAL | SHARP, 1, 5000),
    "mnist, hinton, shifts": Case("mnist", "hinton", {"data.shift": 2, "training.epochs": 100}, 1),
    **pff("mnist", MNIST_EPOCHS, 1),
    **pff("mnist", FEWER_EPOCHS, 3),
    **pff("cifar10", FEWER_EPOCHS, 1),
    f"cifar10, pff, gradual, goodness, {FEWER_EPOCHS} epochs": Case(
        "cifar10",
        "pff",
        LONG | {"network.negatives": "gradual", "training.epochs": FEWER_EPOCHS},
        1,
    ),
    "mnist, pff, slope 100": Case(
        "mnist",
        "pff",
        CLASSIFIERS["random"] | FAST | {"training.epochs": FEWER_EPOCHS, "network.slope": 100.0},
        1,
    ),
    **{
        f"{data}, pff, {name}, {epochs} epochs, 1e-3": Case(
            data, "pff", CLASSIFIERS[name] | FAST | {"training.epochs": epochs}, 1
        )
        for data, name, epochs in (
            ("mnist", "random", MNIST_EPOCHS),
            ("cifar10", "random", FEWER_EPOCHS),
            ("cifar10", "adaptive, goodness", FEWER_EPOCHS),
        )
    },
    **negatives("mnist", 3),
    **negatives("cifar10", 1),
    **near_chance(),
    **{
        f"{data}, uff, {cell}": Case(data, "uff", {"network.cell": cell})
        for data in ("mnist", "cifar10")
        for cell in CELLS
    },
    **{
        f"mnist, ffcl, {share or 1:.0%} of the labels, {name}": Case(
            "mnist", "ffcl", changes | {"data.labelled": share} | EPOCHS[share]
        )
        for share in (0.01, 0.1, None)
        for name, changes in (("three stages", {}), ("classes alone", ALONE))
    },
    **few_labels(0.01),
    **few_labels(0.1),
    "mnist, iffcl": Case("mnist", "iffcl", {}),
    "mnist, iffcl, classifier": Case("mnist", "iffcl", {"network.loss": "classifier"}),
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
    parser.add_argument("--runs", type=Path, default=Path("runs/papers"))
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
