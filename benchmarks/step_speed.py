"""How fast is one training step, beside plain PyTorch and beside what the machine allows?

    python benchmarks/step_speed.py            30 alternating rounds, about five minutes
    python benchmarks/step_speed.py --quick    5 rounds, under a minute

Network [784, 2000 x 4], 10 classes, random inputs in memory, one thread, one process. Contestants:

    one-pass   the library's one-pass recipe, a mini-batch through all blocks (stream plan);
               without dropout, which the others do not have either
    two-pass   the library's hinton recipe: positive, negative and neutral pass, softmax head,
               hard negatives, peer normalisation
    fp32 ff    Forward-Forward as it is usually written: autograd, fp32, a positive, a negative and
               a neutral pass, a softmax head, an Adam a layer
    bf16 bp    backpropagation through the same widths: autocast to bf16, fused Adam

Timed: steps with weights and samples in memory, gathering samples and choosing negatives included.
Not timed: starting, reading data. In every round all contestants run in turn; a figure is the
median over rounds of the ratio within a round. The floor is the time of the two matrix products a
block cannot do without, at the bf16 rate measured in the same round, plus the bytes an Adam step
moves (weights and two moments in and out, a bf16 copy of the weights in and out: 28 a weight) at
the bandwidth measured there.
"""

import statistics
from collections.abc import Callable
from itertools import pairwise

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import onward as ow
from onward.config import RunConfig

CLASSES = 10
ROWS = 5120


