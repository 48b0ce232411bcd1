"""A recipe as a user writes it, in the file `mine.py`."""

from pathlib import Path

SOURCE = '''
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import onward as ow

Path("imported").touch()


@dataclass(frozen=True, kw_only=True)
class Settings:
    units: tuple[int, ...] = (8, 8)
    lr: float = 0.01


@ow.recipe(source="a test", defaults={"training.epochs": 3})
def small(settings: Settings, data: ow.DataInfo) -> ow.Network:
    """A few layers, each with a head."""
    sizes = [data.num_inputs, *settings.units]
    blocks = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())
        head = ow.CrossEntropy(nn.Linear(outputs, data.num_classes))
        blocks.append(ow.Block(layers, head, ow.Adam(lr=settings.lr)))
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=data.num_classes)


def plain(settings, data):
    return None


@ow.recipe(source="a test")
def nothing(settings: Settings, data: ow.DataInfo) -> ow.Network:
    return [settings]
'''

LOOP = "    blocks = []\n"
"""A line of it, before which others may be put."""


def changed(old, new):
    """Write the file of the recipe with something else in it."""
    assert old in SOURCE
    Path("mine.py").write_text(SOURCE.replace(old, new))
