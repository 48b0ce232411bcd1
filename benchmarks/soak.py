"""Does a run that is disturbed again and again end in the bits of one that was not?

    python benchmarks/soak.py                50 faults and the cost of keeping states, 40 minutes
    python benchmarks/soak.py --quick        6 faults, and the cost for short chapters, two minutes

Runs of three ranks on the digits, some seconds each: one-pass in chapters, adaptive negatives in
chapters, one-pass and `hinton` (with hints) as a stream, a recipe of one's own in chapters. Faults
come at random times, of a random
kind:

    kill     SIGKILL of a random rank; the launcher starts all again
    pause    SIGSTOP of a random rank for one to four seconds
    lose     SIGKILL of the launcher; the run goes on by --resume, on other ranks
    stop     SIGTERM of the launcher; the run goes on by --resume, on other ranks
    alone    SIGKILL of a rank that shares a folder; it alone is started again
    halt     SIGTERM of a rank that shares a folder, which ends them all; all are started again
    cut      the link of a rank goes down for one to five seconds (network namespaces, root only)

    faults                    number of faults
    identical                 faults after which the run ended in the undisturbed weights
    recovery_seconds_median   from a kill, loss or stop to the first task that is finished after it,
    recovery_seconds_worst    starting Python and torch included
    checkpoint_cost           time with states kept over time without, less one, of a rank with one
                              core for itself, its writer and the disk: median of alternating pairs
                              of two chapters of [784, 2000 x 4], 60,000 random samples
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import common
import psutil
import torch
from hosts import PORT, Hosts, address

import onward as ow

RANKS = 3
OWN = f"{Path(__file__).parent.parent / 'examples' / 'own_recipe.py'}:pairs"
CASES = {
    "one-pass": ["one-pass", "--epochs", "80"],
    "hints": ["pff", "--negatives", "adaptive", "--readout", "softmax", "--epochs", "24"],
    "stream": ["one-pass", "--plan", "stream", "--epochs", "60"],
    "hinted-stream": ["hinton", "--epochs", "24", "--set", "plan.hint_age=8"],
    "own": [OWN, "--epochs", "40"],
}
PLACEMENTS = {
    "one-pass": ["all-layers", "single-layer"],
    "hints": ["all-layers", "single-layer"],
    "stream": ["stream"],
    "hinted-stream": ["stream"],
    "own": ["all-layers", "single-layer"],
}
LIMIT_SECONDS = {"full": 300, "quick": 300, "smoke": 90}
"""How long a run may take, with all its faults."""


def settings(case: str, form: str) -> list[str]:
    """Return the settings of a run, which decide its weights."""
    small = form == "smoke"
    few = ["--epochs", "12"] if small else []
    return [*CASES[case], *few, "--widths", ",".join(["60" if small else "500"] * 4)]


class Run:
    """A run that the launcher has started, and how it can be disturbed.

    Args:
        case: What is trained.
        form: How long.
        folder: Where.
        draw: Decides when faults come, and whom they hit.
    """

    faults = ("kill", "pause", "lose", "stop")

    def __init__(self, case: str, form: str, folder: Path, draw: random.Random) -> None:
        self.case, self.form, self.folder, self.draw = case, form, folder, draw
        self.out = folder / "run"
        self.state = self.out / "state"
        self.settings = settings(case, form)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.num_ranks = RANKS
        self.recoveries: list[float] = []
        self.done: list[str] = []

    def __enter__(self) -> "Run":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.ranks():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self.processes:
            started.kill()
            started.wait()

    def start(self) -> None:
        """Start all ranks."""
        placement = self.draw.choice(PLACEMENTS[self.case])
        self.launch([*self.settings, "--out", str(self.out), "--placement", placement])

    def launch(self, arguments: list[str]) -> None:
        ranks = ["--processes", str(self.num_ranks), "--set", "placement.restarts=99"]
        self.processes = [self.train([*arguments, *ranks])]

    def train(
        self, arguments: Sequence[str], rank: int | None = None, within: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start the command, as one rank of several where it is one."""
        variables = {"OMP_NUM_THREADS": "1"}
        if rank is not None:
            variables |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": "0"}
            variables |= {"LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(PORT)}
            variables |= {"MASTER_ADDR": address(0)}
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [*within, sys.executable, "-m", "onward", "train", *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **variables},
            )

    def ranks(self) -> list[psutil.Process]:
        """Return the ranks that live."""
        found: list[psutil.Process] = []
        for parent in self.processes:
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(parent.pid).children()
        return found

    def is_over(self) -> bool:
        """Return whether the run is finished; fail where nobody is left to finish it."""
        has_ended = all(process.poll() is not None for process in self.processes)
        if (self.out / "result.json").exists():
            return True
        if has_ended:
            self.fail()
        return False

    def finish(self) -> str:
        """Wait for the end, and return the digest of the weights."""
        self.wait_until(self.is_over)
        return str(json.loads((self.out / "result.json").read_text())["weights_sha256"])

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS[self.form]
        while not is_so():
            if time.monotonic() > deadline:
                self.fail()
            time.sleep(0.02)

    def fail(self) -> NoReturn:
        log = (self.folder / "log").read_text()[-4000:]
        raise SystemExit(f"{log}\n{self.case} does not go on after {self.done}.")

    def newest(self) -> float:
        """Return when a task was last finished."""
        times = [path.stat().st_mtime for path in self.state.glob("rank-*/report-*.safetensors")]
        return max(times, default=0.0)

    def disturb(self, fault: str) -> bool:
        """Do a fault while tasks are done; return whether the run was not over before."""
        since = self.newest()
        self.wait_until(lambda: self.newest() > since or self.is_over())
        time.sleep(self.draw.uniform(0.0, 0.2 if self.form == "smoke" else 2.0))
        # At its end ranks part before the result is written.
        self.wait_until(lambda: len(self.ranks()) > 0 or self.is_over())
        if self.is_over():
            return False
        try:
            getattr(self, fault)()
        except (psutil.NoSuchProcess, IndexError):  # The run ends just now.
            return False
        self.done.append(fault)
        return True

    def recover(self, since: float, started: Sequence[int]) -> None:
        """Wait until ranks have started again, and a task is finished; note how long that took."""
        tokens = [self.state / f"rank-{rank}" / "token" for rank in started]

        def goes_on() -> bool:
            times = [path.stat().st_mtime for path in tokens if path.exists()]
            is_started = len(times) == len(tokens) and min(times) > since
            return self.is_over() or (is_started and self.newest() > max(times))

        self.wait_until(goes_on)
        self.recoveries.append(time.time() - since)

    # Faults

    def kill(self) -> None:
        since = time.time()
        self.draw.choice(self.ranks()).kill()
        self.recover(since, range(self.num_ranks))

    def pause(self) -> None:
        victim = self.draw.choice(self.ranks())
        victim.suspend()
        time.sleep(self.length())
        victim.resume()

    def length(self) -> float:
        """Return how long something is away that comes back."""
        return self.draw.uniform(0.1, 0.5) if self.form == "smoke" else self.draw.uniform(1, 5)

    def lose(self) -> None:
        self.processes[0].kill()
        self.resume()

    def stop(self) -> None:
        self.processes[0].terminate()
        self.resume()

    def resume(self) -> None:
        """Go on, on other ranks."""
        since, ranks = time.time(), self.ranks()
        self.processes[0].wait()
        self.wait_until(lambda: not any(map(lives, ranks)))
        self.num_ranks = self.draw.choice([1, 2, 3, 4])
        several = self.draw.choice(PLACEMENTS[self.case])
        placement = several if self.num_ranks > 1 else "sequential"
        code = ["--recipe", OWN] if self.case == "own" else []
        self.launch(["--resume", str(self.out), *code, "--placement", placement])
        self.recover(since, range(self.num_ranks))


