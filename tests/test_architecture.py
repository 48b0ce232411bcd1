import ast
from pathlib import Path

import pytest

import onward

ROOT = Path(onward.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}

ORDER = [
    "version",
    "errors",
    "files",
    "seeds",
    "config",
    "recipes",
    "data.splits",
    "data.dataset",
    "data.arrays",
    "data.download",
    "data.idx",
    "data.cifar",
    "data.mitbih",
    "data.catalog",
    "data",
    "layers",
    "optimizers",
    "views",
    "objectives",
    "blocks",
    "steps",
    "team",
    "sliced",
    "readouts",
    "trained_on",
    "networks",
    "checkpoint",
    "exits.policies",
    "exits.stages",
    "exits.macs",
    "exits.latency",
    "exits.outcomes",
    "exits.calibration",
    "exits",
    "standalone",
    "export",
    "plan",
    "plan.tasks",
    "plan.chapters",
    "plan.streams",
    "placement",
    "timeline",
    "simulation",
    "planner",
    "launcher",
    "transport",
    "transport.buffers",
    "transport.waiting",
    "transport.messages",
    "transport.distributed",
    "transport.directory",
    "transport.pulse",
    "runtime",
    "runtime.store",
    "runtime.workers",
    "runtime.chapters",
    "runtime.streams",
    "runtime.resume",
    "runtime.runtime",
    "costs",
    "memory",
    "dealing",
    "preparation",
    "results",
    "world",
    "training",
    "runs",
    "cli",
    "cli.doctor",
    "cli.drawing",
    "cli.report",
    "cli.progress",
    "cli.flags",
    "cli.output",
    "cli.inference",
    "cli.exits",
    "cli.main",
]
"""All modules, in the order in which data flow through them."""


def name_of(module):
    """Return the name of a module's own file, its package where that is `__init__`."""
    return module.removesuffix(".__init__")


def imported(module):
    """Return the full names of all modules that a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("onward.") in map(name_of, MODULES)
                found.add(whole if is_module else node.module)
                if node.module == "torch":
                    found.add(whole)
    return found


def used(module):
    """Return all names and attributes that a module uses, such as `eval` or `torch.load`."""
    tree = ast.parse(MODULES[module].read_text())
    return {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute)}


def test_every_module_has_its_place_in_the_order():
    assert len(set(ORDER)) == len(ORDER)
    assert set(ORDER) == set(map(name_of, MODULES)) - {"__init__", "__main__"}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("__init__", "__main__")])
def test_a_module_imports_only_what_comes_before_it(module):
    earlier = ORDER[: ORDER.index(name_of(module))]

    ours = {name.removeprefix("onward.") for name in imported(module) if name.startswith("onward")}

    assert ours <= set(earlier)


def test_torch_distributed_is_touched_by_one_module_alone():
    touching = {
        module
        for module in MODULES
        if any(name.startswith("torch.distributed") for name in imported(module) | used(module))
    }

    assert touching == {"transport.distributed"}


def test_nothing_that_comes_from_a_file_or_the_network_is_unpickled():
    executing = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}

    for module, path in MODULES.items():
        assert not {name.partition(".")[0] for name in imported(module)} & executing
        assert not used(module) & {"torch.load", "torch.hub", "np.lib.format.read_array"}
        assert "allow_pickle=True" not in path.read_text()


def test_nothing_that_comes_from_a_file_or_the_network_is_evaluated():
    for module in MODULES:
        assert not used(module) & {"eval", "exec", "compile", "__import__"}


def test_no_module_lacks_a_noun():
    nouns = {module.rpartition(".")[2] for module in MODULES}

    assert not nouns & {"utils", "util", "helpers", "common", "misc", "base", "core"}


def test_a_module_begins_with_a_sentence_that_says_what_it_is():
    for module, path in MODULES.items():
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""

        assert docstring.split("\n\n")[0].endswith((".", ":")), module


def test_a_module_is_short_enough_to_be_read():
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}

    assert {module: length for module, length in lengths.items() if length > 500} == {}
