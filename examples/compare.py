"""Put finished runs side by side.

    python examples/compare.py RUN RUN ...

A RUN is a folder that `onward train` has written. All figures are read from its `result.json`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onward.errors import OnwardError
from onward.runs import read_result

Found = Mapping[str, Any]

ROWS: dict[str, Callable[[Found], str]] = {
    "recipe": lambda found: found["recipe"],
    "data": lambda found: found["data"],
    "placement": lambda found: found["placement"],
    "ranks": lambda found: str(found["world_size"]),
    "epochs, chapters": lambda found: f"{found['epochs']}, {found['chapters']}",
    "test accuracy": lambda found: f"{found['accuracy']['test']:.2%}",
    "of each block alone": lambda found: "\n".join(
        f"{accuracy:.2%}" for accuracy in found["accuracy"]["per_block"]
    ),
    "seconds": lambda found: f"{found['seconds']:.1f}",
    "megabytes sent, all ranks": lambda found: f"{sum(found['bytes_sent']) / 1e6:.1f}",
    "peak memory, largest rank, MB": lambda found: f"{max(found['peak_memory_bytes']) / 1e6:.0f}",
    "weights": lambda found: found["weights_sha256"][:12],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Put finished runs side by side.")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder")
    folders = parser.parse_args().runs
    try:
        results = [read_result(folder) for folder in folders]
    except OnwardError as error:
        print(f"compare: {error}", file=sys.stderr)
        sys.exit(2)
    table = Table()
    table.add_column("")
    for folder in folders:
        table.add_column(str(folder), justify="right", overflow="fold")
    for name, read in ROWS.items():
        table.add_row(name, *(read(found) for found in results))
    Console().print(table)


if __name__ == "__main__":
    main()
