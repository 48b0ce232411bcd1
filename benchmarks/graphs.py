"""How well are nodes of graphs classified and links found, beside ForwardGNN's paper?

    python benchmarks/graphs.py --data-dir DIR                        all cases: hours of one core
    python benchmarks/graphs.py --data-dir DIR --cases "citeseer-full, sf"
    python benchmarks/graphs.py --quick                               a made-up graph, one split

DIR/graphs holds the files that convert_graphs.py writes. Four GCN layers of 128 units on the five
splits of the paper (64 % of the nodes to learn from, 16 % for validation, 20 % for the test); one
run gives the accuracy at depths 1 to 4, as in the paper. Where layers learn together, networks of
each depth are trained. Links have splits of our own, with the paper's shares, and figures are areas
under the ROC curve in place of accuracies. FF shows known labels in its test: those of training
nodes, as all others; and those of validation nodes too, as in the paper. Test nodes and links are
looked at once a run. The last line gives the mean figure at each depth, by case; every split goes
to --out.
"""

import json
import statistics
from dataclasses import replace
from typing import Any

import common
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import onward as ow
from onward.recipes.graph_worlds import shares_of_sum

DEPTHS = 4
SPLITS = 5

STOPPED = {"plan.block_patience": 100}
"""As in the paper: a layer stops after 100 validations without a better one."""

LINKS = {"data.links": True, "plan.monitor": "roc-auc"}

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sf": ("forwardgnn-sf", {}),
    "sf, both ways": ("forwardgnn-sf", {"network.direction": "both"}),
    "ff, labels in features": ("forwardgnn-ff", {}),
    "sf, top to input": ("forwardgnn-top-to-input", {}),
    "sf, top to loss": ("forwardgnn-top-to-loss", {}),
    "backprop": ("gnn-backprop", {}),
    "backprop, any length": ("gnn-backprop", {"network.unit_length": False}),
    "links, cross-entropy": ("forwardgnn-links", {}),
    "links, goodness": ("forwardgnn-links", {"network.loss": "goodness"}),
    "links, cross-entropy, stopped early": ("forwardgnn-links", STOPPED),
    "links, goodness, stopped early": (
        "forwardgnn-links",
        STOPPED | {"network.loss": "goodness"},
    ),
    "links, top to input": ("forwardgnn-links-top-to-input", {}),
    "links, backprop": ("gnn-backprop", LINKS),
    "links, backprop, any length": ("gnn-backprop", LINKS | {"network.unit_length": False}),
}
"""Recipes and what is changed in them."""

IN_TURN = ("forwardgnn-sf", "forwardgnn-ff", "forwardgnn-links")
"""Recipes whose layers learn one after the other, so that one run holds all depths."""

DATA = ("citeseer-full", "amazon-photo")

CASES = {f"{data}, {method}": (data, method) for data in DATA for method in METHODS}

