"""Heart beats of the MIT-BIH Arrhythmia Database, split by patient.

Beats are windows of one lead around each R peak, of the five AAMI classes N, S, V, F, Q. DS1 is for
training and DS2 for the test, as de Chazal et al. 2004 have assigned the patients; beats of paced
records are left out. Splits by beat, which are common, have the same patients on both sides.

The file `mitbih_beats.npz` holds the arrays `dX` (differences along the 256 samples at 360 Hz,
int16; the raw values run from 0 to 2047, with 200 a millivolt), `y` (class, 0 to 4), `ds` (1 or 2;
others are left out) and `record` (the patient's record).
"""

from pathlib import Path

import numpy as np

from onward.data.arrays import read_members
from onward.data.dataset import Dataset, from_arrays
from onward.data.published import MITBIH_FILE
from onward.errors import DataError

CLASSES = ("N", "S", "V", "F", "Q")
"""Normal, supraventricular, ventricular, fusion, and all other beats."""


def read_mitbih(folder: Path) -> Dataset:
    """Read the beats: millivolts, less the mean of each beat, which drifts with the electrodes.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / MITBIH_FILE
    members = read_members(path, ("dX", "y", "ds", "record"))
    beats, y, split, record = (members[name] for name in ("dX", "y", "ds", "record"))
    if beats.ndim != 2 or not len(beats) == len(y) == len(split) == len(record):
        shapes = {name: member.shape for name, member in members.items()}
        raise DataError(f"{path} is damaged: its members have the shapes {shapes}.")
    x = np.cumsum(beats, axis=1, dtype=np.int32) / np.float32(200)
    x = (x - x.mean(axis=1, keepdims=True)).astype(np.float32)
    train, test = split == 1, split == 2
    return from_arrays(
        x[train],
        y[train],
        x_test=x[test],
        y_test=y[test],
        groups=record[train],
        num_classes=len(CLASSES),
        name="mitbih",
    )
