"""Make plain arrays of published graphs, for `onward train --data NAME`.

    python benchmarks/convert_graphs.py DIR OUT

Reads what there is in DIR of planetoid/ind.cora.*, planetoid/ind.citeseer.* (Yang et al. 2016);
graphs/citeseer_full.npz, cora_ml.npz, pubmed.npz (Bojchevski & Guennemann 2018) and
amazon_photo.npz (Shchur et al. 2018), or these under the names that PyTorch Geometric gives them;
and writes OUT/graphs/planetoid-cora.npz and so on. Name OUT by --data-dir or ONWARD_DATA. As in
PyTorch Geometric, features of graphs from .npz files are 1 where they are above 0.

Some of these files hold pickles, which can run code. They are read by an unpickler that makes numpy
arrays, scipy matrices, lists and dictionaries, and refuses anything else.
"""

import argparse
import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("scipy.sparse.csr", "csr_matrix"),
    ("__builtin__", "list"),
    ("collections", "defaultdict"),
}
"""What these files name."""

FILES = {
    "citeseer-full": ("citeseer_full.npz", "citeseer.npz"),
    "cora-ml": ("cora_ml.npz",),
    "pubmed-full": ("pubmed.npz",),
    "amazon-photo": ("amazon_photo.npz", "amazon_electronics_photo.npz"),
}
"""Graphs in .npz files, and what these are called."""

VALIDATION = 500
"""Nodes for validation of the public splits, after those to learn from."""


class Unpickler(pickle.Unpickler):
    """Makes what these files hold, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that is allowed.

        Raises:
            UnpicklingError: It is not.
        """
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"This file names {module}.{name}, which is not allowed.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return super().find_class(module, name)


def unpickled(data: bytes) -> Any:
    """Return what a file of Python 2 holds."""
    return Unpickler(io.BytesIO(data), encoding="latin1").load()


def planetoid(folder: Path, name: str) -> dict[str, Any]:
    """Return features, edges, classes and the public split of Cora or CiteSeer."""
    tx, allx, y, ty, ally, neighbors = (
        unpickled((folder / f"ind.{name}.{part}").read_bytes())
        for part in ("tx", "allx", "y", "ty", "ally", "graph")
    )
    test = np.loadtxt(folder / f"ind.{name}.test.index", dtype=np.int64)
    nodes = max(allx.shape[0], test.max() + 1)
    features = scipy.sparse.lil_matrix((nodes, allx.shape[1]), dtype=np.float32)
    features[: allx.shape[0]] = allx
    features[test] = tx
    label = np.zeros((nodes, y.shape[1]))
    label[: len(ally)], label[test] = ally, ty
    edges = np.array([(a, b) for a, others in neighbors.items() for b in others]).T
    sets = {
        "train": np.arange(len(y)),
        "validation": np.arange(len(y), len(y) + VALIDATION),
        "test": np.sort(test),
    }
    return arrays(features, edges, label.argmax(axis=1)) | sets


def published(path: Path) -> dict[str, Any]:
    """Return features, edges and classes of a graph in an .npz file."""
    with np.load(path) as plain:
        if "adj_data" in plain:
            adjacency, features = (matrix(plain, name) for name in ("adj", "attr"))
            label = plain["labels"]
        else:
            with zipfile.ZipFile(path) as file:
                adjacency, features = (
                    member(file.read(f"{name}.npy")).item() for name in ("adj_matrix", "node_attr")
                )
            label = plain["node_label"]
    return arrays(features > 0, np.stack(adjacency.nonzero()), label)


def matrix(plain: Mapping[str, Any], name: str) -> Any:
    """Return a sparse matrix that is kept as plain arrays."""
    parts = tuple(plain[f"{name}_{part}"] for part in ("data", "indices", "indptr"))
    return scipy.sparse.csr_matrix(parts, shape=tuple(plain[f"{name}_shape"]))


def member(data: bytes) -> Any:
    """Return an array of Python objects."""
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return Unpickler(file, encoding="latin1").load()


def arrays(features: Any, edges: Any, label: Any) -> dict[str, Any]:
    """Return plain arrays: edges both ways, once each, and no loops."""
    edges = edges[:, edges[0] != edges[1]]
    edges = np.unique(np.concatenate([edges, edges[::-1]], axis=1), axis=1)
    x = scipy.sparse.csr_array(features.astype(np.float32))
    return {
        "x_data": x.data,
        "x_indices": x.indices.astype(np.int32),
        "x_indptr": x.indptr.astype(np.int64),
        "x_shape": np.array(x.shape),
        "edge_index": edges.astype(np.int32),
        "y": label.astype(np.int64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in ("cora", "citeseer"):
        if (options.folder / "planetoid" / f"ind.{name}.graph").is_file():
            found[f"planetoid-{name}"] = planetoid(options.folder / "planetoid", name)
    for name, files in FILES.items():
        for path in (options.folder / "graphs" / file for file in files):
            if path.is_file():
                found[name] = published(path)
    if not found:
        raise SystemExit(
            f"{options.folder} has none of these files: planetoid/ind.cora.*, "
            f"planetoid/ind.citeseer.*, "
            + ", ".join(f"graphs/{file}" for files in FILES.values() for file in files)
        )
    (options.out / "graphs").mkdir(parents=True, exist_ok=True)
    for name, members in found.items():
        path = options.out / "graphs" / f"{name}.npz"
        np.savez_compressed(path, **members)
        nodes, edges = len(members["y"]), members["edge_index"].shape[1]
        print(f"{path}: {nodes:,} nodes, {edges:,} edges")


if __name__ == "__main__":
    main()
