"""The modules: what each may import, what none may do, and who knows whom by name."""

import ast
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from inspect import getmembers, isclass
from itertools import groupby
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import onward
from onward.network.objectives import Objective
from onward.network.readouts import Readout
from onward.network.samplers import Sampler
from onward.plan.tasks import Plan

ROOT = Path(onward.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}

ORDER = [
    "names",
    "version",
    "errors",
    "devices",
    "arguments",
    "files",
    "seeds",
    "digests",
    "html",
    "watching",
    "values",
    "settings",
    "world",
    "recipes.recipe",
    "batch",
    "data.quoting",
    "data.tables",
    "data.numbers",
    "data.loaders",
    "data.labels",
    "data.splits",
    "data.mapped",
    "data.dataset",
    "data.arrays",
    "data.table_files",
    "data.graphs",
    "data.graph_tables",
    "data.links",
    "data.images",
    "data.asked",
    "data.download",
    "data.published",
    "data.idx",
    "data.cifar",
    "data.mitbih",
    "data.text",
    "data.catalog",
    "data.shared",
    "data.inputs",
    "data.preprocessing",
    "data.augmentation",
    "data",
    "network",
    "network.layers",
    "network.optimizers",
    "network.negatives",
    "network.samplers",
    "network.objectives",
    "network.blocks",
    "network.sweep",
    "network.readouts",
    "network.trained_on",
    "network.wiring",
    "network.networks",
    "network.passes",
    "network.moving",
    "network.unsaved",
    "network.stages",
    "engine",
    "engine.steps",
    "engine.team",
    "engine.kernels",
    "engine.kernels.closed_form",
    "engine.kernels.units",
    "engine.slices",
    "engine.stretches",
    "evaluation",
    "flop_counter",
    "recipes.blueprint",
    "recipes.blocks",
    "recipes.convolution_config",
    "recipes.convolutions",
    "recipes.conv",
    "recipes.similarity",
    "recipes.predsim",
    "recipes.goodness",
    "recipes.channel_goodness",
    "recipes.labelled",
    "recipes.ff_conv",
    "recipes.dense",
    "recipes.mlp",
    "recipes.one_pass",
    "recipes.hinton",
    "recipes.pff",
    "recipes.mono_forward",
    "recipes.backprop",
    "recipes.contrasts",
    "recipes.symba",
    "recipes.hybrids",
    "recipes.local_fields",
    "recipes.hinton_unsupervised",
    "recipes.settling",
    "recipes.hinton_recurrent",
    "recipes.binary",
    "recipes.tinyfoa",
    "recipes.supcon",
    "recipes.cells",
    "recipes.uff",
    "recipes.residual",
    "recipes.ffcl",
    "recipes.towers",
    "recipes.iffcl",
    "recipes.transformer_config",
    "recipes.transformer",
    "recipes.byte_lm",
    "recipes.vit",
    "recipes.graph_layers",
    "recipes.neighborhoods",
    "recipes.class_nodes",
    "recipes.forwardgnn_sf",
    "recipes.graph_worlds",
    "recipes.forwardgnn_ff",
    "recipes.feedback",
    "recipes.forwardgnn_top_to_input",
    "recipes.forwardgnn_top_to_loss",
    "recipes.pairs",
    "recipes.forwardgnn_links",
    "recipes.forwardgnn_links_top_to_input",
    "recipes.table_layers",
    "recipes.gff",
    "recipes.gnn_backprop",
    "recipes.catalog",
    "recipes.user",
    "recipes",
    "config",
    "checkpoint",
    "exits.policies",
    "exits.answers",
    "exits.macs",
    "exits.latency",
    "exits.outcomes",
    "exits.bounds",
    "exits.calibration",
    "exits",
    "standalone",
    "onnx_files",
    "plan",
    "plan.standing",
    "plan.tasks",
    "plan.chapters",
    "plan.streams",
    "placement",
    "timeline",
    "simulation",
    "launcher",
    "transport",
    "transport.buffers",
    "transport.copies",
    "transport.waiting",
    "transport.messages",
    "transport.distributed",
    "transport.directory",
    "transport.pulse",
    "runtime",
    "runtime.products",
    "runtime.store",
    "runtime.holding",
    "runtime.passing",
    "runtime.workers",
    "runtime.activities",
    "runtime.block_stopping",
    "runtime.chapters",
    "runtime.streams",
    "runtime.resume",
    "runtime.runtime",
    "costs",
    "costs.times",
    "costs.flops",
    "costs.memory",
    "costs.budget",
    "runs",
    "runs.sharding",
    "runs.fitting",
    "runs.first_step",
    "runs.trial",
    "runs.preparation",
    "runs.results",
    "runs.listeners",
    "runs.doubts",
    "runs.joining",
    "runs.idle",
    "runs.starting",
    "runs.folders",
    "runs.progress",
    "runs.training",
    "inference",
    "sampling",
    "sklearn",
    "comparison",
    "comparison.entries",
    "comparison.figures",
    "comparison.contests",
    "cli",
    "cli.flags",
    "cli.parser",
    "cli.output",
    "cli.planner",
    "cli.drawing",
    "cli.report",
    "cli.recipes",
    "cli.data",
    "cli.doctor",
    "cli.inference",
    "cli.results",
    "cli.exits",
    "cli.train",
    "cli.compare",
    "cli.plan",
    "cli.trace",
    "cli.main",
]
"""All modules, in the order in which data flow through them."""


