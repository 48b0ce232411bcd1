"""How close does all-layers on four ranks come to its ideal speed-up, on a small machine?

    sudo python benchmarks/emulated_ranks.py               5 alternating pairs, 30 minutes
    sudo python benchmarks/emulated_ranks.py --quick       1 pair, under 150 seconds
    sudo python benchmarks/emulated_ranks.py --hints       1 pair with adaptive negatives, 6 minutes
    sudo python benchmarks/emulated_ranks.py --replicas    8 ranks on 4 blocks, 10 minutes
    sudo python benchmarks/emulated_ranks.py --conv        convolutions, both plans, 20 minutes
    sudo python benchmarks/emulated_ranks.py --graph       a graph, 3 minutes; needs --data-dir

Four processes on two cores say nothing about four machines, unless each gets the same fixed share
of a core. So every rank is put into a control group (cgroup v1, cpu controller, root only) with a
quota of 0.4 of a core and a period of 10 ms, and is compared with one rank under the same quota.
Whether the machine can give four quotas at once is measured before each pair, with loops that do
the training steps of a block each, and send nothing: `calibration` is the speed of each of four
such loops over that of one alone. It is below 1 where the four are in each other's way, in the
cache for instance.

Work: one-pass, 4 equal blocks of 2000 units, 5 chapters of 48 mini-batches of 512 samples (an epoch
of MNIST has 111; --quick: 4 chapters of 16). Timed: from the first task to the gathered network.

    speedup              time of one rank over time of four, median of the pairs
    ideal                what follows from the plan and the task costs of the one-rank run
    fraction_of_ideal    speedup / (ideal x calibration), median of the pairs
    schedule_efficiency  what follows from the plan and the task costs of the four-rank run itself
                         (processor time over quota, sending not counted), over its measured time:
                         the smallest of the runs
    ideal_100            the ideal for 100 chapters, from the mean task costs: not measured

The second reading is two ranks without quotas on the machine's own cores, 4 chapters of 16
mini-batches.

--hints: threshold blocks with adaptive negatives by goodness, hints of age 4; 8 chapters of 8
mini-batches. A task's costs are as above, those of scoring the wall time of the run itself.

--conv: the recipe conv on images of CIFAR-10's size, filled at random, in six blocks: all-layers, 4
chapters of 16 mini-batches of 128, and a stream of 192. Figures for each, median of 3 pairs:

    NAME_speedup                time of one rank over time of four
    NAME_schedule_efficiency    as above; costs are those of a block's chapter, spread evenly over
                                its mini-batches

--graph: forwardgnn-sf on CitationFull CiteSeer, four layers, 20 chapters of 10 epochs; figures as
of --conv, of one pair.

--replicas: eight ranks in four teams of two, which share each task by samples or by units, beside
one rank that trains without slices, all under a quota of an eighth of a core; 32 chapters of 16
mini-batches. One rank does 8 of them, and its time counts four times: its chapters are alike.

    replicas_speedup        time of one rank over time of eight, by cut
    replicas_ideal          the same for teams that take half the time of one rank for every task,
                            and messages that take none
    replicas_calibration    as above, of eight loops at once
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import control_groups
import torch
from graphs import made_up

import onward as ow
from onward.checkpoint import PRECISIONS
from onward.engine.stretches import Training, make_step
from onward.launcher import launch
from onward.placement import Placement, place
from onward.plan.chapters import ChapterPlan
from onward.plan.tasks import Plan, Task, TaskKind, line
from onward.runs.preparation import resolve_precision
from onward.simulation import KnownCosts, simulate
from onward.timeline import Span

QUOTA = 0.4
REPLICAS_QUOTA = 0.125
BATCH_SIZE = 512
BATCHES = 16
LONG_BATCHES = 48
CLASSES = 10
HINTS: dict[str, Any] = {
    "objective": "threshold",
    "negatives": "adaptive",
    "readout": "goodness",
    "slope": 20.0,
}


def loop_body(
    group: str, width: int, batch_size: int, seconds: float, start: Any, speeds: Any
) -> None:
    """Do training steps of one block for a while and say how many a second."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(batch_size, width, generator=draw)
    y = torch.randint(CLASSES, (batch_size,), generator=draw)
    views = {"input": ow.Batch(x, {"label": y})}
    network = ow.mlp((width,), num_classes=CLASSES, widths=(width,))
    network.set_precision(PRECISIONS[resolve_precision("auto")])
    step = make_step(network.line[0], Training(seed=0))
    step(views, seed=0, lr_scale=1.0)
    control_groups.join(group)
    start.wait()
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        step(views, seed=steps, lr_scale=1.0)
        steps += 1
    speeds.put(steps / (time.perf_counter() - begin))


