"""A run as a folder: its settings, its figures, its model."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onward.checkpoint import save, weights_sha256
from onward.config import CUSTOM, RunConfig
from onward.errors import FileError, SettingError
from onward.exits.calibration import Calibrated
from onward.files import PARTIAL, flush, write_text
from onward.network.networks import Network
from onward.runs.results import Result
from onward.runtime.store import ENDING, check_idle
from onward.timeline import Span, from_chrome, to_chrome

FILES = ("config.toml", "metrics.jsonl", "model.safetensors", "trace.json", "result.json")
"""What a finished run holds, in the order in which it is put there."""

STATE = "state"
"""Folder in which an unfinished run keeps what it goes on from."""

KEPT = "kept-state"
"""Folder in which a finished run keeps what it can be trained further from, where that is asked."""

EXITS = "exits.json"
"""When inference stops early, where that was calibrated."""

EXITS_PICTURE = "exits.png"
"""What that saves, and what it costs in errors."""

TENSORBOARD = "tensorboard"
"""Folder of event files, where they were asked for."""

PROBE_BYTES = 1 << 16
"""What must fit on the disk before a training is begun."""


@contextmanager
def prepared(folder: Path, epochs: int | None = None, *, overwrite: bool = False) -> Iterator[None]:
    """Make the folder of a run before anything is computed, and remove it if that fails.

    An unfinished run that is in it goes on, and so does a finished one that has kept its state.

    Args:
        folder: The folder.
        epochs: Those of the run; one that is in it must not have had more.
        overwrite: Whether a finished run that is in it is replaced.

    Raises:
        FileError: It holds something else, or cannot be written to.
    """
    made: list[Path] = []
    before: set[str] = set()
    try:
        try:
            check_idle(folder / STATE)
            if folder.exists():
                _check_usable(folder)
            if can_go_on(folder) and not overwrite:
                _check_longer(folder, epochs)
                (folder / KEPT).replace(folder / STATE)
                before = _products(folder)
            if is_finished(folder) and not overwrite:
                raise FileError(
                    f"The run in {folder} is finished: onward.load reads its network. Name another "
                    f"folder, or replace the run with overwrite=True."
                )
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            with _no_trace_of(folder / PARTIAL) as probe:
                probe.write_bytes(bytes(PROBE_BYTES))
        except FileError:
            raise
        except OSError as error:
            raise FileError(
                f"The folder {folder} cannot be written to: {error.strerror}. Name another."
            ) from error
        yield
    except BaseException:
        if before and _products(folder) <= before:
            # Nothing was trained: the run is finished as it was.
            with suppress(OSError):
                (folder / STATE).replace(folder / KEPT)
        # What is not empty stays.
        for path in (folder / STATE, *made):
            with suppress(OSError):
                path.rmdir()
        raise


def _check_usable(folder: Path) -> None:
    """Refuse a folder that holds something, unless that is a run."""
    if not folder.is_dir():
        raise FileError(f"{folder} is a file, not a folder. Name another.")
    names = {path.name for path in folder.iterdir()} - {TENSORBOARD}
    if names and not names & {FILES[-1], PARTIAL, STATE}:
        raise FileError(f"The folder {folder} holds something else. Name another.")


def _check_longer(folder: Path, epochs: int | None) -> None:
    """Refuse to replace a finished run by a shorter one."""
    trained = int(read_result(folder)["epochs"])
    if epochs is not None and epochs < trained:
        raise FileError(
            f"The run in {folder} has had {trained} epochs, and {epochs} are fewer. Ask for more, "
            f"or name another folder."
        )


def _products(folder: Path) -> set[str]:
    """Return the files of finished tasks."""
    return {path.name for path in (folder / STATE).rglob(f"*{ENDING}")}


def can_go_on(folder: Path) -> bool:
    """Return whether a folder holds a finished run that can be trained for more epochs."""
    return is_finished(folder) and (folder / KEPT).exists()


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder holds a run that can go on."""
    return os.path.exists(folder / STATE)  # Path.exists raises where it may not look.


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that has its result."""
    return os.path.exists(folder / FILES[-1]) and not is_unfinished(folder)


def check_unfinished(folder: Path) -> None:
    """Refuse to go on with a run that has its result, and has not kept its state.

    Raises:
        FileError: It has.
    """
    if is_finished(folder) and not can_go_on(folder):
        if read_result(folder).get("stage", 0):
            raise FileError(
                f"The run in {folder} is finished, and runs of several stages are not trained "
                f"further. To repeat it, train {folder / FILES[0]}."
            )
        raise FileError(
            f"The run in {folder} is finished, and kept no optimizer state. To repeat it, train "
            f"{folder / FILES[0]}; to train further, begin another run with its weights, --init "
            f"{folder}. A run with --set placement.keep_state=true goes on for more epochs."
        )


def unfinished_config(folder: Path) -> Path:
    """Return the file with the settings of a run that can go on.

    Raises:
        FileError: There is none.
    """
    state = folder / (KEPT if can_go_on(folder) else STATE)
    for path in sorted(state.rglob("rank-*/config.toml")):
        return path
    check_unfinished(folder)
    raise FileError(
        f"There is nothing in {folder / STATE} that a run could go on from. If other machines have "
        f"its state, name its recipe and settings here, beside --resume."
    )


def write(folder: Path, config: RunConfig, result: Result) -> None:
    """Write a finished run: settings, metrics, model and result, all of them or none.

    `config.toml` repeats the run bit for bit on a machine of the same type: what depended on the
    machine and the folder is written out (arithmetic, number of ranks, paths).

    Raises:
        FileError: The disk is full, or the folder cannot be written to.
    """
    metrics = [{"chapter": p.chapter, "block": p.block, **p.figures} for p in result.progress]
    texts = {
        "config.toml": _complete(config, result).to_toml(),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in metrics),
        "trace.json": json.dumps(to_chrome(result.timeline)) + "\n",
        "result.json": json.dumps(result.to_json(), indent=2) + "\n",
    }
    try:
        with _no_trace_of(folder / PARTIAL) as partial:
            partial.mkdir(parents=True)
            for name, text in texts.items():
                (partial / name).write_text(text)
            save(result.network, partial / "model.safetensors")
            for name in FILES:
                flush(partial / name)
            is_same = _is_of(folder, result.facts["weights_sha256"])
            # A run without it is not finished, and may be replaced.
            (folder / FILES[-1]).unlink(missing_ok=True)
            # The exits of these weights stay.
            if not is_same:
                for name in EXITS, EXITS_PICTURE:
                    (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / KEPT, ignore_errors=True)
            for name in FILES:
                (partial / name).replace(folder / name)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"The run cannot be written to {folder}: {error.strerror}.") from error


def _is_of(folder: Path, digest: str) -> bool:
    """Return whether the finished run in a folder has these weights."""
    try:
        return bool(json.loads((folder / FILES[-1]).read_text())["weights_sha256"] == digest)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def remove_state(folder: Path, shared: str | None, *, is_kept: bool = False) -> None:
    """Remove what nobody has to go on from, once a run is written.

    Args:
        folder: The folder of the run.
        shared: The folder that its ranks exchange blocks through, where they do.
        is_kept: Whether it is put aside, for more epochs.

    Raises:
        FileError: Another process writes it, or the folder cannot be written to.
    """
    try:
        check_idle(folder / STATE)
        if is_unfinished(folder):
            put = folder / (KEPT if is_kept else PARTIAL)
            shutil.rmtree(put, ignore_errors=True)
            # At once: half a state would be taken for a run that is not finished.
            (folder / STATE).replace(put)
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{folder / STATE} cannot be removed: {error.strerror}.") from error
    for pattern in ("rank-*", "stage-*/rank-*") if shared else ():
        for state in Path(shared or "").glob(pattern):
            shutil.rmtree(state, ignore_errors=True)


def stages(folder: Path, result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the results of the stages before the last, of a run that has several."""
    return [read_result(folder / f"stage-{number}") for number in range(result.get("stage", 0))]


