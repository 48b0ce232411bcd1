"""Published graphs: converted to plain arrays, and learned."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from test_graphs import trained

import onward as ow
from onward.errors import DataError

pytest.importorskip("torch_geometric")

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "convert_graphs.py"


def convert(folder, out):
    command = [sys.executable, str(SCRIPT), str(folder), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


def test_pickles_of_anything_else_are_not_read():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from convert_graphs import unpickled
    finally:
        sys.path.pop(0)

    with pytest.raises(pickle.UnpicklingError, match=r"names posix.system|names os.system"):
        unpickled(b"cos\nsystem\n(S'true'\ntR.")
    assert unpickled(pickle.dumps([1, {"a": 2}], 2)) == [1, {"a": 2}]


def test_published_graphs_are_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.delenv("ONWARD_DATA", raising=False)

    with pytest.raises(DataError, match=r"some of them pickles.*DIR/graphs/planetoid-cora.npz"):
        ow.load_data("planetoid-cora", data_dir=tmp_path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    if not (Path(os.environ.get("ONWARD_DATA", "")) / "planetoid").is_dir():
        pytest.skip("ONWARD_DATA names no folder with planetoid/")
    folder = tmp_path_factory.mktemp("graphs")
    assert convert(os.environ["ONWARD_DATA"], folder).returncode == 0
    return folder


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "train"),
    [
        ("planetoid-cora", 2708, 10556, 140),
        ("planetoid-citeseer", 3327, 9104, 120),
        ("citeseer-full", 4230, 10674, 2707),
        ("amazon-photo", 7650, 238162, 4896),
    ],
)
def test_published_graphs_are_as_large_as_published(converted, name, nodes, edges, train):
    dataset = ow.load_data(name, data_dir=converted)

    assert len(dataset.training) == nodes
    assert dataset.training.structure["edge_index"].shape[1] == edges
    assert dataset.training.num_counted == train


def test_a_published_graph_is_learned(converted):
    dataset = ow.load_data("citeseer-full", data_dir=converted)

    result = trained(
        "forwardgnn-sf",
        dataset,
        **{"network.widths": (128,), "training.epochs": 40, "optimizer.lr": 0.01},
    )

    # The paper has 92.6 for one layer.
    assert result.accuracy > 0.9


def test_a_graph_as_pytorch_geometric_downloads_it_is_converted(tmp_path):
    links = scipy.sparse.csr_matrix(([1.0, 1.0], ([0, 2], [1, 2])), shape=(3, 3))
    features = scipy.sparse.csr_matrix([[0.5, 0.0], [0.0, 2.0], [0.1, 0.1]])
    members = {"labels": np.array([0, 1, 1])}
    for name, matrix in (("adj", links), ("attr", features)):
        parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
        members |= {f"{name}_{part}": array for part, array in parts.items()}
        members[f"{name}_shape"] = np.array(matrix.shape)
    (tmp_path / "graphs").mkdir()
    np.savez(tmp_path / "graphs" / "cora_ml.npz", **members)

    assert convert(tmp_path, tmp_path / "out").returncode == 0

    found = np.load(tmp_path / "out" / "graphs" / "cora-ml.npz")
    assert found["edge_index"].tolist() == [[0, 1], [1, 0]]
    assert found["x_data"].tolist() == [1, 1, 1, 1]
    assert found["y"].tolist() == [0, 1, 1]


def test_a_folder_without_graphs_is_refused(tmp_path):
    done = convert(tmp_path, tmp_path / "out")

    assert done.returncode == 1
    assert "has none of these files" in done.stderr
