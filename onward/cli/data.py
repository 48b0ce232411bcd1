"""The command `data`: which data sets there are, and where they are found."""

import argparse

from rich.table import Table

from onward.cli.output import Output
from onward.data.published import available


def data_command(options: argparse.Namespace) -> None:
    """List the data sets."""
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("one row", no_wrap=True)
    for name in ("classes", "training rows", "test rows"):
        table.add_column(name, justify="right")
    table.add_column("where", overflow="fold")
    for listing in available(options.data_dir):
        figures = (listing.num_classes, listing.num_rows, listing.num_test_rows)
        shape = " x ".join(map(str, listing.shape))
        table.add_row(listing.name, shape, *(f"{f:,}" for f in figures), listing.where)
    Output().print(table)