def measure_loops(groups: list[str], width: int, batch_size: int, seconds: float) -> float:
    """Return the mean speed of loops that run at once, a group each."""
    context = multiprocessing.get_context("fork")
    start, speeds = context.Barrier(len(groups)), context.Queue()
    loops = [
        context.Process(target=loop_body, args=(group, width, batch_size, seconds, start, speeds))
        for group in groups
    ]
    for loop in loops:
        loop.start()
    found = [speeds.get(timeout=600) for _ in loops]
    for loop in loops:
        loop.join()
    return statistics.mean(found)


def calibrate(ranks: int, width: int, batch_size: int, seconds: float, quota: float) -> float:
    """Return the speed of each of some loops under quotas over that of one alone."""
    with control_groups.quotas(ranks, quota) as groups:
        alone = measure_loops(groups[:1], width, batch_size, seconds)
        return measure_loops(groups, width, batch_size, seconds) / alone


def train_body(work: Mapping[str, Any]) -> None:
    """Train as one rank of a run; rank 0 writes what came out."""
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    width = work["width"]
    x = torch.rand(work["samples"], width, generator=draw)
    y = torch.randint(CLASSES, (len(x),), generator=draw)
    dataset = ow.dataset(x, y, x_test=x[:100], y_test=y[:100])
    kind = HINTS if work.get("hints") else {}
    network = ow.mlp((width,), num_classes=CLASSES, widths=(width,) * 4, **kind)
    groups = work["groups"]
    control_groups.join(groups[rank] if groups else None)
    result = ow.train(
        network,
        dataset,
        training=ow.TrainingConfig(epochs=work["chapters"], batch_size=work["batch_size"]),
        plan=ow.PlanConfig(slices=work.get("slices", 1), cut=work.get("cut", "samples")),
        placement=ow.PlacementConfig(name=work["placement"], replicas=work.get("slices")),
        validation=0,
    )
    if result is not None:
        tasks = [[p.chapter, p.block, p.figures["cpu_seconds"]] for p in result.progress]
        told = {"tasks": tasks, "timeline": result.timeline}
        Path(work["out"]).write_text(json.dumps({**result.to_json(), **told}))


class Noted(ow.Listener):
    """Keeps what is computed, and where."""

    def begin(self, plan: Plan, placement: Placement) -> None:
        self.plan, self.placement = plan, placement


