"""Data sets as tensors: published ones by name, and one's own."""

from typing import TYPE_CHECKING

from onward.names import on_demand

if TYPE_CHECKING:
    from onward.data.asked import read_asked
    from onward.data.catalog import load
    from onward.data.dataset import (
        DataInfo,
        Dataset,
        from_arrays,
        is_channels_last,
        split_validation,
    )
    from onward.data.graphs import graph
    from onward.data.labels import check_classes
    from onward.data.links import graph_links
    from onward.data.published import Listing, available
    from onward.data.shared import read_shared, write_shared
    from onward.data.splits import hold_out, shards
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "onward.data.asked": ("read_asked",),
            "onward.data.catalog": ("load",),
            "onward.data.dataset": (
                "DataInfo",
                "Dataset",
                "from_arrays",
                "is_channels_last",
                "split_validation",
            ),
            "onward.data.links": ("graph_links",),
            "onward.data.graphs": ("graph",),
            "onward.data.labels": ("check_classes",),
            "onward.data.published": ("Listing", "available"),
            "onward.data.shared": ("read_shared", "write_shared"),
            "onward.data.splits": ("hold_out", "shards"),
        },
    )

__all__ = [
    "available",
    "check_classes",
    "DataInfo",
    "Dataset",
    "from_arrays",
    "graph",
    "graph_links",
    "hold_out",
    "is_channels_last",
    "Listing",
    "load",
    "read_asked",
    "read_shared",
    "shards",
    "split_validation",
    "write_shared",
]
