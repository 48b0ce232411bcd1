"""What crosses the wire, and what does each rank hold, for each placement?

    python benchmarks/traffic.py            8 chapters of [784, 2000 x 4], about three minutes
    python benchmarks/traffic.py --quick    4 chapters, under a minute

Real ranks on this machine, loopback. Bytes are those handed to the transport by all ranks together;
the formulas of the first two are those of the PFF paper's scheme (arXiv:2404.08573, section 4; the
paper states no bytes):

    all-layers     C-1 times weights and moments of all blocks, then their weights
    single-layer   C times the weights of each block, to every later rank, then to rank 0
    stream         C times 2 bytes a row and unit of all blocks but the last, then all weights
    units          two teams of two, units cut: all-layers twice over, as each rank of a team sends
                   to one of the other; and within the teams, for each chapter and block, weights
                   and moments once, logits of each row twice, activities that are passed on once

Figures: bytes sent over what the formula says, by placement. Peak memory is that of a whole rank,
torch itself included, with what was estimated beforehand in brackets.
"""

import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import common
import torch

import onward as ow
from onward.launcher import launch

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "sequential": (1, {}),
    "all-layers": (4, {}),
    "all-layers, restart": (4, {"optimizer_state": "restart"}),
    "single-layer": (4, {}),
    "stream": (4, {"kind": "stream"}),
    "all-layers, units": (4, {"slices": 2, "cut": "units"}),
}


def body(work: dict[str, Any]) -> None:
    """Train as one rank."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(work["samples"], 1, 28, 28, generator=draw)
    y = torch.randint(10, (len(x),), generator=draw)
    result = ow.train(
        ow.mlp((1, 28, 28), num_classes=10, widths=tuple(work["widths"])),
        ow.dataset(x, y, x_test=x[:100], y_test=y[:100]),
        training=ow.TrainingConfig(
            epochs=work["chapters"], batch_size=min(500, work["samples"]), precision="bf16"
        ),
        plan=ow.PlanConfig(**work["plan"]),
        placement=ow.PlacementConfig(
            name=work["placement"], replicas=work["plan"].get("slices", 1)
        ),
        validation=0,
    )
    if result is not None:
        Path(work["out"]).write_text(json.dumps(result.to_json()))


def predicted(case: str, widths: tuple[int, ...], chapters: int, samples: int) -> float:
    """Return the bytes that the formula says."""
    sizes = (784, *widths)
    blocks = [4 * m * (n + 1 + 10) for n, m in pairwise(sizes)]
    weights = sum(blocks)
    match case:
        case "all-layers":
            return 3 * (chapters - 1) * weights + weights
        case "all-layers, restart":
            return chapters * weights
        case "single-layer":
            later = sum(b * (len(blocks) - 1 - k) for k, b in enumerate(blocks))
            return chapters * later + weights - blocks[0]
        case "stream":
            return chapters * 2 * samples * sum(widths[:-1]) + weights - blocks[0]
        case "all-layers, units":
            within = (
                3 * weights + 4 * 10 * samples * 2 * len(blocks) + 2 * samples * sum(widths[:-1])
            )
            return 2 * 3 * (chapters - 1) * weights + weights + chapters * within
    return 0.0


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--body")
    options = parser.parse_args()
    if options.body:
        return body(json.loads(options.body))
    form = common.form_of(options)
    chapters = {"full": 8, "quick": 4, "smoke": 4}[form]
    widths = (32,) * 4 if form == "smoke" else (2000,) * 4
    cases = {"all-layers": CASES["all-layers"]} if form == "smoke" else CASES
    figures: dict[str, float] = {}
    every = {}
    print(
        f"{'placement':20} {'ranks':>5} {'MB sent':>9} {'formula':>9}  peak MB of ranks (estimated)"
    )
    for case, (ranks, plan) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            work = {
                "samples": 200 if form == "smoke" else 2000,
                "widths": widths,
                "chapters": chapters,
                "plan": plan,
                "placement": case.partition(",")[0],
                "out": f"{folder}/result.json",
            }
            if launch(ranks, [__file__, "--body", json.dumps(work)]):
                raise SystemExit(1)
            found = json.loads(Path(work["out"]).read_text())
        every[case] = found
        sent, formula = sum(found["bytes_sent"]), predicted(case, widths, chapters, work["samples"])
        peaks = "  ".join(
            f"{peak / 1e6:.0f} ({needed / 1e6:.0f})"
            for peak, needed in zip(
                found["peak_memory_bytes"], found["estimated_memory_bytes"], strict=True
            )
        )
        print(f"{case:20} {ranks:5} {sent / 1e6:9.1f} {formula / 1e6:9.1f}  {peaks}")
        if formula:
            figures[case] = round(sent / formula, 4)
    if form == "full":
        common.record(options.out / "traffic.json", {"load": os.getloadavg()[0], "runs": every})
    common.last_line(figures, form)
    return None


if __name__ == "__main__":
    main()
