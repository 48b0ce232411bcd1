"""How fast is one training step of a convolutional network, beside plain PyTorch?

    python benchmarks/conv_step.py            20 alternating rounds, about ten minutes
    python benchmarks/conv_step.py --quick    4 rounds, a minute

Four blocks of 32, 64, 128 and 256 channels: a 3 x 3 convolution, in all but the first max-pooling
by 2, batch normalization and ReLU, with a linear head on what comes out, averaged to 2 x 2 places.
AdamW, mini-batches of 128 images like those of CIFAR-10, products in bf16, one thread, one process.
Contestants:

    local         a plain PyTorch loop: each block learns from what the block before has put out,
                  detached; channels last, fused AdamW
    backprop      the same network in plain PyTorch, with the last head alone, by backpropagation
    onward        the library, as a stream plan (a mini-batch through all blocks)
    local muon    as local, with torch's Muon on filters and fused AdamW on the rest
    onward muon   the same in the library, by `ow.optimizer(torch.optim.Muon, flatten=True)`
    compiled ...  local and backprop by torch.compile, where there is a compiler

All choose their samples anew for each mini-batch, and add up loss and right answers. In every round
all contestants run in turn; a figure is the median over rounds of the ratio within a round.
"""

import shutil
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import onward as ow

CHANNELS = (3, 32, 64, 128, 256)
CLASSES = 10
BATCH = 128
LR, DECAY = 1e-3, 1e-2


def images(form: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    samples = (2 if form == "smoke" else 64) * BATCH
    x = torch.rand(samples, 3, 32, 32, generator=generator)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def layers(number: int, channels_in: int, channels_out: int) -> nn.Sequential:
    pool = [nn.MaxPool2d(2)] if number else []
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        *pool,
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, CLASSES))


class Optimizers:
    """Fused AdamW, with Muon for the filters where wished, as matrices."""

    def __init__(self, module: nn.Module, *, muon: bool) -> None:
        self.filters = [p for p in module.parameters() if p.ndim == 4 and muon]
        self.matrices = [p.detach().flatten(1).clone() for p in self.filters]
        rest = [p for p in module.parameters() if not (p.ndim == 4 and muon)]
        self.each: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=LR, weight_decay=DECAY, fused=True)
        ]
        if muon:
            self.each.append(torch.optim.Muon(self.matrices, lr=LR, weight_decay=DECAY))

    @torch.no_grad()
    def step(self) -> None:
        for matrix, filters in zip(self.matrices, self.filters, strict=True):
            assert filters.grad is not None
            matrix.grad, filters.grad = filters.grad.flatten(1), None
        for optimizer in self.each:
            optimizer.step()
            optimizer.zero_grad()
        for matrix, filters in zip(self.matrices, self.filters, strict=True):
            filters.copy_(matrix.view(filters.shape))


def plain(
    x: Tensor, y: Tensor, *, is_local: bool, muon: bool = False, compiled: bool = False
) -> Callable[[], None]:
    """Return a step in plain PyTorch, of local blocks or of one network by backpropagation."""
    torch.manual_seed(0)
    blocks = [layers(n, *pair) for n, pair in enumerate(pairwise(CHANNELS))]
    heads = [head(channels) for channels in CHANNELS[1:]]
    parts = list(zip(blocks, heads, strict=True))
    if not is_local:
        parts = [(nn.Sequential(*blocks), heads[-1])]
    trained = [nn.Sequential(*part).to(memory_format=torch.channels_last) for part in parts]
    optimizers = [Optimizers(part, muon=muon) for part in trained]
    totals = torch.zeros(len(parts)), torch.zeros(len(parts))
    draw = torch.Generator().manual_seed(0)

    def forward(block: nn.Module, head: nn.Module, h: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            h = block(h)
            logits = head(h).float()
        return h, F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).sum()

    # Each with graphs of its own.
    forwards = [torch.compile(forward) if compiled else forward for _ in parts]

    def step() -> None:
        chosen = torch.randint(len(x), (BATCH,), generator=draw)
        h, labels = x[chosen].contiguous(memory_format=torch.channels_last), y[chosen]
        for number, (block, read) in enumerate(parts):
            out, loss, right = forwards[number](block, read, h, labels)
            loss.backward()
            optimizers[number].step()
            totals[0][number] += loss.detach()
            totals[1][number] += right
            h = out.detach()

    return step