def images(work: Mapping[str, Any]) -> ow.Dataset:
    """Return images of CIFAR-10's size, filled at random."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(work["samples"], 3, 32, 32, generator=draw)
    y = torch.randint(CLASSES, (len(x),), generator=draw)
    return ow.dataset(x, y, x_test=x[:100], y_test=y[:100])


def graph(work: Mapping[str, Any]) -> ow.Dataset:
    """Return a graph without validation nodes."""
    if work["data_dir"] is None:
        found = made_up()
    else:
        found = ow.load_data("citeseer-full", data_dir=work["data_dir"])
    return replace(found, validation=None)


def recipe_body(work: Mapping[str, Any]) -> None:
    """Train a recipe as one rank of a run; rank 0 writes times, and what they should be."""
    torch.set_num_threads(1)
    dataset, noted = (graph if work["recipe"] == "forwardgnn-sf" else images)(work), Noted()
    shapes = {name: tuple(each.shape) for name, each in dataset.training.structure.items()}
    info = ow.DataInfo(
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        is_image=dataset.is_image,
        structure=shapes,
    )
    recipe = ow.RECIPES[work["recipe"]]
    torch.manual_seed(0)
    rules = {"optimizer": ow.OptimizerConfig()} if recipe.takes("optimizer") else {}
    network = recipe(recipe.settings(**work["network"]), info, **rules)
    groups = work["groups"]
    control_groups.join(groups[int(os.environ.get("RANK", "0"))] if groups else None)
    result = ow.train(
        network,
        dataset,
        training=ow.TrainingConfig(epochs=work["epochs"], batch_size=work["batch_size"]),
        plan=ow.PlanConfig(kind=work["kind"], chapters=work.get("chapters")),
        placement=ow.PlacementConfig(name=work["placement"]),
        validation=0,
        listener=noted,
    )
    if result is not None:
        plan, spent = noted.plan, {}
        for entry in result.progress:
            spent[entry.chapter, entry.block] = entry.figures["cpu_seconds"] / QUOTA
        tasks = [task for task in plan.tasks() if task.kind is TaskKind.TRAIN]
        each = Counter((plan.chapter(task), task.block) for task in tasks)
        costs = {
            task: spent[plan.chapter(task), task.block] / each[plan.chapter(task), task.block]
            for task in tasks
        }
        told = {"should_take": makespan(plan, noted.placement, costs)}
        Path(work["out"]).write_text(json.dumps({**result.to_json(), **told}))


def convolutions(form: str, out: Path) -> dict[str, Any]:
    """Compare four ranks with one, in chapters and in a stream."""
    is_smoke = form == "smoke"
    small = {"channels": (4, 4, 4), "pooled": (1, 2)}
    work = {"network": small if is_smoke else {}, "batch_size": 8 if is_smoke else 128}
    work["recipe"] = "conv"
    kinds = {
        "all-layers": {"kind": "chapters", "epochs": 4, "samples": 16 * work["batch_size"]},
        "stream": {
            "kind": "stream",
            "epochs": 1,
            "samples": (8 if is_smoke else 192) * work["batch_size"],
        },
    }
    pairs = {"full": 3, "quick": 1, "smoke": 1}[form]
    return compared(work, kinds, pairs, form, out / "emulated_ranks_conv.json")


def graphs(form: str, data_dir: str | None, out: Path) -> dict[str, Any]:
    """Compare four ranks with one that learn from a graph."""
    work = {"recipe": "forwardgnn-sf", "network": {}, "data_dir": data_dir}
    work["batch_size"] = len(graph(work).training)
    chapters = 4 if form == "smoke" else 20
    kinds = {"all-layers": {"kind": "chapters", "epochs": 10 * chapters, "chapters": chapters}}
    return compared(work, kinds, 1, form, out / "emulated_ranks_graph.json")


def compared(
    work: dict[str, Any], kinds: dict[str, Any], pairs: int, form: str, path: Path
) -> dict[str, Any]:
    """Compare four ranks with one, by placement."""
    ranks = 2 if form == "smoke" else 4
    figures: dict[str, Any] = {"load": os.getloadavg()[0]}
    runs = []
    for name, kind in kinds.items():
        speedups, efficiencies = [], []
        for _ in range(pairs):
            one = run(1, {**work, **kind}, QUOTA)
            four = run(ranks, {**work, **kind, "placement": name}, QUOTA)
            assert one["weights_sha256"] == four["weights_sha256"]
            runs.append({"placement": name, "one": one, "four": four})
            speedups.append(one["seconds"] / four["seconds"])
            efficiencies.append(four["should_take"] / four["seconds"])
            print(
                f"{name}: {one['seconds']:.1f} s on one rank, {four['seconds']:.1f} s on {ranks}, "
                f"of {four['should_take']:.1f}: schedule efficiency {efficiencies[-1]:.3f}",
                flush=True,
            )
        figures[f"{name}_speedup"] = statistics.median(speedups)
        figures[f"{name}_schedule_efficiency"] = statistics.median(efficiencies)
    if form == "full":
        common.record(path, {"figures": figures, "runs": runs})
    return {name: round(value, 4) for name, value in figures.items()}


def run(ranks: int, options: Mapping[str, Any], quota: float | None) -> dict[str, Any]:
    """Train on some ranks, each with a quota or none, and return the result."""
    shared = nullcontext([]) if quota is None else control_groups.quotas(ranks, quota)
    with tempfile.TemporaryDirectory() as folder, shared as groups:
        work = {
            "placement": "all-layers" if ranks > 1 else "sequential",
            **options,
            "groups": groups,
            "out": f"{folder}/result.json",
        }
        status = launch(ranks, [__file__, "--body", json.dumps(work)])
        if status:
            raise SystemExit(status)
        found: dict[str, Any] = json.loads(Path(work["out"]).read_text())
    return found


def makespan(plan: Plan, placement: Placement, costs: Mapping[Task, float]) -> float:
    """Return when the last task ends, where each starts as soon as it can and messages are free."""
    return simulate(plan, placement, KnownCosts(dict(costs))).seconds


def task_costs(result: Mapping[str, Any], share: float) -> dict[Task, float]:
    """Return the seconds each task of a run takes at a share of a core."""
    costs = {
        Task(TaskKind.TRAIN, chapter, block): cpu / share for chapter, block, cpu in result["tasks"]
    }
    for span in (Span(*span) for span in result["timeline"]):
        if span.what == "score":
            costs[Task(TaskKind.SCORE, int(span.label.partition("S")[2]), 0)] = (
                span.end - span.start
            )
    return costs


def chapters_of(work: Mapping[str, Any]) -> ChapterPlan:
    """Return the plan of a run, without slices."""
    return ChapterPlan(
        nodes=line(4),
        epochs=work["chapters"],
        chapters=work["chapters"],
        batch_size=work["batch_size"],
        samples=(work["samples"],),
        hint_age=4 if work.get("hints") else None,
        validate_every=None,
        has_validation=False,
    )


def ideal_of_100(
    work: Mapping[str, Any], placement: Placement, costs: Mapping[Task, float]
) -> float:
    """Return the ideal speed-up for 100 chapters whose tasks take the mean times of these."""
    found: dict[tuple[TaskKind, int], list[float]] = {}
    for task, cost in costs.items():
        found.setdefault((task.kind, task.block), []).append(cost)
    plan = chapters_of({**work, "chapters": 100})
    means = {
        task: statistics.mean(found[task.kind, task.block])
        for task in plan.tasks()
        if (task.kind, task.block) in found
    }
    return sum(means.values()) / makespan(plan, placement, means)


def replicas(work: Mapping[str, Any], form: str, out: Path) -> dict[str, Any]:
    """Compare eight ranks in teams of two with one rank."""
    quota, repeated = REPLICAS_QUOTA, 4
    seconds = 0.3 if form == "smoke" else 5.0
    calibration = calibrate(8, work["width"], work["batch_size"], seconds, quota)
    few = {**work, "chapters": 4 if form == "smoke" else 8}
    work = {**few, "chapters": repeated * few["chapters"]}
    one = run(1, few, quota)
    alone = repeated * one["seconds"]
    known = task_costs(one, quota)
    plan = chapters_of(work)
    costs = {
        t: known[t._replace(time=t.time % few["chapters"])]
        for t in plan.tasks()
        if t.kind is TaskKind.TRAIN
    }
    ideal = 2 * sum(costs.values()) / makespan(plan, place(plan, "all-layers", 4, [1] * 4), costs)
    print(
        f"calibration {calibration:.3f}; one rank: {alone:.1f} s; ideal speed-up of eight: "
        f"{ideal:.2f}",
        flush=True,
    )
    figures: dict[str, Any] = {
        "replicas_speedup": {},
        "replicas_ideal": round(ideal, 3),
        "replicas_calibration": round(calibration, 3),
    }
    runs = {"one": one}
    for cut in ("samples", "units"):
        eight = run(8, {**work, "slices": 2, "cut": cut}, quota)
        runs[cut] = eight
        figures["replicas_speedup"][cut] = round(alone / eight["seconds"], 3)
        shares = [cpu / eight["seconds"] / quota for cpu in eight["cpu_seconds"]]
        waiting = [idle / eight["seconds"] for idle in eight["idle_seconds"]]
        print(
            f"eight ranks, {cut}: {eight['seconds']:.1f} s, {figures['replicas_speedup'][cut]} "
            f"times one; sent {sum(eight['bytes_sent']) / 1e6:.0f} MB; of its quota each used "
            f"{', '.join(f'{share:.2f}' for share in shares)}; of its time each waited "
            f"{', '.join(f'{share:.2f}' for share in waiting)}",
            flush=True,
        )
    if form == "full":
        common.record(out / "emulated_ranks_replicas.json", {"figures": figures, "runs": runs})
    return figures


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--replicas", action="store_true", help="8 ranks on 4 blocks")
    parser.add_argument("--conv", action="store_true", help="convolutions, both plans")
    parser.add_argument("--graph", action="store_true", help="layers of a graph")
    parser.add_argument("--hints", action="store_true", help="adaptive negatives by goodness")
    parser.add_argument("--pairs", type=int, default=5, help="of the full form")
    parser.add_argument("--body", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.body:
        work = json.loads(options.body)
        return recipe_body(work) if "network" in work else train_body(work)
    torch.set_num_threads(1)
    form = common.form_of(options)
    control_groups.need("cpu")
    if options.conv:
        return common.last_line(convolutions(form, options.out), form)
    if options.graph:
        return common.last_line(graphs(form, options.data_dir, options.out), form)
    chapters = {"full": 5, "quick": 4, "smoke": 4}[form]
    pairs = options.pairs if form == "full" else 1
    batch_size = 32 if form == "smoke" else BATCH_SIZE
    batches = LONG_BATCHES if form == "full" and not options.replicas else BATCHES
    work = {
        "chapters": chapters,
        "width": 64 if form == "smoke" else 2000,
        "samples": batches * batch_size,
        "batch_size": batch_size,
    }
    if options.replicas:
        return common.last_line(replicas(work, form, options.out), form)
    if options.hints:
        pairs = 1
        work.update(hints=True, chapters=8, samples=8 * batch_size)
    ranks = 2 if form == "smoke" else 4
    load = os.getloadavg()[0]
    seconds = {"full": 5.0, "quick": 3.0, "smoke": 0.3}[form]
    plan = chapters_of(work)
    placement = place(plan, "all-layers", ranks, [1] * 4)
    names = ("speedup", "ideal", "ideal_100", "efficiency", "calibration")
    found: dict[str, list[float]] = {name: [] for name in names}
    runs = []
    for number in range(pairs):
        found["calibration"].append(calibrate(ranks, work["width"], batch_size, seconds, QUOTA))
        one_rank = run(1, work, QUOTA)
        four_ranks = run(ranks, work, QUOTA)
        runs.append({"one": one_rank, "four": four_ranks})
        assert one_rank["weights_sha256"] == four_ranks["weights_sha256"]
        costs = task_costs(one_rank, QUOTA)
        found["speedup"].append(one_rank["seconds"] / four_ranks["seconds"])
        found["ideal"].append(sum(costs.values()) / makespan(plan, placement, costs))
        found["ideal_100"].append(ideal_of_100(work, placement, costs))
        own = makespan(plan, placement, task_costs(four_ranks, QUOTA))
        found["efficiency"].append(own / four_ranks["seconds"])
        shares = [c / four_ranks["seconds"] for c in four_ranks["cpu_seconds"]]
        print(
            f"pair {number}: calibration {found['calibration'][-1]:.3f}, "
            f"{one_rank['seconds']:.1f} s on one rank, "
            f"{four_ranks['seconds']:.1f} s on {ranks}: {found['speedup'][-1]:.2f} of "
            f"{found['ideal'][-1]:.2f}, schedule efficiency {found['efficiency'][-1]:.3f}; "
            f"shares of a core {', '.join(f'{share:.3f}' for share in shares)}",
            flush=True,
        )
    figures: dict[str, Any] = {
        "speedup": statistics.median(found["speedup"]),
        "ideal": statistics.median(found["ideal"]),
        "ideal_100": statistics.median(found["ideal_100"]),
        "fraction_of_ideal": statistics.median(
            speedup / (ideal * calibration)
            for speedup, ideal, _, _, calibration in zip(*found.values(), strict=True)
        ),
        "schedule_efficiency": min(found["efficiency"]),
        "calibration": statistics.median(found["calibration"]),
        "load": load,
    }
    chapters, weights = work["chapters"], 4 * 4 * work["width"] ** 2
    times = 3 * (chapters - 1) + ((chapters - 1) % ranks > 0)
    last = runs[-1]["four"]
    print(
        f"sent by each rank: {', '.join(f'{b / 1e6:.0f}' for b in last['bytes_sent'])} MB, in all "
        f"{sum(last['bytes_sent']) / 1e6:.0f}; the formula (weights and two moments of every "
        f"block, every chapter but the last, then weights): "
        f"{times * weights / 1e6:.0f}; peak memory "
        f"{', '.join(f'{b / 1e6:.0f}' for b in last['peak_memory_bytes'])} MB"
    )
    if form == "full" and options.hints:
        common.record(options.out / "emulated_ranks_hints.json", {"figures": figures, "runs": runs})
    elif form == "full":
        short = {**work, "chapters": 4, "samples": BATCHES * batch_size}
        plain = [
            run(1, short, None)["seconds"] / run(2, short, None)["seconds"] for _ in range(pairs)
        ]
        figures["two_ranks_speedup"] = statistics.median(plain)
        common.record(options.out / "emulated_ranks.json", {"figures": figures, "runs": runs})
    common.last_line({name: round(value, 4) for name, value in figures.items()}, form)
    return None


if __name__ == "__main__":
    main()
