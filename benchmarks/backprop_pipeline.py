"""How long is an epoch: in pipelines of local objectives, and in those of backpropagation?

    sudo python benchmarks/backprop_pipeline.py --data-dir DIR           an epoch each, 8 minutes
    sudo python benchmarks/backprop_pipeline.py --data-dir DIR --quick   8 mini-batches, a minute

Four ranks, each with a quota of 0.4 of a core as in emulated_ranks.py and a network namespace as in
hosts.py, and the same layers, samples, batches of 512, dropout, learning rates and bf16 products
everywhere: [784, 2000 x 4] on MNIST. Links have no limit; links.py has others, and goes on to an
accuracy.

    onward      one-pass, all-layers: chapters of an epoch
    stream      one-pass, stream: activities travel mini-batch by mini-batch
    backprop    backpropagation on one rank with the same quota
    ddp         backpropagation, a mini-batch split over four ranks (DistributedDataParallel)
    gpipe       torch.distributed.pipelining, a layer a rank, 4 micro-batches
    1f1b        the same with the schedule 1F1B
    dff         one-pass in a stream as DFF sends it: one message at a time, and no overlap

Timed: training, from the first step to the end of the epoch; validating (3,000 samples) is not
timed, except in the first two, where it is a task like others. Bytes are those that the network
interfaces counted in that time. The first cuts its epoch into four chapters.
Figures: seconds and megabytes of an epoch by way; with --quick, of one pass over 8 mini-batches.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import control_groups
import emulated_ranks
import hosts
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

import onward as ow
from onward import seeds
from onward.engine.stretches import Training, make_step
from onward.network.optimizers import lr_scale
from onward.placement import Placement
from onward.plan.tasks import Plan
from onward.timeline import Span

RANKS = 4
MICRO_BATCHES = 4
WAYS = ("onward", "stream", "backprop", "ddp", "gpipe", "1f1b", "dff")
ONE_RANK = ("backprop",)


class Watch:
    """When it goes, and the validation accuracy at the end of each epoch."""

    def __init__(self, goal: float) -> None:
        self.goal = goal
        self.epochs: list[dict[str, Any]] = []
        self.timeline: list[Span] = []

    def go(self) -> None:
        self.start = time.time()

    def stop(self, accuracy: Callable[[], float | None]) -> bool:
        """Note the end of an epoch, and say whether the goal is reached."""
        end = time.time()
        reached = accuracy() or 0.0
        self.epochs.append({"start": self.start, "end": end, "accuracy": reached})
        return reached >= self.goal


class Work:
    """Rows, layers and settings that all ways share."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        if options["smoke"]:
            whole = ow.load_data("digits")
        else:
            whole = ow.load_data("mnist", data_dir=options["data_dir"])
        samples, self.batch_size = options["samples"], options["batch_size"]
        held_out = options["validation"]
        self.x, self.y = whole.x[held_out:][:samples].flatten(1), whole.y[held_out:][:samples]
        self.x_validation = whole.x[:held_out].flatten(1)
        self.y_validation = whole.y[:held_out]
        self.dataset = ow.dataset(
            self.x, self.y, x_test=self.x_validation, y_test=self.y_validation
        )
        self.epochs = options["epochs"]
        self.config = ow.RunConfig(recipe="one-pass").with_settings(
            {"network.widths": (options["width"],) * RANKS, "training.epochs": self.epochs}
        )

    def network(self, *, one_block: bool) -> ow.Network:
        network = self.config.network
        return ow.mlp(
            (self.x.shape[1],),
            num_classes=10,
            widths=network.widths,
            dropout=network.dropout,
            gain=network.gain,
            layers_per_block="all" if one_block else 1,
            optimizer=self.config.optimizer,
        )

    def batches(self, epoch: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the mini-batches of an epoch, those of full size, each with its number."""
        order = torch.randperm(len(self.x), generator=seeds.generator(0, "order", epoch))
        whole = order[: len(order) // self.batch_size * self.batch_size]
        for number, chosen in enumerate(whole.split(self.batch_size)):
            yield number, self.x[chosen], self.y[chosen]

    def scale(self, epoch: int, number: int) -> float:
        """Return the factor on the learning rate, as the recipe has it."""
        done = (number + 1) / (len(self.x) // self.batch_size)
        return lr_scale(self.config.training.schedule, epoch, done, self.epochs)

    def accuracy(self, layers: nn.Module) -> float:
        layers.eval()
        with torch.no_grad(), bf16():
            found = torch.cat([layers(x).argmax(dim=1) for x in self.x_validation.split(500)])
        layers.train()
        return float((found == self.y_validation).float().mean())


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def layers_of(network: ow.Network) -> list[nn.Module]:
    """Return the layers of a network in one block, the last with the head."""
    block = network.line[0]
    assert isinstance(block.module, nn.Sequential)
    assert isinstance(block.objective, ow.CrossEntropy)
    *others, last = block.module
    return [*others, nn.Sequential(last, block.objective.head)]


def adam(layers: nn.Module, work: Work) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        layers.parameters(), lr=work.config.optimizer.lr, weight_decay=0.0, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, work: Work, epoch: int, number: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = work.config.optimizer.lr * work.scale(epoch, number)


def local(way: str, work: Work, watch: Watch) -> None:
    """Train with the library, epoch by epoch of all blocks, as long as it takes."""
    network = work.network(one_block=False)

    class Noting(ow.Listener):
        def begin(self, plan: Plan, placement: Placement) -> None:
            watch.go()

        def progress(self, progress: ow.Progress) -> None:
            if progress.block is None:
                watch.stop(lambda: progress.figures["validation_accuracy"])
                watch.go()

    result = ow.train(
        network,
        ow.dataset(
            torch.cat([work.x_validation, work.x]),
            torch.cat([work.y_validation, work.y]),
            x_test=work.x_validation,
            y_test=work.y_validation,
        ),
        training=ow.TrainingConfig(
            epochs=work.epochs,
            batch_size=work.batch_size,
            schedule=work.config.training.schedule,
        ),
        plan=ow.PlanConfig(
            kind="chapters" if way == "onward" else "stream",
            chapters=max(work.epochs, RANKS) if way == "onward" else None,
            validate_every=1,
        ),
        validation=len(work.y_validation),
        listener=Noting(),
    )
    if result is not None:
        watch.timeline = result.timeline


def backprop(way: str, work: Work, watch: Watch) -> None:
    """Train by backpropagation, on one rank or with the samples of each batch assigned to all."""
    layers = nn.Sequential(*layers_of(work.network(one_block=True)))
    rank, ranks = 0, 1
    model: nn.Module = layers
    if way == "ddp":
        rank, ranks = dist.get_rank(), dist.get_world_size()
        model = DistributedDataParallel(layers)
    optimizer = adam(layers, work)
    for epoch in range(work.epochs):
        watch.go()
        for number, x, y in work.batches(epoch):
            set_rate(optimizer, work, epoch, number)
            x, y = x.tensor_split(ranks)[rank], y.tensor_split(ranks)[rank]
            with bf16():
                loss = nn.functional.cross_entropy(model(x).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if watch.stop(lambda: work.accuracy(layers)):
            return


def pipeline(way: str, work: Work, watch: Watch) -> None:
    """Train by backpropagation, a layer a rank."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    all_layers = layers_of(work.network(one_block=True))
    own = all_layers[rank]
    stage = PipelineStage(own, rank, ranks, torch.device("cpu"))
    schedule_of = ScheduleGPipe if way == "gpipe" else Schedule1F1B
    schedule = schedule_of(
        stage,
        MICRO_BATCHES,
        loss_fn=lambda output, y: nn.functional.cross_entropy(output.float(), y),
    )
    optimizer = adam(own, work)
    for epoch in range(work.epochs):
        watch.go()
        for number, x, y in work.batches(epoch):
            set_rate(optimizer, work, epoch, number)
            optimizer.zero_grad()
            with bf16():
                if rank == 0:
                    schedule.step(x)
                elif rank == ranks - 1:
                    schedule.step(target=y, losses=[])
                else:
                    schedule.step()
            optimizer.step()
        dist.barrier()
        if watch.stop(
            lambda: gathered(all_layers, lambda: work.accuracy(nn.Sequential(*all_layers)))
        ):
            return


def dff(way: str, work: Work, watch: Watch) -> None:
    """Train blocks with local objectives, a block a rank, one message at a time."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    network = work.network(one_block=False)
    network.set_precision(torch.bfloat16)
    blocks = network.line
    step = make_step(blocks[rank], Training(seed=0))
    held_out = ow.Batch(work.x_validation, {"label": work.y_validation})
    got = torch.zeros(1)
    for epoch in range(work.epochs):
        watch.go()
        for number, samples, y in work.batches(epoch):
            x = samples
            if rank:
                x = torch.empty(len(y), work.options["width"], dtype=torch.bfloat16)
                dist.recv(x, rank - 1)
            seed = seeds.derive(0, "step", rank, epoch, number)
            outputs, _ = step(
                {"input": ow.Batch(x, {"label": y})}, seed=seed, lr_scale=work.scale(epoch, number)
            )
            activities = outputs["input"].tensor
            if rank < ranks - 1:
                dist.send(activities, rank + 1)
                # The next mini-batch begins when this one has gone through all ranks.
                dist.recv(got, rank + 1)
            if rank:
                dist.send(got, rank - 1)
        dist.barrier()

        def accuracy() -> float | None:
            return ow.evaluate(network, held_out).accuracy

        if watch.stop(lambda: gathered(list(blocks), accuracy)):
            return


def gathered(layers: list[Any], measure: Callable[[], float | None]) -> float:
    """Bring the weights of each rank's layer to rank 0, and return what it measures, on all."""
    rank = dist.get_rank()
    for source, layer in enumerate(layers):
        for tensor in layer.state_dict().values():
            if source and rank == 0:
                dist.recv(tensor, source)
            elif source == rank and source:
                dist.send(tensor.contiguous(), 0)
    found = torch.zeros(1)
    if rank == 0:
        found[0] = measure() or 0.0
    dist.broadcast(found, 0)
    return float(found)


RUN: dict[str, Callable[[str, Work, Watch], None]] = {
    "onward": local,
    "stream": local,
    "backprop": backprop,
    "ddp": backprop,
    "gpipe": pipeline,
    "1f1b": pipeline,
    "dff": dff,
}


def body(way: str, options: dict[str, Any]) -> None:
    """Train as one rank; rank 0 writes what came out."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    work, watch = Work(options), Watch(options["goal"])
    if RUN[way] is not local and way not in ONE_RANK:
        dist.init_process_group("gloo")
    control_groups.join(options["groups"][rank])
    RUN[way](way, work, watch)
    if rank == 0:
        told = {"epochs": watch.epochs, "timeline": watch.timeline}
        Path(options["out"]).write_text(json.dumps(told))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def run(way: str, options: dict[str, Any], rate: str | None = None) -> dict[str, Any]:
    """Train in a way over links of a rate.

    Returns:
        `epochs`: seconds and megabytes until the end of each, and the accuracy then; `timeline`.
    """
    ranks = 1 if way in ONE_RANK else RANKS
    with (
        tempfile.TemporaryDirectory() as folder,
        control_groups.quotas(ranks, emulated_ranks.QUOTA) as groups,
        hosts.Hosts(ranks, rate) as joined,
    ):
        work = {**options, "groups": groups, "out": f"{folder}/result.json"}
        status = joined.run([__file__, "--body", json.dumps([way, work])])
        if status:
            raise SystemExit(status)
        found: dict[str, Any] = json.loads(Path(work["out"]).read_text())
    seconds = sent = 0.0
    for epoch in found["epochs"]:
        start, end = epoch.pop("start"), epoch.pop("end")
        seconds, sent = seconds + end - start, sent + joined.bytes_sent(start, end)
        epoch.update(seconds=seconds, megabytes=sent / 1e6)
    return found


def settings(form: str, data_dir: str | None, epochs: int, goal: float) -> dict[str, Any]:
    """Return what all ways do in a form, once it is clear that they can."""
    control_groups.need("cpu")
    hosts.need()
    if form != "smoke":
        common.need("mnist", data_dir)
    batch_size = 32 if form == "smoke" else emulated_ranks.BATCH_SIZE
    return {
        "smoke": form == "smoke",
        "data_dir": data_dir,
        "width": 64 if form == "smoke" else 2000,
        "batch_size": batch_size,
        "samples": 57_000 if form == "full" else 8 * batch_size,
        "validation": 3000 if form == "full" else 100,
        "epochs": epochs if form == "full" else 1,
        "goal": goal,
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--body", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.body:
        return body(*json.loads(options.body))
    form = common.form_of(options)
    work = settings(form, options.data_dir, epochs=1, goal=1.0)
    figures: dict[str, dict[str, Any]] = {"seconds": {}, "megabytes": {}}
    for way in options.way or WAYS:
        path = options.out / f"backprop-pipeline-{way}.json"
        if form == "full" and path.exists():
            found = json.loads(path.read_text())["epochs"]
        else:
            found = run(way, work)["epochs"]
            if form == "full":
                common.record(path, {"way": way, "epochs": found})
        for name in figures:
            figures[name][way] = round(found[-1][name], 1)
        told = f"{figures['seconds'][way]} s, {figures['megabytes'][way]} MB"
        print(f"{way:9} {told}, accuracy {found[-1]['accuracy']:.4f}", flush=True)
    common.last_line(figures, form)
    return None


if __name__ == "__main__":
    main()
