"""Small runs of all kinds, ready to be done in this process under any placement."""

import copy
from dataclasses import dataclass
from functools import cache

from in_memory import run_in_memory

import onward as ow
from onward.checkpoint import weights_sha256
from onward.config import RunConfig
from onward.network.networks import Network
from onward.placement import place
from onward.plan.tasks import Plan
from onward.runs.preparation import make_plan, make_settings, make_stages, of_stage, set_arithmetic
from onward.runs.sharding import load_data, load_shards, seen, split
from onward.runs.trial import block_costs
from onward.runtime.workers import Settings, Shard
from onward.seeds import global_generators_kept
from onward.transport.messages import SingleProcessTransport

SMALL = {
    "network.widths": (24, 20, 16, 12),
    "network.dropout": 0.0,
    "training.epochs": 6,
    "training.batch_size": 200,
    "training.precision": "fp32",
    "data.validation": 70,
}

# Blocks that learn this fast soon become no better.
STOPPING = {"plan.patience": 1, "optimizer.lr": 0.5}

PFF = {**SMALL, "optimizer.lr": 0.01, "optimizer.head_lr": 0.01, "plan.hint_age": 2}

CHAPTERS = {
    "one-pass": ("one-pass", SMALL),
    "one-pass in bf16": ("one-pass", {**SMALL, "training.precision": "bf16"}),
    "one-pass by autograd": ("one-pass", {**SMALL, "training.gradients": "autograd"}),
    "one-pass with dropout": ("one-pass", {**SMALL, "network.dropout": 0.2}),
    "adaptive, goodness": ("pff", PFF),
    "adaptive, goodness, bf16": ("pff", {**PFF, "training.precision": "bf16"}),
    "adaptive, softmax": ("pff", {**PFF, "network.readout": "softmax"}),
    "random, goodness": ("pff", {**PFF, "network.negatives": "random"}),
    "random, softmax": (
        "pff",
        {**PFF, "network.negatives": "random", "network.readout": "softmax"},
    ),
    "fixed, goodness": ("pff", {**PFF, "network.negatives": "fixed"}),
    "fixed, softmax": ("pff", {**PFF, "network.negatives": "fixed", "network.readout": "softmax"}),
    "hard, goodness": ("pff", {**PFF, "network.negatives": "hard"}),
    "gradual, goodness": ("pff", {**PFF, "network.negatives": "gradual"}),
    "nearest, goodness": ("pff", {**PFF, "network.negatives": "nearest"}),
    "mixed, goodness": ("pff", {**PFF, "network.negatives": "mixed"}),
    "hints one chapter old": ("pff", {**PFF, "plan.hint_age": 1}),
    "moments restart": ("pff", {**PFF, "plan.optimizer_state": "restart"}),
    "moments three chapters old": ("pff", {**PFF, "plan.optimizer_state": "aged:3"}),
    "three chapters an epoch": ("pff", {**PFF, "training.epochs": 2, "plan.chapters": 6}),
    "two epochs a chapter": ("pff", {**PFF, "training.epochs": 8, "plan.chapters": 4}),
    "last mini-batch left out": (
        "pff",
        {**PFF, "training.drop_last": True, "training.epochs": 8, "plan.chapters": 4},
    ),
    "shifted": ("pff", {**PFF, "network.readout": "softmax", "data.shift": 1}),
    "shifted, two epochs a chapter": (
        "one-pass",
        {**SMALL, "data.shift": 1, "training.epochs": 8, "plan.chapters": 4},
    ),
    "shifted, three chapters an epoch": (
        "pff",
        {
            **PFF,
            "data.shift": 1,
            "data.flip": "random",
            "training.epochs": 2,
            "training.batch_size": 40,
            "plan.chapters": 6,
            "plan.hint_age": 1,
        },
    ),
    "peer normalisation": ("pff", {**PFF, "network.peer": 0.03}),
    "sgd with decay": (
        "pff",
        {**PFF, "optimizer.name": "sgd", "optimizer.weight_decay": 0.001},
    ),
    "shared pass": ("pff", {**PFF, "training.gradients": "shared-pass"}),
    "validated often": ("one-pass", {**SMALL, "plan.validate_every": 1}),
    "ended early": ("one-pass", {**SMALL, **STOPPING, "plan.stop_age": 2}),
    "ended early with hints, best kept": (
        "pff",
        {**PFF, **STOPPING, "plan.keep_best": True, "plan.hint_age": 1, "optimizer.lr": 0.03},
    ),
    "best of every second chapter kept": (
        "one-pass",
        {**SMALL, "optimizer.lr": 0.5, "plan.keep_best": True, "plan.validate_every": 2},
    ),
}
"""Chapter plans: recipe, and what is changed in it."""

