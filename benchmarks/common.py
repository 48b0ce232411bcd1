"""What every benchmark script does alike: its three forms, its record, its last line."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import onward as ow
from onward.costs import flops
from onward.plan.tasks import Task, TaskKind
from onward.runs.preparation import arrange, make_settings, preview
from onward.runs.sharding import load_shards, split
from onward.runtime.runtime import Runtime, make_worker
from onward.transport.messages import SingleProcessTransport

RESULTS = Path(__file__).parent / "results"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows the three forms of a benchmark."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = made.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="under a minute, same sizes")
    form.add_argument("--smoke", action="store_true", help="seconds; the figures mean nothing")
    made.add_argument("--data-dir", default=os.environ.get("ONWARD_DATA"))
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for every single result")
    return made


def form_of(options: argparse.Namespace) -> str:
    """Return full, quick or smoke."""
    return "quick" if options.quick else "smoke" if options.smoke else "full"


def environment() -> dict[str, Any]:
    """Return what a figure depends on beside its command."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return {
        "torch": torch.__version__,
        "machine": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit.stdout.strip() or "unknown",
    }


def spread(values: Sequence[float]) -> str:
    """Return mean, standard deviation (of more than one) and number as text."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation} (n={len(values)})"


def record(path: Path, found: dict[str, Any]) -> None:
    """Write a result beside what it depends on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, "environment": environment()}, indent=1) + "\n")


def last_line(figures: dict[str, Any], form: str) -> None:
    """Print the figures as one JSON object."""
    print(json.dumps({**figures, "form": form}))


def need(name: str, data_dir: str | None) -> None:
    """End well, saying why, where a data set is not there."""
    try:
        ow.load_data(name, data_dir=data_dir)
    except ow.DataError as error:
        skip(str(error))


def skip(reason: str) -> None:
    """Say why the benchmark cannot run here, and end well."""
    print(json.dumps({"skipped": reason}))
    raise SystemExit(0)


def pflop(config: ow.RunConfig) -> float:
    """Return the floating-point operations of the training of a run, in 10^15."""
    total = 0.0
    for stage in preview(config, 1, with_weights=True):
        steps = flops.count_steps(stage.plan, stage.network, stage.shard, stage.settings)
        total += flops.of_training(stage.plan, steps)
    return total / 1e15


def stream_step(
    config: ow.RunConfig,
    network: ow.Network,
    dataset: ow.Dataset,
    device: torch.device | None = None,
) -> Callable[[], None]:
    """Return a function that trains all blocks on the next mini-batch, as the runtime does it."""
    transport = SingleProcessTransport()
    shards, summary = load_shards(config, split(config, dataset), transport)
    network.inputs = summary.inputs
    plan, placement = arrange(config, network, dataset.training, summary, 1)
    network.to(device or torch.device("cpu"))
    worker = make_worker(plan, network, shards, make_settings(config))
    runtime = Runtime(plan, placement, worker, transport)
    tasks: Iterator[Task] = plan.tasks()
    last = len(network.line) - 1

    def step() -> None:
        for task in tasks:
            runtime.do(task)
            if task.kind is TaskKind.TRAIN and task.block == last:
                return

    return step


def seconds(function: Callable[[], None], steps: int) -> float:
    """Return the processor seconds of a function, as the mean of some calls.

    What others do on the machine is in them as far as caches and memory are shared.
    """
    start = time.process_time()
    for _ in range(steps):
        function()
    return (time.process_time() - start) / steps
