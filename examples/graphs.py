"""Classify the nodes of a graph, layer by layer, and beside backpropagation.

    python examples/graphs.py

The nodes are handwritten digits, and each has edges to the five that are most like it. Of one in
ten the class is known. Layers learn one after the other, each from the whole graph, and stop when
they get no better on validation nodes. Needs PyTorch Geometric: pip install ".[graph]".
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph

import onward as ow


def main() -> None:
    x, y = load_digits(return_X_y=True)
    edges = np.stack(kneighbors_graph(x, 5).nonzero())
    order = np.random.default_rng(0).permutation(len(x))
    dataset = ow.graph(
        x / 16,
        edges,
        y,
        train=order[:180],
        validation=order[180:360],
        test=order[360:],
        undirected=True,
        name="digits",
    )
    for recipe in ("forwardgnn-sf", "gnn-backprop"):
        config = ow.RunConfig(recipe=recipe).with_settings(
            {"network.widths": (64, 64), "optimizer.lr": 0.01, "training.epochs": 200}
        )
        result = ow.run(config, dataset=dataset)
        assert result is not None
        each = ", ".join(f"{share:.1%}" for share in result.per_block)
        print(f"{recipe}: {result.accuracy:.1%} of {result.test.samples} nodes; blocks {each}")


if __name__ == "__main__":
    main()
