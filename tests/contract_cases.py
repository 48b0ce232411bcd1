"""Methods as a user would write them: networks, samplers and objectives of one's own.

Everything is small and seeded, the data are those of `contract_data`, and `CASES` lists all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ClassVar

import torch
import torch.nn.functional as F
from contract_data import (
    CLASSES,
    FEATURES,
    LENGTH,
    SAMPLES,
    TEST_SAMPLES,
    VOCABULARY,
    graph,
    images,
    sentences,
    two_sides,
    unlabelled_vectors,
    vectors,
)
from torch import nn

import onward as ow

BATCH_SIZE, UNITS = 16, 16


def seeded(build):
    """Let a function build the same networks on every rank, whenever it is called."""

    @wraps(build)
    def builds_the_same():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build()

    return builds_the_same


# Blocks that many of them use


def dense(inputs, units=UNITS):
    return nn.Sequential(nn.Linear(inputs, units), nn.ReLU())


class Concatenated(nn.Module):
    """Puts all that a head reads side by side."""

    def forward(self, inputs):
        return torch.cat([inputs[name] for name in sorted(inputs)], dim=1)


def head_over(*reads, width=UNITS, views=("neutral",)):
    objective = ow.CrossEntropy(nn.Linear(len(reads) * width, CLASSES), views=views)
    return ow.Block(Concatenated(), objective, ow.Adam(lr=0.01), reads=reads)


# Forward-Forward on convolutions


class Convolution(nn.Module):
    """Convolves images of equal length, so that no block reads the goodness of the one before."""

    def __init__(self, channels, units):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, units, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)
        )

    def forward(self, images):
        length = images.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return self.layers(images / (length + 1e-6))


class Symba(ow.Objective):
    """More goodness for the positive than for the negative of the same sample."""

    views = ("positive", "negative")
    metric_names = ("accuracy",)

    def scores(self, outputs):
        return outputs.tensor.flatten(1).square().mean(dim=1)

    def lead(self, outputs):
        return self.scores(outputs["positive"]) - self.scores(outputs["negative"])

    def loss(self, inputs, outputs, draw):
        return F.softplus(-4 * self.lead(outputs)).mean()

    def metrics(self, outputs):
        lead = self.lead(outputs)
        return {"accuracy": ((lead > 0).sum(), len(lead))}


@seeded
def convolutions_overwritten():
    """With the objective of the library, which also keeps a running mean a channel."""

    def block(channels, units):
        objective = ow.Threshold(units, threshold=0.1, slope=8.0, peer=0.03)
        return ow.Block(Convolution(channels, units), objective, ow.Adam(lr=0.01))

    sampler = ow.LabelEmbedding(CLASSES, place="overwrite")
    blocks = [block(3, 8), block(8, 12), block(12, 8)]
    return [ow.Network(blocks, sampler, ow.GoodnessSweep(), num_classes=CLASSES)]


@seeded
def convolutions_appended():
    """With an objective of one's own."""
    blocks = [
        ow.Block(Convolution(3 + CLASSES, 8), Symba(), ow.Adam(lr=0.01)),
        ow.Block(Convolution(8, 12), Symba(), ow.SGD(lr=0.1)),
    ]
    sampler = ow.LabelEmbedding(CLASSES, place="prepend", negatives="fixed")
    readout = ow.GoodnessSweep(skip_first=False)
    return [ow.Network(blocks, sampler, readout, num_classes=CLASSES)]


# Contrastive pairs


class Pairs(ow.Sampler):
    """Every sample with another one of the batch, and whether the two are of one class."""

    names = ("first", "second")

    def views(self, batch, draw, hints):
        second = batch.take(torch.randperm(len(batch), generator=draw))
        sign = torch.where(batch.label == second.label, 1, -1)
        return {"first": batch.with_targets(sign=sign), "second": second.with_targets(sign=sign)}


class Contrast(ow.Objective):
    """Outputs point the same way for a pair of one class, and to different ones otherwise."""

    def loss(self, inputs, outputs, draw):
        first, second = outputs["first"], outputs["second"]
        sign = first.targets["sign"]
        return F.cosine_embedding_loss(first.tensor, second.tensor, sign, margin=0.2)


@seeded
def pairs():
    blocks = [
        ow.Block(dense(FEATURES), Contrast(), ow.Adam(lr=0.01)),
        ow.Block(dense(UNITS), Contrast(), ow.Adam(lr=0.01)),
        head_over(0, 1),
    ]
    return [ow.Network(blocks, Pairs(), ow.SoftmaxHead(), num_classes=CLASSES)]


