"""Data sets as tensors: published ones by name, and one's own."""

from onward.data.arrays import read_rows
from onward.data.catalog import Listing, available, load
from onward.data.dataset import (
    DataInfo,
    Dataset,
    check_classes,
    from_arrays,
    is_channels_last,
    split_validation,
)
from onward.data.shared import read_shared, write_shared
from onward.data.splits import shards

__all__ = [
    "available",
    "check_classes",
    "DataInfo",
    "Dataset",
    "from_arrays",
    "is_channels_last",
    "Listing",
    "load",
    "read_rows",
    "read_shared",
    "shards",
    "split_validation",
    "write_shared",
]
