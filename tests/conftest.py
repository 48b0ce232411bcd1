"""Shared by all tests: one thread, a report of versions, and folders that are not the user's."""

import sys
import warnings
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from data_files import QUICK, arrays
from models import network_of
from own_recipe import SOURCE

from onward.checkpoint import save
from onward.cli.main import main
from onward.data import download
from onward.errors import OnwardWarning


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item, nextitem):
    # Small runs learn little, and other warnings are errors.
    warnings.filterwarnings("ignore", category=OnwardWarning)
    return (yield)


@pytest.fixture(autouse=True, scope="session")
def local_functions_are_ready_at_once():
    """Make no checks for a function within one, while none are made: that takes long each time."""
    jaxtyped = jaxtyping.jaxtyped

    def made_where_needed(*, typechecker):
        def decorated(function):
            is_local = "<locals>" in getattr(function, "__qualname__", "")
            if is_local and jaxtyping.config.jaxtyping_disable:
                return function
            return jaxtyped(function, typechecker=typechecker)

        return decorated

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping, "jaxtyped", made_where_needed)
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """Leave out the checks of types and shapes, which take most of the time of many short runs.

    The tests of what is sent and held make the same calls with checks.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def unchecked_module():
    """Leave out these checks in a whole module, its fixtures included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


def pytest_report_header():
    return f"torch {torch.__version__}"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """Keep the user's own folders out of the tests."""
    monkeypatch.delenv("ONWARD_DATA", raising=False)
    monkeypatch.setattr(download, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def in_a_folder_of_its_own(empty_cache, monkeypatch, tmp_path):
    """Work in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def own_recipe(tmp_path, monkeypatch):
    """Work in a folder in which `mine.py` holds a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    yield
    # The next test has another file of that name.
    sys.modules.pop("onward_recipe_mine", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run on samples of four numbers, two classes, data in a file next to it."""
    folder = tmp_path_factory.mktemp("finished")
    np.savez(folder / "data.npz", **arrays())
    arguments = ("--data", folder / "data.npz", *QUICK, "--batch-size", 10, "--out", folder / "run")
    with pytest.raises(SystemExit) as ended:
        main(["train", *map(str, arguments)])
    assert ended.value.code == 0
    return folder / "run"


@pytest.fixture
def refused(capsys):
    """Run the command, check that it fails as it should, and return the sentence it said."""

    def refused(*arguments):
        capsys.readouterr()
        before = contents()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2
        assert contents() == before
        assert said.startswith("onward: ")
        assert said.endswith((".", "?"))
        return said.removeprefix("onward: ")

    return refused


def contents():
    """Return all files and folders here, and what they hold, but for Python's bytecode."""
    found = {}
    for path in Path().rglob("*"):
        if "__pycache__" in path.parts:
            continue
        try:
            found[path] = path.read_bytes() if path.is_file() else None
        except PermissionError:
            found[path] = None
    return found


@pytest.fixture
def path(tmp_path):
    """Where a model is saved."""
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    """Save a network and return it; the file is at `path`."""
    network = network_of("hinton")
    save(network, path)
    return network


@pytest.fixture
def kept_generator():
    """Keep what modules draw from the global generator out of other tests."""
    with torch.random.fork_rng():
        yield
