"""Mono-Forward, on dense layers."""

from dataclasses import replace

from onward.recipes.dense import dense

mono_forward = replace(
    dense,
    name="mono-forward",
    summary="Each layer learns classes by a projection of its own, and the last predicts the "
    "class. No negatives. The blocks are those of one-pass, with other settings.",
    source="Gong, Li & Abdulla 2025, arXiv:2501.09238 (Mono-Forward). That activities are "
    "normalized between layers, Adam, 15 epochs and the stream plan are ours",
    defaults={
        "network.widths": (1000, 1000),
        "network.heads": "last",
        "network.gain": 2**0.5,
        "training.epochs": 15,
        "plan.kind": "stream",
    },
)
