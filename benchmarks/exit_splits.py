"""What each bound of early exit comes to, over many splits of the held-out samples of a run.

Held-out samples are cut in two at random, again and again: one half calibrates, the other is the
test. Nothing is chosen by a test half.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import onward as ow
from onward.checkpoint import load
from onward.config import read_run, read_settings
from onward.exits import latency
from onward.exits.calibration import choose
from onward.exits.outcomes import HeldOut, follow, look_at
from onward.exits.policies import full_depth
from onward.runs.sharding import load_data, split

ASKED: dict[str, dict[str, Any]] = {
    "none": {},
    "fixed-sequence": {"bound": "fixed-sequence"},
    "ucb": {"bound": "ucb"},
    "ucb, net": {"bound": "ucb", "risk": "net"},
    "expectation": {"bound": "expectation"},
}
"""Calibrations by name; `net` credits samples that become right."""


@dataclass(frozen=True)
class Seen:
    """What a network says of held-out samples, and some of them to time it on."""

    name: str
    network: ow.Network
    pool: HeldOut
    samples: ow.Batch


def pooled(*several: HeldOut) -> HeldOut:
    """Return what is known of all samples together."""
    return replace(
        several[0],
        history=torch.cat([seen.history for seen in several], dim=1),
        labels=torch.cat([seen.labels for seen in several]),
    )


def of_run(folder: Path, recipe: str | None, data_dir: str | None) -> Seen:
    """Return the network of a run folder, and its validation and test samples.

    Args:
        folder: The run.
        recipe: The recipe that built it, FILE.py:FUNCTION, where that does not come with Onward.
        data_dir: Where its data lie.
    """
    method = None if recipe is None else ow.load_recipe(recipe)
    network = load(folder, recipe=method)
    network.set_precision(torch.float32)
    config = read_run(read_settings(folder / "config.toml"), method, may_differ=False)
    if data_dir is not None:
        config = config.with_settings({"data.dir": data_dir})
    dataset = load_data(config, 0)
    validation = split(config, dataset).validation
    held_out = [dataset.test] if validation is None else [validation, dataset.test]
    pool = pooled(*(look_at(network, batch) for batch in held_out))
    return Seen(f"{folder.name}, {dataset.name}", network, pool, dataset.test)


def compared(
    pool: HeldOut,
    allowed: float,
    delta: float,
    *,
    asked: Sequence[str] = tuple(ASKED),
    splits: int = 100,
) -> dict[str, dict[str, Any]]:
    """Return what each calibration comes to on the test halves of all splits.

    A violation is a test half whose risk is above what is allowed; as the half is a sample itself,
    some are due to chance alone.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"macs_saved": [], "error_change": [], "risk": []} for name in asked
    }
    for seed in range(splits):
        order = torch.randperm(len(pool.labels), generator=torch.Generator().manual_seed(seed))
        calibration, test = (pool.part(half) for half in order.chunk(2))
        full = follow(full_depth(len(pool.costs)), test)
        for name, values in found.items():
            promised = {"ucb": delta, "fixed-sequence": delta}.get(ASKED[name].get("bound"))
            chosen = choose(calibration, max_error_increase=allowed, delta=promised, **ASKED[name])
            outcome = follow(chosen.policy, test)
            risk = float(test.losses(outcome.answers, chosen.risk).double().mean())
            change = float((outcome.is_wrong.double() - full.is_wrong.double()).mean())
            values["macs_saved"].append(1 - float(outcome.macs.mean() / full.macs.mean()))
            values["error_change"].append(change)
            values["risk"].append(risk)
            if seed == 0:
                values["policy"] = chosen.policy.to_json()
    for values in found.values():
        values["violations"] = sum(risk > allowed for risk in values["risk"])
    return found


def times(
    seen: Seen, found: dict[str, dict[str, Any]], batches: int
) -> dict[str, dict[str, float]]:
    """Return times of single samples at full depth and under the first policy of each, in turn."""
    policies = {"full": full_depth(len(seen.pool.costs))}
    for name, values in found.items():
        policies[name] = ow.ExitPolicy.from_json(values["policy"])
    measured = latency.measure(seen.network, seen.samples, policies, batch_size=1, batches=batches)
    return {
        name: {
            "mean_ms": 1e3 * statistics.mean(taken.seconds),
            "median_ms": 1e3 * taken.median,
            "p99_ms": 1e3 * taken.p99,
        }
        for name, taken in measured.items()
    }


def report(seen: Seen, allowed: float, delta: float, *, batches: int = 400) -> dict[str, Any]:
    """Compare the bounds, print what they come to, and return it."""
    found = compared(seen.pool, allowed, delta)
    timed = times(seen, found, batches)
    full, pool = follow(full_depth(len(seen.pool.costs)), seen.pool), seen.pool
    half, level = len(pool.labels) // 2, 100 * allowed
    accuracy, macs = 1 - full.is_wrong.double().mean(), float(full.macs.mean())
    console = Console(width=100)
    console.print(
        f"{seen.name}: {accuracy:.2%} right at full depth, {macs * 1e-6:.3f} million MACs a sample."
        f"\n{len(pool.labels):,} held-out samples, cut in two at random 100 times: one half "
        f"calibrates ({level:g} points allowed, delta {delta:g}), the other tests.",
        highlight=False,
    )
    shown = Table()
    shown.add_column("bound", no_wrap=True)
    for name in (
        "MACs saved, %",
        "one sample, ms: median, mean",
        "accuracy, points",
        "risk, points",
        f"above {level:g}",
    ):
        shown.add_column(name, justify="right")

    def milliseconds(name: str) -> str:
        return f"{timed[name]['median_ms']:.2f}, {timed[name]['mean_ms']:.2f}"

    shown.add_row("full depth", "0", milliseconds("full"), "0", "0", "")
    for name, values in found.items():
        shown.add_row(
            name,
            told(values["macs_saved"], ".1f"),
            milliseconds(name),
            told([-change for change in values["error_change"]], "+.2f"),
            told(values["risk"], ".2f"),
            str(values["violations"]),
        )
    console.print(shown)
    chance = 100 * math.sqrt(allowed * (1 - allowed) / half)
    console.print(
        f"Mean ± standard deviation over splits. Promised: by fixed-sequence and ucb, the risk on "
        f"all samples like these is above {level:g} in at most {100 * delta:g} of 100 splits; by "
        f"expectation, its mean is at most {level:g}. The risk here is of {half:,} test samples, "
        f"whose own standard deviation of up to {chance:.2f} points comes on top. net: with credit "
        f"for samples that become right. Times: of the policies of the first split, in turn.",
        highlight=False,
    )
    return {
        "run": seen.name,
        "samples": len(pool.labels),
        "allowed": allowed,
        "delta": delta,
        "accuracy": float(accuracy),
        "full_macs": macs,
        "bounds": found,
        "times": timed,
    }


def told(values: Sequence[float], form: str) -> str:
    """Return mean and standard deviation in percent, as text."""
    mean, deviation = 100 * statistics.mean(values), 100 * statistics.stdev(values)
    return f"{mean:{form}} ± {deviation:{form.lstrip('+')}}"


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a report by name."""
    found: dict[str, float] = {}
    for name, values in result["bounds"].items():
        short = name.replace(", ", "_").replace("-", "_")
        found[f"{short}_macs_saved"] = round(statistics.mean(values["macs_saved"]), 5)
        found[f"{short}_risk"] = round(statistics.mean(values["risk"]), 6)
        found[f"{short}_violations"] = values["violations"]
    return found
