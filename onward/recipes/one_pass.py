"""Performance-optimized Pipeline Forward-Forward."""

from dataclasses import replace

from onward.recipes.dense import dense

one_pass = replace(
    dense,
    name="one-pass",
    summary="Each block learns to classify with a linear head of its own; their scores are added. "
    "No negatives. The choice for a good model.",
    source="Aktemur et al. 2024, arXiv:2404.08573, section 4.4 (performance-optimized PFF); "
    "dropout, the scale of first weights and the warm-up are ours",
    defaults={
        "network.gain": 2**0.5,
        "network.dropout": 0.2,
        "training.schedule": "warmup",
    },
)
