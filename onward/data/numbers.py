"""Numbers of one's own, as arrays."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onward.data.tables import as_known, densified, is_sparse, is_table, table_numbers
from onward.errors import DataError

Numbers = Any
"""What a user may hand over: a tensor, a table with columns, a sparse matrix of scipy, or whatever
numpy makes an array of real numbers of."""


def check_no_mask(values: Any, what: str) -> None:
    """Refuse a masked array, whose masked values nobody is to see.

    Raises:
        DataError: Some are masked.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(
            f"{what} has {int(np.ma.getmaskarray(values).sum())} masked values. Replace them, as "
            f"{what.rpartition(' ')[2]}.filled(0) does, or leave out their samples."
        )


def real(values: Numbers, what: str) -> NDArray[Any]:
    """Return numbers as an array, without a copy where they are one.

    Raises:
        DataError: They are no real numbers, or too many of a sparse matrix.
    """
    values = as_known(values)
    if is_table(values):
        values = table_numbers(values, what)
    elif is_sparse(values):
        values = densified(values, what)
    if isinstance(values, Tensor):
        values = values.detach().cpu().to_dense()
        # NumPy has no bfloat16.
        values = (values.float() if values.dtype is torch.bfloat16 else values).numpy()
    elif not isinstance(values, np.ndarray):
        if not hasattr(values, "__array__") and not isinstance(values, list | tuple):
            raise DataError(
                f"{what} is a {type(values).__name__}, and an array, a tensor or a table of all "
                f"samples is needed."
            )
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise DataError(f"{what} is no array of numbers: {error}.") from error
    check_no_mask(values, what)
    array: NDArray[Any] = np.require(values, requirements="C") if values.ndim else values
    if array.dtype.kind in "iuf" and (not array.dtype.isnative or array.dtype.itemsize > 8):
        # Torch has neither the other order of bytes nor long doubles.
        array = array.astype(f"{array.dtype.kind}{min(array.dtype.itemsize, 8)}")
    if array.dtype.kind not in "biuf":
        advice = ""
        if array.dtype.kind in "UST":
            advice = (
                " Number names with names, numbers = numpy.unique(values, return_inverse=True), "
                "and keep the names apart."
            )
        elif array.dtype.kind == "O":
            advice = " These are Python objects; convert them, as values.astype(float) does."
        raise DataError(
            f"{what} holds values of type {array.dtype}. It needs real numbers.{advice}"
        )
    return array