PAPER = {
    "citeseer-full, sf, both ways": "92.60 ± 0.7, 94.18 ± 0.7, 94.33 ± 0.7, 94.66 ± 0.6",
    "citeseer-full, ff, labels in features": "95.39 ± 0.4, 95.86 ± 0.7, 95.89 ± 0.6, 95.89 ± 0.6",
    "citeseer-full, sf, top to input": "94.30 ± 0.4, 94.78 ± 0.2, 94.87 ± 0.5, 94.96 ± 0.7",
    "citeseer-full, sf, top to loss": "92.62 ± 0.4, 94.11 ± 0.5, 94.56 ± 0.5, 94.02 ± 0.7",
    "citeseer-full, links, cross-entropy": ("89.32 ± 2.4, 93.61 ± 1.0, 93.49 ± 0.9, 93.61 ± 1.0"),
    "citeseer-full, links, goodness": ("85.11 ± 0.7, 91.94 ± 0.5, 91.95 ± 0.5, 91.94 ± 0.5"),
    "citeseer-full, links, top to input": "92.15 ± 0.6, 88.39 ± 1.1, 88.47 ± 0.7, 88.06 ± 0.6",
    "citeseer-full, links, backprop, any length": (
        "90.00 ± 0.6, 84.31 ± 0.6, 80.93 ± 1.0, 80.05 ± 0.9"
    ),
    "citeseer-full, backprop, any length": "84.28 ± 3.0, 94.28 ± 0.7, 94.89 ± 0.8, 94.87 ± 0.5",
    "amazon-photo, sf, both ways": "93.67 ± 0.6, 93.73 ± 0.4, 93.48 ± 0.2, 93.48 ± 0.3",
    "amazon-photo, ff, labels in features": "91.20 ± 1.0, 48.54 ± 10.4, 48.08 ± 10.5, 49.74 ± 10.5",
    "amazon-photo, sf, top to input": "93.19 ± 0.6, 92.88 ± 0.7, 92.16 ± 0.7, 92.30 ± 0.6",
    "amazon-photo, sf, top to loss": "93.76 ± 0.5, 83.18 ± 3.8, 60.43 ± 6.9, 47.40 ± 2.9",
    "amazon-photo, links, cross-entropy": "93.84 ± 0.2, 95.49 ± 0.2, 95.38 ± 0.2, 95.49 ± 0.2",
    "amazon-photo, links, goodness": "96.18 ± 0.2, 96.16 ± 0.2, 96.17 ± 0.2, 96.16 ± 0.2",
    "amazon-photo, links, top to input": "97.13 ± 0.1, 96.81 ± 0.3, 96.32 ± 0.6, 95.84 ± 0.7",
    "amazon-photo, links, backprop, any length": (
        "82.41 ± 0.3, 81.38 ± 0.3, 88.69 ± 0.1, 89.47 ± 0.2"
    ),
    "amazon-photo, backprop, any length": "45.83 ± 0.4, 64.88 ± 16.1, 91.03 ± 1.3, 90.21 ± 2.2",
}
"""What the paper has at depths 1 to 4, in percent (tables 3 to 5, 9 to 11)."""


def loaded(data: str, number: int, data_dir: str | None, *, links: bool) -> ow.Dataset:
    """Return a split of a graph, whose features are shares of their sum, as in the paper.

    Where layers read vectors of length 1, this changes nothing.
    """
    dataset = ow.load_data(data, data_dir=data_dir, split_seed=number, links=links)

    def changed(batch: ow.Batch) -> ow.Batch:
        if links:
            shares = shares_of_sum(batch.structure["x"])
            return batch.replace(structure={**batch.structure, "x": shares})
        return batch.replace(inputs=shares_of_sum(batch.tensor))

    assert dataset.validation is not None
    return replace(
        dataset,
        training=changed(dataset.training),
        validation=changed(dataset.validation),
        test=changed(dataset.test),
    )


def made_up() -> ow.Dataset:
    """Return a graph for the quick form."""
    draw = np.random.default_rng(0)
    y = np.arange(120) % 3
    alike = [draw.choice(np.flatnonzero(y == c), (2, 60)) for c in range(3)]
    order = draw.permutation(120)
    return ow.graph(
        np.eye(3)[y] + draw.normal(size=(120, 3)),
        np.concatenate(alike, axis=1),
        y,
        train=order[:60],
        validation=order[60:80],
        test=order[80:],
        undirected=True,
    )


def trained(method: str, dataset: ow.Dataset, seed: int, depth: int, **more: Any) -> ow.Result:
    """Return what comes of a run."""
    recipe, changes = METHODS[method]
    settings = {"network.widths": (128,) * depth, "training.seed": seed} | changes | more
    result = ow.run(
        ow.RunConfig(recipe=recipe).with_settings(settings), ow.Listener(), dataset=dataset
    )
    assert result is not None
    return result


def by_depth(network: ow.Network, test: ow.Batch) -> list[float]:
    """Return the figure at each depth of a network whose layers have learned in turn."""
    total, found = torch.zeros(()), []
    for scores in network.scores_of(test).blocks:
        total = total + scores
        found.append(figure(total, test))
    return found


