"""Does a GPU end in the same bits, how long is a step, how accurate is a training of some seconds?

    python benchmarks/gpu.py --data-dir DIR                 about eight minutes
    python benchmarks/gpu.py --data-dir DIR --only steps    one part
    python benchmarks/gpu.py --smoke                        seconds, on the processor

Parts, in this order; each figure is printed and written as soon as it is known, and a part that
fails is told with its error:

    bits       two trainings of one rank, and of two ranks that share the GPU (all-layers, stream)
    steps      wall time of a training step, dense (784, 2000 x 4, mini-batches of 512) and of
               convolutions (those of conv_step.py, mini-batches of 512), in bf16: the library in a
               stream plan, beside plain PyTorch with the same layers, local blocks and
               backpropagation, eager and compiled. Medians of rounds in which all run in turn
    accuracy   one-pass and hinton on MNIST, conv on CIFAR-10 (wide, and for as long as there is
               time), with the seconds of the training and its operations

Nothing begins for which there is not time left, as far as one can know.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import common
import conv_step
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import onward as ow
from onward.devices import find_device, reproducible, wait_for
from onward.network.layers import Dense
from onward.recipes.convolutions import GridAverage

BATCH, CLASSES, SAMPLES = 512, 10, 20_480

CASE_SECONDS = 60.0
"""Seconds that must be left to time steps of a kind, compilation included."""

Parts = list[tuple[nn.Module, nn.Module]]
"""Layers of each block, and its head."""


# Bits


def bits(device: torch.device, form: str) -> Iterator[tuple[str, Any]]:
    """Yield whether trainings end in the weights of the first."""
    again: dict[str, list[str]] = {"again": [], "two ranks": ["--processes", "2"]}
    if form == "smoke":
        del again["two ranks"]
    for plan in ("stream",) if form == "smoke" else ("stream", "chapters"):
        first = _weights(device, plan, [])
        for name, more in again.items():
            yield f"{plan}, {name}", _weights(device, plan, more) == first


def _weights(device: torch.device, plan: str, more: list[str]) -> str:
    """Return the digest of the weights of a small training by the command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "onward", "train", "one-pass", "--data", "digits"]
        command += ["--epochs", "4", "--widths", "256,256,256,256", "--plan", plan]
        command += ["--device", device.type, "--out", f"{folder}/run", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        digest: str = json.loads(Path(f"{folder}/run/result.json").read_text())["weights_sha256"]
    return digest


# Steps


def dense(width: int) -> Parts:
    draw = torch.Generator().manual_seed(0)
    sizes = (784, *[width] * 4)
    layers = [Dense(n, m, generator=draw) for n, m in pairwise(sizes)]
    return [(layer, nn.Linear(width, CLASSES, bias=False)) for layer in layers]


def convolutions() -> Parts:
    pairs = pairwise(conv_step.CHANNELS)
    return [(conv_step.layers(n, *pair), conv_step.head(pair[1])) for n, pair in enumerate(pairs)]


def plain(
    parts: Parts, x: Tensor, y: Tensor, *, is_local: bool, compiled: bool
) -> Callable[[], None]:
    """Return a step in plain PyTorch, of local blocks or of one network by backpropagation."""
    if not is_local:
        parts = [(nn.Sequential(*(layers for layers, _ in parts)), parts[-1][1])]
    trained = [nn.Sequential(*part).to(x.device) for part in parts]
    if x.ndim == 4:
        trained = [part.to(memory_format=torch.channels_last) for part in trained]
    optimizers = [torch.optim.Adam(part.parameters(), fused=True) for part in trained]
    draw = torch.Generator(x.device).manual_seed(0)

    def forward(part: nn.Sequential, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16):
            h = part[0](h)
            logits = part[1](h).float()
        return h, F.cross_entropy(logits, labels)

    # Shapes stay as they are, so that graphs are made for them.
    forwards = [torch.compile(forward, dynamic=False) if compiled else forward for _ in trained]

    def step() -> None:
        chosen = torch.randint(len(x), (BATCH,), generator=draw, device=x.device)
        h, labels = x[chosen], y[chosen]
        if h.ndim == 4:
            h = h.contiguous(memory_format=torch.channels_last)
        for number, part in enumerate(trained):
            out, loss = forwards[number](part, h, labels)
            loss.backward()
            optimizers[number].step()
            optimizers[number].zero_grad()
            h = out.detach()

    return step


def library(parts: Parts, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return the same step in the library, its averages by kernels that end in the same bits."""
    for _, head in parts:
        if isinstance(head, nn.Sequential):
            head[0] = GridAverage((2, 2))
    blocks = [ow.Block(layers, ow.CrossEntropy(head), ow.Adam()) for layers, head in parts]
    network = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)
    config = ow.RunConfig(
        data=ow.DataConfig(validation=0),
        training=ow.TrainingConfig(epochs=10_000, batch_size=BATCH, precision="bf16"),
        plan=ow.PlanConfig(kind="stream"),
    )
    dataset = ow.dataset(x.cpu(), y.cpu(), x_test=x[:10].cpu(), y_test=y[:10].cpu())
    return common.stream_step(config, network, dataset, x.device)


def steps(device: torch.device, form: str, left: Callable[[], float]) -> Iterator[tuple[str, Any]]:
    """Yield milliseconds of a step, and ratios, by contestant."""
    rounds, each = {"full": (20, 20), "quick": (5, 10), "smoke": (1, 1)}[form]
    samples = 2 * BATCH if form == "smoke" else SAMPLES
    cases: dict[str, tuple[Callable[[], Parts], tuple[int, ...]]] = {
        "dense": (lambda: dense(32 if form == "smoke" else 2000), (784,)),
        "convolutions": (convolutions, (3, 32, 32)),
    }
    for case, (parts, shape) in islice(cases.items(), 1 if form == "smoke" else None):
        if left() < CASE_SECONDS:
            yield case, f"not begun: {left():.0f} s were left"
            continue
        torch._dynamo.reset()
        x = torch.rand(samples, *shape, device=device)
        y = torch.randint(CLASSES, (samples,), device=device)
        contestants = {"onward": library(parts(), x, y)}
        for compiled in (False,) if form == "smoke" else (False, True):
            for is_local in (True, False):
                name = "local" if is_local else "backprop"
                name += ", compiled" if compiled else ""
                contestants[name] = plain(parts(), x, y, is_local=is_local, compiled=compiled)
        for name, step in contestants.items():
            with reproducible(device) if name == "onward" else nullcontext():
                _seconds(step, 3, device)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, step in contestants.items():
                # With the kernels that a training of the library has.
                with reproducible(device) if name == "onward" else nullcontext():
                    times[name].append(_seconds(step, each, device))
        for name, found in times.items():
            yield f"{case}, {name}, ms", round(1e3 * statistics.median(found), 3)
            ratios = [a / b for a, b in zip(found, times["onward"], strict=True)]
            if name != "onward":
                # Above 1, the library is the faster one.
                yield f"{case}, {name} over onward", round(statistics.median(ratios), 3)


def _seconds(step: Callable[[], None], count: int, device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait_for(device)
    return (time.perf_counter() - start) / count


# Accuracy

WIDE = {"network.channels": (128, 256, 256, 512, 512, 512)}
RUNS: list[tuple[str, str, str, dict[str, Any], float]] = [
    ("mnist, one-pass, 5 epochs", "mnist", "one-pass", {"training.epochs": 5}, 40),
    ("cifar10, conv, wide, 16 epochs", "cifar10", "conv", WIDE | {"training.epochs": 16}, 120),
    ("mnist, hinton, 20 epochs", "mnist", "hinton", {"training.epochs": 20}, 90),
    ("cifar10, conv, wide, 64 epochs", "cifar10", "conv", WIDE | {"training.epochs": 64}, 300),
]
"""Name, data, recipe, settings, and seconds that must be left to begin it."""

SMOKE = [("digits, one-pass", "digits", "one-pass", {"training.epochs": 1}, 0.0)]


def accuracy(
    device: torch.device, form: str, data_dir: str | None, left: Callable[[], float]
) -> Iterator[tuple[str, Any]]:
    """Yield test accuracy, seconds and PFLOP of whole trainings."""
    for name, data, recipe, changes, least in SMOKE if form == "smoke" else RUNS:
        if left() < least:
            yield name, f"not begun: {left():.0f} s were left"
            continue
        config = ow.RunConfig(recipe=recipe).with_settings(
            {
                "data.name": data,
                "data.dir": data_dir,
                "data.validation": 0,
                "training.device": device.type,
                **changes,
            }
        )
        result = ow.run(config, ow.Listener())
        assert result is not None
        yield (
            name,
            {
                "accuracy": result.accuracy,
                "seconds": round(result.facts["seconds"], 1),
                "pflop": round(common.pflop(config), 3),
                "peak_device_bytes": result.facts["peak_device_bytes"],
            },
        )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=["bits", "steps", "accuracy"], help="one part")
    parser.add_argument("--seconds", type=float, default=480.0, help="in which all has to be done")
    options = parser.parse_args()
    form, end = common.form_of(options), time.perf_counter() + options.seconds
    if form != "smoke" and not torch.cuda.is_available():
        common.skip("There is no GPU that torch can use.")
    device = find_device("cpu" if form == "smoke" else "cuda")

    def left() -> float:
        return end - time.perf_counter()

    parts = {
        "bits": lambda: bits(device, form),
        "steps": lambda: steps(device, form, left),
        "accuracy": lambda: accuracy(device, form, options.data_dir, left),
    }
    figures: dict[str, Any] = {}
    for name, part in parts.items():
        if options.only not in (None, name):
            continue
        try:
            for figure, value in part():
                figures[figure] = value
                print(f"{figure}: {value}", flush=True)
                common.record(options.out / "gpu.json", {"figures": figures})
        except Exception:
            figures[f"{name} failed"] = traceback.format_exc()[-3000:]
            print(f"{name} failed: {figures[f'{name} failed']}", flush=True)
            common.record(options.out / "gpu.json", {"figures": figures})
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
