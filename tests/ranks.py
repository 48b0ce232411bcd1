"""Jobs for a group of four processes, which is started once for all tests that need one.

`results` starts the group and returns what each job told on each rank. As a script this file is the
body of a rank: it does the jobs in order, each in a world of its own size over real gloo, and
writes what they return as JSON.
"""

import atexit
import faulthandler
import gc
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import onward as ow
from onward import transport as transports
from onward.chapters import ChapterWorker
from onward.doctor import check_ranks
from onward.plan import Thing
from onward.recipes import RECIPES
from onward.runtime import Runtime
from onward.streams import StreamWorker
from onward.training import run
from onward.transport import IN_FLIGHT, DistributedTransport, launch

NUM_RANKS = 4

LIMIT_SECONDS = 150
"""After this a rank prints where it hangs, and ends."""

EXIT_STATUS = 7
"""That of the rank that dies on purpose, in the last job."""

MEGABYTE = 2**20

SMALL = {
    "data.validation": 70,
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
    "one-pass": ("one-pass", SMALL, [("single-layer", 2), ("single-layer", 4), ("all-layers", 4)]),
    "bf16": (
        "one-pass",
        {**SMALL, "training.precision": "bf16", "network.dropout": 0.2},
        [("single-layer", 3), ("all-layers", 2)],
    ),
    "hints": ("pff", PFF, [("single-layer", 3), ("all-layers", 3), ("all-layers", 4)]),
    "older moments": (
        "pff",
        {**PFF, "plan.optimizer_state": "aged:3", "data.shift": 1},
        [("all-layers", 2), ("all-layers", 4)],
    ),
    "short chapters": (
        "pff",
        {**PFF, "plan.chapters": 6, "training.epochs": 2},
        [("all-layers", 2)],
    ),
    "stream": ("one-pass", STREAM, [("stream", 2), ("stream", 4)]),
    "stream with hints of age 0": (
        "hinton",
        {**STREAM, "plan.hint_age": 0, "training.precision": "bf16"},
        [("stream", 2)],
    ),
    "stream with hints of age 5": ("hinton", {**STREAM, "plan.hint_age": 5}, [("stream", 4)]),
    "federated": ("one-pass", BY_CLASS, [("federated", 2), ("federated", 4)]),
}
"""Runs by name: recipe, what is changed in it, and where it runs."""

JOBS = {}
"""Size of the world and function of each job, by name, in order."""


def job(num_ranks):
    """Make a function a job for the first ranks of the group."""

    def register(function):
        JOBS[function.__name__] = (num_ranks, function)
        return function

    return register


# In the tests