def library(recipe: str, widths: tuple[int, ...], batch: int) -> Callable[[], None]:
    """Return a function that does the next mini-batch of a recipe, as the runtime does it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(ROWS, 1, 28, 28, generator=generator)
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    dataset = ow.dataset(x, y, x_test=x[:10], y_test=y[:10])
    config: RunConfig = ow.RunConfig(recipe=recipe).with_settings(
        {
            "network.widths": widths,
            "training.batch_size": batch,
            "training.epochs": 1000,
            "network.dropout": 0.0,
            "plan.kind": "stream",
            "data.validation": 0,
        }
    )
    network = ow.mlp(
        dataset.input_shape,
        num_classes=CLASSES,
        is_image=True,
        optimizer=config.optimizer,
        **{name: getattr(config.network, name) for name in config.network.__dataclass_fields__},
    )
    return common.stream_step(config, network, dataset)


def plain_forward_forward(widths: tuple[int, ...], batch: int) -> Callable[[], None]:
    """Forward-Forward in fp32 with autograd, as it is usually written."""
    torch.manual_seed(0)
    sizes = (784, *widths)
    layers = [nn.Linear(n, m) for n, m in pairwise(sizes)]
    optimizers = [torch.optim.Adam(layer.parameters()) for layer in layers]
    head = nn.Linear(sum(widths[1:]) or widths[0], CLASSES)
    head_optimizer = torch.optim.Adam(head.parameters())
    x = torch.rand(batch, 784)
    y = torch.randint(CLASSES, (batch,))

    def embed(labels: Tensor) -> Tensor:
        samples = x.clone()
        samples[:, :CLASSES] = F.one_hot(labels, CLASSES).float()
        return samples

    def normalize(h: Tensor) -> Tensor:
        return h / (h.norm(dim=1, keepdim=True) + 1e-4)

    def step() -> None:
        wrong = (y + torch.randint(1, CLASSES, y.shape)) % CLASSES
        pos, neg, neutral = embed(y), embed(wrong), x.clone()
        neutral[:, :CLASSES] = 1 / CLASSES
        read = []
        for layer, optimizer in zip(layers, optimizers, strict=True):
            h_pos, h_neg = layer(normalize(pos)).relu(), layer(normalize(neg)).relu()
            loss = F.softplus(2 - h_pos.square().mean(1)).mean()
            loss = loss + F.softplus(h_neg.square().mean(1) - 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pos, neg = h_pos.detach(), h_neg.detach()
            with torch.no_grad():
                neutral = layer(normalize(neutral)).relu()
            read.append(neutral)
        loss = F.cross_entropy(head(torch.cat(read[1:] or read, dim=1)), y)
        head_optimizer.zero_grad()
        loss.backward()
        head_optimizer.step()

    return step


def plain_backprop(widths: tuple[int, ...], batch: int) -> Callable[[], None]:
    """Backpropagation with bf16 autocast and fused Adam."""
    torch.manual_seed(0)
    sizes = (784, *widths)
    modules: list[nn.Module] = []
    for n, m in pairwise(sizes):
        modules += [nn.Linear(n, m), nn.ReLU()]
    network = nn.Sequential(*modules, nn.Linear(sizes[-1], CLASSES))
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    x, y = torch.rand(batch, 784), torch.randint(CLASSES, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(x).float(), y)
        loss.backward()
        optimizer.step()

    return step


def floor_seconds(widths: tuple[int, ...], batch: int) -> float:
    """Return the least time of a one-pass step on this machine, as measured now."""
    width = widths[-1]
    x, w = torch.rand(batch, width).bfloat16(), torch.rand(width, width).bfloat16()
    out = torch.empty(batch, width, dtype=torch.bfloat16)
    product = min(common.seconds(lambda: torch.mm(x, w.T, out=out), 5) for _ in range(3))
    rate = 2 * batch * width * width / product
    moved = torch.rand(20_000_000)
    bandwidth = (
        8 * moved.numel() / min(common.seconds(lambda: moved.add_(1.0), 2) for _ in range(3))
    )
    sizes = (784, *widths)
    weights = sum(n * m for n, m in pairwise(sizes))
    return 4 * batch * weights / rate + 28 * weights / bandwidth


def main() -> None:
    options = common.parser(__doc__).parse_args()
    form = common.form_of(options)
    torch.set_num_threads(1)
    widths = (32,) * 4 if form == "smoke" else (2000,) * 4
    rounds = {"full": 30, "quick": 5, "smoke": 2}[form]
    steps = {"full": 5, "quick": 3, "smoke": 1}[form]
    names = (
        "one_pass_vs_fp32_ff",
        "one_pass_vs_bf16_backprop",
        "two_pass_vs_fp32_ff",
        "times_floor",
    )
    figures: dict[str, dict[str, float]] = {name: {} for name in names}
    every: dict[str, dict[str, list[float]]] = {}
    for batch in (100, 512):
        contestants = {
            "one-pass": library("one-pass", widths, batch),
            "two-pass": library("hinton", widths, batch),
            "fp32 ff": plain_forward_forward(widths, batch),
            "bf16 bp": plain_backprop(widths, batch),
        }
        for step in contestants.values():
            common.seconds(step, 2)
        times: dict[str, list[float]] = {name: [] for name in (*contestants, "floor")}
        for _ in range(rounds):
            for name, step in contestants.items():
                times[name].append(common.seconds(step, steps))
            times["floor"].append(floor_seconds(widths, batch))
        every[str(batch)] = times
        print(f"batch {batch}, widths {list(widths)}, n={rounds} rounds of {steps} steps")
        for name, found in times.items():
            low, middle, high = min(found), statistics.median(found), max(found)
            print(f"  {name:10} {middle * 1e3:8.2f} ms  ({low * 1e3:.2f} to {high * 1e3:.2f})")
        pairs = (("fp32 ff", "one-pass"), ("bf16 bp", "one-pass"), ("fp32 ff", "two-pass"))
        ratios = [*pairs, ("one-pass", "floor")]
        for figure, (above, below) in zip(names, ratios, strict=True):
            each = [a / b for a, b in zip(times[above], times[below], strict=True)]
            figures[figure][str(batch)] = round(statistics.median(each), 3)
            middle = statistics.median(each)
            print(f"  {figure:28} {middle:6.2f}  ({min(each):.2f} to {max(each):.2f})")
    if form == "full":
        common.record(options.out / "step_speed.json", {"figures": figures, "seconds": every})
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
