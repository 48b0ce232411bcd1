"""The pages on recipes: what each says of itself, and a picture of its blocks and views."""

import re
from pathlib import Path
from textwrap import fill

from torch import nn

import onward as ow
from onward.network.readouts import is_head
from onward.recipes import RECIPES
from onward.recipes.blueprint import Blueprint, build_stages

FOLDER = Path(__file__).parent.parent / "docs" / "recipes"
OWN = re.compile(r"(?<=<!-- written by tests/recipe_pages.py -->\n).*(?=<!-- end -->)", re.DOTALL)
WINDOWS = ow.DataInfo(input_shape=(64,), num_classes=256, is_image=False)
DIGITS = ow.DataInfo(input_shape=(1, 28, 28), num_classes=10, is_image=True)
EDGES = {"edge_index": (2, 10674)}
NODES = ow.DataInfo(input_shape=(602,), num_classes=6, structure=EDGES)
PAIRS = ow.DataInfo(input_shape=(2,), num_classes=2, structure=EDGES | {"x": (4230, 602)})
DATA = {"byte-lm": WINDOWS} | {name: NODES for name in RECIPES if "gnn" in name}
DATA |= {name: PAIRS for name in RECIPES if "links" in name}
DATA["gff"] = ow.DataInfo(input_shape=(28, 7 + 28), num_classes=2)


def networks_of(recipe):
    """Return the networks of all stages, as built for images of the usual data set."""
    data = DATA.get(recipe.name, DIGITS)
    config = ow.RunConfig(recipe=recipe.name)
    blueprint = Blueprint(recipe, config.network, data)
    made = build_stages(
        blueprint, optimizer=config.optimizer, training=config.training, plan=config.plan
    )
    return [stage.network for stage in made]


def layers_in(module):
    """Return the names of the layers of a module, in order, each once."""
    leaves = [m for m in module.modules() if not any(True for _ in m.children())]
    owners = [m for m in leaves if not isinstance(m, nn.Identity | nn.Flatten)]
    return list(dict.fromkeys(type(m).__name__ for m in owners)) or [type(module).__name__]


def diagram(network, name=""):
    """Return a network as a flowchart in Mermaid."""
    sampler, lines = type(network.sampler).__name__, []
    source, drawn = f"{name}views", network.all_blocks
    lines.append(f'  {source}{{{{"{sampler}: {", ".join(network.sampler.names)}"}}}}')
    for number, block in enumerate(drawn):
        title = "head" if is_head(block) else f"block {number}"
        layers = ", ".join(layers_in(block.module))
        objective = "frozen" if block.is_frozen else type(block.objective).__name__
        lines.append(f'  {name}b{number}["<b>{title}</b><br>{layers}<br><i>{objective}</i>"]')
        for edge in network.edges[number]:
            start = source if edge.source == "input" else f"{name}b{edge.source}"
            lines.append(f"  {start} {'-.->' if edge.delay else '-->'} {name}b{number}")
    if network.readout is not None:
        fold, head = network.fold(), len(drawn) - 1
        counted = [v % len(drawn) for v, adds in zip(fold.exits, fold.adds, strict=True) if adds]
        readers = {*counted, fold.exits[-1] % len(drawn)} if fold.is_own else {head}
        lines.append(f'  {name}answer(["{type(network.readout).__name__}"])')
        lines += [f"  {name}b{number} ==> {name}answer" for number in sorted(readers)]
    return lines


def told(recipe):
    """Return what a recipe says of itself, and its picture."""
    stages = networks_of(recipe)
    lines = ["flowchart LR"]
    for number, network in enumerate(stages, 1):
        if len(stages) == 1:
            lines += diagram(network)
            continue
        lines += [
            f'  subgraph s{number}["stage {number}"]',
            *diagram(network, f"s{number}"),
            "  end",
        ]
    chart = "\n".join(lines)
    words = "\n\n".join(fill(text, 118) for text in (recipe.summary, f"Source: {recipe.source}."))
    return f"\n{words}\n\n```mermaid\n{chart}\n```\n\n"


def written_anew(page, recipe):
    """Return the text of a page with what its recipe says of itself now."""
    return OWN.sub(lambda block: told(recipe), page)


def write_all():
    for name, recipe in RECIPES.items():
        path = FOLDER / f"{name}.md"
        path.write_text(written_anew(path.read_text(), recipe))
