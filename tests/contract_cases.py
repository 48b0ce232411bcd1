"""Methods as a user would write them: networks, samplers and objectives of one's own.

Everything is small and seeded, the data are those of `contract_data`, and `CASES` lists all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from contract_blocks import BATCH_SIZE, UNITS, dense, seeded
from contract_data import (
    CLASSES,
    FEATURES,
    SAMPLES,
    TEST_SAMPLES,
    graph,
    images,
    sentences,
    two_sides,
    unlabelled_vectors,
    vectors,
)
from contract_networks import (
    TICKS,
    fixed_heads,
    graph_convolutions,
    prepared_graph_convolutions,
    recurrent,
    residual,
    transformers,
    whitened,
)
from contract_objectives import (
    Contrast,
    Pairs,
    adversarial,
    convolutions_appended,
    convolutions_overwritten,
    denoising,
    denoising_alone,
    pairs,
    towers,
)
from torch import nn

import onward as ow

# Recipes of convolutions


def recipe_of(name, **settings):
    """Return what builds the network of a recipe that comes with Onward, for these images."""

    @seeded
    def build():
        config = ow.RunConfig(recipe=name).with_settings(
            {f"network.{n}": value for n, value in ({"pooled": (1,)} | settings).items()}
        )
        data = ow.DataInfo(input_shape=(3, 8, 8), num_classes=CLASSES, is_image=True)
        return [config.method(config.network, data)]

    return build


# Augmentation


def blended(batch, draw, epoch):
    """Blend each image with another, ever less, and let the class of both count."""
    device = batch.device
    other = torch.randperm(len(batch), generator=draw, device=device)
    share = torch.rand(len(batch), 1, 1, 1, generator=draw, device=device) / (2 + epoch)
    inputs = (1 - share) * batch.inputs + share * batch.inputs[other]
    return batch.replace(inputs=inputs).with_targets(other=batch.label[other])


# Stages


def staged_networks(optimizer):
    """Three blocks learn from pairs; then the same layers, as two blocks, learn classes.

    Args:
        optimizer: That of the second stage.
    """
    layers = [dense(FEATURES), dense(UNITS), dense(UNITS)]
    three = [ow.Block(layer, Contrast(), ow.Adam(lr=0.01)) for layer in layers]
    two = [
        ow.Block(group, ow.CrossEntropy(nn.Linear(UNITS, CLASSES)), optimizer)
        for group in (nn.Sequential(*layers[:2]), layers[2])
    ]
    return [
        ow.Network(three, Pairs(), None, num_classes=0),
        ow.Network(two, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES),
    ]


@seeded
def stages():
    return staged_networks(ow.Adam(lr=0.01))


@seeded
def frozen():
    """Return a network whose second block, with running statistics, does not learn."""
    fixed = nn.Sequential(nn.Linear(UNITS, UNITS), nn.BatchNorm1d(UNITS), nn.ReLU(), nn.Dropout())
    rule = ow.Adam(lr=0.01)
    blocks = [
        ow.Block(dense(FEATURES), ow.CrossEntropy(nn.Linear(UNITS, CLASSES)), rule),
        ow.Block(fixed, ow.CrossEntropy(nn.Linear(UNITS, CLASSES)), None),
        ow.Block(dense(UNITS), ow.CrossEntropy(nn.Linear(UNITS, CLASSES)), rule),
    ]
    return [ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)]


# All of them


@dataclass(frozen=True)
class Case:
    build: Callable
    """Returns the networks of all stages, in order: mostly one."""

    data: Callable
    """Returns the data set."""

    exits: int
    """After how many visits of a block there are class scores; 0 for a network without classes."""

    kinds: tuple[str, ...] = ("chapters", "stream")
    """Plans that it allows."""

    batch_size: int = BATCH_SIZE
    """Samples of a mini-batch."""

    augment: tuple[Callable, ...] = ()
    """What is done to each training mini-batch."""


CASES = {
    "convolutions, overwritten": Case(convolutions_overwritten, images, 3),
    "convolutions, appended": Case(convolutions_appended, images, 2),
    "pairs": Case(pairs, vectors, 1),
    "denoising": Case(denoising, vectors, 1),
    "denoising, no readout": Case(denoising_alone, unlabelled_vectors, 0),
    "adversarial": Case(adversarial, vectors, 1),
    "towers": Case(towers, two_sides, 1),
    "graph": Case(graph_convolutions, graph, 2, batch_size=SAMPLES + TEST_SAMPLES),
    "graph, prepared": Case(
        prepared_graph_convolutions, graph, 2, batch_size=SAMPLES + TEST_SAMPLES
    ),
    "tokens": Case(transformers, sentences, 2),
    "residual": Case(residual, images, 2),
    "recurrent": Case(recurrent, vectors, 3 * TICKS, kinds=("stream",)),
    "fixed heads": Case(fixed_heads, vectors, 2),
    "whitened": Case(whitened, vectors, 2),
    "predsim": Case(recipe_of("predsim", channels=(4, 6)), images, 2),
    "predsim, dense": Case(recipe_of("predsim", channels=(4, 6), layers="dense"), images, 2),
    "channel-goodness": Case(recipe_of("channel-goodness", channels=(6, 6)), images, 2),
    "ff-conv": Case(recipe_of("ff-conv", channels=(4, 6)), images, 2),
    "ff-conv, hard": Case(
        recipe_of("ff-conv", channels=(4, 6), negatives="hard", readout="softmax"), images, 2
    ),
    "stages": Case(stages, vectors, 2),
    "frozen": Case(frozen, vectors, 3),
    "augmented": Case(residual, images, 2, augment=(ow.Translate(1), ow.Flip(), blended)),
}

RUNS = [(name, kind) for name, case in CASES.items() for kind in case.kinds]
"""Names of the cases, each with every plan that it allows."""

PLACEMENTS = {"chapters": "all-layers", "stream": "stream"}
"""Where a plan of each kind runs on several ranks."""


def train(
    case, *, networks=None, kind=None, placement="sequential", epochs=2, dataset=None, **plan
):
    """Train a case as a user's script does.

    Args:
        case: What is trained, on what.
        networks: Others than it builds.
        kind: The kind of plan; None for the first that it allows.
        placement: Where.
        epochs: Of each stage.
        dataset: Another than its own.
        plan: Further settings of the plan.

    Returns:
        The networks of all stages, and the result.
    """
    networks = networks or case.build()
    settings = {
        "training": ow.TrainingConfig(epochs=epochs, batch_size=case.batch_size, precision="fp32"),
        "plan": ow.PlanConfig(kind=kind or case.kinds[0], **plan),
    }
    where = {"placement": ow.PlacementConfig(name=placement), "validation": 0}
    where["augment"] = case.augment
    dataset = dataset or case.data()
    if len(networks) == 1:
        return networks, ow.train(networks[0], dataset, **settings, **where)
    parts = [ow.Stage(network=network, **settings) for network in networks]
    return networks, ow.train(parts, dataset, **where)