# Denoising autoencoders


class Corrupted(ow.Sampler):
    """The samples as they are and with noise; after the first block both go on without it."""

    names = ("clean", "noisy")
    continues: ClassVar = {"noisy": "clean"}

    def views(self, batch, draw, hints):
        noise = torch.randn(batch.tensor.shape, generator=draw)
        return {"clean": batch, "noisy": batch.replace(inputs=batch.tensor + 0.3 * noise)}


class Denoising(ow.Objective):
    """What the block was given, clean, from the output for the noisy view, parts of it lost."""

    def __init__(self, inputs, units):
        super().__init__()
        self.decoder = nn.Linear(units, inputs)

    def loss(self, inputs, outputs, draw):
        code = outputs["noisy"].tensor
        kept = torch.rand(code.shape, generator=draw) < 0.8
        return F.mse_loss(self.decoder(code * kept), inputs["clean"].tensor)


def denoising_blocks(objective=Denoising):
    return [
        ow.Block(dense(inputs), objective(inputs, UNITS), ow.Adam(lr=0.01))
        for inputs in (FEATURES, UNITS)
    ]


@seeded
def denoising():
    blocks = [*denoising_blocks(), head_over(0, 1)]
    return [ow.Network(blocks, Corrupted(), ow.SoftmaxHead(), num_classes=CLASSES)]


@seeded
def denoising_alone():
    return [ow.Network(denoising_blocks(), Corrupted(), None, num_classes=0)]


# Adversarial autoencoders


class Adversarial(ow.Objective):
    """A decoder that restores the input, and fools a discriminator that learns along with it."""

    def __init__(self, inputs, units):
        super().__init__()
        self.decoder = nn.Linear(units, inputs)
        self.discriminator = nn.Sequential(
            nn.Linear(inputs, UNITS), nn.LeakyReLU(), nn.Linear(UNITS, 1)
        )

    def loss(self, inputs, outputs, draw):
        real, code = inputs["input"].tensor, outputs["input"].tensor
        made = self.decoder(code + 0.1 * torch.randn(code.shape, generator=draw))
        # softplus(-z) is -log(sigmoid(z)).
        found = F.softplus(-self.discriminator(real)) + F.softplus(
            self.discriminator(made.detach())
        )
        missed = F.softplus(-self.discriminator(made))
        return {
            "discriminator": found.mean(),
            "generator": F.mse_loss(made, real) + 0.1 * missed.mean(),
        }

    def group(self, loss):
        groups = {
            "discriminator": ("objective.discriminator",),
            "generator": ("module", "objective.decoder"),
        }
        return groups[loss]


def adversarial_network(objective):
    blocks = [
        ow.Block(dense(inputs), objective(inputs, UNITS), ow.Adam(lr=0.01))
        for inputs in (FEATURES, UNITS)
    ]
    blocks.append(head_over(0, 1))
    return ow.Network(blocks, ow.Plain(), ow.SoftmaxHead(), num_classes=CLASSES)


@seeded
def adversarial():
    return [adversarial_network(Adversarial)]


# Two towers


