"""How long does Onward take to start?

    python benchmarks/start_up.py            ten of each in turn, five minutes
    python benchmarks/start_up.py --quick    three of each, a minute or two

Each is a process of its own, from its start to its end. Medians:

    help             seconds of `onward --help`
    wrong_flag       seconds of a command with a flag that does not exist
    import_torch     seconds of `import torch`
    import_onward    seconds of `import onward` and of building a network with `ow.mlp`
    import_ratio     import_onward over import_torch
    processes        seconds of the twenty epochs of `make demo` on four processes
"""

import statistics
import subprocess
import sys
import tempfile
import time

import common

BUILT = "import onward as ow; ow.mlp((784,), num_classes=10, widths=(100, 100))"

COMMANDS = {
    "help": ["-m", "onward", "--help"],
    "wrong_flag": ["-m", "onward", "train", "one-pass", "--epoch", "3"],
    "import_torch": ["-c", "import torch"],
    "import_onward": ["-c", BUILT],
}
"""Arguments of the interpreter, by what is measured."""

TRAINING = ["-m", "onward", "train", "one-pass", "--data", "digits", "--processes", "4"]


def seconds(arguments: list[str], status: int = 0) -> float:
    """Return how long a process takes."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode != status:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr}")
    return time.perf_counter() - start


def training(epochs: int) -> float:
    """Return how long a training on four processes takes."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds([*TRAINING, "--epochs", str(epochs), "--out", f"{folder}/run"])


def main() -> None:
    options = common.parser(__doc__).parse_args()
    form = common.form_of(options)
    times = {"full": 10, "quick": 3, "smoke": 1}[form]
    measured: dict[str, list[float]] = {name: [] for name in [*COMMANDS, "processes"]}
    for _ in range(times):
        for name, arguments in COMMANDS.items():
            measured[name].append(seconds(arguments, 2 if name == "wrong_flag" else 0))
        measured["processes"].append(training(4 if form == "smoke" else 20))
    for name, found in measured.items():
        print(f"{name:14} {common.spread(found)} s, median {statistics.median(found):.3f}")
    figures = {name: round(statistics.median(found), 3) for name, found in measured.items()}
    figures["import_ratio"] = round(figures["import_onward"] / figures["import_torch"], 3)
    if form == "full":
        common.record(options.out / "start_up.json", figures | {"n": times})
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
