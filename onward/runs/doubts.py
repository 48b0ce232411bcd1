"""Signs that a run has learned nothing, or has unlearned."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from onward.data.quoting import class_name
from onward.evaluation import Evaluation, Tally
from onward.runs.results import Progress

SILENT = 0.9
"""Share of silent units from which on a block says too little."""

LUCK = 1.0
"""Standard deviations above chance up to which a result may be chance."""

BELOW = -3.0
"""Standard deviations below chance from which on a result is no chance either."""

FEW = 20
"""Test samples below which nothing can be said of chance."""

ALONE = 0.1
"""Share of samples with another of their class in the mini-batch below which they are too few for
an objective that compares them."""

WORSE = 0.05
"""By how much a block alone may be better than the network, as a share of the test samples."""

LEARNED = 0.55
"""Share that is right in training from which on a block has learned something, whatever its loss:
that of hard negatives may rise."""


def doubts(
    progress: Sequence[Progress],
    test: Evaluation,
    frozen: Collection[int] = (),
    class_names: Sequence[str] | None = None,
    follows_scores: bool = False,
) -> list[str]:
    """Return the signs that something went wrong, a sentence or two each, with what to look at.

    Args:
        progress: What blocks have reported, in order.
        test: The answers to test samples.
        frozen: Blocks without parameters that learn, whose loss has no need to fall.
        class_names: Name of each class; None: they have numbers only.
        follows_scores: Whether negatives are drawn with class scores of the network.
    """
    first: dict[int, Mapping[str, float | None]] = {}
    last: dict[int, Mapping[str, float | None]] = {}
    for entry in progress:
        if entry.block is not None:
            first.setdefault(entry.block, entry.figures)
            last[entry.block] = entry.figures
    dead = {block: figures.get("dead_fraction") or 0.0 for block, figures in last.items()}
    silent = {block: share for block, share in sorted(dead.items()) if share >= SILENT}
    is_enough = test.samples >= FEW
    alone = {b: f["paired"] or 0.0 for b, f in sorted(last.items()) if "paired" in f}
    alone = {block: share for block, share in alone.items() if share < ALONE}
    poor = {b: t for b, t in test.tally_blocks.items() if is_enough and t.lead <= LUCK}
    unknown = last.keys() - test.correct_blocks.keys()
    flat = [
        block
        for block, figures in sorted(last.items())
        if block in (poor.keys() | unknown) - set(frozen) - alone.keys()
        and first[block] is not figures
        and (figures["loss"] or 0.0) >= (first[block]["loss"] or 0.0)
        and (figures.get("accuracy") or figures.get("told_apart") or 0.0) <= LEARNED
    ]
    found = [] if test.told_unscored is None else [f"In the test, {test.told_unscored}"]
    if silent:
        shares = _shares(silent.values())
        found.append(
            f"Silent units: {shares} of the units of {_blocks(silent)} are 0 for every sample. "
            f"Lower the learning rate, or scale the inputs (data.standardize)."
        )
    if alone:
        found.append(
            f"Nothing to compare: in their mini-batches, only {_shares(alone.values())} of the "
            f"samples had another of their class, from which alone {_blocks(alone)} can learn. "
            f"Raise training.batch_size."
        )
    if flat:
        found.append(
            f"The loss of {_blocks(flat)} did not fall. Change the learning rate, raise "
            f"training.epochs, or lower training.batch_size."
        )
    tally = test.tally
    if poor:
        found.append(_no_better(_blocks(poor), list(poor.values())))
    elif tally is not None and is_enough and tally.lead <= LUCK:
        found.append(_no_better("the network", [tally]))
    if tally is not None and is_enough and test.tally_blocks:
        found += _worse_than_a_block(tally, test.tally_blocks, follows_scores)
    named = [label for label, count in enumerate(tally.named if tally else ()) if count]
    if tally is not None and len(named) == 1 and sum(samples > 0 for samples in tally.samples) > 1:
        found.append(
            f"All {test.samples:,} test samples were classified as class "
            f"{class_name(class_names, named[0])}. Check the learning rate, "
            f"and, if most samples are of that class, data.class_weights."
        )
    return found


def _worse_than_a_block(
    network: Tally, blocks: Mapping[int, Tally], follows_scores: bool
) -> list[str]:
    """Return a sign where a block alone is better than the network, and not by luck."""
    best = max(blocks, key=lambda block: blocks[block].accuracy)
    whole, alone = network.accuracy, blocks[best].accuracy
    deviation = math.sqrt((whole * (1 - whole) + alone * (1 - alone)) / sum(network.samples))
    # Of classes that differ in size, a block may be right more often by naming no small one.
    is_fairer = network.balanced_accuracy >= blocks[best].balanced_accuracy
    if is_fairer or alone - whole <= max(WORSE, 3 * deviation):
        return []
    advice = (
        "Negatives that follow the scores of the network may cause that: try other "
        "network.negatives, such as random."
        if follows_scores
        else "Other blocks have learned less, or unlearned. Try another learning rate, or another "
        "number of epochs."
    )
    return [
        f"Block {best} alone is better than the network: it gets {alone:.1%} of the test samples "
        f"right, and the network {whole:.1%}. {advice}"
    ]


def _no_better(who: str, tallies: Sequence[Tally]) -> str:
    advice = (
        "That is far below chance: scores may have the wrong sign, or classes the wrong order."
        if min(tally.lead for tally in tallies) < BELOW
        else "Check the learning rate, training.epochs, training.batch_size and the scale of the "
        "inputs."
    )
    return (
        f"No better than chance: {who}, with an accuracy of {_shares(t.accuracy for t in tallies)} "
        f"on {sum(tallies[0].samples):,} test samples. The same answers, shuffled, would have "
        f"{_shares(t.by_chance for t in tallies)}. {advice}"
    )


def _blocks(blocks: Collection[int]) -> str:
    return ("blocks " if len(blocks) > 1 else "block ") + ", ".join(map(str, blocks))


def _shares(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)