class Towers(nn.Module):
    """A layer for each of two inputs, with an output for each."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = dense(left), dense(right)

    def forward(self, inputs):
        return {"left": self.left(inputs["left"]), "right": self.right(inputs["right"])}


class Agreement(ow.Objective):
    """Both outputs of a sample are more alike than those of different samples of the batch."""

    is_mean = False

    def loss(self, inputs, outputs, draw):
        sides = outputs["input"].inputs
        left, right = F.normalize(sides["left"]), F.normalize(sides["right"])
        return F.cross_entropy(5 * left @ right.T, torch.arange(len(left)))


@seeded
def towers():
    """With a head that learns from the view of the sampler, as a block like any other."""
    blocks = [
        ow.Block(Towers(FEATURES, 8), Agreement(), ow.Adam(lr=0.01)),
        ow.Block(Towers(UNITS, UNITS), Agreement(), ow.Adam(lr=0.01)),
        # Of each block it reads two outputs.
        head_over(0, 1, width=2 * UNITS, views=("input",)),
    ]
    return [ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)]


# Graphs


AGGREGATED = []
"""Features of the nodes whenever `with_neighbors` was called."""


def with_neighbors(nodes, edge_index):
    """Return the nodes' features and the mean of their neighbors'."""
    AGGREGATED.append(nodes.shape[1])
    source, target = edge_index
    total = torch.zeros_like(nodes).index_add_(0, target, nodes[source])
    degree = torch.zeros(len(nodes)).index_add_(0, target, torch.ones(len(target)))
    return torch.cat([nodes, total / degree.clamp_min(1)[:, None]], dim=1)


class GraphConvolution(nn.Module):
    """Aggregates neighbors whenever it is called."""

    def __init__(self, inputs):
        super().__init__()
        self.layer = dense(2 * inputs)

    def forward(self, nodes, edge_index):
        return self.layer(with_neighbors(nodes, edge_index))


def graph_head():
    return ow.CrossEntropy(nn.Linear(UNITS, CLASSES))


@seeded
def graph_convolutions():
    blocks = [
        ow.Block(
            GraphConvolution(inputs), graph_head(), ow.Adam(lr=0.01), structure=("edge_index",)
        )
        for inputs in (FEATURES, UNITS)
    ]
    return [ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)]


@seeded
def prepared_graph_convolutions():
    """The same network, which aggregates beforehand."""
    blocks = [
        ow.Block(dense(2 * inputs), graph_head(), ow.Adam(lr=0.01), prepare=with_neighbors)
        for inputs in (FEATURES, UNITS)
    ]
    return [ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)]


# Token ids


class Embedded(nn.Module):
    """A transformer layer over embedded tokens and positions."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, UNITS)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, UNITS))
        self.encoder = encoder()

    def forward(self, tokens):
        return self.encoder(self.tokens(tokens) + self.positions)


def encoder():
    return nn.TransformerEncoderLayer(UNITS, 2, 2 * UNITS, dropout=0.0, batch_first=True)


class TwoHeads(ow.Objective):
    """Learns two targets, and is asked for the first."""

    metric_names = ("accuracy", "parity_accuracy")

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict(
            {"label": nn.Linear(UNITS, CLASSES), "parity": nn.Linear(UNITS, 2)}
        )

    def logits(self, name, outputs):
        return self.heads[name](outputs.tensor.mean(dim=1))

    def scores(self, outputs):
        return self.logits("label", outputs).log_softmax(dim=1)

    def loss(self, inputs, outputs, draw):
        view = outputs["input"]
        losses = [F.cross_entropy(self.logits(n, view), view.targets[n]) for n in self.heads]
        return torch.stack(losses).sum()

    def metrics(self, outputs):
        view = outputs["input"]
        right = [(self.logits(n, view).argmax(dim=1) == view.targets[n]).sum() for n in self.heads]
        return {n: (r, len(view)) for n, r in zip(self.metric_names, right, strict=True)}


@seeded
def transformers():
    modules = [Embedded(), encoder()]
    blocks = [ow.Block(module, TwoHeads(), ow.Adam(lr=0.01)) for module in modules]
    return [ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)]


# Residual blocks


class Residual(nn.Module):
    """Two convolutions beside a way around them."""

    def __init__(self, channels, units):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, units, 3, padding=1, bias=False),
            nn.BatchNorm2d(units),
            nn.ReLU(),
            nn.Conv2d(units, units, 3, padding=1, bias=False),
            nn.BatchNorm2d(units),
        )
        self.around = nn.Conv2d(channels, units, 1, bias=False)

    def forward(self, images):
        return (self.layers(images) + self.around(images)).relu()


def is_filter(name, parameter):
    return parameter.ndim == 4


def to_unit_length(filters):
    filters.div_(filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-7)


def falling(done):
    return 1 - done


@seeded
def residual():
    def block(channels, units):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(units, CLASSES))
        return ow.Block(Residual(channels, units), ow.CrossEntropy(head), rules, schedule=falling)

    muon = ow.optimizer(torch.optim.Muon, lr=0.01, flatten=True, project=to_unit_length)
    adam = ow.optimizer(torch.optim.AdamW, lr=0.01)
    rules = {is_filter: muon, "": adam}
    blocks = [block(3, 8), block(8, 8)]
    return [ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)]


# Recurrent networks


class Clamped(ow.Sampler):
    """Shows the label beside the image, at the other end of the network."""

    names = ("positive", "negative")
    num_candidates = CLASSES

    def shown(self, batch, label):
        return batch.replace(inputs={"image": batch.tensor, "label": label})

    def with_label(self, batch, labels):
        return self.shown(batch, F.one_hot(labels, CLASSES).float())

    def views(self, batch, draw, hints):
        step = torch.randint(1, CLASSES, batch.label.shape, generator=draw)
        return {
            "positive": self.with_label(batch, batch.label),
            "negative": self.with_label(batch, (batch.label + step) % CLASSES),
        }

    def neutral(self, batch):
        return self.shown(batch, torch.full((len(batch), CLASSES), 1 / CLASSES))

    def candidates(self, batch):
        every = batch.take(torch.arange(len(batch)).repeat_interleave(CLASSES))
        return self.with_label(every, torch.arange(CLASSES).repeat(len(batch)))


