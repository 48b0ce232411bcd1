"""The wiring of a network: what each of its blocks reads, and whether that fits together."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from onward.arguments import fits, said
from onward.errors import SettingError
from onward.network.blocks import Block, Edge
from onward.network.readouts import Readout, is_head
from onward.network.samplers import Sampler


def edges_of(number: int, block: Block) -> tuple[Edge, ...]:
    """Return what a block reads, as edges."""
    usual: tuple[Any, ...] = (number - 1 if number else "input",)
    reads = usual if block.reads is None else block.reads
    return tuple(read if isinstance(read, Edge) else Edge(read) for read in reads)


def check_edges(blocks: Sequence[Block], edges: Sequence[tuple[Edge, ...]]) -> None:
    """Refuse edges that lead nowhere, or round in a circle without a delay.

    Raises:
        SettingError: There are some.
    """
    for number, own in enumerate(edges):
        if not any(edge.to == "module" for edge in own):
            raise SettingError(f"Block {number} reads nothing: its module needs an input.")
        keys = [(edge.to, edge.key) for edge in own]
        for key in keys:
            if keys.count(key) > 1:
                raise SettingError(f"Block {number} reads two things called {key[1]}. Name one.")
        for edge in own:
            if edge.source == "input":
                if edge.delay:
                    raise SettingError(f"Block {number} reads the input, which has no delay.")
                continue
            if not 0 <= edge.source < len(blocks):
                raise SettingError(
                    f"Block {number} reads block {edge.source}, and there are {len(blocks)}, "
                    f"counted from 0."
                )
            if edge.delay == 0 and edge.source >= number:
                what = "itself" if edge.source == number else "which comes after it"
                raise SettingError(
                    f"Block {number} reads block {edge.source}, {what}. Only a "
                    f"delay lets it: ow.Edge({edge.source}, delay=1, shape=...)."
                )
            if edge.delay == 1 and edge.shape is None:
                raise SettingError(
                    f"Block {number} reads block {edge.source} with a delay, and before the first "
                    f"visit gets zeros. Give the shape of a sample: ow.Edge({edge.source}, "
                    f"delay=1, shape=(units,))."
                )
            if is_head(blocks[edge.source]):
                raise SettingError(
                    f"Block {number} reads block {edge.source}, a head, which learns from what "
                    f"inference sees and hands nothing on."
                )


def check_views(blocks: Sequence[Block], sampler: Sampler) -> None:
    """Refuse blocks that learn from views which the sampler does not make, or tell what they lack.

    Raises:
        SettingError: There are some.
    """
    names: object = None
    with suppress(AttributeError):
        names = sampler.names
    if not fits(names, tuple[str, ...]):
        raise SettingError(
            f"The sampler {type(sampler).__name__} needs `names`, a tuple of the views that it "
            f'makes, such as names = ("input",); got {said(names)}.'
        )
    for number, block in enumerate(blocks):
        names = block.objective.views or sampler.names
        unknown = set(names) - set(sampler.names)
        if unknown and not is_head(block) and not block.is_frozen:
            raise SettingError(
                f"Block {number} learns from the views {names}, but the sampler "
                f"{type(sampler).__name__} makes {sampler.names}."
            )
        told, known = block.objective.test_metric_names, block.objective.metric_names
        if not set(told) <= set(known):
            raise SettingError(
                f"The objective {type(block.objective).__name__} of block {number} tells "
                f"{', '.join(told)} of test samples (test_metric_names), and its metric_names are "
                f"{', '.join(known) or 'none'}. The first are some of the second."
            )


def check_parameters(blocks: Sequence[Block]) -> None:
    """Refuse blocks that share parameters.

    Raises:
        SettingError: There are some.
    """
    owners: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for name, tensor in block.state_dict(keep_vars=True).items():
            owner = owners.setdefault(id(tensor), number)
            if owner != number:
                raise SettingError(
                    f"Blocks {owner} and {number} share {name}, a parameter or buffer. Each block "
                    f"learns on its own, maybe on another machine: give it its own."
                )


def check_readout(
    blocks: Sequence[Block],
    edges: Sequence[tuple[Edge, ...]],
    ticks: int,
    sampler: Sampler,
    readout: Readout,
    num_classes: int,
) -> None:
    """Refuse a readout that blocks do not go with, or that tries other labels than the sampler has.

    Raises:
        SettingError: It does.
    """
    readout.fold(blocks, edges, ticks)
    tried = sampler.num_candidates
    if readout.sweeps and tried != num_classes:
        raise SettingError(
            f"The readout {type(readout).__name__} tries every label, and the sampler "
            f"{type(sampler).__name__} has {tried}; num_classes is {num_classes}. "
            f"Use ow.LabelEmbedding({num_classes}), or another readout."
        )
