"""Graphs on the command line: recipes, one of the user's own, and what is done with their runs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import onward
from cuts import Cut, CutAfter
from test_graphs import arrays, config_of, graph

import onward as ow

pytest.importorskip("torch_geometric")

pytestmark = pytest.mark.usefixtures("unchecked_module")

OWN = """
from dataclasses import dataclass

import onward as ow
from torch import nn
from torch_geometric.nn import GINConv
from onward.recipes.class_nodes import ClassNodes, NearestClassNode
from onward.recipes.graph_layers import Convolution


@dataclass(frozen=True, kw_only=True)
class Settings:
    units: int = 16


@ow.recipe(source="GIN", defaults={"training.epochs": 30, "training.precision": "fp32"})
def gin(settings: Settings, data: ow.DataInfo) -> ow.Network:
    "Two layers of GIN."
    blocks = [
        ow.Block(
            Convolution(GINConv(nn.Linear(inputs, settings.units))),
            NearestClassNode(data.num_classes),
            ow.Adam(lr=0.01),
            structure=("edge_index",),
        )
        for inputs in (data.num_inputs, settings.units)
    ]
    sampler = ClassNodes(data.num_classes)
    return ow.Network(blocks, sampler, ow.SumOfHeads(), num_classes=data.num_classes)
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Work in a folder in which `own.npz` holds a graph."""
    monkeypatch.chdir(tmp_path)
    x, edges, y, sets = arrays()
    np.savez("own.npz", x=x, edge_index=edges, y=y, **sets)
    return ["--data", "own.npz"]


def test_a_convolution_of_pytorch_geometric_in_a_recipe_of_ones_own(data):
    Path("mine.py").write_text(OWN)

    assert onward("train", "mine.py:gin", *data, "--out", "run") == 0

    sys.modules.pop("onward_recipe_mine", None)
    assert json.loads(Path("run/result.json").read_text())["accuracy"]["test"] > 0.5


def test_a_run_is_planned_and_drawn(data, capsys):
    chapters = [*data, "--set", "network.widths=16,12", "--epochs", 4, "--chapters", 2]

    assert onward("plan", "forwardgnn-sf", *chapters, "--processes", 2) == 0
    assert "2 ranks" in " ".join(capsys.readouterr().out.split())
    assert onward("train", "forwardgnn-sf", *chapters, "--out", "run") == 0
    assert onward("trace", "run") == 0
    assert Path("run/trace.png").stat().st_size > 0


def test_a_run_that_was_cut_goes_on(tmp_path):
    config = config_of("forwardgnn-sf", **{"plan.chapters": 4, "plan.block_patience": None})
    expected = ow.run(config, dataset=graph())

    with pytest.raises(Cut):
        ow.run(config, CutAfter(3), dataset=graph(), folder=tmp_path / "run")
    listener = CutAfter(100)
    result = ow.run(config, listener, dataset=graph(), folder=tmp_path / "run")

    assert any("resum" in note.lower() or "go on" in note.lower() for note in listener.notes)
    assert result.facts["weights_sha256"] == expected.facts["weights_sha256"]


def test_the_command_tests_the_test_nodes_and_compares_with_the_twin(data, capsys, tmp_path):
    data += ["--set", "network.widths=16,12", "--epochs", "20"]

    assert onward("train", "forwardgnn-sf", *data, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    assert onward("evaluate", tmp_path / "run") == 0

    told = " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "on the 24 test samples of own.npz" in told
    assert f"accuracy │ {result['accuracy']['test']:.2%}" in told
    assert onward("compare", "forwardgnn-sf", *data, "--seeds", 1, "--out", tmp_path / "both") == 0
    found = json.loads((tmp_path / "both" / "compare.json").read_text())
    assert [entry["recipe"] for entry in found["entries"]] == ["forwardgnn-sf", "gnn-backprop"]
