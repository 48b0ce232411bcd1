"""Pictures of runs: what is drawn of many tasks, and what a legend says."""

import numpy as np
import pytest
from matplotlib import pyplot

import onward as ow
from onward.cli import exits, report
from onward.cli.report import draw_timelines, shares_of
from onward.exits.calibration import choose, held_out
from onward.timeline import Span


@pytest.fixture
def figures(monkeypatch):
    """Figures that were drawn, in place of the files."""
    found = []
    monkeypatch.setattr(report, "_save", lambda figure, _: found.append(figure))
    yield found
    pyplot.close("all")


def spans(number, rank=0, what="train"):
    """Tasks of half a second, one each second."""
    return [Span(rank, what, "0T0", float(n), n + 0.5) for n in range(number)]


def entries(figure):
    """Return what a figure's legend says."""
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_few_tasks_are_drawn_one_by_one(figures, tmp_path):
    draw_timelines({"measured": spans(10) + spans(3, what="receive")}, tmp_path / "t.png")

    (axis,) = figures[0].axes
    bars = [len(bars.get_paths()) for bars in axis.collections]
    assert sum(bars) == 10
    assert axis.get_title(loc="left") == "measured"
    assert entries(figures[0]) == ["train", "receive"]


def test_many_tasks_are_drawn_as_shares_of_the_time(figures, tmp_path):
    many = [*spans(400), *spans(400, what="receive"), *spans(5, rank=1)]

    draw_timelines({"measured": many}, tmp_path / "t.png")

    (axis,) = figures[0].axes
    assert "heights are shares of the time" in axis.get_title(loc="left")
    heights = [
        path.get_extents().height
        for area in axis.collections
        for path in area.get_paths()
        if path.get_extents().width > 100
    ]
    # Half of a lane of 0.6, and nothing for what took no time.
    assert max(heights) == pytest.approx(0.6 * 0.625, abs=0.02)
    assert entries(figures[0]) == ["train", "receive"]


def test_messages_that_are_not_drawn_are_not_in_the_legend(figures, tmp_path):
    draw_timelines({"measured": spans(400) + spans(400, what="receive")}, tmp_path / "t.png")

    assert entries(figures[0]) == ["train"]


def test_shares_add_up_to_the_time_that_was_spent():
    random = np.random.default_rng(0)
    starts = np.sort(random.uniform(0, 90, 500))
    each = [Span(0, "train", "", s, s + random.uniform(0, 0.01)) for s in starts]
    edges = np.linspace(0, 100, 41)

    shares = shares_of(each, edges)

    assert np.sum(shares * np.diff(edges)) == pytest.approx(sum(s.end - s.start for s in each))
    assert shares_of([], edges).tolist() == [0.0] * 40


def test_messages_that_overlap_fill_a_lane_once():
    both = [Span(0, "send", "", 0.0, 1.0), Span(0, "send", "", 0.0, 1.0)]

    assert shares_of(both, np.array([0.0, 1.0])).tolist() == [1.0]


def test_the_picture_of_early_exit_has_six_entries(figures, tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 4))
    dataset = ow.dataset(x, (x[:, 0] > 0).astype(int))
    network = ow.mlp((4,), num_classes=2, widths=(16, 16, 16))
    ow.train(network, dataset, training=ow.TrainingConfig(epochs=2, batch_size=20))
    seen = held_out(network, dataset.x_test, dataset.y_test)

    exits.draw(seen, choose(seen, confidence="entropy", max_error_increase=0.1), tmp_path / "e.png")

    said = entries(figures[0])
    assert said[:3] == ["entropy", "other confidence measures", "all samples leave at one exit"]
    assert len(said) == 6
    drawn = {line.get_color() for line in figures[0].axes[0].lines if line.get_linewidth() == 1}
    assert drawn == {report.GREY}