class SharedRun(Run):
    """A run whose ranks share a folder, and were started by hand."""

    faults = ("alone", "pause", "halt")

    def start(self) -> None:
        self.state = self.folder / "shared"
        self.processes = [self.one(rank) for rank in range(RANKS)]

    def one(self, rank: int) -> subprocess.Popen[bytes]:
        where = ["--directory", str(self.state), "--out", str(self.out)]
        return self.train([*self.settings, *where], rank)

    def ranks(self) -> list[psutil.Process]:
        return [psutil.Process(p.pid) for p in self.processes if p.poll() is None]

    def alone(self) -> None:
        rank, since = self.draw.randrange(RANKS), time.time()
        self.processes[rank].kill()
        self.processes[rank].wait()
        self.processes[rank] = self.one(rank)
        self.recover(since, [rank])

    def halt(self) -> None:
        since = time.time()
        self.draw.choice(self.processes).terminate()
        for process in self.processes:
            process.wait()
        self.processes = [self.one(rank) for rank in range(RANKS)]
        self.recover(since, range(RANKS))


class LinkedRun(SharedRun):
    """A run on hosts that a switch joins."""

    faults = ("cut", "pause")

    def start(self) -> None:
        self.hosts = Hosts(RANKS)
        self.hosts.__enter__()
        self.processes = [self.one(rank) for rank in range(RANKS)]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.hosts.__exit__(*error)

    def one(self, rank: int) -> subprocess.Popen[bytes]:
        where = ["--iface", "eth0", "--out", str(self.out)]
        within = ["nsenter", f"--net=/var/run/netns/{self.hosts.names[rank]}"]
        return self.train([*self.settings, *where], rank, within)

    def cut(self) -> None:
        host = self.draw.randrange(RANKS)
        self.hosts.plug(host, is_in=False)
        time.sleep(self.length())
        self.hosts.plug(host, is_in=True)


