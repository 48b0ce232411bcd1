"""The table that a run ends with."""

from pathlib import Path
from typing import Any

from rich.table import Table

from onward.cli.inference import MOST_CLASSES, told_metrics
from onward.cli.output import Output
from onward.data.quoting import class_name
from onward.runs import folders
from onward.runs.progress import count
from onward.runs.results import ended_early

UNEVEN = 2
"""How many times as many samples as the smallest class the largest one has from which on accuracy
says little."""


def print_result(found: dict[str, Any], folder: Path, startup: float, total: float) -> None:
    """Print the figures of a run, and where its folder is.

    Args:
        found: What `result.json` holds.
        folder: The folder.
        startup: Seconds from the start of the command to the first task.
        total: Seconds from the start of the command to here.
    """
    accuracy = found["accuracy"]
    table = Table(title=f"{found['recipe']} on {found['data']}")
    table.add_column("what")
    table.add_column("figure", justify="right")
    samples = found["samples"]
    table.add_row(f"test accuracy ({samples['test']:,} samples)", f"{accuracy['test']:.2%}")
    if accuracy["validation"] is not None:
        label = f"validation accuracy ({samples['validation']:,} samples)"
        table.add_row(label, f"{accuracy['validation']:.2%}")
    each = found["class_samples"]
    if each and max(each) > UNEVEN * min(each) and accuracy["balanced"] is not None:
        table.add_row("balanced test accuracy", f"{accuracy['balanced']:.2%}")
        known = [(c, s) for c, s in enumerate(accuracy["sensitivity"]) if s is not None]
        for number, share in known if len(known) <= MOST_CLASSES else ():
            name = class_name(found["class_names"], number)
            table.add_row(f"sensitivity, class {name} ({each[number]:,} samples)", f"{share:.2%}")
    if accuracy["roc_auc"] is not None:
        table.add_row("test area under the ROC curve", f"{accuracy['roc_auc']:.2%}")
    for name, value in accuracy["readouts"].items():
        table.add_row(f"test accuracy, {name} readout", f"{value:.2%}")
    if accuracy["per_block"]:
        per_block = "  ".join(f"{value:.2%}" for value in accuracy["per_block"])
        table.add_row("test accuracy, each block alone", per_block)
    for name, text in told_metrics(found["metrics"]).items():
        table.add_row(f"test {name}, each block alone", text)
    if found["augmentation"]:
        table.add_row("augmentation", "\n".join(found["augmentation"]))
    if ended := ended_early(found):
        table.add_row("chapters trained", ended)
    table.add_row("placement", f"{found['placement']} on {count(found['world_size'], 'rank')}")
    computer = found["machine"].get("gpu") or "CPU"
    table.add_row("computed on", f"{computer}, {found['precision']}")
    stages = folders.stages(folder, found)
    seconds = sum(each["seconds"] for each in (*stages, found))
    what = f"training time of all {len(stages) + 1} stages" if stages else "training time"
    table.add_row(what, f"{seconds:.1f} s")
    table.add_row("start-up", f"{startup:.1f} s")
    table.add_row("total time", f"{total:.1f} s")
    for name, text, unit in (
        ("idle_seconds", "waiting, each rank", 1.0),
        ("bytes_sent", "sent, each rank, MB", 1e-6),
        ("peak_memory_bytes", "peak memory, each rank, MB", 1e-6),
    ):
        table.add_row(text, "  ".join(f"{value * unit:.1f}" for value in found[name]))
    table.add_row("weights sha256", found["weights_sha256"][:16] + "…")
    console = Output()
    console.print(table)
    console.print(f"Run folder: {folder}", soft_wrap=True)
