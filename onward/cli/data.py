"""The command `data`: which data sets there are, and where they are found."""

import argparse

from rich.table import Table

from onward.cli.output import Output
from onward.data.published import available


def data_command(options: argparse.Namespace) -> None:
    """List the data sets."""
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("one sample", no_wrap=True)
    for name in ("classes", "training samples", "test samples"):
        table.add_column(name, justify="right")
    listings = available(options.data_dir)
    for listing in listings:
        figures = (listing.num_classes, listing.num_samples, listing.num_test_samples)
        shape = " x ".join(map(str, listing.shape))
        table.add_row(listing.name, shape, *(f"{f:,}" for f in figures))
    console = Output()
    console.print(table)
    # On lines of their own, which are never broken, or no path could be copied.
    for listing in listings:
        console.print(f"{listing.name}: {listing.where}", soft_wrap=True, highlight=False)
