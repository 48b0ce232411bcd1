"""The command `train`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from onward import data, world
from onward.cli.flags import read_config, recipe_flags
from onward.cli.results import print_result
from onward.config import RunConfig
from onward.errors import FileError, SettingError, Stopped
from onward.launcher import launch
from onward.runs import folders, preparation, sharding, training
from onward.runs.listeners import TensorBoard
from onward.runs.progress import Bars
from onward.runs.results import Listener


def train_command(options: argparse.Namespace) -> None:
    """Train, in this process or in several."""
    if options.resume is not None and options.out is not None:
        raise SettingError("--resume names the run folder already; leave out --out.")
    if options.resume is not None and options.recipe is None:
        options.recipe = str(folders.unfinished_config(options.resume))
    config = read_config(options)
    if options.resume is None and world.may_restart_apart():
        raise SettingError(
            "With --max-restarts on several machines, give --resume RUN in place of --out RUN. A "
            "restart would otherwise begin anew; --resume begins where there is nothing yet."
        )
    folder = options.resume or options.out or _new_folder(config)
    resume = options.resume is not None or world.attempt() > 0
    is_first = world.current_rank() == 0
    if is_first:
        _check_folder(folder, config, resume=resume, overwrite=options.overwrite)
    try:
        if config.placement.processes > 1 and not world.is_distributed():
            with folders.prepared(folder, config.training.epochs, overwrite=not resume):
                _launch(config, options, folder, resume=resume)
            return
        # Ranks of several machines know no common name where none is given.
        is_named = is_first or options.out or options.resume
        bars, before = Bars(), list[Path]()
        listeners: list[Listener] = [bars]
        if options.tensorboard and is_first:
            events = folder / folders.TENSORBOARD
            listeners.append(TensorBoard(events))
            # A run that goes on reports all chapters again.
            before = list(events.glob("*"))
        result = training.run(config, listeners, folder if is_named else None, overwrite=not resume)
        if result is not None:
            for path in before:
                path.unlink()
            times = bars.first - world.started(), time.time() - world.started()
            print_result(result.to_json(), folder, *times)
    except Stopped as stopped:
        if folders.is_unfinished(folder):
            again = ["onward train --resume", str(folder), *recipe_flags(options)]
            stopped.add_note(f"Resume with: {' '.join(again)}")
        raise


def _check_folder(folder: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with a run that is not to go on, or not to be replaced.

    Raises:
        FileError: It holds one, or another process writes into it.
    """
    if resume:
        folders.check_unfinished(folder)
    elif folders.is_unfinished(folder):
        if not overwrite:
            raise FileError(
                f"The folder {folder} holds a run that is not finished. Go on with `onward train "
                f"--resume {folder}`, or begin anew with --overwrite."
            )
        if not world.is_distributed():
            # Mistakes show before the run that is there goes.
            preparation.preview(config, config.placement.processes)
        folders.remove_state(folder, None)
    elif folders.is_finished(folder) and not overwrite:
        raise FileError(
            f"The folder {folder} holds a run already. Name another with --out, or replace it "
            f"with --overwrite."
        )


def _new_folder(config: RunConfig) -> Path:
    """Return the name of a folder that does not exist."""
    data_name = Path(config.data.name).stem.replace("{rank}", "")
    recipe = config.recipe.replace(":", "-")  # Not all disks have names with a colon.
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe}-{data_name.strip('-_')}"
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


def _launch(config: RunConfig, options: argparse.Namespace, folder: Path, *, resume: bool) -> None:
    """Start the ranks of a run on this machine, and hand them the data."""
    # Mistakes show here, once, rather than on every rank.
    dataset = preparation.preview(config, config.placement.processes)[0].dataset
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "config.toml"
        file.write_text(config.to_toml())
        code = recipe_flags(options) + ["--traceback"] * options.traceback
        code += ["--tensorboard"] * options.tensorboard
        variables = {world.STARTED: str(world.started())}
        if not sharding.is_private(config):
            variables[sharding.SHARED] = f"{scratch}/data.safetensors"
            data.write_shared(dataset, Path(variables[sharding.SHARED]))
        del dataset
        where = ["--resume", str(folder)] if resume else ["--out", str(folder), "--overwrite"]
        command = ["-m", "onward", "train", str(file), *code, *where]
        status = launch(config.placement.processes, command, config.placement.restarts, variables)
    if status:
        sys.exit(status)
