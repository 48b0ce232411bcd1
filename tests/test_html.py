"""What notebooks show of data sets and results."""

from html.parser import HTMLParser

import numpy as np

import onward as ow


class Cells(HTMLParser):
    """Reads the cells of a table."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


def read(shown):
    """Return the rows of a table that a notebook shows, and its caption."""
    cells = Cells(shown._repr_html_())
    # Nothing but a table, whatever names hold.
    assert cells.tags == {"table", "caption", "tr", "th", "td"}
    caption, *rest = cells.texts
    return caption, dict(zip(rest[::2], rest[1::2], strict=True))


def named():
    """A data set whose names would be HTML."""
    y = np.array(["<script>", "dog"])[np.arange(40) % 2]
    return ow.dataset(np.eye(40), y, x_val=np.eye(40), y_val=y, name="<img src=x>")


def test_a_data_set_is_a_table_of_texts():
    assert read(named()) == (
        "<img src=x>",
        {
            "training samples": "32",
            "validation samples": "40",
            "test samples": "8",
            "shape": "(40,)",
            "type": "float32",
            "classes": "2",
            "names of classes": "'<script>', 'dog'",
        },
    )


def test_a_result_is_a_table_of_figures():
    network = ow.mlp((40,), num_classes=2, widths=(8, 8))
    result = ow.train(network, named(), training=ow.TrainingConfig(epochs=2, batch_size=10))

    caption, rows = read(result)

    assert caption == "custom on <img src=x>"
    assert rows["test accuracy"] == f"{result.accuracy:.2%}"
    assert rows["test accuracy, each block alone"].split() == [f"{a:.2%}" for a in result.per_block]
    assert rows["epochs"] == "2"
