"""Heart beats of the MIT-BIH Arrhythmia Database, split by patient.

Beats are windows of one lead around each R peak, of the five AAMI classes N, S, V, F, Q. DS1 is for
training and DS2 for the test, as de Chazal et al. 2004 have assigned the patients; beats of paced
records are left out. Splits by beat, which are common, have the same patients on both sides.

The file `mitbih_beats.npz` holds the arrays `dX` (differences along the 256 samples at 360 Hz,
int16; the raw values run from 0 to 2047, with 200 a millivolt), `y` (class, 0 to 4), `ds` (1 or 2;
others are left out) and `record` (the patient's record). For intervals also `sample` (where in the
record a beat is) and `rr` (samples to the beat before and to the one after; 0: there is none).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.data.arrays import read_members
from onward.data.dataset import Dataset, from_arrays
from onward.data.published import MITBIH_FILE
from onward.errors import DataError

CLASSES = ("N", "S", "V", "F", "Q")
"""Normal, supraventricular, ventricular, fusion, and all other beats."""

RECENT = 10
"""Beats before a beat whose mean interval says how fast the heart was just then."""


def read_mitbih(folder: Path, *, has_intervals: bool = False) -> Dataset:
    """Read the beats: millivolts, less the mean of each beat, which drifts with the electrodes.

    Args:
        folder: Where the file is.
        has_intervals: Whether beats are signals of five channels: the beat, how it differs from
            the median of all beats of its record, whatever their class, and three intervals, each
            the same number all along; see `relative_intervals`.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / MITBIH_FILE
    names = ("dX", "y", "ds", "record", *(("sample", "rr") if has_intervals else ()))
    members = read_members(path, names)
    beats, y, split, record = (members[name] for name in names[:4])
    fits = beats.ndim == 2 and len({len(member) for member in members.values()}) == 1
    if not fits or (has_intervals and members["rr"].shape != (len(beats), 2)):
        shapes = {name: member.shape for name, member in members.items()}
        raise DataError(f"{path} is damaged: its members have the shapes {shapes}.")
    x = np.cumsum(beats, axis=1, dtype=np.int32) / np.float32(200)
    x = (x - x.mean(axis=1, keepdims=True)).astype(np.float32)
    if has_intervals:
        intervals = relative_intervals(members["rr"], members["sample"], record)
        along = np.broadcast_to(intervals[:, :, None], (*intervals.shape, x.shape[1]))
        x = np.concatenate([x[:, None], _beside_usual(x, record)[:, None], along], axis=1)
    train, test = split == 1, split == 2
    return from_arrays(
        x[train],
        y[train],
        x_test=x[test],
        y_test=y[test],
        groups=record[train],
        num_classes=len(CLASSES),
        name="mitbih-intervals" if has_intervals else "mitbih",
    )


def _beside_usual(x: NDArray[np.float32], record: NDArray[Any]) -> NDArray[np.float32]:
    """Return how each beat differs from the median beat of its record."""
    found = np.empty_like(x)
    for one in np.unique(record):
        found[record == one] = x[record == one] - np.median(x[record == one], axis=0)
    return found


def relative_intervals(
    rr: NDArray[Any], sample: NDArray[Any], record: NDArray[Any]
) -> NDArray[np.float32]:
    """Return how early and how late beats are, as logarithms of ratios; 0: as usual, or not known.

    They are the interval before the beat over the median of its record, the interval after over
    that median, and the interval before over the mean of those of the last ten beats. The median
    is over all beats of a record, of whatever class: no label is used.

    Args:
        rr: Interval before each beat and after it; 0: there is none.
        sample: Where in its record each beat is.
        record: Record of each beat.

    Source:
        De Chazal et al. 2004, doi:10.1109/TBME.2004.827359: intervals before, after, average and
        local average; they are ratios here, since hearts differ in their rate.

    Example:
        >>> rr = np.array([[0, 100], [100, 50], [50, 100], [100, 0]])
        >>> relative_intervals(rr, np.array([0, 100, 150, 250]), np.zeros(4)).round(2)[2]
        array([-0.69,  0.  , -0.69], dtype=float32)
    """
    found = np.zeros((len(rr), 3), dtype=np.float32)
    for one in np.unique(record):
        of_record = np.flatnonzero(record == one)
        of_record = of_record[np.argsort(sample[of_record])]
        before, after = rr[of_record].T.astype(float)
        if not before.any():
            continue
        median = np.median(before[before > 0])
        before, after = (np.where(known > 0, known, median) for known in (before, after))
        # The last ten before the first beat are as usual.
        padded = np.concatenate([np.full(RECENT, median), before])
        recent = np.lib.stride_tricks.sliding_window_view(padded, RECENT).mean(axis=1)[:-1]
        ratios = (before / median, after / median, before / recent)
        found[of_record] = np.log(np.stack(ratios, axis=1))
    return found