class Gathering(nn.Module):
    """Adds up what a layer of its own makes of each thing that it reads."""

    def __init__(self, **reads):
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(n, UNITS) for name, n in reads.items()})

    def forward(self, inputs):
        # One of the named inputs comes as `input.image`, which is no name for a module.
        read = {name.removeprefix("input."): tensor for name, tensor in inputs.items()}
        parts = [layer(F.normalize(read[name])) for name, layer in self.layers.items()]
        return torch.stack(parts).sum(dim=0).relu()


class Foreseeing(Symba):
    """Goodness, and what the lowest block puts out, which the module does not see."""

    ships = False

    def __init__(self):
        super().__init__()
        self.predictor = nn.Linear(UNITS, UNITS)

    def loss(self, inputs, outputs, draw):
        view = outputs["positive"]
        apart = F.mse_loss(self.predictor(view.tensor), view.context["lowest"])
        return super().loss(inputs, outputs, draw) + apart


def recurrent_network(ticks):
    def before(source, name):
        return ow.Edge(source, delay=1, name=name, shape=(UNITS,))

    lowest = ow.Block(
        Gathering(image=FEATURES, itself=UNITS, above=UNITS),
        Symba(),
        ow.Adam(lr=0.01),
        reads=("input", before(0, "itself"), before(1, "above")),
    )
    middle = ow.Block(
        Gathering(below=UNITS, itself=UNITS, above=UNITS),
        Symba(),
        ow.Adam(lr=0.01),
        reads=(ow.Edge(0, name="below"), before(1, "itself"), before(2, "above")),
    )
    highest = ow.Block(
        Gathering(below=UNITS, itself=UNITS, label=CLASSES),
        Foreseeing(),
        ow.Adam(lr=0.01),
        reads=(
            "input",
            before(1, "below"),
            before(2, "itself"),
            ow.Edge(0, to="objective", name="lowest"),
        ),
    )
    blocks = [lowest, middle, highest]
    return ow.Network(blocks, Clamped(), ow.GoodnessSweep(), num_classes=CLASSES, ticks=ticks)


TICKS = 4


@seeded
def recurrent():
    return [recurrent_network(TICKS)]


# Heads that stay as they were drawn


@seeded
def fixed_heads():
    """The second block is of a kind whose derivatives the library knows by heart."""

    def head():
        return nn.Linear(UNITS, CLASSES, bias=False).requires_grad_(False)

    modules = [dense(FEATURES), ow.Dense(UNITS, UNITS, generator=torch.Generator().manual_seed(3))]
    blocks = [ow.Block(module, ow.CrossEntropy(head()), ow.Adam(lr=0.01)) for module in modules]
    return [ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)]


# Whitening


class Whitening(ow.Preprocessing):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("matrix", torch.eye(features))

    def sums(self, x):
        return [torch.tensor([len(x)]), x.sum(dim=0), x.T @ x]

    def fit(self, sums):
        (count,), total, products = sums
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - mean.outer(mean))
        self.mean.copy_(mean)
        self.matrix.copy_(vectors @ (values + 1e-9).rsqrt().diag() @ vectors.T)

    def forward(self, x):
        return (x - self.mean) @ self.matrix


@seeded
def whitened():
    """Samples lose their correlations before the first block sees them."""
    blocks = [
        ow.Block(dense(inputs), ow.CrossEntropy(nn.Linear(UNITS, CLASSES)), ow.Adam(lr=0.01))
        for inputs in (FEATURES, UNITS)
    ]
    return [
        ow.Network(
            blocks,
            ow.Plain(),
            ow.SumOfHeads(),
            num_classes=CLASSES,
            preprocessing=Whitening(FEATURES),
        )
    ]


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
    other = torch.randperm(len(batch), generator=draw)
    share = torch.rand(len(batch), 1, 1, 1, generator=draw) / (2 + epoch)
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
        recipe_of("ff-conv", channels=(4, 6), negatives="hard", readout="softmax"), images, 1
    ),
    "stages": Case(stages, vectors, 2),
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
