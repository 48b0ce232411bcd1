"""Does the simulation say how long a run takes, and how fast does it say so for thousands of ranks?

    sudo python benchmarks/simulation.py            3 runs of each placement, about 10 minutes
    sudo python benchmarks/simulation.py --quick    1 run of all-layers, under a minute

Four ranks, each with a quota of 0.4 of a core as in emulated_ranks.py, train four blocks of 2000
units in chapters of 16 mini-batches of 512 samples, with all-layers and single-layer. Simulated:
the same plan and placement with the tasks' own processor time over the quota, and messages at the
speed at which a rank under such a quota sends and receives 48 MB, which is measured first.

    worst_error          largest difference of simulated and measured time, over the measured time
    ranks_4096_seconds   time to simulate 4,096 ranks, all-layers, 4,096 chapters of four blocks
"""

import argparse
import json
import os
import queue
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import control_groups
import emulated_ranks
import torch

from onward.launcher import launch
from onward.placement import place
from onward.plan.tasks import Plan, Product, ProductKind, TaskKind
from onward.simulation import KnownCosts, Link, simulate
from onward.transport.distributed import DistributedTransport

RANKS = 4


def link_body(group: str, numbers: int, repeats: int, out: str) -> None:
    """Send a block state from rank 0 to rank 1 and hear back, some times."""
    torch.set_num_threads(1)
    transport = DistributedTransport()
    transport.connect()
    state = torch.zeros(numbers)
    word = torch.zeros(1)
    heard: queue.SimpleQueue[list[torch.Tensor]] = queue.SimpleQueue()
    is_first = transport.rank == 0
    transport.expect(1 - transport.rank, [[word if is_first else state]] * (repeats + 1), heard.put)
    control_groups.join(group)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        if is_first:
            transport.send(1, [state])
            heard.get()
        else:
            heard.get()
            transport.send(0, [word])
        seconds.append(time.perf_counter() - start)
    transport.finish()
    transport.close()
    if is_first:
        # The first one opens the connection.
        Path(out).write_text(json.dumps(seconds[1:]))


def measure_link(numbers: int, repeats: int) -> Link:
    """Return how fast a rank under a quota sends to another."""
    quota = emulated_ranks.QUOTA
    with tempfile.TemporaryDirectory() as folder, control_groups.quotas(2, quota) as groups:
        out = f"{folder}/seconds.json"
        status = launch(2, [__file__, "--body", json.dumps([groups, numbers, repeats, out])])
        if status:
            raise SystemExit(status)
        seconds = json.loads(Path(out).read_text())
    return Link(4 * numbers / statistics.median(seconds))


def compare(name: str, work: dict[str, Any], link: Link) -> dict[str, Any]:
    """Run a placement, and simulate it from what its own tasks took."""
    measured = emulated_ranks.run(RANKS, {**work, "placement": name}, emulated_ranks.QUOTA)
    plan = emulated_ranks.chapters_of(work)
    weight = 4 * work["width"] ** 2
    costs = Emulated(emulated_ranks.task_costs(measured, emulated_ranks.QUOTA), weight)
    simulated = simulate(plan, place(plan, name, RANKS, [1] * 4), costs, link).seconds
    error = abs(simulated - measured["seconds"]) / measured["seconds"]
    print(
        f"{name:13} measured {measured['seconds']:.1f} s, simulated {simulated:.1f} s: "
        f"{100 * error:.1f} % apart",
        flush=True,
    )
    return {"placement": name, "measured": measured["seconds"], "simulated": simulated}


@dataclass(frozen=True)
class Emulated(KnownCosts):
    """Seconds as measured; weights of square blocks, and two moments of the same size."""

    weight: int = 0

    def num_bytes(self, plan: Plan, product: Product) -> int:
        return self.weight * {ProductKind.WEIGHTS: 1, ProductKind.OPTIMIZER_STATE: 2}.get(
            product.kind, 0
        )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--body", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.body:
        groups, *rest = json.loads(options.body)
        return link_body(groups[int(os.environ["RANK"])], *rest)
    torch.set_num_threads(1)
    form = common.form_of(options)
    plan = emulated_ranks.chapters_of({"chapters": 4096, "batch_size": 1, "samples": 1})
    costs = Emulated(
        {task: 1.0 for task in plan.tasks() if task.kind is TaskKind.TRAIN}, 16_000_000
    )
    start = time.perf_counter()
    simulate(plan, place(plan, "all-layers", 4096, [1] * 4), costs, Link(125e6, 1e-3))
    figures: dict[str, Any] = {"ranks_4096_seconds": round(time.perf_counter() - start, 2)}
    print(f"4,096 ranks: {figures['ranks_4096_seconds']} s")
    control_groups.need("cpu")
    batch_size = 32 if form == "smoke" else emulated_ranks.BATCH_SIZE
    work = {
        "chapters": 4,
        "width": 64 if form == "smoke" else 2000,
        "samples": emulated_ranks.BATCHES * batch_size,
        "batch_size": batch_size,
    }
    load = os.getloadavg()[0]
    link = measure_link(3 * work["width"] ** 2, repeats=5)
    print(
        f"messages of {12e-6 * work['width'] ** 2:.1f} MB: {link.bytes_per_second / 1e6:.0f} MB/s"
    )
    names: tuple[str, ...] = ("all-layers", "single-layer") if form == "full" else ("all-layers",)
    found = [compare(name, work, link) for _ in range(3 if form == "full" else 1) for name in names]
    figures["worst_error"] = round(
        max(abs(f["simulated"] - f["measured"]) / f["measured"] for f in found), 4
    )
    if form == "full":
        common.record(
            options.out / "simulation.json",
            {"figures": figures, "link": link.bytes_per_second, "load": load, "runs": found},
        )
    common.last_line(figures, form)
    return None


if __name__ == "__main__":
    main()
