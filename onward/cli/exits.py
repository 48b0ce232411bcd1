"""The commands that let inference stop early: exits here, export for other machines."""

import argparse
from pathlib import Path

import torch
from rich.table import Table

from onward import seeds
from onward.cli.flags import recipe_flags
from onward.cli.inference import EARLY, exits_table, load_run, told_macs
from onward.cli.output import Output
from onward.cli.report import Curve, draw_exits
from onward.errors import SettingError
from onward.exits.answers import answer
from onward.exits.calibration import Calibrated, candidates, choose, held_out, mean_minus_std
from onward.exits.outcomes import HeldOut, fixed_depths, follow, oracle, shuffled
from onward.exits.policies import CONFIDENCES, ExitPolicy, full_depth
from onward.onnx_files import WHOLE, check_whole, export, export_whole, run_exported
from onward.runs import folders, sharding
from onward.runs.progress import count


def exits_command(options: argparse.Namespace) -> None:
    """Calibrate the exits of a run on its validation samples."""
    call = f'onward.calibrate("{options.run}", x, y, network=network, max_error_increase=0.001)'
    network, dataset, config = load_run(options, call)
    validation = sharding.split(config, dataset).validation
    if not validation:
        raise SettingError(
            f"The run {options.run} kept no validation samples (data.validation is 0), and exits "
            f"are calibrated on samples that were not trained on. Train with --validation 0.1, or "
            f"call ow.calibrate with samples of your own."
        )
    promised = [f"--{name}" for name in ("bound", "delta") if getattr(options, name) is not None]
    if promised and dataset.groups is not None:
        raise SettingError(
            f"The samples of {dataset.name} belong together in groups, and a guarantee holds for "
            f"samples that were drawn one by one. Leave {' and '.join(promised)} out."
        )
    allowed = options.max_error_increase
    if allowed is None and options.target_macs is None:
        allowed = 0.001
    network.set_precision(EARLY)
    seen = held_out(network, validation)
    calibrated = choose(
        seen,
        confidence=options.policy,
        max_error_increase=allowed,
        target_macs=options.target_macs,
        delta=options.delta,
        bound=options.bound,
        risk=options.risk,
    )
    picture = options.out or options.run / folders.EXITS_PICTURE
    try:
        draw(seen, calibrated, picture)
        text = f"Picture: {picture}."
    except SettingError as error:  # The exits are calibrated all the same.
        text = f"There is no picture. {error}"
    folders.write_exits(options.run, network, calibrated)
    console = Output()
    console.print(
        f"{options.run}: {calibrated.policy.confidence}, calibrated on the {len(seen.labels):,} "
        f"validation samples of {dataset.name}",
        soft_wrap=True,
    )
    outcome = follow(calibrated.policy, seen)
    console.print(
        exits_table(outcome.exits, ~outcome.is_wrong, outcome.macs, seen.costs, calibrated.policy)
    )
    console.print(summary(calibrated, is_grouped=dataset.groups is not None), soft_wrap=True)
    console.print(text, soft_wrap=True)
    again = " ".join(["onward evaluate", str(options.run), *recipe_flags(options)])
    console.print(f"`{again}` tests it.", soft_wrap=True)


def summary(calibrated: Calibrated, *, is_grouped: bool) -> str:
    """Return what a calibration comes to, in words.

    Args:
        calibrated: The calibration.
        is_grouped: Whether samples belong together, of which intervals for single samples know
            nothing.
    """
    ratio = calibrated.full_macs / calibrated.mean_macs
    gained = calibrated.newly_right
    text = (
        f"{told_macs(calibrated.mean_macs)} MACs a sample instead of "
        f"{told_macs(calibrated.full_macs)} ({ratio:.1f} times fewer). Of these "
        f"{count(calibrated.samples, 'sample')} {calibrated.newly_wrong} became wrong and {gained} "
        f"right; their error changes by {calibrated.error_increase * 100:+.2f} points."
    )
    if calibrated.bound is not None:
        return f"{text} {_promise(calibrated)}"
    if is_grouped:
        return text + (
            " Samples of other groups, such as other patients, may differ more than these do from "
            "each other."
        )
    if calibrated.max_error_increase is None:
        return text
    flags = "--bound ucb --delta" if calibrated.risk == "net" else "--delta"
    return text + (
        f" An increase of up to {calibrated.plausible_increase * 100:.2f} points on new samples is "
        f"still plausible; use {flags} for a guarantee."
    )


