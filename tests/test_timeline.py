"""What each rank did and when, and the file and the picture of it."""

import json
from itertools import pairwise

import pytest

import onward as ow
from onward.cli.main import main
from onward.cli.report import draw_timelines
from onward.plan.tasks import TaskKind
from onward.runs.folders import read_timeline
from onward.runs.results import Listener
from onward.timeline import Recorder, Span, from_chrome, merged, spans_kept, to_chrome

SPANS = [
    Span(0, "train", "0T0", 0.0, 1.5),
    Span(0, "send", "0T0", 1.5, 1.75),
    Span(1, "wait", "0T1", 0.0, 1.75),
    Span(1, "receive", "0T0", 1.75, 1.75),
]


def train(**settings):
    """Train two blocks on digits, and return plan and result."""
    heard = []

    class Hearing(Listener):
        def begin(self, plan, placement):
            heard.append(plan)

    network = ow.mlp((1, 8, 8), num_classes=10, widths=(16, 12))
    training = ow.TrainingConfig(**{"epochs": 2, "precision": "fp32"} | settings)
    result = ow.train(network, ow.load_data("digits"), training=training, listener=Hearing())
    return heard[0], result


def test_a_timeline_goes_to_the_chrome_format_and_back():
    found = from_chrome(json.loads(json.dumps(to_chrome(SPANS))))

    assert [span[:3] for span in found] == [span[:3] for span in SPANS]
    for actual, expected in zip(found, SPANS, strict=True):
        assert actual[3:] == pytest.approx(expected[3:])


def test_a_rank_is_a_process_with_lanes_for_tasks_sends_and_receives():
    events = to_chrome(SPANS)["traceEvents"]

    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {
        (rank, lane): name
        for rank in (0, 1)
        for lane, name in enumerate(("tasks", "send", "receive"))
    }
    lanes = [(e["pid"], e["tid"], e["ph"]) for e in events if e["ph"] != "M"]
    assert lanes == [(0, 0, "X"), (0, 1, "X"), (1, 0, "X"), (1, 2, "i")]


def test_the_first_rank_to_begin_does_so_at_second_0():
    first, second = Recorder(0, most=9), Recorder(1, most=9)
    first.wall, second.wall = 100.5, 100.0
    first.add("train", "0T0", 1.0, 2.0)
    second.add("train", "0T1", 1.0, 2.0)

    notes = json.loads(json.dumps([first.note(), second.note()]))

    assert merged(notes) == [Span(0, "train", "0T0", 1.5, 2.5), Span(1, "train", "0T1", 1.0, 2.0)]


def test_a_long_run_is_recorded_up_to_a_number_of_spans():
    recorder = Recorder(0, most=3)

    for number in range(5):
        recorder.add("train", f"0T{number}", 0.0, 1.0)

    assert [span.label for span in recorder.spans] == ["0T0", "0T1", "0T2"]


@pytest.mark.parametrize("ranks", [1, 4, 64, 4096])
def test_the_notes_of_a_rank_stay_under_a_megabyte(ranks):
    recorder = Recorder(ranks - 1, most=spans_kept(ranks))
    for _ in range(recorder.most):
        recorder.add("validate", "1000T100000", 86_000.0, 86_400.0)

    assert len(json.dumps(recorder.note())) < 2**20


def test_a_run_records_each_of_its_tasks_once():
    plan, result = train()

    recorded = {kind: [] for kind in ("train", "validate", "gather")}
    for span in result.timeline:
        if span.what != "forward":
            recorded[span.what].append(span.label)
    assert recorded["train"] == [str(t) for t in plan.tasks() if t.kind is TaskKind.TRAIN]
    assert recorded["validate"] == [str(t) for t in plan.tasks() if t.kind is TaskKind.VALIDATE]
    assert recorded["gather"] == [str(plan.gather)]


def test_passing_samples_on_is_a_part_of_the_task_that_needs_it():
    _, result = train()

    (first, *_) = (span for span in result.timeline if span.what == "forward")
    (task,) = (span for span in result.timeline if (span.what, span.label) == ("train", "1T0"))
    assert first.label == "0P0"
    assert task.start <= first.start <= first.end <= task.end


def test_tasks_of_one_rank_do_not_overlap():
    _, result = train()

    tasks = [span for span in result.timeline if span.what in ("train", "validate", "gather")]

    for before, after in pairwise(tasks):
        assert before.end <= after.start


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "train --data digits --epochs 2 --widths 16,12 --out run"
    with pytest.raises(SystemExit) as ended:
        main(flags.split())
    assert ended.value.code == 0
    return tmp_path / "run"


def test_a_run_folder_holds_its_timeline(run):
    labels = {span.label for span in read_timeline(run) if span.what == "train"}

    assert labels == {"0T0", "1T0", "0T1", "1T1"}


@pytest.mark.parametrize("flags", [[], ["--simulate"], ["--out", "picture.svg"]])
def test_the_command_draws_the_timeline(run, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["trace", "run", *flags])

    assert ended.value.code == 0
    path = "picture.svg" if "--out" in flags else "run/trace.png"
    begin = (run.parent / path).read_bytes()[:5]
    assert begin == (b"<?xml" if "--out" in flags else b"\x89PNG\r")
    assert path in capsys.readouterr().out


def test_a_picture_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ow.FileError, match=r"picture cannot be written to .*nonsense"):
        draw_timelines({"measured": SPANS}, tmp_path / "picture.nonsense")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"traceEvents": [{"ph": "X"}]}'])
def test_a_damaged_timeline_is_refused(run, text):
    (run / "trace.json").write_text(text)

    with pytest.raises(ow.FileError, match=r"trace\.json is damaged"):
        read_timeline(run)
