"""How well do blocks of a transformer predict the next byte, at the cost of backpropagation?

    python benchmarks/byte_lm.py                           all cases, one seed, two hours or so
    python benchmarks/byte_lm.py --cases "2 blocks"        one case
    python benchmarks/byte_lm.py --quick                   a small text, about a minute

The text is Python's own: the .py files of the folder of its standard library, in order of their
names. Test windows are those of the last files. The network has four layers and less than a million
parameters. `twin` is all of them in one block, which is backpropagation; the others have as many
epochs as come closest to its operations. One thread. A run whose result is in the folder already
is not made again, so that what was cut off goes on.

PFLOP are counted with torch's counter over a mini-batch of real training steps, times the number of
mini-batches. Core-seconds are processor time of training. Perplexity is that of a byte, over all
bytes of the test windows; the network is its last block. Figures of two versions of Python are of
two texts, and cannot be compared.
"""

import hashlib
import json
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import common

import onward as ow

CASES: dict[str, dict[str, Any]] = {
    "twin": {"network.layers_per_block": "all"},
    "2 blocks": {"network.layers_per_block": 2},
    "4 blocks": {"network.layers_per_block": 1},
    "2 blocks, two targets": {"network.layers_per_block": 2, "network.multi_token": True},
    "2 blocks, heads of rank 32": {"network.layers_per_block": 2, "network.head_rank": 32},
}
"""All cases by name; the first is what others cost alike."""

QUICK = ("twin", "2 blocks", "4 blocks")
"""Cases of the quick form."""


class Form(NamedTuple):
    """How much is learned from, and how often."""

    most_bytes: int
    """Bytes of the files that are read, at most."""

    epochs: int
    """Epochs of the twin."""


FORMS = {"full": Form(2_000_000, 12), "quick": Form(60_000, 4), "smoke": Form(15_000, 1)}
"""By name."""

HELD_OUT = 0.1
"""Share of the bytes from which on files are for the test."""


def text(most_bytes: int) -> tuple[bytes, float]:
    """Return the text, and the share of it that is for the test."""
    files: list[bytes] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        file = path.read_bytes()
        if len(files) > 1 and sum(map(len, files)) + len(file) > most_bytes:
            break
        files.append(file)
    total, tail = sum(map(len, files)), 0
    for file in reversed(files):
        if tail >= HELD_OUT * total:
            break
        tail += len(file)
    return b"".join(files), tail / total


def config_of(case: str, path: Path, test: float, seed: int) -> ow.RunConfig:
    """Return the run of a case, with one epoch."""
    return ow.RunConfig(recipe="byte-lm").with_settings(
        CASES[case]
        | {
            "data.name": str(path),
            "data.test": test,
            "data.validation": 0,
            "training.epochs": 1,
            "training.seed": seed,
        }
    )


def trained(config: ow.RunConfig, epochs: int, pflop: float) -> dict[str, Any]:
    """Train once, and return what came out."""
    result = ow.run(config.with_settings({"training.epochs": epochs}))
    assert result is not None
    return {
        "perplexity": [figures["perplexity"] for figures in result.metrics],
        "nats": [figures["nats"] for figures in result.metrics],
        "accuracy": [figures["accuracy"] for figures in result.metrics],
        "epochs": epochs,
        "pflop": pflop * epochs,
        "core_seconds": sum(result.facts["cpu_seconds"]),
        "parameters": sum(p.numel() for p in result.network.parameters()),
        "precision": result.facts["precision"],
        "windows": result.facts["samples"],
        # Where the text lies says nothing of a figure.
        "settings": config.with_settings(
            {"data.name": "text.txt", "training.epochs": epochs}
        ).to_toml(),
    }


def told(name: str, found: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    blocks = " ".join(f"{perplexity:.3f}" for perplexity in found["perplexity"])
    return (
        f"{name:28} {found['parameters']:9,} parameters  {found['epochs']:3} epochs  "
        f"{found['pflop']:.5f} PFLOP {found['core_seconds']:6.0f} core-s  perplexity {blocks}"
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cases", help="names with semicolons between them (default: all)")
    parser.add_argument("--seeds", default="0", help="seeds with commas between them (default: 0)")
    options = parser.parse_args()
    form = common.form_of(options)
    size, epochs = FORMS[form]
    names = list(CASES) if form == "full" else list(QUICK)
    names = options.cases.split(";") if options.cases else names
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are {'; '.join(CASES)}")
    found_text, test = text(size)
    digest = hashlib.sha256(found_text).hexdigest()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(found_text)
        budget = epochs * common.pflop(config_of("twin", path, test, 0))
        for name in names:
            each = []
            for seed in map(int, options.seeds.split(",")):
                kept: Path = options.out / f"byte_lm-{'-'.join(name.replace(',', '').split())}"
                kept = kept.with_name(f"{kept.name}-{seed}.json")
                config = config_of(name, path, test, seed)
                pflop = common.pflop(config)
                if form != "full" or not kept.exists():
                    record = trained(config, max(1, round(budget / pflop)), pflop)
                    record |= {"text_sha256": digest, "python": sys.version.split()[0]}
                    if form == "full":
                        common.record(kept, record)
                else:
                    record = json.loads(kept.read_text())
                each.append(record)
                print(told(name, record), flush=True)
            last = [record["perplexity"][-1] for record in each]
            figures[name] = round(statistics.mean(last), 4)
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
