"""What does it save to stop as soon as it is sure, and what does it cost in errors?

    python benchmarks/exits.py --data-dir DIR                      all cases, three seeds: hours
    python benchmarks/exits.py --data-dir DIR --case mnist         one of the cases
    python benchmarks/exits.py --quick                             bounds, digits, under a minute
    python benchmarks/exits.py --run RUN [--recipe FILE.py:FUNCTION] [--allowed 0.01]

With --run, the network of a saved run is asked, of convolutions or whatever else: its held-out
samples are cut in two 100 times, and each bound of the calibration is compared on the half that it
has not seen, by the MACs saved, the time of a sample, the change of the accuracy, and how often the
risk was above what was allowed (see exit_splits.py). --quick does that for blocks of convolutions
(examples/own_recipe.py:conv) trained on digits.

    BOUND_macs_saved, BOUND_risk    means over 100 splits, for each bound: --run, --quick
    BOUND_violations                splits in which the risk was above what is allowed: the same

The full form and --case: four blocks of 2000 units. Thresholds are calibrated on validation samples
(5,000; patients kept apart in mitbih), all figures are of the test samples, which nothing was
chosen by. Every result goes to a JSON file in --out and every model to --models, so the script can
be cut.

    mnist, cifar10, mitbih   one-pass: blocks with heads, which add up
    ...-sweep                hinton: a pass a label, goodness added up
    ...-backprop             the twin: the same layers and heads, trained by backpropagation of the
                             sum of all heads' losses (deep supervision)

    error_increase              test error under the policy less that at full depth: mnist
    macs_ratio                  MACs at full depth over mean MACs under the policy: mnist
    latency_ratio_batch1        median time of a row at full depth over that under the policy: mnist
    mean_time_ratio_batch1      the same for mean times, in which samples that go far count
    throughput_ratio_batch1024  samples a second in batches of 1,024, policy over full depth: mnist
    sweep_macs_ratio            MACs of the plain sweep over those under the policy: mnist-sweep
    guarantee_kept              share of 100 splits of validation and test samples in which a
                                guarantee (0.2 points, delta 0.1) held on the other half: mnist
    onnx_other_exits            test samples that leave elsewhere in ONNX files than in torch: mnist
    int8_error_increase         test error of ONNX files in eight bits less that in torch, both
                                under the policy: mnist

The picture of a case (error against MACs, test samples, seed 0) goes to --out, too. The full form
prints the tables of the README.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import exit_splits
import exit_tables
import torch
from sklearn.metrics import f1_score, recall_score
from torch import nn

import onward as ow
from onward.exits import latency
from onward.exits.answers import answer
from onward.exits.calibration import candidates, choose, mean_minus_std
from onward.exits.macs import macs_spent, stage_costs
from onward.exits.outcomes import HeldOut, fixed_depths, follow, look_at, oracle, shuffled
from onward.exits.policies import CONFIDENCES, full_depth
from onward.network.optimizers import lr_scale
from onward.onnx_files import export, run_exported
from onward.runs.preparation import resolve_precision
from onward.runs.sharding import split

ALLOWED = 0.0005
"""Share of the held-out samples that may become wrong."""

EPOCHS = {"mnist": 6, "cifar10": 6, "mitbih": 3}
SWEEP_EPOCHS = {"mnist": 20, "cifar10": 6, "mitbih": 3}
CASES = [name + kind for name in EPOCHS for kind in ("", "-sweep", "-backprop")]
SMOKE = ("mnist", "mnist-sweep")

ALLOWED_OF_FEW = 0.02
"""The same, of the few hundred held-out digits."""

GUARANTEED = ("mnist",)
"""Cases in which the guarantee is tried, a hundred times."""


def config_of(case: str, seed: int, form: str, data_dir: str | None) -> ow.RunConfig:
    """Return the settings of a case."""
    name, _, kind = case.partition("-")
    recipe = "hinton" if kind == "sweep" else "one-pass"
    epochs = (SWEEP_EPOCHS if kind == "sweep" else EPOCHS)[name]
    changes: dict[str, Any] = {
        "data.name": name,
        "data.dir": data_dir,
        "data.validation": 5000,
        "network.widths": (2000,) * 4,
        "training.epochs": epochs if form == "full" else 2,
        "training.seed": seed,
    }
    if case == "cifar10-sweep":
        # Of 3,072 inputs the label is ten; with a strength of 1 it is hardly seen.
        changes |= {"network.label_strength": 10.0}
    if name == "mitbih":
        # Six records of 22; of two, as 5,000 samples would be, some classes have no sample at all.
        changes |= {"data.validation": 0.27, "data.split_seed": seed}
    if form == "smoke":
        changes |= {"data.name": "digits", "data.validation": 300, "network.widths": (32,) * 3}
    return ow.RunConfig(recipe=recipe).with_settings(changes)


def data_of(case: str, config: ow.RunConfig, data_dir: str | None) -> ow.Dataset:
    """Return the samples of a case.

    Goodness learns nothing from pixels from 0 to 1 in colour, whose mean is most of their length.
    """
    dataset = ow.load_data(config.data.name, data_dir=data_dir)
    if case != "cifar10-sweep" or config.data.name != "cifar10":
        return dataset
    mean, std = (f(dataset.x, (0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    training, test = (
        batch.replace(inputs=(batch.tensor - mean) / std)
        for batch in (dataset.training, dataset.test)
    )
    return replace(dataset, training=training, test=test)


def settings_of(config: ow.RunConfig) -> str:
    """Return what a network and its result follow from, but for where the data lie."""
    return config.with_settings({"data.dir": None}).to_toml()


def trained(
    case: str, config: ow.RunConfig, dataset: ow.Dataset, models: Path | None
) -> ow.Network:
    """Return the network of a case, trained now or before."""
    digest = hashlib.sha256(settings_of(config).encode()).hexdigest()[:8]
    name = f"{case}-{config.training.seed}-{digest}"
    path = models / name / "model.safetensors" if models else None
    if path is not None and path.exists():
        return ow.load(path)
    settings = {n: getattr(config.network, n) for n in config.network.__dataclass_fields__}
    network = ow.mlp(
        dataset.input_shape,
        num_classes=dataset.num_classes,
        is_image=dataset.is_image,
        optimizer=config.optimizer,
        seed=config.training.seed,
        **settings,
    )
    if case.endswith("backprop"):
        supervise(network, config, dataset)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            ow.save(network, path)
    else:
        ow.train(
            network,
            replace(split(config, dataset), validation=None, digest=None, held_out_digest=None),
            training=config.training,
            plan=config.plan,
            validation=0,
            folder=None if path is None else path.parent,
        )
    return network


def supervise(network: ow.Network, config: ow.RunConfig, dataset: ow.Dataset) -> None:
    """Train all layers and heads together, by the sum of the heads' losses."""
    training = split(config, dataset).training
    modules = [block.module for block in network.line]
    heads = [block.objective.head for block in network.line]
    parameters = [p for module in (*modules, *heads) for p in module.parameters()]
    steps_each = -(-len(training) // config.training.batch_size)
    optimizer = torch.optim.Adam(parameters, lr=config.optimizer.lr, fused=True)

    def scale(step: int) -> float:
        epoch, batch = divmod(step, steps_each)
        done = (batch + 1) / steps_each
        return lr_scale(config.training.schedule, epoch, done, config.training.epochs)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    in_bf16 = resolve_precision(config.training.precision) == "bf16"
    torch.manual_seed(config.training.seed)
    network.train()
    for _ in range(config.training.epochs):
        for batch in torch.randperm(len(training)).split(config.training.batch_size):
            part, loss = training.take(batch), torch.zeros(())
            x = part.tensor
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                for module, head in zip(modules, heads, strict=True):
                    x = module(x)
                    loss = loss + nn.functional.cross_entropy(head(x).float(), part.label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def speed(network: ow.Network, policy: ow.ExitPolicy, x: torch.Tensor, form: str) -> dict[str, Any]:
    """Return times of batches of several sizes, at full depth and under the policy."""
    policies = {"full": full_depth(len(policy.thresholds) + 1), "policy": policy}
    found: dict[str, Any] = {}
    for size, batches in latency.BATCHES.items():
        most = 8 if form == "smoke" else batches
        measured = latency.measure(network, x, policies, batch_size=size, batches=most)
        found[str(size)] = {
            name: {
                "median_ms": 1e3 * times.median,
                "p99_ms": 1e3 * times.p99,
                "samples_a_second": times.samples_a_second,
                "batches": len(times.seconds),
            }
            for name, times in measured.items()
        }
    return found


def exported(
    network: ow.Network, policy: ow.ExitPolicy, dataset: ow.Dataset, answers: ow.Answers
) -> dict[str, Any]:
    """Return what the ONNX files say of all test samples, beside what the network says."""
    found = {}
    for name in ("fp32", "int8"):
        with tempfile.TemporaryDirectory() as folder:
            files = export(network, Path(folder), policy, int8=name == "int8")
            megabytes = sum(file.stat().st_size for file in files) * 1e-6
            labels, exits = map(torch.as_tensor, run_exported(Path(folder), dataset.x_test.numpy()))
        found[name] = {
            "error": float((labels != dataset.y_test).double().mean()),
            "other_labels": int((labels != answers.labels).sum()),
            "other_exits": int((exits != answers.exits).sum()),
            "megabytes": megabytes,
        }
    return found


def by_class(answers: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Return what plain error hides where classes are of unequal size."""
    return {
        "macro_f1": float(f1_score(labels, answers, average="macro", zero_division=0)),
        "sensitivity": recall_score(labels, answers, average=None, zero_division=0).tolist(),
    }


def measure(case: str, seed: int, form: str, options: Any) -> dict[str, Any]:
    """Train, calibrate on validation samples, look at test samples."""
    config = config_of(case, seed, form, options.data_dir)
    dataset = data_of(case, config, options.data_dir)
    torch.set_num_threads(1)
    network = trained(case, config, dataset, options.models if form == "full" else None)
    network.set_precision(torch.float32)
    validation = split(config, dataset).validation
    assert validation is not None
    held_out, tested = look_at(network, validation), look_at(network, dataset.test)

    def told(policy: ow.ExitPolicy) -> dict[str, Any]:
        outcome = follow(policy, tested)
        return {
            "error": float(outcome.is_wrong.double().mean()),
            "macs": float(outcome.macs.mean()),
            **by_class(outcome.answers, tested.labels),
        }

    calibrated = choose(held_out, max_error_increase=ALLOWED)
    found = told(calibrated.policy)
    depths = [told(policy) for policy in fixed_depths(tested)]
    full = depths[-1]
    plain = sum(c.row + c.each * network.num_classes for c in stage_costs(network, shared=False))
    outcome = follow(calibrated.policy, tested)
    # What inference does, beside what was calculated from scores at full depth.
    answers = answer(network, dataset.x_test, calibrated.policy)
    done = float(macs_spent(list(tested.costs), answers).mean())
    error, bound = oracle(tested)
    any_error, any_cost = shuffled(outcome, tested)
    result = {
        "case": case,
        "seed": seed,
        "settings": settings_of(config),
        "samples": len(tested.labels),
        "majority_error": 1 - float(tested.labels.bincount().max()) / len(tested.labels),
        "held_out_samples": held_out.labels.bincount(minlength=dataset.num_classes).tolist(),
        "policy": calibrated.to_json(),
        "policy_on_test": found,
        "full_on_test": full,
        "error_increase": found["error"] - full["error"],
        "macs_ratio": full["macs"] / found["macs"],
        "plain_macs": plain,
        "plain_macs_ratio": plain / found["macs"],
        "exits": outcome.exits.bincount(minlength=len(tested.costs)).tolist(),
        "same_as_inference": float((answers.exits == outcome.exits).double().mean()),
        "inference_macs": done,
        "fixed_depths": depths,
        "any_samples_as_many": {"error": any_error, "macs": any_cost},
        "oracle": {"error": error, "macs": bound},
        "policies": {
            name: told(choose(held_out, confidence=name, max_error_increase=ALLOWED).policy)
            for name in CONFIDENCES
        },
        "curves": {
            name: [
                (float(seen.macs.mean()), float(seen.is_wrong.double().mean()))
                for seen in (follow(policy, tested) for policy in candidates(held_out, name))
            ]
            for name in CONFIDENCES
        },
        "mean_minus_std": told(mean_minus_std(held_out)),
        "guarantee": guarantee(held_out, tested) if case in GUARANTEED else None,
        "speed": speed(network, calibrated.policy, dataset.x_test, form),
        "exported": exported(network, calibrated.policy, dataset, answers),
        "load": os.getloadavg()[0],
    }
    print(
        f"{case} seed {seed}: error {full['error']:.2%} at full depth, {found['error']:.2%} under "
        f"the policy, {result['macs_ratio']:.1f} times fewer MACs "
        f"({result['plain_macs_ratio']:.1f} than plain), exits {result['exits']}",
        flush=True,
    )
    return result


def guarantee(
    held_out: HeldOut, tested: HeldOut, allowed: float = 0.002, delta: float = 0.1
) -> dict[str, float]:
    """Return the share of splits in which no more samples of the other half became wrong.

    Also without the guarantee, at the same allowed share, which is to show that it can be missed,
    and the mean MACs of both.
    """
    asked = ("fixed-sequence", "none")
    found = exit_splits.compared(exit_splits.pooled(held_out, tested), allowed, delta, asked=asked)
    full = float(follow(full_depth(len(tested.costs)), tested).macs.mean())
    result: dict[str, float] = {}
    for name, end in zip(asked, ("", "_without"), strict=True):
        result[f"kept{end}"] = 1 - found[name]["violations"] / len(found[name]["risk"])
        result[f"macs{end}"] = full * (1 - statistics.mean(found[name]["macs_saved"]))
    return result


def convolutions(form: str, out: Path) -> exit_splits.Seen:
    """Return blocks of convolutions, trained on half of digits, and what they say of the others."""
    code = f"{Path(__file__).parent.parent / 'examples' / 'own_recipe.py'}:conv"
    changes = {
        "data.name": "digits",
        "data.validation": 540,
        "training.epochs": 4 if form == "quick" else 1,
        "training.precision": "fp32",
    }
    config = ow.RunConfig(method=ow.load_recipe(code)).with_settings(changes)
    ow.run(config, folder=out / "conv", overwrite=True)
    return exit_splits.of_run(out / "conv", code, None)


def compare_bounds(options: argparse.Namespace, form: str) -> dict[str, float]:
    """Print what each bound comes to on a run, or on a network trained now."""
    torch.set_num_threads(1)
    if options.run is not None:
        seen = exit_splits.of_run(options.run, options.recipe, options.data_dir)
        result = exit_splits.report(seen, options.allowed, options.delta)
        common.record(options.out / f"exit-splits-{options.run.name}.json", result)
    else:
        with tempfile.TemporaryDirectory() as folder:
            seen = convolutions(form, Path(folder))
        batches = 200 if form == "quick" else 8
        result = exit_splits.report(seen, ALLOWED_OF_FEW, options.delta, batches=batches)
    return exit_splits.figures(result)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path("build/exits"), help="for the models")
    parser.add_argument("--run", type=Path, help="folder of a run, whose bounds are compared")
    parser.add_argument(
        "--recipe", metavar="FILE.py:FUNCTION", help="of a run by a recipe of yours"
    )
    parser.add_argument("--allowed", type=float, default=0.01, help="for --run (default: 0.01)")
    parser.add_argument("--delta", type=float, default=0.1, help="for --run (default: 0.1)")
    options = parser.parse_args()
    form = common.form_of(options)
    if options.run is not None or form == "quick":
        common.last_line(compare_bounds(options, form), form)
        return
    cases = options.case or (CASES if form == "full" else SMOKE)
    if form == "full":
        common.need(cases[0].partition("-")[0], options.data_dir)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds if form == "full" else 1):
        for case in cases:
            path = options.out / f"exits-{case}-{seed}.json"
            settings = settings_of(config_of(case, seed, form, None))
            known = json.loads(path.read_text()) if form == "full" and path.exists() else {}
            result = known
            if known.get("settings") != settings:
                result = measure(case, seed, form, options)
                if form == "full":
                    common.record(path, result)
            if form == "full" and seed == 0:
                exit_tables.picture(result, path.with_suffix(".png"))
            found.setdefault(case, []).append(result)

    def mean(case: str, value: Callable[[dict[str, Any]], float]) -> float | None:
        values = [value(result) for result in found.get(case, [])]
        return round(statistics.mean(values), 5) if values else None

    figures = {
        "error_increase": mean("mnist", lambda r: r["error_increase"]),
        "macs_ratio": mean("mnist", lambda r: r["macs_ratio"]),
        "latency_ratio_batch1": mean(
            "mnist", lambda r: exit_tables.figure(r["speed"], "1", "median_ms")
        ),
        "mean_time_ratio_batch1": mean(
            "mnist", lambda r: 1 / exit_tables.figure(r["speed"], "1", "samples_a_second")
        ),
        "throughput_ratio_batch1024": mean(
            "mnist", lambda r: 1 / exit_tables.figure(r["speed"], "1024", "samples_a_second")
        ),
        "sweep_macs_ratio": mean("mnist-sweep", lambda r: r["plain_macs_ratio"]),
        "guarantee_kept": mean("mnist", lambda r: r["guarantee"]["kept"]),
        "onnx_other_exits": mean("mnist", lambda r: r["exported"]["fp32"]["other_exits"]),
        "int8_error_increase": mean(
            "mnist", lambda r: r["exported"]["int8"]["error"] - r["policy_on_test"]["error"]
        ),
    }
    if form == "full":
        print(exit_tables.tables(found))
    else:
        figures |= compare_bounds(options, form)
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
