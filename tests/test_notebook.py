"""The notebook in examples runs from its first cell to its last, as Jupyter would run it."""

import ast
import json
from pathlib import Path

import matplotlib as mpl
import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def run_cell(source, names):
    """Run a cell, and return what its last line shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    return last and eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


def test_every_cell_runs_and_shows_what_it_is_for(capsys):
    mpl.use("agg")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names = {}

    shown = [run_cell("".join(c["source"]), names) for c in cells if c["cell_type"] == "code"]

    dataset, result, curve, *_ = shown
    assert "training samples</th><td>1,437" in dataset._repr_html_()
    assert "test accuracy" in result._repr_html_()
    assert result.accuracy > 0.9
    assert len(curve) == result.facts["chapters_trained"]
    assert "samples that exit after each block: [" in capsys.readouterr().out


def test_it_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]

    assert not any(cell.get("outputs") for cell in cells)
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
