"""Jobs about the weights: runs of all kinds over real processes, and runs that must fail."""

import os
import signal
import time

import numpy as np
import torch
from jobs import JOBS, NUM_RANKS, job
from torch import nn

import onward as ow
from onward.config import RunConfig
from onward.plan.tasks import ProductKind
from onward.runs.training import run
from onward.runtime.chapters import ChapterWorker
from onward.runtime.runtime import Runtime
from onward.runtime.streams import StreamWorker

EXIT_STATUS = 7
"""That of the rank that dies on purpose, in the last job."""

SMALL = {
    "network.widths": (24, 20, 16, 12),
    "network.dropout": 0.0,
    "training.epochs": 8,
    "training.batch_size": 200,
    "training.precision": "fp32",
}
STREAM = {
    **SMALL,
    "plan.kind": "stream",
    "plan.chapters": 3,
    "training.epochs": 6,
    "training.batch_size": 100,
}
PFF = {
    **SMALL,
    "network.readout": "softmax",
    "optimizer.lr": 0.01,
    "optimizer.head_lr": 0.01,
    "plan.hint_age": 2,
}
BY_CLASS = {
    **SMALL,
    "plan.shards": 4,
    "plan.shard_by": "class",
    "training.batch_size": 100,
    "plan.validate_every": 1,
}

RUNS = {
    "one-pass": ("one-pass", SMALL, [("single-layer", 4), ("all-layers", 4)]),
    "bf16": (
        "one-pass",
        {**SMALL, "training.precision": "bf16", "network.dropout": 0.2},
        [("all-layers", 2)],
    ),
    "hints": ("pff", PFF, [("single-layer", 3), ("all-layers", 4)]),
    "older moments": (
        "pff",
        {**PFF, "plan.optimizer_state": "aged:3", "data.shift": 1},
        [("all-layers", 4)],
    ),
    "short chapters": (
        "pff",
        {**PFF, "plan.chapters": 6, "training.epochs": 2},
        [("all-layers", 2)],
    ),
    "ended early": (
        "one-pass",
        {**SMALL, "optimizer.lr": 0.5, "plan.patience": 1, "plan.keep_best": True},
        [("single-layer", 2), ("all-layers", 3)],
    ),
    "stream": ("one-pass", STREAM, [("stream", 4)]),
    "stream with hints of age 0": (
        "hinton",
        {**STREAM, "plan.hint_age": 0, "training.precision": "bf16"},
        [("stream", 2)],
    ),
    "stream with hints of age 5": ("hinton", {**STREAM, "plan.hint_age": 5}, [("stream", 4)]),
    "convolutions": (
        "conv",
        {
            "network.channels": (6, 8, 6),
            "network.pooled": (1, 3),
            "training.epochs": 2,
        },
        [("stream", 3)],
    ),
    "federated": ("one-pass", BY_CLASS, [("federated", 2), ("federated", 4)]),
}
"""Runs by name: recipe, what is changed in it, and where it runs."""


def write_digits(folder):
    """Write 660 digits as one file, and as a file for each rank, with samples of few classes.

    Validation samples are in the files: to hold some out, each rank would import for seconds.
    """
    whole = ow.load_data("digits")
    x, y = whole.x.numpy(), whole.y.numpy()
    held = {"x_val": x[590:660], "y_val": y[590:660]}
    held |= {"x_test": whole.x_test.numpy(), "y_test": whole.y_test.numpy()}
    np.savez(folder / "digits.npz", x=x[:590], y=y[:590], **held)
    for rank, samples in enumerate(np.array_split(y[:590].argsort(kind="stable"), NUM_RANKS)):
        np.savez(folder / f"private{rank}.npz", x=x[samples], y=y[samples], **held)


def config_of(name, folder, placement=None):
    """Return the settings of a run."""
    recipe, changes, _ = RUNS[name]
    given = {"data.name": str(folder / "digits.npz"), "placement.name": placement}
    return RunConfig(recipe=recipe).with_settings(changes | given)


def private_config(folder):
    """Return the settings of a run in which each rank has a file of its own."""
    recipe, changes, _ = RUNS["federated"]
    given = {"data.name": str(folder / "private{rank}.npz")}
    return RunConfig(recipe=recipe).with_settings(changes | given)


def convolutions(seed=0):
    """Return blocks of a kind that the library knows nothing of."""

    def block(channels_in, channels_out):
        module = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels_out, 10))
        return ow.Block(module, ow.CrossEntropy(head), ow.Adam(lr=0.01))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = [block(n_in, n_out) for n_in, n_out in [(1, 4), (4, 6), (6, 4), (4, 3)]]
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)


def train_convolutions(folder, seed=0):
    """Train them as a user's script does."""
    dataset = ow.load_data(str(folder / "digits.npz"))
    training = ow.TrainingConfig(epochs=3, batch_size=200, precision="fp32")
    return ow.train(convolutions(seed), dataset, training=training)


# Jobs


def told(result):
    """Return what a test wants to know of a run: nothing on ranks other than 0."""
    if result is None:
        return None
    return {
        "weights": result.facts["weights_sha256"],
        "accuracy": result.accuracy,
        "placement": result.facts["placement"],
        "activities": result.facts["activities"],
        "bytes_sent": result.facts["bytes_sent"],
        "reports": sorted([p.chapter, -1 if p.block is None else p.block] for p in result.progress),
    }


