"""A run as a folder: its settings, its figures, its model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onward.checkpoint import save
from onward.config import RunConfig
from onward.errors import FileError
from onward.results import Result
from onward.training import resolve_precision


def prepare(folder: Path, *, overwrite: bool) -> None:
    """Make the folder of a run, before anything is computed.

    Raises:
        FileError: It holds something already, or cannot be written to.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise FileError(f"{folder} is a file, not a folder. Name another with --out.")
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise FileError(
                f"The folder {folder} holds a run already. Name another with --out, or replace it "
                f"with --overwrite."
            )
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"The folder {folder} cannot be written to: {error.strerror}. Name another with --out."
        ) from error


def write(folder: Path, config: RunConfig, result: Result) -> None:
    """Write a finished run: settings, metrics, model, and last the result.

    Each file is written whole or not at all. `config.toml` repeats the run bit for bit on a
    machine of the same type: the arithmetic that `auto` stood for is written out.

    Raises:
        FileError: The disk is full, or the folder cannot be written to.
    """
    precision = resolve_precision(config.training.precision)
    complete = config.with_settings({"training.precision": precision})
    metrics = [{"chapter": p.chapter, "block": p.block, **p.figures} for p in result.progress]
    _write(folder / "config.toml", complete.to_toml())
    _write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
    save(result.network, folder / "model.safetensors")
    _write(folder / "result.json", json.dumps(result.to_json(), indent=2) + "\n")


def read_result(folder: Path) -> Mapping[str, Any]:
    """Read `result.json` of a run.

    Raises:
        FileError: There is none, or it is damaged.
    """
    path = folder / "result.json"
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise FileError(f"There is no finished run in {folder}: {path} is missing.") from error
    except ValueError as error:
        raise FileError(f"{path} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} is damaged: it holds no object.")
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise FileError(f"{path} cannot be written: {error.strerror}.") from error