def write_exits(folder: Path, network: Network, calibrated: Calibrated) -> None:
    """Write the exits of a run, for `read_exits`.

    Raises:
        FileError: The disk is full, or the folder cannot be written to.
    """
    found = calibrated.to_json() | {"weights_sha256": weights_sha256(network)}
    write_text(folder / EXITS, json.dumps(found, indent=2) + "\n")


def read_exits(folder: Path, network: Network) -> Calibrated | None:
    """Read the exits of a run; None where they have not been calibrated.

    Raises:
        FileError: They are damaged, or those of another network.
    """
    path = folder / EXITS
    try:
        found = json.loads(path.read_text())
        calibrated = Calibrated.from_json(found)
        digest = found["weights_sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SettingError) as error:
        raise FileError(f"{path} cannot be used ({error}). Calibrate again.") from error
    if digest != weights_sha256(network):
        raise FileError(f"{path} was calibrated for other weights. Calibrate again.")
    return calibrated


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
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} is damaged: it holds no object.")
    return found


def read_timeline(folder: Path) -> list[Span]:
    """Read what each rank of a run did, and when.

    Raises:
        FileError: There is no `trace.json`, or it is damaged.
    """
    path = folder / "trace.json"
    try:
        return from_chrome(json.loads(path.read_text()))
    except OSError as error:
        raise FileError(f"There is no timeline in {folder}: {path} is missing.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} is damaged: {error!r}.") from error


def _complete(config: RunConfig, result: Result) -> RunConfig:
    changes: dict[str, Any] = {
        "training.device": result.facts["device"],
        "training.precision": result.facts["precision"],
        "placement.processes": result.facts["world_size"],
    }
    if config.method is not None:
        # That of the file that has trained it, whatever the run file said.
        changes["recipe_sha256"] = config.method.sha256
    # A script's data set has a name, which is no path.
    if config.data.name.endswith((".npz", ".txt")) and config.recipe != CUSTOM:
        changes["data.name"] = _absolute(config.data.name)
    if config.data.dir is not None:
        changes["data.dir"] = _absolute(config.data.dir)
    return config.with_settings(changes)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


@contextmanager
def _no_trace_of(path: Path) -> Iterator[Path]:
    """Remove a file or folder now, where it was left behind, and in the end."""

    def remove() -> None:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    remove()
    try:
        yield path
    finally:
        remove()
