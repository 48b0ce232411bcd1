"""The commands that ask a trained network: evaluate, predict."""

import argparse
import csv
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from onward import checkpoint, data
from onward.batch import Batch, joined, mapped
from onward.cli.output import Output, close_output
from onward.config import CUSTOM, RunConfig, read_run, read_settings
from onward.data.inputs import as_floats
from onward.data.quoting import class_name
from onward.data.table_files import is_table_file
from onward.errors import DataError, FileError, SettingError
from onward.evaluation import Tally, as_trained, block_metrics, evaluate
from onward.exits import latency
from onward.exits.answers import answer
from onward.exits.macs import StageCost, macs_spent, stage_costs
from onward.exits.policies import ExitPolicy, full_depth
from onward.files import write_atomically
from onward.inference import told_known
from onward.network.networks import Network
from onward.recipes import Recipe
from onward.recipes.user import load_recipe
from onward.runs import folders, sharding
from onward.runs.progress import count
from onward.sampling import sample

MOST_CLASSES = 20
"""Classes whose sensitivity is listed."""

EARLY = torch.float32
"""Arithmetic of early exit, whatever that of the training was: thresholds then mean the same in
files for other machines, and to pass one sample, weights are read and not converted first."""


def evaluate_command(options: argparse.Namespace) -> None:
    """Test a run's network on its test samples, or on those of other data."""
    call = f'onward.evaluate("{options.run}", samples, network=network)'
    network, dataset, _ = load_run(options, call)
    if options.data is None:
        _note_changed(options.run, dataset)
    test = dataset.test
    counted = slice(None) if test.index is None else test.index
    y = dataset.y_test[counted]
    calibrated = None if options.full_depth else folders.read_exits(options.run, network)
    if calibrated is not None:
        # All columns in one arithmetic, or they would differ by that as well.
        network.set_precision(EARLY)
    found, metrics = evaluate(network, test), block_metrics(network, test)
    assert found.tally is not None
    columns = {"full depth": found.tally}
    if calibrated is not None:
        answers = answer(network, test, calibrated.policy)
        labels = answers.labels[counted]
        columns["early exit"] = Tally.of(labels, y, network.num_classes)
    text = [rates(tally, network.class_names) for tally in columns.values()]
    shown = Table()
    shown.add_column("what")
    for name in columns:
        shown.add_column(name, justify="right")
    for what in text[0]:
        shown.add_row(what, *(each[what] for each in text))
    for number, alone in found.tally_blocks.items():
        shown.add_row(f"accuracy, block {number} alone", f"{alone.accuracy:.2%}")
    if found.roc_auc is not None:
        shown.add_row("area under the ROC curve", f"{found.roc_auc:.2%}")
    for name, figures in told_metrics(metrics).items():
        shown.add_row(f"{name}, each block alone", figures)
    console = Output()
    console.print(f"{options.run} on the {len(y):,} test samples of {dataset.name}", soft_wrap=True)
    console.print(shown)
    if found.told_unscored is not None:
        print(f"onward: note: {found.told_unscored}", file=sys.stderr)
    if calibrated is not None:
        costs = stage_costs(network, test if test.structure else None)
        cost = macs_spent(costs, answers)[counted]
        policy = calibrated.policy
        console.print(exits_table(answers.exits[counted], labels == y, cost, costs, policy))
        mean, full = float(cost.mean()), calibrated.full_macs
        console.print(
            f"{policy.confidence}: {told_macs(mean)} MACs a sample instead of {told_macs(full)}, "
            f"{full / mean:.1f} times fewer.",
            soft_wrap=True,
        )
    if options.measure:
        network.set_precision(EARLY)
        policies = {"full depth": full_depth(network.num_exits)}
        if calibrated is not None:
            policies["early exit"] = calibrated.policy
        console.print(latency_table(network, test, policies))


def rates(tally: Tally, names: Sequence[str] | None = None) -> dict[str, str]:
    """Return how often answers are right, also where classes are rare, which accuracy hides."""
    found = {"accuracy": f"{tally.accuracy:.2%}", "macro-F1": f"{tally.macro_f1:.4f}"}
    known = [(label, share) for label, share in enumerate(tally.sensitivity) if share is not None]
    if len(known) <= MOST_CLASSES:
        for label, share in known:
            found[f"sensitivity, class {class_name(names, label)}"] = f"{share:.2%}"
    return found


