"""Pipeline Forward-Forward."""

from dataclasses import replace

from onward.recipes.dense import dense

pff = replace(
    dense,
    name="pff",
    summary="Pipeline Forward-Forward: blocks take turns of a chapter, negatives are the network's "
    "likeliest mistakes.",
    source="Aktemur et al. 2024, arXiv:2404.08573, sections 4 and 5. In units in which samples "
    "have a mean square of 1 and the threshold is 1, its learning rate of 0.01 is 5e-5 and its "
    "slope 20, as far as can be inferred; a rate of 3e-4 and larger first weights are ours. Hints "
    "for negatives are as many chapters old as there are blocks, so that ranks need not wait "
    "(plan.hint_age); until the first come, negatives are random",
    defaults={
        "network.widths": (2000, 2000, 2000, 2000),
        "network.objective": "threshold",
        "network.negatives": "adaptive",
        "network.readout": "goodness",
        "network.slope": 20.0,
        "optimizer.lr": 3e-4,
        "optimizer.head_lr": 1e-4,
        "training.epochs": 100,
        "training.batch_size": 64,
        "training.schedule": "cooldown",
    },
)
