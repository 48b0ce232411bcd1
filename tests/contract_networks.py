"""Networks as a user would write them: of graphs, tokens, residuals, ticks."""

import torch
import torch.nn.functional as F
from contract_blocks import UNITS, dense, seeded
from contract_data import (
    CLASSES,
    FEATURES,
    LENGTH,
    VOCABULARY,
)
from contract_objectives import Symba
from torch import nn

import onward as ow

# Graphs


AGGREGATED = []
"""Features of the nodes whenever `with_neighbors` was called."""


def with_neighbors(nodes, edge_index):
    """Return the nodes' features and the mean of their neighbors'."""
    AGGREGATED.append(nodes.shape[1])
    source, target = edge_index
    total = torch.zeros_like(nodes).index_add_(0, target, nodes[source])
    degree = nodes.new_zeros(len(nodes)).index_add_(0, target, nodes.new_ones(len(target)))
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
        ow.Block(
            dense(2 * inputs),
            graph_head(),
            ow.Adam(lr=0.01),
            structure=("edge_index",),
            prepare=with_neighbors,
        )
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
        shape = batch.label.shape
        step = torch.randint(1, CLASSES, shape, generator=draw, device=batch.device)
        return {
            "positive": self.with_label(batch, batch.label),
            "negative": self.with_label(batch, (batch.label + step) % CLASSES),
        }

    def neutral(self, batch):
        return self.shown(batch, batch.tensor.new_full((len(batch), CLASSES), 1 / CLASSES))

    def candidates(self, batch):
        every = batch.take(torch.arange(len(batch), device=batch.device).repeat_interleave(CLASSES))
        return self.with_label(every, torch.arange(CLASSES, device=batch.device).repeat(len(batch)))


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

    helpers = ("predictor",)

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
