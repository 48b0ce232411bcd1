"""How well are heart beats of new patients told apart?

    python benchmarks/ecg.py --data-dir DIR            three seeds: about ten minutes
    python benchmarks/ecg.py --data-dir DIR --quick    one seed, one epoch, under a minute

`conv` on MIT-BIH with intervals. It learns from all patients of DS1 and is tested on those of DS2,
as de Chazal et al. 2004 have assigned them. Figures, means over the seeds: error, and that of
always answering N; macro-F1 over N, S, V and F (of Q there are seven beats); of each class
sensitivity and positive predictivity.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np
from sklearn.metrics import precision_recall_fscore_support

import onward as ow

NAME = "mitbih-intervals"
CLASSES = "NSVFQ"
# Chosen on held-out patients of DS1.
SETTINGS: dict[str, Any] = {
    "network.channels": (16, 32, 32, 64),
    "network.pooled": (1, 2, 3, 4),
    "training.epochs": 2,
    "data.class_weights": 0.9,
}


def measured(changes: dict[str, Any], dataset: ow.Dataset) -> dict[str, Any]:
    """Train, and return the figures of the test samples."""
    result = ow.run(ow.RunConfig(recipe="conv").with_settings(SETTINGS | changes))
    assert result is not None
    named, true = result.network.predict(dataset.x_test).numpy(), dataset.y_test.numpy()
    predictivity, sensitivity, f1, beats = precision_recall_fscore_support(
        true, named, labels=range(len(CLASSES)), zero_division=0
    )
    return {
        "error": float((named != true).mean()),
        "macro_f1": float(f1[:4].mean()),
        "sensitivity": dict(zip(CLASSES, sensitivity.tolist(), strict=True)),
        "predictivity": dict(zip(CLASSES, predictivity.tolist(), strict=True)),
        "f1": dict(zip(CLASSES, f1.tolist(), strict=True)),
        "beats": dict(zip(CLASSES, beats.tolist(), strict=True)),
    }


def thinned(dataset: ow.Dataset, folder: Path) -> str:
    """Write every 50th beat to a file, and return its path."""
    path = folder / "beats.npz"
    every = slice(None, None, 50)
    training, test = (
        (dataset.x[every], dataset.y[every]),
        (dataset.x_test[every], dataset.y_test[every]),
    )
    np.savez(path, x=training[0], y=training[1], x_test=test[0], y_test=test[1], num_classes=5)
    return str(path)


def main() -> None:
    parser = common.parser(__doc__)
    options = parser.parse_args()
    form = common.form_of(options)
    changes: dict[str, Any] = {
        "data.name": NAME,
        "data.dir": options.data_dir,
        "data.validation": 0,
    }
    if form != "full":
        changes["training.epochs"] = 1
    found = []
    try:
        dataset = ow.load_data(NAME, data_dir=options.data_dir)
    except ow.DataError as error:
        common.skip(str(error))
    with tempfile.TemporaryDirectory() as folder:
        if form == "smoke":
            changes["data.name"] = thinned(dataset, Path(folder))
            dataset = ow.load_data(changes["data.name"])
        for seed in range(3 if form == "full" else 1):
            found.append(measured(changes | {"training.seed": seed}, dataset))
            print(f"seed {seed}: {found[-1]}", flush=True)
            if form == "full":
                common.record(options.out / f"ecg-{seed}.json", found[-1])
    figures = {name: [one[name] for one in found] for name in ("error", "macro_f1")}
    for kind in ("sensitivity", "predictivity"):
        figures |= {f"{kind} {c}": [one[kind][c] for one in found] for c in CLASSES}
    for name, values in figures.items():
        print(f"{name:14} {common.spread(values)}")
    means = {name: round(statistics.mean(values), 4) for name, values in figures.items()}
    always_n = float((dataset.y_test != 0).double().mean())
    common.last_line({**means, "error_of_always_n": round(always_n, 4)}, form)


if __name__ == "__main__":
    main()