def _promise(calibrated: Calibrated) -> str:
    """Return what the bound of a calibration guarantees, or why it guarantees nothing."""
    allowed, delta = calibrated.max_error_increase, calibrated.delta
    assert allowed is not None
    if calibrated.failure is not None:
        return calibrated.failure
    points = f"{allowed * 100:g} {'point' if allowed == 0.01 else 'points'}"
    if delta is None:
        return (
            f"On new samples like these it rises by at most {points} on average over calibrations, "
            f"each on samples drawn anew. This is one of them, and may exceed that: --delta bounds "
            f"a single one."
        )
    return (
        f"With probability {100 * (1 - delta):g} % it rises by at most {points} on new samples "
        f"like these."
    )


def draw(seen: HeldOut, calibrated: Calibrated, path: Path) -> None:
    """Draw error against cost, for samples on which the curves were not chosen."""
    order = torch.randperm(len(seen.labels), generator=seeds.generator(0, "picture"))
    chosen_on, shown_on = (seen.part(half) for half in order.chunk(2))

    risk = calibrated.risk

    def point(policy: ExitPolicy) -> tuple[float, float]:
        outcome = follow(policy, shown_on)
        return float(outcome.macs.mean()), float(outcome.is_wrong.double().mean())

    curves = [
        Curve(name, [point(policy) for policy in candidates(chosen_on, name, risk)], "-")
        for name in sorted(CONFIDENCES, key=lambda name: name != calibrated.policy.confidence)
    ]
    factors = (3.0, 2.0, 1.0, 0.0, -1.0)
    stds = [point(mean_minus_std(chosen_on, factor)) for factor in factors]
    curves.append(Curve("mean - k std", stds, ":"))
    curves.append(
        Curve("all samples leave at one exit", [point(p) for p in fixed_depths(shown_on)], "s")
    )
    outcome = follow(calibrated.policy, shown_on)
    any_error, any_cost = shuffled(outcome, shown_on)
    curves.append(Curve("same number at each exit, chosen at random", [(any_cost, any_error)], "x"))
    error, bound = oracle(shown_on)
    curves.append(Curve("oracle: exits chosen knowing the classes", [(bound, error)], "^"))
    curves.append(
        Curve("calibrated policy (these samples included)", [point(calibrated.policy)], "*")
    )
    samples = count(len(shown_on.labels), "held-out sample")
    draw_exits(curves, path, samples, calibrated.policy.confidence)


def export_command(options: argparse.Namespace) -> None:
    """Write a run's network as ONNX files, and compare them with it on the test samples."""
    if options.int8 and options.one_graph:
        raise SettingError("One graph is written in fp32: leave out --int8 or --one-graph.")
    call = f'onward.export("{options.run}", "{options.onnx}", network=network, like=x)'
    network, dataset, config = load_run(options, call)
    if options.one_graph:
        check_whole(network)
    calibrated = folders.read_exits(options.run, network)
    network.set_precision(EARLY)
    policy = calibrated.policy if calibrated else full_depth(network.num_exits)
    files = export(network, options.onnx, policy, int8=options.int8)
    if options.one_graph:
        export_whole(network, options.onnx / WHOLE, policy)
    x, y = dataset.x_test, dataset.y_test
    found = answer(network, dataset.test, policy)
    labels, exits = run_exported(options.onnx, x.numpy())
    num_bytes = sum(file.stat().st_size for file in files)
    shown = Table()
    for name in ("what", "accuracy", "same class", "same exit"):
        shown.add_column(name, justify="right")
    shown.add_row("network", f"{(found.labels == y).double().mean():.2%}", "", "")
    same_labels = (torch.as_tensor(labels) == found.labels).double().mean()
    same_exits = (torch.as_tensor(exits) == found.exits).double().mean()
    accuracy = (torch.as_tensor(labels) == y).double().mean()
    shown.add_row("ONNX", f"{accuracy:.2%}", f"{same_labels:.2%}", f"{same_exits:.2%}")
    console = Output()
    console.print(f"{count(len(y), 'test sample')} of {dataset.name}", soft_wrap=True)
    console.print(shown)
    if calibrated is None and network.num_exits > 1 and config.data.validation:
        first = " ".join(["onward exits", str(options.run), *recipe_flags(options)])
        console.print(f"No sample exits early: calibrate first, with `{first}`.", soft_wrap=True)
    console.print(
        f"{count(len(files), 'stage')}, {num_bytes * 1e-6:.1f} MB in {options.onnx}. On a machine "
        f"with onnxruntime and numpy: "
        f"python {options.onnx / 'infer.py'} {options.onnx} SAMPLES.npz",
        soft_wrap=True,
    )
