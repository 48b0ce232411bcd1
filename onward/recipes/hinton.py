"""Supervised Forward-Forward."""

from dataclasses import replace

from onward.recipes.dense import dense

hinton = replace(
    dense,
    name="hinton",
    summary="Supervised Forward-Forward: labels in the input, hard negatives, every mini-batch "
    "updates every block.",
    source="Hinton 2022, arXiv:2212.13345, section 3.3, and his published Matlab code",
    defaults={
        "network.widths": (2000, 2000, 2000, 2000),
        "network.objective": "threshold",
        "network.negatives": "hard",
        "network.readout": "goodness",
        "network.peer": 0.03,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.01,
        "optimizer.weight_decay": 0.001,
        "optimizer.head_lr": 0.1,
        "optimizer.head_weight_decay": 0.003,
        "training.epochs": 60,
        "training.schedule": "cooldown",
        "plan.kind": "stream",
    },
)