def told_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Return figures of the blocks by name, those of all blocks in a line, as `evaluate` has them.

    Example:
        >>> told_metrics([{"accuracy": 0.5, "perplexity": 4.0}, {}])
        {'perplexity': '4.0000  -'}
    """
    names = dict.fromkeys(name for own in metrics for name in own if name != "accuracy")
    return {
        name: "  ".join(f"{own[name]:.4f}" if name in own else "-" for own in metrics)
        for name in names
    }


def told_macs(number: float) -> str:
    """Return a number of operations in a unit that suits it."""
    return f"{number:,.0f}" if number < 1e5 else f"{number * 1e-6:.3f} M"


def latency_table(network: Network, test: Batch, policies: Mapping[str, ExitPolicy]) -> Table:
    """Return how long batches of several sizes take here, under each policy."""
    shown = Table(title=f"time of a batch here, on {count(torch.get_num_threads(), 'thread')}")
    for name in ("samples", "batches", "", "median, ms", "99 % within, ms", "samples a second"):
        shown.add_column(name, justify="right")
    for size, batches in latency.BATCHES.items():
        found = latency.measure(network, test, policies, batch_size=size, batches=batches)
        for name, times in found.items():
            shown.add_row(
                f"{size:,}",
                f"{batches:,}",
                name,
                f"{times.median * 1e3:.2f}",
                f"{times.p99 * 1e3:.2f}",
                f"{times.samples_a_second:,.0f}",
            )
        shown.add_section()
    return shown


def load_run(options: argparse.Namespace, call: str) -> tuple[Network, data.Dataset, RunConfig]:
    """Return the network of a run, and the data it is asked about.

    Args:
        options: Those of the command.
        call: What does the same in Python, where a script has built the network.
    """
    if options.run.is_file():
        raise FileError(f"{options.run} is a file. Give a run folder, as `onward train` makes it.")
    network, recipe = _load(options, call)
    settings = read_settings(options.run / "config.toml")
    config = read_run(settings, recipe, may_differ=options.changed_recipe)
    own = config.data.name
    if getattr(options, "label", None) is not None and options.data is None:
        raise SettingError("--label is for other data than those of the run: name them, --data.")
    changes = {"data.name": getattr(options, "data", None), "data.dir": options.data_dir}
    config = config.with_settings({n: value for n, value in changes.items() if value is not None})
    if changes["data.name"] is not None:
        label = options.label or (config.data.label if is_table_file(config.data.name) else None)
        config = config.with_settings({"data.label": label})
    torch.set_num_threads(config.training.threads)
    if network.readout is None:
        raise SettingError(
            f"The network of {options.run} names no classes: it is one of several stages of a "
            f"training. The network that the last stage ends with is in the folder of the run."
        )
    is_other = changes["data.name"] not in (None, own)
    dataset = sharding.load_data(config, 0, allow_one_class=is_other)
    if is_other and not dataset.has_own_test:
        # None of them are for training.
        parts = (dataset.training.replace(ids=None), dataset.test.replace(ids=None))
        dataset = replace(dataset, test=joined(parts))
    dataset = as_trained(network, dataset)
    network.checked(dataset.test, dataset.name)
    if dataset.num_classes > network.num_classes:
        raise DataError(
            f"{dataset.name} has {dataset.num_classes} classes, and the network was trained to "
            f"tell {network.num_classes} apart."
        )
    if is_other and (text := told_known(network, dataset)) is not None:
        print(f"onward: note: {text}", file=sys.stderr)
    return network, dataset, config


def _load(options: argparse.Namespace, call: str) -> tuple[Network, Recipe | None]:
    """Return a trained network, and its recipe where that does not come with Onward."""
    file = options.run / "config.toml"
    if file.is_file() and read_settings(file).get("recipe") == CUSTOM:
        raise SettingError(
            f"A script has built the network of {options.run}, and the command cannot. In Python, "
            f"build it as that script does, and call {call}."
        )
    recipe = None if options.code is None else load_recipe(options.code)
    may_differ = options.changed_recipe
    return checkpoint.load(options.run, recipe=recipe, may_differ=may_differ), recipe


def _note_changed(folder: Path, dataset: data.Dataset) -> None:
    """Say where samples of a run's data set are others than when it was trained."""
    result = folders.read_result(folder)
    if _training_changed(result.get("data_sha256"), dataset):
        text = (
            f"{dataset.name} has changed since the network was trained on it: its test samples may "
            f"be among those that were trained on."
        )
    elif result.get("held_out_sha256") not in (None, dataset.held_out_sha256()):
        text = (
            f"the test or validation samples of {dataset.name} have changed since the network was "
            f"trained: its accuracy cannot be compared with earlier ones."
        )
    else:
        return
    print(f"onward: note: {text}", file=sys.stderr)


def _training_changed(known: str | None, dataset: data.Dataset) -> bool:
    """Return whether training samples are others than those of a digest."""
    if known is None or known == dataset.sha256():
        return False
    # Version 0.1 divided uint8 by 255 before it computed the digest.
    training = dataset.training
    older = training.replace(inputs=mapped(as_floats, training.inputs))
    return bool(known != replace(dataset, training=older, digest=None).sha256())