def lives(process: psutil.Process) -> bool:
    """Return whether a process runs; one that nobody has asked for its status does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def soak(num_faults: int, form: str, seed: int) -> dict[str, Any]:
    """Disturb runs until there were so many faults, and compare the weights they end in."""
    draw = random.Random(seed)
    ways = [Run, SharedRun, Run, *([LinkedRun] if os.geteuid() == 0 else [])]
    most = 1 if form == "smoke" else 4
    expected: dict[str, str] = {}
    faults, identical = 0, 0
    recoveries: dict[str, list[float]] = {}
    runs = []
    while faults < num_faults:
        way = ways[len(runs) % len(ways)]
        case = "one-pass" if form == "smoke" else draw.choice(list(CASES))
        if way is SharedRun and "stream" in case:
            case = "one-pass"
        if case not in expected:
            expected[case] = undisturbed(case, form)
        with tempfile.TemporaryDirectory() as folder, way(case, form, Path(folder), draw) as run:
            wanted = min(draw.randint(1, most), num_faults - faults)
            while len(run.done) < wanted:
                # The first kind is the hardest.
                kind = run.faults[0] if form == "smoke" else draw.choice(run.faults)
                if not run.disturb(kind):
                    break
            is_same = run.finish() == expected[case]
        faults += len(run.done)
        identical += len(run.done) * is_same
        recoveries.setdefault(way.__name__, []).extend(run.recoveries)
        runs.append({"way": way.__name__, "case": case, "faults": run.done, "same": is_same})
        print(
            f"{faults:3} faults; {case} ({way.__name__}): {', '.join(run.done) or 'none'}; "
            f"{'the same weights' if is_same else 'OTHER WEIGHTS'}; recovered after "
            f"{', '.join(f'{seconds:.1f}' for seconds in run.recoveries) or '-'} s",
            flush=True,
        )
    every = [seconds for found in recoveries.values() for seconds in found]
    return {
        "faults": faults,
        "identical": identical,
        "recovery_seconds_median": round(statistics.median(every), 2),
        "recovery_seconds_worst": round(max(every), 2),
        "recoveries": recoveries,
        "runs": runs,
    }


def undisturbed(case: str, form: str) -> str:
    """Return the digest of the weights of a run on one rank that nothing happens to."""
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", f"{folder}/run"]
        command = [sys.executable, "-m", "onward", "train", *settings(case, form), *out]
        subprocess.run(command, check=True, capture_output=True)
        return str(json.loads(Path(folder, "run", "result.json").read_text())["weights_sha256"])


def cost(form: str) -> list[float]:
    """Return the time of trainings with states kept over that of trainings without, less one."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {0})
    width, samples, pairs = {
        "full": (2000, 60_000, 5),
        "quick": (2000, 6_000, 2),
        "smoke": (32, 600, 1),
    }[form]
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(samples, 784, generator=draw)
    y = torch.randint(10, (samples,), generator=draw)
    dataset = ow.dataset(x, y, x_test=x[:100], y_test=y[:100])

    def seconds(folder: Path | None) -> float:
        torch.manual_seed(0)
        network = ow.mlp((784,), num_classes=10, widths=(width,) * 4)
        training = ow.TrainingConfig(epochs=2, batch_size=min(512, samples))
        found = ow.train(network, dataset, training=training, validation=0, folder=folder)
        assert found is not None
        return float(found.facts["seconds"])

    costs = []
    for _ in range(pairs):
        without = seconds(None)
        with tempfile.TemporaryDirectory() as folder:
            kept = seconds(Path(folder) / "run")
        costs.append(kept / without - 1)
        print(f"without {without:.1f} s, kept {kept:.1f} s: {costs[-1]:.2%}", flush=True)
    return costs


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    options = parser.parse_args()
    form = common.form_of(options)
    load = os.getloadavg()[0]
    found = soak({"full": 50, "quick": 6, "smoke": 2}[form], form, options.seed)
    costs = cost(form)
    found |= {"checkpoint_cost": round(statistics.median(costs), 4), "costs": costs, "load": load}
    if form == "full":
        common.record(options.out / "soak.json", found)
    names = ("faults", "identical", "recovery_seconds_median", "recovery_seconds_worst")
    common.last_line({name: found[name] for name in (*names, "checkpoint_cost")}, form)


if __name__ == "__main__":
    main()