def library(x: Tensor, y: Tensor, *, muon: bool = False) -> Callable[[], None]:
    """Return the same step in the library."""
    torch.manual_seed(0)
    adam = ow.Adam(lr=LR, weight_decay=DECAY)
    rule: ow.Optimizer | dict[str, ow.Optimizer] = adam
    if muon:
        filters = ow.optimizer(torch.optim.Muon, flatten=True, lr=LR, weight_decay=DECAY)
        rule = {"module.0.weight": filters, "": adam}
    blocks = [
        ow.Block(layers(n, *pair), ow.CrossEntropy(head(pair[1])), rule)
        for n, pair in enumerate(pairwise(CHANNELS))
    ]
    network = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)
    config = ow.RunConfig(
        data=ow.DataConfig(validation=0),
        training=ow.TrainingConfig(epochs=1000, batch_size=BATCH, precision="bf16"),
        plan=ow.PlanConfig(kind="stream"),
    )
    return common.stream_step(config, network, ow.dataset(x, y, x_test=x[:10], y_test=y[:10]))


PAIRS = {
    "onward_vs_local": ("onward", "local"),
    "onward_vs_backprop": ("onward", "backprop"),
    "onward_vs_compiled_local": ("onward", "compiled local"),
    "onward_vs_compiled_backprop": ("onward", "compiled backprop"),
    "onward_vs_local_with_muon": ("onward muon", "local muon"),
}
"""By figure: the seconds of which contestant over those of which."""


def main() -> None:
    options = common.parser(__doc__).parse_args()
    form = common.form_of(options)
    torch.set_num_threads(1)
    rounds, steps = {"full": (20, 4), "quick": (4, 3), "smoke": (1, 1)}[form]
    x, y = images(form)
    contestants = {
        "local": plain(x, y, is_local=True),
        "backprop": plain(x, y, is_local=False),
        "onward": library(x, y),
        "local muon": plain(x, y, is_local=True, muon=True),
        "onward muon": library(x, y, muon=True),
    }
    if form != "smoke" and (shutil.which("g++") or shutil.which("clang++")):
        contestants["compiled local"] = plain(x, y, is_local=True, compiled=True)
        contestants["compiled backprop"] = plain(x, y, is_local=False, compiled=True)
    # By the clock: a compiler works in processes of its own.
    first = {}
    for name, step in contestants.items():
        start = time.perf_counter()
        step()
        first[name] = time.perf_counter() - start
    for step in contestants.values():
        common.seconds(step, 1)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, step in contestants.items():
            times[name].append(common.seconds(step, steps))
    print(f"n={rounds} rounds of {steps} steps; load {common.environment()['load']:.1f}")
    for name, found in times.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        print(
            f"  {name:18} {middle * 1e3:7.1f} ms  ({low * 1e3:.1f} to {high * 1e3:.1f}), "
            f"the first step {first[name]:.1f} s"
        )
    figures: dict[str, float] = {}
    for figure, (above, below) in PAIRS.items():
        if below in times:
            each = [a / b for a, b in zip(times[above], times[below], strict=True)]
            figures[figure] = round(statistics.median(each), 3)
            print(f"  {figure:28} {figures[figure]:6.2f}  ({min(each):.2f} to {max(each):.2f})")
    if form == "full":
        found = {"figures": figures, "seconds": times, "first_seconds": first}
        common.record(options.out / "conv_step.json", found)
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