STREAM = {
    **SMALL,
    "plan.kind": "stream",
    "plan.chapters": 4,
    "training.epochs": 2,
    "training.batch_size": 150,
}

HINTON = {**STREAM, "optimizer.head_lr": 0.1}

STREAMS = {
    "one-pass": ("one-pass", STREAM),
    "one-pass in bf16": ("one-pass", {**STREAM, "training.precision": "bf16"}),
    "one-pass with dropout, shifted": (
        "one-pass",
        {**STREAM, "network.dropout": 0.2, "data.shift": 1},
    ),
    "fixed negatives": ("hinton", {**HINTON, "network.negatives": "fixed"}),
    "hints of age 0": ("hinton", {**HINTON, "plan.hint_age": 0}),
    "hints of age 1": ("hinton", {**HINTON, "plan.hint_age": 1}),
    "hints of age 5": ("hinton", {**HINTON, "plan.hint_age": 5}),
    "hints of age 5 in bf16": (
        "hinton",
        {**HINTON, "plan.hint_age": 5, "training.precision": "bf16"},
    ),
    "bf16 on the wire": ("hinton", {**HINTON, "plan.hint_age": 1, "plan.wire": "bf16"}),
    "one-pass, bf16 on the wire": ("one-pass", {**STREAM, "plan.wire": "bf16"}),
    "ended early, best kept": ("one-pass", {**STREAM, **STOPPING, "plan.keep_best": True}),
    "ended early with hints of age 1": ("hinton", {**HINTON, **STOPPING, "plan.hint_age": 1}),
    "never hints": ("hinton", {**HINTON, "plan.hint_age": "never"}),
    "hints of age 5, softmax, shifted": (
        "hinton",
        {**HINTON, "plan.hint_age": 5, "network.readout": "softmax", "data.shift": 1},
    ),
}
"""Stream plans: recipe, and what is changed in it."""

SLICED = {
    "samples": ("one-pass", {**SMALL, "plan.slices": 4}),
    "samples in bf16": ("one-pass", {**SMALL, "plan.slices": 2, "training.precision": "bf16"}),
    "samples with dropout": ("one-pass", {**SMALL, "plan.slices": 2, "network.dropout": 0.2}),
    "samples, adaptive, softmax": (
        "pff",
        {**PFF, "plan.slices": 2, "network.readout": "softmax"},
    ),
    "samples, adaptive, softmax, shifted": (
        "pff",
        {**PFF, "plan.slices": 2, "network.readout": "softmax", "data.shift": 1},
    ),
    "units": ("one-pass", {**SMALL, "plan.slices": 4, "plan.cut": "units"}),
    "units in bf16": (
        "one-pass",
        {
            **SMALL,
            "plan.slices": 2,
            "plan.cut": "units",
            "training.precision": "bf16",
            "network.dropout": 0.2,
        },
    ),
    "units, adaptive, goodness": ("pff", {**PFF, "plan.slices": 2, "plan.cut": "units"}),
    "units, adaptive, softmax": (
        "pff",
        {**PFF, "plan.slices": 2, "plan.cut": "units", "network.readout": "softmax"},
    ),
    "units, moments restart": (
        "one-pass",
        {
            **SMALL,
            "plan.slices": 2,
            "plan.cut": "units",
            "plan.optimizer_state": "restart",
            "plan.validate_every": 1,
        },
    ),
}
"""Chapter plans that cut mini-batches: recipe, and what is changed in it."""