def figure(scores: torch.Tensor, test: ow.Batch) -> float:
    """Return the accuracy of nodes, or of links the area under the ROC curve."""
    if test.index is None:
        return float(roc_auc_score(test.label, scores[:, 1] - scores[:, 0]))
    return (scores.argmax(dim=1) == test.label)[test.index].double().mean().item()


def with_validation_labels(dataset: ow.Dataset) -> ow.Batch:
    """Return the test nodes, where the labels of validation nodes are known as well."""
    test, validation = dataset.test, dataset.validation
    assert validation is not None
    more = validation.index
    assert more is not None
    known = torch.cat([test.structure["known"], more])
    labels = torch.cat([test.structure["known_label"], validation.label[more]])
    return test.replace(structure={**test.structure, "known": known, "known_label": labels})


def split(method: str, dataset: ow.Dataset, number: int, **more: Any) -> dict[str, Any]:
    """Return the figure at each depth on a split, and the seconds of all its runs."""
    recipe = METHODS[method][0]
    if recipe in IN_TURN:
        result = trained(method, dataset, number, DEPTHS, **more)
        found = {"figures": by_depth(result.network, dataset.test)}
        if recipe == "forwardgnn-ff":
            # As in the paper, for this method alone.
            found["as in the paper"] = by_depth(result.network, with_validation_labels(dataset))
        return {**found, "seconds": round(result.facts["seconds"], 1)}
    each = [trained(method, dataset, number, depth, **more) for depth in range(1, DEPTHS + 1)]
    scores = [result.network.scores_of(dataset.test).network for result in each]
    return {
        "figures": [figure(own, dataset.test) for own in scores],
        "seconds": round(sum(result.facts["seconds"] for result in each), 1),
    }


def told(name: str, splits: list[dict[str, Any]]) -> str:
    """Return the figures of a case in a line."""
    seconds = sum(found["seconds"] for found in splits) / len(splits)
    text = f"{name}: {spread(splits, 'figures')} % (n={len(splits)}), {seconds:.0f} s a split"
    if "as in the paper" in splits[0]:
        text += f"; with validation labels shown {spread(splits, 'as in the paper')}"
    known = PAPER.get(name.removesuffix(", stopped early"))
    return text + (f"; paper {known}" if known else "")


def spread(splits: list[dict[str, Any]], what: str) -> str:
    """Return mean and population standard deviation of a figure at each depth, in percent."""
    cells = []
    for each in zip(*(found[what] for found in splits), strict=True):
        shares = [100 * share for share in each]
        deviation = f" ± {statistics.pstdev(shares):.2f}" if len(shares) > 1 else ""
        cells.append(f"{statistics.mean(shares):.2f}{deviation}")
    return ", ".join(cells)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cases", help="names with semicolons between them (default: all)")
    parser.add_argument("--splits", type=int, default=SPLITS, help="how many (default: 5)")
    options = parser.parse_args()
    form = common.form_of(options)
    torch.set_num_threads(1)
    if form != "full":
        epochs = {"training.epochs": 4 if form == "smoke" else 100}
        found = {name: split(name, made_up(), 0, **epochs) for name in ("sf", "backprop")}
        for name, each in found.items():
            print(told(name, [each]), flush=True)
        common.last_line({name: each["figures"] for name, each in found.items()}, form)
        return
    figures = {}
    for name in options.cases.split(";") if options.cases else CASES:
        data, method = CASES[name.strip()]
        splits = []
        for number in range(options.splits):
            words = f"graphs-{name.strip()}-{number}".replace(", ", "-").replace(" ", "-")
            path = options.out / f"{words}.json"
            if not path.is_file():
                is_links = method.startswith("links")
                dataset = loaded(data, number, options.data_dir, links=is_links)
                common.record(path, split(method, dataset, number))
            splits.append(json.loads(path.read_text()))
        print(told(name.strip(), splits), flush=True)
        columns = zip(*(each["figures"] for each in splits), strict=True)
        figures[name.strip()] = [round(statistics.mean(each), 4) for each in columns]
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