def run_job(name, placement):
    return lambda folder: told(run(config_of(name, folder, placement)))


for case, (_, _, places) in RUNS.items():
    for place, number in places:
        JOBS[f"{case}, {place} on {number}"] = (number, run_job(case, place))


@job(2)
def far_behind(folder):
    """Rank 1 begins late, and notes how much waits for it."""
    waiting, train, get = [0], StreamWorker.train, Runtime._get

    def train_late(worker, task, given):
        if os.environ["RANK"] == "1" and task.time == 0:
            time.sleep(1)
        return train(worker, task, given)

    def noted(runtime, product, task):
        # Those that its own blocks hand on wait for nobody.
        here = [p for p in runtime.products if p.kind is ProductKind.ACTIVITIES]
        waiting.append(sum(runtime.placement.ranks(runtime.plan.maker(p))[0] == 0 for p in here))
        return get(runtime, product, task)

    StreamWorker.train, Runtime._get = train_late, noted
    try:
        return [told(run(config_of("stream", folder, "stream"))), max(waiting)]
    finally:
        StreamWorker.train, Runtime._get = train, get


@job(4)
def private_files(folder):
    return told(run(private_config(folder)))


@job(3)
def convolutions_on_three(folder):
    return told(train_convolutions(folder))


@job(2)
def held_in_files(folder):
    config = config_of("older moments", folder, "all-layers")
    # 590 samples take 0.28 MB, and a chunk of 500 takes 0.24 MB.
    return told(run(config.with_settings({"placement.memory": 0.00026})))


@job(2)
def started_by_hand(folder):
    """With no more than the variables torch asks for, as under Slurm: they meet at rank 0."""
    given = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("TORCHELASTIC_") or name == "LOCAL_WORLD_SIZE":
            del os.environ[name]
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    try:
        config = config_of("one-pass", folder, "all-layers")
        return told(run(config.with_settings({"placement.iface": "lo"})))
    finally:
        os.environ |= given


def run_in_directory(name, placement, folder):
    config = config_of(name, folder, placement)
    return told(run(config.with_settings({"placement.directory": str(folder / name)})))


@job(4)
def through_a_directory(folder):
    return run_in_directory("one-pass", "all-layers", folder)


@job(3)
def through_a_directory_again(folder):
    """The run is finished, and only its network is read."""
    return run_in_directory("one-pass", "single-layer", folder)


@job(3)
def hints_through_a_directory(folder):
    return run_in_directory("hints", "single-layer", folder)


def run_in_teams(placement, cut):
    """Return a job in which two ranks share each task."""

    def teams(folder):
        config = config_of("bf16", folder, placement)
        return told(
            run(config.with_settings({"plan.slices": 4, "plan.cut": cut, "placement.replicas": 2}))
        )

    return teams


@job(4)
def teams_by_cost(folder):
    return told(run(by_cost(folder, "single-layer")))


def by_cost(folder, placement):
    """Return a run of two blocks, the second of which gets three of four ranks."""
    changes = {"network.widths": (9, 66), "plan.slices": 3, "plan.cut": "units"}
    return config_of("bf16", folder, placement).with_settings(changes)


def views_in_a_team(folder, ranks):
    """Return a run of positives and negatives that some ranks pass through blocks together."""
    changes = {"plan.slices": 4, "placement.replicas": ranks, "network.readout": "goodness"}
    changes |= {"plan.hint_age": None, "network.negatives": "random", "training.epochs": 2}
    return config_of("hints", folder, "sequential").with_settings(changes)


@job(4)
def two_views_in_a_team(folder):
    """Each process has a hash seed of its own, on which no order may depend."""
    return told(run(views_in_a_team(folder, 4)))


for cut in ("samples", "units"):
    JOBS[f"two teams, {cut}"] = (4, run_in_teams("all-layers", cut))
    JOBS[f"one team, {cut}"] = (2, run_in_teams("sequential", cut))


@job(2)
def a_stream_through_a_directory(folder):
    run_in_directory("stream", "stream", folder)


@job(2)
def different_weights(folder):
    train_convolutions(folder, seed=int(os.environ["RANK"]))


@job(2)
def different_data(folder):
    rank = int(os.environ["RANK"])
    ow.train(convolutions(), ow.load_data(str(folder / f"private{rank}.npz")))


@job(2)
def private_files_not_federated(folder):
    run(private_config(folder).with_settings({"placement.name": "all-layers"}))


@job(2)
def twice(folder):
    """One process group after the other, as a script that compares two settings has them."""
    return [told(train_convolutions(folder, seed)) for seed in (0, 1, 0)]


@job(4)
def deserted(folder):
    """The last job: rank 2 dies in the middle of a chapter, and the others must notice."""
    if int(os.environ["RANK"]) != 2:
        # The launcher ends all others soon, but those that wait shall say what they saw.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    train = ChapterWorker.train

    def train_or_die(worker, task, given):
        if task.time == 6 and task.block == 1:
            # Not at once, so that the rank after it, at least, waits for what will never come.
            time.sleep(0.5)
            os._exit(EXIT_STATUS)
        return train(worker, task, given)

    ChapterWorker.train = train_or_die
    run(config_of("one-pass", folder, "all-layers"))
