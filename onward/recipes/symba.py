"""Forward-Forward without a threshold."""

from dataclasses import replace

from onward.recipes.dense import dense

symba = replace(
    dense,
    name="symba",
    summary="Forward-Forward with no threshold: a positive is to have more goodness than its "
    "negative.",
    source="Lee & Song 2023, arXiv:2303.08418 (SymBa). The label in the input, not in a plane of "
    "its own, and the slope are ours: with the 4 of the paper, wide blocks learn far more slowly",
    defaults={
        "network.widths": (2000, 2000, 2000, 2000),
        "network.objective": "symba",
        "network.negatives": "random",
        "network.readout": "goodness",
        "network.slope": 40.0,
        "training.epochs": 30,
        "training.schedule": "cooldown",
        "plan.kind": "stream",
    },
)
