"""Signs that a run has learned nothing."""

import math
from collections.abc import Collection, Mapping, Sequence

from onward.evaluation import Evaluation
from onward.results import Progress

SILENT = 0.9
"""Share of silent units from which on a block says too little."""

LUCK = 2.0
"""Standard deviations above chance up to which a result may be chance."""

LEARNED = 0.55
"""Accuracy in training from which on a block has learned something, whatever its loss: that of hard
negatives may rise."""


def doubts(progress: Sequence[Progress], test: Evaluation) -> list[str]:
    """Return the signs that nothing was learned, a sentence or two each, with what to look at.

    Args:
        progress: What blocks have reported, in order.
        test: The answers to test samples.
    """
    first: dict[int, Mapping[str, float | None]] = {}
    last: dict[int, Mapping[str, float | None]] = {}
    for entry in progress:
        if entry.block is not None:
            first.setdefault(entry.block, entry.figures)
            last[entry.block] = entry.figures
    dead = {block: figures.get("dead_fraction") or 0.0 for block, figures in last.items()}
    silent = {block: share for block, share in sorted(dead.items()) if share >= SILENT}
    poor = {
        block: correct / test.rows
        for block, correct in test.correct_blocks.items()
        if _is_chance(correct / test.rows, test.by_chance_blocks[block], test.rows)
    }
    unknown = last.keys() - test.correct_blocks.keys()
    flat = [
        block
        for block, figures in sorted(last.items())
        if block in poor.keys() | unknown
        and first[block] is not figures
        and (figures["loss"] or 0.0) >= (first[block]["loss"] or 0.0)
        and (figures.get("accuracy") or 0.0) <= LEARNED
    ]
    found = []
    if silent:
        found.append(
            f"Silent units: {_shares(silent)} of those of {_blocks(silent)} put out nothing for "
            f"any sample. Lower optimizer.lr, or scale the inputs (data.standardize)."
        )
    if flat:
        found.append(
            f"The loss of {_blocks(flat)} did not fall. Change optimizer.lr, or raise "
            f"training.epochs."
        )
    if poor:
        chance = {block: test.by_chance_blocks[block] for block in poor}
        found.append(_no_better(_blocks(poor), _shares(poor), _shares(chance), test.rows))
    elif test.accuracy is not None and _is_chance(test.accuracy, test.by_chance, test.rows):
        shares = f"{test.accuracy:.1%}", f"{test.by_chance:.1%}"
        found.append(_no_better("the network", *shares, test.rows))
    named = [label for label, count in enumerate(test.named) if count]
    if len(named) == 1 and sum(rows > 0 for rows in test.class_rows) > 1:
        found.append(
            f"All {test.rows:,} test samples were classified as class {named[0]}. Look at "
            f"optimizer.lr, and, if most samples are of that class, at data.class_weights."
        )
    return found


def _is_chance(accuracy: float, by_chance: float, rows: int) -> bool:
    """Return whether answers are no better than the same ones in any order might be."""
    deviation = math.sqrt(by_chance * (1 - by_chance) / rows)
    return accuracy <= by_chance + LUCK * deviation < 1


def _no_better(who: str, right: str, chance: str, rows: int) -> str:
    return (
        f"No better than chance: {who} right on {right} of {rows:,} test samples; the same answers "
        f"in any order would be right on {chance}. Look at optimizer.lr, training.epochs and the "
        f"scale of the inputs."
    )


def _blocks(blocks: Collection[int]) -> str:
    return ("blocks " if len(blocks) > 1 else "block ") + ", ".join(map(str, blocks))


def _shares(shares: Mapping[int, float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares.values())