NAMED = re.compile(r"onward(\.\w+)+:\w+")
"""How a table names what is imported later."""


def name_of(module):
    """Return the name of a module's own file, its package where that is `__init__`."""
    return module.removesuffix(".__init__")


def imported(module):
    """Return the full names of all modules that a module imports, wherever in the file.

    What it imports in functions, for types alone, or by a table of `module:function` counts too.
    """
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Constant) and NAMED.fullmatch(str(node.value)):
            found.add(node.value.partition(":")[0])
        elif isinstance(node, ast.Import):
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
    # What a recipe is stands before the batch, which types name.
    rooms = [room for room, _ in groupby(name.split(".")[0] for name in ORDER)]
    assert [room for room, times in Counter(rooms).items() if times > 1] == ["recipes"]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("__init__", "__main__")])
def test_a_module_imports_only_what_comes_before_it(module):
    earlier = ORDER[: ORDER.index(name_of(module))]

    ours = {name.removeprefix("onward.") for name in imported(module) if name.startswith("onward")}

    assert ours <= set(earlier)


LIGHT = [
    "onward",
    "onward.arguments",
    "onward.config",
    "onward.data.published",
    "onward.errors",
    "onward.recipes.user",
    "onward.settings",
    "onward.world",
    "onward.cli.data",
    "onward.cli.main",
    "onward.cli.recipes",
]
"""Modules that are imported without torch, which takes more than a second."""

ENDS_WITH_TORCH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({"numpy", "scipy", "sklearn", "torch"} & set(sys.modules)))
"""


def test_settings_recipes_lists_and_the_command_are_imported_without_torch():
    command = [sys.executable, "-c", ENDS_WITH_TORCH, *LIGHT]

    done = subprocess.run(command, capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("\n", "")


def test_shapes_are_checked_in_all_modules_whenever_they_are_imported():
    loaders = {type(import_module(f"onward.{name}").__loader__).__name__ for name in ORDER}

    assert loaders == {"_JaxtypingLoader"}
    with pytest.raises(TypeCheckError, match="normalize_length"):
        onward.normalize_length(torch.zeros(()))


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


# Plans, samplers, objectives and readouts are asked for what they answer, not what they are


PARTS = {"plan": Plan, "sampler": Sampler, "objective": Objective, "readout": Readout}
"""What a user may write another of, by the name that the code gives it."""


def kinds_of(base):
    """Return the classes of the library that are of a kind, by name, with the module of each."""
    modules = [import_module(f"onward.{name}") for name in ORDER]
    found = [cls for module in modules for _, cls in getmembers(module, isclass)]
    return {
        cls.__name__: cls.__module__.removeprefix("onward.")
        for cls in found
        if issubclass(cls, base) and cls.__module__.startswith("onward")
    }


def is_part(node):
    """Return whether an expression ends in the name of a part, such as `block.objective`."""
    return ast.unparse(node).rpartition(".")[2].lstrip("_") in PARTS


def probes(source):
    """Return the expressions in which code looks at the class of a part, or for a member.

    What an error message tells of a class, by `type(part).__name__`, is left out.
    """
    tree = ast.parse(source)
    told = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("__name__", "__qualname__")
    }
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name("isinstance" | "issubclass")):
                kinds = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                kinds |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
                if kinds & KINDS.keys() or is_part(node.args[0]):
                    found.add((ast.unparse(node), *sorted(kinds)))
            case ast.Call(func=ast.Name("hasattr" | "getattr" | "type")) if node not in told:
                if is_part(node.args[0]):
                    found.add((ast.unparse(node),))
            case ast.Compare() if "type(" in ast.unparse(node):
                kinds = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & KINDS.keys()
                if kinds:
                    found.add((ast.unparse(node), *sorted(kinds)))
            case ast.MatchClass(cls=ast.Name(kind)) if kind in KINDS:
                found.add((ast.unparse(node), kind))
    return found


KINDS = {name: module for base in PARTS.values() for name, module in kinds_of(base).items()}
"""All plans, samplers, objectives and readouts of the library, and the modules that define them."""


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(x, SumOfHeads)",
        "isinstance(x, onward.network.readouts.SumOfHeads | int)",
        "isinstance(network.readout, something)",
        "type(x) is StreamPlan",
        "NAMES[type(self.sampler)]",
        "hasattr(block.objective, 'head')",
        "getattr(plan, 'slices', 1)",
        "match x:\n    case ChapterPlan(slices=2): pass",
    ],
)
def test_looking_at_the_class_of_a_part_is_noticed(code):
    assert len(probes(code)) == 1


def test_asking_a_part_and_naming_its_class_in_a_message_is_no_probe():
    assert probes("plan.kind == 'stream' and f'{type(sampler).__name__}'") == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_does_not_look_at_the_class_of_parts_that_others_define(module):
    if module.startswith("engine.kernels.") or module == "network.sweep":
        return  # Their tables know layers, objectives and samplers by class.
    own = {kind for kind, defined in KINDS.items() if defined == name_of(module)}

    found = probes(MODULES[module].read_text())

    assert [expression for expression, *kinds in found if not set(kinds) & own] == []