FEDERATED = {
    "one-pass, iid": (
        "one-pass",
        {**SMALL, "plan.shards": 4, "training.batch_size": 100, "training.epochs": 6},
    ),
    "one-pass, by class": (
        "one-pass",
        {
            **SMALL,
            "plan.shards": 4,
            "plan.shard_by": "class",
            "training.batch_size": 100,
            "training.epochs": 6,
        },
    ),
    "one-pass, drawn": (
        "one-pass",
        {
            **SMALL,
            "plan.shards": 4,
            "plan.shard_by": "dirichlet",
            "plan.shard_alpha": 2.0,
            "training.batch_size": 50,
            "training.epochs": 4,
        },
    ),
    "adaptive, by class": (
        "pff",
        {
            **PFF,
            "plan.shards": 4,
            "plan.shard_by": "class",
            "training.batch_size": 100,
            "training.epochs": 8,
            "plan.hint_age": 4,
            "network.readout": "softmax",
            "plan.validate_every": 1,
        },
    ),
}
"""Chapter plans over four shards: recipe, and what is changed in it."""


@dataclass
class Prepared:
    """Everything that decides the weights of a run."""

    plan: Plan
    network: Network
    shards: dict[int, Shard]
    settings: Settings

    def costs(self):
        return block_costs(self.network, self.shards[0].training)

    def run(self, name, num_ranks, replicas=1, way="memory"):
        """Run a placement in this process; return its runtimes, rank 0 first."""
        placement = place(self.plan, name, num_ranks, self.costs(), replicas)
        networks = [copy.deepcopy(self.network) for _ in range(num_ranks)]
        with global_generators_kept():
            return run_in_memory(self.plan, placement, networks, self.shards, self.settings, way)


@cache
def digits():
    """Return digits of which 590 are trained on: in two chunks, and uneven mini-batches."""
    whole = ow.load_data("digits")
    return ow.dataset(whole.x[:660], whole.y[:660], x_test=whole.x_test, y_test=whole.y_test)


def prepare(recipe, changes, stage=0):
    config = RunConfig(recipe=recipe).with_settings(changes)
    samples = digits() if config.data.name == "digits" else load_data(config, 0)
    cut = split(config, samples)
    shards, shape = load_shards(config, cut, SingleProcessTransport())
    found = make_stages(config, samples, shape)[stage]
    shards = seen(config, shards, shape, sees_labels=found.sees_labels)
    return prepare_network(found.network, of_stage(config, found), shards, shape)


def prepare_network(network, config, shards, shape):
    set_arithmetic(network, config)
    plan, settings = make_plan(config, network, shape), make_settings(config)
    return Prepared(plan, network, shards, settings)


@cache
def reference(kind, case):
    """Return the trained network of the sequential run, which is short and obvious."""
    cases = {"chapters": CHAPTERS, "stream": STREAMS, "federated": FEDERATED, "sliced": SLICED}
    (runtime,) = prepare(*cases[kind][case]).run("sequential", 1)
    return runtime.worker.network


def assert_two_ranks_end_as_one(recipe, changes, placement="all-layers"):
    """Run a recipe on one rank and on two, all in this process, and compare the weights."""
    made = prepare(recipe, changes)
    (one,), (two, _) = made.run("sequential", 1), made.run(placement, 2)

    assert_same_weights(two.worker.network, one.worker.network)


def assert_same_weights(actual, expected):
    """Check the digest, and every tensor, those that inference does not need included."""
    assert weights_sha256(actual) == weights_sha256(expected)
    theirs = expected.state_dict()
    for name, tensor in actual.state_dict().items():
        assert tensor.equal(theirs[name]), name
