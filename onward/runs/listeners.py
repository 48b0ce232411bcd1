"""Listeners that write how training goes: to a CSV file, or for TensorBoard."""

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from onward.errors import FileError, SettingError
from onward.placement import Placement
from onward.plan.tasks import Plan
from onward.runs.results import Listener, Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Listeners(Listener):
    """Several listeners, called in order.

    Args:
        each: The listeners.
    """

    def __init__(self, each: Sequence[Listener]) -> None:
        self.each = tuple(each)

    def begin(self, plan: Plan, placement: Placement) -> None:
        for listener in self.each:
            listener.begin(plan, placement)

    def note(self, text: str) -> None:
        for listener in self.each:
            listener.note(text)

    def progress(self, progress: Progress) -> None:
        for listener in self.each:
            listener.progress(progress)

    def end(self) -> None:
        with ExitStack() as ends:
            for listener in reversed(self.each):
                ends.callback(listener.end)


class CSVLog(Listener):
    """Writes a line for each figure: its stage, chapter, block, name and value.

    All count from 0; a validation has no block. A file that exists is replaced. Later trainings
    with the same object add their lines, and count as further stages.

    Args:
        path: The file.

    Example:
        >>> import tempfile, onward as ow
        >>> from pathlib import Path
        >>> path = tempfile.mkdtemp() + "/training.csv"
        >>> network = ow.mlp((1, 8, 8), num_classes=10, widths=(64,))
        >>> training = ow.TrainingConfig(epochs=1)
        >>> data = ow.load_data("digits")
        >>> _ = ow.train(network, data, training=training, listener=ow.CSVLog(path))
        >>> Path(path).read_text().splitlines()[0]
        'stage,chapter,block,name,value'
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.file: TextIO | None = None
        self.stage = -1

    def begin(self, plan: Plan, placement: Placement) -> None:
        try:
            self.file = self.path.open("w" if self.stage < 0 else "a", newline="")
        except OSError as error:
            raise FileError(f"{self.path} cannot be written: {error.strerror}.") from error
        if self.stage < 0:
            self._write("stage", "chapter", "block", "name", "value")
        self.stage += 1

    def progress(self, progress: Progress) -> None:
        for name, value in progress.figures.items():
            if value is not None:
                self._write(self.stage, progress.chapter, progress.block, name, value)

    def end(self) -> None:
        if self.file is not None:
            self.file.close()

    def _write(self, *row: object) -> None:
        assert self.file is not None
        csv.writer(self.file, lineterminator="\n").writerow(row)
        self.file.flush()


class TensorBoard(Listener):
    """Writes event files that TensorBoard shows, with the chapter as the step.

    Needs the extra `tensorboard`. From the second stage on, names begin with the stage, counted
    from 0 as in run folders.

    Args:
        folder: Where the files go; `tensorboard --logdir FOLDER` shows them.

    Raises:
        SettingError: The package tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        _writer_class()  # Before anything is trained.
        self.folder = Path(folder)
        self.writer: Any = None
        self.stage = -1
        self.num_blocks = 0

    def begin(self, plan: Plan, placement: Placement) -> None:
        self.stage += 1
        self.num_blocks = plan.num_blocks
        self.writer = _writer_class()(str(self.folder))

    def progress(self, progress: Progress) -> None:
        stage = f"stage {self.stage}, " if self.stage else ""
        if progress.block is None:
            what = "validation"
        elif progress.block < self.num_blocks:
            what = f"block {progress.block}"
        else:
            what = "head"
        for name, value in progress.figures.items():
            if value is not None:
                short = name.removeprefix("validation_")
                self.writer.add_scalar(f"{stage}{what}/{short}", value, progress.chapter + 1)
        self.writer.flush()

    def end(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _writer_class() -> "type[SummaryWriter]":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingError(
            "Event files are written with the package tensorboard. Install it with:\n"
            '    pip install "onward[tensorboard]"'
        ) from error
    return SummaryWriter