def exits_table(
    exits: Tensor,
    is_right: Tensor,
    cost: Tensor,
    costs: Sequence[StageCost],
    policy: ExitPolicy,
) -> Table:
    """Return how many samples left at each exit, how many of those were right, and at what cost."""
    note = "A sample also exits where one label is left." if policy.drops else None
    shown = Table(title="early exit", caption=note)
    limit = f"{policy.confidence} {'up to' if policy.confidence == 'entropy' else 'from'}"
    for name in ("exit after", limit, "samples", "right", "MACs a sample", "weights read, MB"):
        shown.add_column(name, justify="right")
    thresholds = [*policy.thresholds, -math.inf]
    read = np.cumsum([stage.weight_bytes for stage in costs]) * 1e-6

    def add(name: str, threshold: str, here: Tensor, megabytes: float) -> None:
        right, macs_each = ("-", "-")
        if here.any():
            right = f"{is_right[here].double().mean():.2%}"
            macs_each = told_macs(float(cost[here].mean()))
        share = f"{here.double().mean():.2%}"
        read_here = f"{megabytes:.2f}" if megabytes >= 0.1 else f"{megabytes:.4f}"
        shown.add_row(name, threshold, share, right, macs_each, read_here)

    for number, threshold in enumerate(thresholds):
        text = told_threshold(policy.confidence, threshold, number)
        add(costs[number].place, text, exits == number, read[number])
    shown.add_section()
    # Of samples that come one at a time.
    mean_read = float(read[exits.numpy()].mean())
    add("all", "", torch.ones_like(is_right), mean_read)
    return shown


def told_threshold(confidence: str, threshold: float, number: int) -> str:
    """Return the threshold of an exit as people read it: of entropy its own, of patience a count.

    Args:
        confidence: What the threshold is one of.
        threshold: From which samples exit.
        number: Of the exit, from 0.

    Example:
        >>> told_threshold("entropy", -1.377, 0), told_threshold("patience", 1.5, 1)
        ('1.377', '2 in a row')
        >>> told_threshold("patience", 1.5, 0), told_threshold("patience", 0.5, 0)
        ('never', 'always')
    """
    if confidence == "entropy":
        is_never, text = threshold > 0, f"{0 - threshold:.4g}"
    elif confidence == "patience" and math.isfinite(threshold):
        in_a_row = math.ceil(threshold)
        is_never, text = in_a_row > number + 1, f"{in_a_row} in a row"
        threshold = threshold if in_a_row > 1 else -math.inf
    else:
        is_never, text = threshold == math.inf, f"{threshold:.4g}"
    return "always" if threshold == -math.inf else "never" if is_never else text


def predict_command(options: argparse.Namespace) -> None:
    """Write the class of each sample, and the scores of all classes."""
    if options.out is not None and options.out.suffix != ".npz":
        raise FileError(f"--out takes a name that ends in .npz; got {options.out}.")
    network, _ = _load(options, f'onward.load("{options.run}", network).predict(x)')
    built = network.blueprint.data.structure if network.blueprint else {}
    if built:
        raise SettingError(
            f"The samples of this network belong together ({', '.join(built)}), and onward predict "
            f"reads each by itself. Ask from Python, network.predict(dataset.test): see "
            f"docs/graphs.md."
        )
    is_grey = (network.inputs.shape or (3,))[0] == 1
    asked, files = data.read_asked(options.input, channels=1 if is_grey else 3)
    x = network.checked(asked, str(options.input))
    torch.set_num_threads(1)
    is_run = options.run.is_dir() and not options.full_depth
    calibrated = folders.read_exits(options.run, network) if is_run else None
    columns: dict[str, Tensor] = {}
    if calibrated is None:
        scores = network.scores(x).network.float()
        labels = scores.argmax(dim=1)
    else:
        network.set_precision(EARLY)
        answers = answer(network, x, calibrated.policy)
        labels, scores, columns = answers.labels, answers.scores, {"exit": answers.exits}
    if options.out is not None:
        arrays: dict[str, Any] = {name + "s": column.numpy() for name, column in columns.items()}
        arrays |= {"labels": network.named(labels), "scores": scores.numpy()}
        arrays |= {} if files is None else {"files": np.array(files)}
        write_atomically(options.out, lambda file: np.savez(file, **arrays))
        what = "labels and scores" if calibrated is None else "labels, scores and exits"
        print(f"{len(labels):,} {what} in {options.out}")
        return
    try:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        names = [f"score_{c}" for c in network.class_names or range(network.num_classes)]
        first = {} if files is None else {"file": files}
        first |= {"label": network.named(labels).tolist()}
        first |= {name: column.tolist() for name, column in columns.items()}
        writer.writerow([*first, *names])
        writer.writerows(
            [*own, *row] for *own, row in zip(*first.values(), scores.tolist(), strict=True)
        )
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        close_output()
        raise FileError(f"The predictions cannot be written: {error.strerror}.") from error


def sample_command(options: argparse.Namespace) -> None:
    """Write text that a network goes on with, and say how deep it went for it."""
    network, _ = _load(options, f'onward.sample("{options.run}", prompt, num_bytes=200)')
    torch.set_num_threads(1)
    network.set_precision(EARLY)
    found = sample(
        network,
        # As it came, whatever its encoding.
        os.fsencode(options.prompt),
        num_bytes=options.bytes,
        temperature=options.temperature,
        confidence=options.confidence,
        seed=options.seed,
    )
    print(options.prompt + found.text.decode(errors="replace"), flush=True)
    print(
        f"onward: {count(options.bytes, 'byte')}, each through {found.mean_exits:.2f} of "
        f"{count(found.num_exits, 'block')} on average.",
        file=sys.stderr,
    )