@cache
def results():
    """Start the group once; return by job what each of its ranks told, rank 0 first.

    The entry "status" is the exit status of the group.
    """
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_digits(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(probe.getsockname()[1]))
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        status = launch(NUM_RANKS, [__file__, str(folder)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    told = [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]
    found = {name: [each[name] for each in told if name in each] for name in JOBS}
    return found | {"status": status, "folder": folder}


def write_digits(folder):
    """Write 660 digits as one file, and as a file for each rank, with rows of few classes."""
    whole = ow.load_data("digits")
    x, y = whole.x[:660].numpy(), whole.y[:660].numpy()
    test = {"x_test": whole.x_test.numpy(), "y_test": whole.y_test.numpy()}
    np.savez(folder / "digits.npz", x=x, y=y, **test)
    for rank, rows in enumerate(np.array_split(y.argsort(kind="stable"), NUM_RANKS)):
        np.savez(folder / f"private{rank}.npz", x=x[rows], y=y[rows], **test)


def config_of(name, folder, placement=None):
    """Return the settings of a run."""
    recipe, changes, _ = RUNS[name]
    given = {"data.name": str(folder / "digits.npz"), "placement.name": placement}
    return RECIPES[recipe].config.with_settings(changes | given)


def private_config(folder):
    """Return the settings of a run in which each rank has a file of its own."""
    recipe, changes, _ = RUNS["federated"]
    given = {"data.name": str(folder / "private{rank}.npz"), "data.validation": 10}
    return RECIPES[recipe].config.with_settings(changes | given)


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


# Jobs about the weights


def told(result):
    """Return what a test wants to know of a run: nothing on ranks other than 0."""
    if result is None:
        return None
    return {
        "weights": result.facts["weights_sha256"],
        "accuracy": result.accuracy,
        "placement": result.facts["placement"],
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
    waiting, train, wait_for = [0], StreamWorker.train, Runtime._wait_for

    def train_late(worker, step, block):
        if os.environ["RANK"] == "1" and step == 0:
            time.sleep(1)
        train(worker, step, block)

    def noted(runtime, product, task):
        waiting.append(sum(p.thing is Thing.ACTIVITIES for p in list(runtime.arrived)))
        return wait_for(runtime, product, task)

    StreamWorker.train, Runtime._wait_for = train_late, noted
    try:
        return [told(run(config_of("stream", folder, "stream"))), max(waiting)]
    finally:
        StreamWorker.train, Runtime._wait_for = train, wait_for


@job(4)
def private_files(folder):
    return told(run(private_config(folder)))


@job(3)
def convolutions_on_three(folder):
    return told(train_convolutions(folder))


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
    return told(run(config.with_settings({"placement.directory": str(folder / "shared")})))


@job(4)
def through_a_directory(folder):
    return run_in_directory("one-pass", "all-layers", folder)


@job(3)
def through_the_same_directory(folder):
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


for cut in ("rows", "units"):
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


# Jobs about the transport


@contextmanager
def opened():
    """Open a transport, and close it unless the job fails."""
    transport = DistributedTransport()
    yield transport
    transport.close()


@job(3)
def examined(folder):
    with opened() as transport:
        findings = check_ranks(transport)
    return [[finding.what, finding.told] for finding in findings]


@job(2)
def dropped_by_the_sender(folder):
    received = []
    with opened() as transport:
        if transport.rank == 0:
            for number in range(IN_FLIGHT):
                transport.send(1, [torch.full((1000 * number + 1,), float(number))])
            gc.collect()
            transport.exchange("sent", None)
        else:
            transport.exchange("sent", None)
            time.sleep(0.3)
            layouts = ([torch.empty(1000 * number + 1)] for number in range(IN_FLIGHT))
            transport.expect(0, layouts, received.append)
    return [[len(tensor), *tensor.unique().tolist()] for (tensor,) in received]


@job(2)
def while_the_receiver_computes(folder):
    arrived, matrix, products, before = [], torch.ones(200, 200), 0, 0
    with opened() as transport:
        if transport.rank == 1:
            layouts = ([torch.empty(MEGABYTE // 4)] for _ in range(8))
            transport.expect(0, layouts, arrived.append)
            transport.exchange("ready", None)
            until = time.monotonic() + 20
            while len(arrived) < 8 and time.monotonic() < until:
                matrix @ matrix
                products += 1
            before = len(arrived)
        else:
            transport.exchange("ready", None)
            time.sleep(0.3)
            for _ in range(8):
                transport.send(1, [torch.zeros(MEGABYTE // 4)])
    return {"arrived_before_waiting": before, "products": products}


@job(2)
def after_a_long_wait(folder):
    received, start = [], time.monotonic()
    with opened() as transport:
        if transport.rank == 1:
            layouts = ([torch.empty(5)] for _ in range(2))
            transport.expect(
                0, layouts, lambda m: received.append([m[0][0].item(), time.monotonic() - start])
            )
        else:
            time.sleep(2.5)
            for number in range(2):
                transport.send(1, [torch.full((5,), float(number))])
    return received


def sizes(source, dest):
    """Return the sizes of 60 messages: most are small, some are of megabytes."""
    draw = random.Random(f"{source} to {dest}")
    return [draw.randint(1, 5000 if draw.random() < 0.95 else 3 * MEGABYTE) for _ in range(60)]


@job(4)
def in_order(folder):
    received = {}
    with opened() as transport:
        others = [rank for rank in range(4) if rank != transport.rank]
        for source in others:
            layouts = (
                [torch.empty((), dtype=torch.int64), torch.empty(size, dtype=torch.uint8)]
                for size in sizes(source, transport.rank)
            )
            transport.expect(source, layouts, received.setdefault(source, []).append)
        for number in range(60):
            for dest in others:
                size = sizes(transport.rank, dest)[number]
                content = torch.full((size,), number + 4 * transport.rank, dtype=torch.uint8)
                transport.send(dest, [torch.tensor(number), content])
    return {
        source: [
            [number.item(), len(content), *content.unique().tolist()]
            for number, content in messages
        ]
        for source, messages in received.items()
    }


@job(2)
def large(folder):
    received = []
    with opened() as transport:
        sent = [torch.arange(size // 8) for size in (9 * MEGABYTE, 40 * MEGABYTE)]
        if transport.rank == 1:
            transport.expect(0, [[torch.empty_like(t)] for t in sent], received.append)
        else:
            for tensor in sent:
                transport.send(1, [tensor])
    return [tensor.equal(expected) for (tensor,), expected in zip(received, sent, strict=False)]


@job(2)
def of_all_types(folder):
    received = []
    sent = [
        torch.arange(5.0),
        torch.arange(5.0, dtype=torch.float64),
        torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.bfloat16),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.arange(6.0).view(2, 3).T,
        torch.ones(1, 2, 3, requires_grad=True),
    ]
    with opened() as transport:
        if transport.rank == 1:
            layout = [torch.empty(t.shape, dtype=t.dtype) for t in sent]
            transport.expect(0, [layout], received.extend)
        else:
            transport.send(1, sent)
        num_bytes = transport.bytes_sent
    same = [torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(received, sent)]  # noqa: B905
    return {"same": same, "bytes_sent": num_bytes}


@job(3)
def more_than_may_be_on_their_way(folder):
    received = []
    with opened() as transport:
        number = 2 * IN_FLIGHT
        if transport.rank == 0:
            for each in range(IN_FLIGHT):
                transport.send(1, [])
                transport.send(1, [torch.full((3,), float(each))])
            transport.send(2, [torch.zeros(3)])
            other = time.monotonic()
            for each in range(IN_FLIGHT, number):
                transport.send(1, [torch.full((3,), float(each))])
            return {"at": time.monotonic(), "other": other}
        if transport.rank == 1:
            time.sleep(1)
            at = time.monotonic()
            empty = ([[], [torch.empty(3)]] for _ in range(IN_FLIGHT))
            rest = ([torch.empty(3)] for _ in range(IN_FLIGHT))
            transport.expect(0, [*itertools.chain(*empty), *rest], received.append)
        else:
            at = time.monotonic()
            transport.expect(0, [[torch.empty(3)]], received.append)
    return {"at": at, "received": [tensor[0].item() for tensors in received for tensor in tensors]}


@job(4)
def notes(folder):
    with opened() as transport:
        numbers = transport.exchange("numbers", transport.rank)
        words = transport.exchange(
            "words", {"who": f"rank {transport.rank} ✓", "what": [None, 0.5]}
        )
    return [numbers, words]


@job(2)
def closing(folder):
    received = []
    with opened() as transport:
        if transport.rank == 1:
            time.sleep(0.7)
            layouts = [[torch.empty(10 * MEGABYTE)]]
            transport.expect(0, layouts, lambda _: received.append(time.monotonic()))
        else:
            transport.send(1, [torch.ones(10 * MEGABYTE)])
    return {"closed": time.monotonic(), "received": received}


@job(2)
def listening(folder):
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    with opened():
        return {
            "addresses": sorted(set(listening_addresses())),
            "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
        }


def listening_addresses():
    """Return the addresses at which this process listens, from Linux's list of sockets."""
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            own.add(os.readlink(link))
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in own:
                raw = bytes.fromhex(local.partition(":")[0])
                words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
                family = socket.AF_INET6 if table == "tcp6" else socket.AF_INET
                yield socket.inet_ntop(family, b"".join(words))


@job(2)
def twice(folder):
    """One process group after the other, as a script that compares two settings has them."""
    return [told(train_convolutions(folder, seed)) for seed in (0, 1, 0)]


@job(4)
def deserted(folder):
    """The last job: rank 2 dies in the middle of a chapter, and the others must notice."""
    if int(os.environ["RANK"]) in (3, 0):
        # The launcher ends all others at once, but those that wait shall say what they saw.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    train = ChapterWorker.train

    def train_or_die(worker, chapter, block):
        if chapter == 6 and block == 1:
            # Not at once, so that the rank after it, at least, waits for what will never come.
            time.sleep(0.5)
            os._exit(EXIT_STATUS)
        train(worker, chapter, block)

    ChapterWorker.train = train_or_die
    run(config_of("one-pass", folder, "all-layers"))


# In a rank


def main(folder):
    rank, told = int(os.environ["RANK"]), {}
    for number, (name, (num_ranks, function)) in enumerate(JOBS.items()):
        if rank >= num_ranks:
            continue
        # A world of its own: its size, and a try of its own, which the transport keeps apart.
        os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(num_ranks)
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        # Ranks that are left out of a job do not count it.
        transports.RUNS = itertools.count()
        start = time.monotonic()
        try:
            told[name] = function(folder)
        except Exception as error:
            told[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"rank {rank}: {name}: {time.monotonic() - start:.2f} s", flush=True)
        (folder / f"rank{rank}.json").write_text(json.dumps(told))
        if dist.is_initialized() and function is not deserted:
            dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    main(Path(sys.argv[1]))
