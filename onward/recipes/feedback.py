"""Graph convolutions that read the layer above as it was a tick before."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from onward.batch import Tensors
from onward.network.blocks import Block, Edge
from onward.network.objectives import Objective
from onward.recipes.graph_layers import Reading, layer, prepared, rule
from onward.recipes.settling import tick_order
from onward.settings import OptimizerConfig


def counted_ticks(counted: tuple[int, ...] | None, ticks: int) -> tuple[int, ...]:
    """Return the ticks that are counted: those that are named, or all but the first two.

    Source:
        Park et al. 2024, arXiv:2403.11004: the published code.
    """
    return tuple(range(min(2, ticks - 1), ticks)) if counted is None else counted


def feedback_blocks(
    kind: str,
    widths: Sequence[int],
    labels: int,
    objective: Callable[[], Objective],
    optimizer: OptimizerConfig,
) -> list[Block]:
    """Return a block for each layer, in the order in which they are updated, see `tick_order`.

    Args:
        kind: gcn, sage or gat.
        widths: Features of a node, and units of each layer.
        labels: Numbers at each node that the top layer reads, as `labels` beside `features`; 0: it
            reads the layer below alone, and the input is the features.
        objective: Makes the objective of a block.
        optimizer: How weights follow their gradients.

    Source:
        Park et al. 2024, arXiv:2403.11004, section 3.3 (equation 7).
    """
    depth = len(widths) - 1
    numbers, seen = tick_order(widths[1:])
    above = (*widths[2:], labels)
    blocks = []
    for number in numbers:
        is_first, is_last = number == 0, number == depth - 1
        reads = [] if is_first else [seen(number - 1, number, "below")]
        reads += [] if is_last else [seen(number + 1, number, "above")]
        reads += [Edge("input")] if is_first or (is_last and labels) else []
        prefix = "input." if len(reads) > 1 else ""
        features = f"{prefix}features" if labels else "input"
        names = [features if is_first else "below"]
        if above[number]:
            names.append(f"{prefix}labels" if is_last else "above")
        module, prepare = layer(kind, widths[number] + above[number], widths[number + 1])
        if len(names) > 1:
            module, prepare = _reading(tuple(names), module, prepare)
        edges = ("edge_index",)
        blocks.append(
            Block(
                module,
                objective(),
                rule(optimizer),
                reads=tuple(reads),
                structure=edges,
                prepare=prepare,
            )
        )
    return blocks


def _reading(
    names: tuple[str, ...], module: nn.Module, prepare: Callable[..., Tensors] | None
) -> tuple[nn.Module, Callable[..., Tensors] | None]:
    """Return a layer that reads some tensors by name, and what is done once for each view."""
    if prepare is None:
        return Reading(names, module), None
    return module, partial(prepared, names, prepare)
