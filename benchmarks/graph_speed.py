"""What does an epoch on a graph take, layer by layer and by backpropagation?

    python benchmarks/graph_speed.py --data-dir DIR     Amazon Photo, 5 rounds, about 10 minutes
    python benchmarks/graph_speed.py --quick            a made-up graph

Four GCN layers of 128 units, one thread. An epoch of forwardgnn-sf is one of each of its four
layers; what they aggregate is computed once and kept, and that is counted. Beside it
backpropagation through the same layers: the recipe gnn-backprop, and plain loops with PyTorch
Geometric, whose layers keep the weights of the edges (cached=True); one gives them the edges as
edge_index, the other as a sparse tensor. Each runs in a process of its
own, in turn, without validations; figures are processor seconds, so that others on the machine
matter less, and peak memory less that of a process that has the data and PyTorch Geometric alone.
The last line has seconds an epoch and ratios of the rounds (medians), and megabytes.
"""

import json
import statistics
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from typing import Any

import common
import torch
import torch.nn.functional as F
from graphs import DEPTHS, made_up
from torch import Tensor, nn

import onward as ow
from onward.costs.memory import peak

UNITS = 128
LR, DECAY = 1e-3, 5e-4

METHODS = {
    "sf": "forwardgnn-sf",
    "backprop": "gnn-backprop",
    "plain": None,
    "plain_sparse": None,
    "nothing": None,
}
"""Methods by name, with the recipe of each that is one of ours."""

OTHERS = ("backprop", "plain", "plain_sparse")
"""What is compared with sf."""


class Plain(nn.Module):
    """The same layers as those of gnn-backprop, as a user of PyTorch Geometric writes them."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        widths = (features, *[UNITS] * (DEPTHS - 1), classes)
        self.convs = nn.ModuleList(GCNConv(*pair, cached=True) for pair in pairwise(widths))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for number, conv in enumerate(self.convs):
            x = conv(F.normalize(x.relu() if number else x), edges)
        return x


def plain(dataset: ow.Dataset, epochs: int, *, is_sparse: bool) -> float:
    """Train by a plain loop; return its processor seconds."""
    from torch_geometric.utils import to_torch_csr_tensor

    batch = dataset.training
    model = Plain(batch.tensor.shape[1], dataset.num_classes)
    rule = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=DECAY)
    x, edges, label, index = batch.tensor, batch.structure["edge_index"], batch.label, batch.index
    begin = time.process_time()
    if is_sparse:
        edges = to_torch_csr_tensor(edges.flip(0), size=(len(x), len(x)))
    for _ in range(epochs):
        rule.zero_grad()
        F.cross_entropy(model(x, edges)[index], label[index]).backward()
        rule.step()
    return time.process_time() - begin


def measured(method: str, dataset: ow.Dataset, epochs: int) -> dict[str, float]:
    """Return processor seconds an epoch, and the peak memory of this process."""
    recipe, seconds = METHODS[method], 0.0
    if recipe is not None:
        settings = {
            "network.widths": (UNITS,) * DEPTHS,
            "training.epochs": epochs,
            "plan.block_patience": None,
        }
        config = ow.RunConfig(recipe=recipe).with_settings(settings)
        result = ow.run(config, ow.Listener(), dataset=dataset)
        assert result is not None
        facts = result.facts
        seconds = sum(facts["cpu_seconds"]) - sum(facts["validation_cpu_seconds"])
    elif method.startswith("plain"):
        seconds = plain(dataset, epochs, is_sparse=method == "plain_sparse")
    else:
        Plain(dataset.training.tensor.shape[1], dataset.num_classes)
    return {"seconds": seconds / epochs, "bytes": peak()}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--one", help="measure one method in this process")
    parser.add_argument("--rounds", type=int, default=5, help="of the full form")
    options = parser.parse_args()
    form = common.form_of(options)
    epochs = {"full": 40, "quick": 40, "smoke": 2}[form]
    torch.set_num_threads(1)
    if options.one:
        warnings.simplefilter("ignore")
        is_full = form == "full"
        dataset = ow.load_data("amazon-photo", data_dir=options.data_dir) if is_full else made_up()
        print(json.dumps(measured(options.one, dataset, epochs)))
        return
    given = [*([] if form == "full" else [f"--{form}"]), *_data(options.data_dir)]
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds if form == "full" else 1):
        found = {}
        for method in METHODS:
            command = [sys.executable, __file__, "--one", method, *given]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[method] = json.loads(done.stdout.splitlines()[-1])
        rounds.append(found)
        print(json.dumps(found), flush=True)

    def median(method: str, what: str) -> float:
        return statistics.median(found[method][what] for found in rounds)

    figures: dict[str, Any] = {}
    for method in ("sf", *OTHERS):
        figures[f"{method}_ms"] = round(1000 * median(method, "seconds"), 1)
        extra = median(method, "bytes") - median("nothing", "bytes")
        figures[f"{method}_mb"] = round(extra / 1e6)
    for method in OTHERS:
        ratios = [found[method]["seconds"] / found["sf"]["seconds"] for found in rounds]
        figures[f"{method}_times_sf"] = round(statistics.median(ratios), 2)
        figures[f"{method}_times_sf_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    if form == "full":
        common.record(options.out / "graph_speed.json", {"figures": figures, "rounds": rounds})
    common.last_line(figures, form)


def _data(folder: str | None) -> list[str]:
    return [] if folder is None else ["--data-dir", folder]


if __name__ == "__main__":
    main()
