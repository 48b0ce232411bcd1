"""A finished run that has kept its state goes on for more epochs, to the bits of one longer run."""

import json

import pytest
from commands import onward
from prepared import assert_same_weights

import onward as ow
from onward.errors import FileError, SettingError
from onward.runs import folders

pytestmark = pytest.mark.usefixtures("unchecked_module")

SMALL = {
    "data.validation": 70,
    "network.widths": (24, 20),
    "training.batch_size": 200,
    "training.precision": "fp32",
    "training.schedule": "constant",
    "plan.validate_every": 1,
}
RUNS = {
    "chapters": ("one-pass", {}),
    "chapters of two epochs": ("one-pass", {"plan.chapters": lambda epochs: epochs // 2}),
    "two chapters an epoch": ("one-pass", {"plan.chapters": lambda epochs: 2 * epochs}),
    "older moments": ("one-pass", {"plan.optimizer_state": "aged:2", "data.shift": 1}),
    "dropout": ("one-pass", {"network.dropout": 0.2}),
    "hints": ("pff", {"plan.hint_age": 1, "network.readout": "softmax"}),
    "stream": ("one-pass", {"plan.kind": "stream"}),
    "early stopping": (
        "one-pass",
        {"optimizer.lr": 0.05, "plan.patience": 9, "plan.keep_best": True},
    ),
}


def config_of(case, epochs, **more):
    recipe, changes = RUNS[case]
    own = {n: v(epochs) if callable(v) else v for n, v in changes.items()}
    given = SMALL | {"training.epochs": epochs, "placement.keep_state": True} | own | more
    return ow.RunConfig(recipe=recipe).with_settings(given)


@pytest.mark.parametrize("case", RUNS)
def test_more_epochs_end_in_the_weights_of_as_many_at_once(case, tmp_path):
    once = ow.run(config_of(case, 6))
    first = ow.run(config_of(case, 4), folder=tmp_path)

    longer = ow.run(config_of(case, 6), folder=tmp_path)

    assert_same_weights(longer.network, once.network)
    assert first.facts["weights_sha256"] != once.facts["weights_sha256"]
    assert longer.to_json()["accuracy"] == once.to_json()["accuracy"]
    # All that was reported is still there, and is reported once.
    told = [(p.chapter, p.block) for p in longer.progress]
    assert told == [(p.chapter, p.block) for p in once.progress]
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["weights_sha256"] == once.facts["weights_sha256"]
    assert folders.is_finished(tmp_path)


def test_what_was_trained_is_not_trained_again(tmp_path):
    ow.run(config_of("chapters", 4), folder=tmp_path)

    longer = ow.run(config_of("chapters", 6), folder=tmp_path)

    # Two blocks are trained, and a chapter is validated.
    assert longer.facts["tasks_done_before"] == 4 * 3
    trained = [span for span in longer.timeline if span.what == "train"]
    assert {span.label for span in trained} == {f"{b}T{c}" for b in range(2) for c in (4, 5)}


def test_it_goes_on_again_and_again_and_on_other_ranks(tmp_path, capsys):
    folder = str(tmp_path / "run")
    given = ["--widths=24,20", "--batch-size=200", "--precision=fp32", "--validation=70"]
    given += ["--set=training.schedule=constant", "--set=placement.keep_state=true"]

    status = onward("train", *given, "--epochs=2", f"--out={folder}")
    status += onward("train", f"--resume={folder}", "--epochs=4", "--processes=2")
    status += onward("train", f"--resume={folder}", "--epochs=6", "--processes=1")
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    status += onward("train", *given, "--epochs=6", f"--out={tmp_path / 'once'}")

    once = json.loads((tmp_path / "once" / "result.json").read_text())
    assert status == 0
    assert found["weights_sha256"] == once["weights_sha256"]
    assert found["epochs"] == 6
    assert found["tasks_done_before"] == 4 * 2 + 4


def test_a_run_that_was_cut_may_be_given_more_epochs_too(tmp_path):
    class Cut(ow.Listener):
        def progress(self, progress):
            if progress.chapter == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ow.run(config_of("chapters", 4), Cut(), tmp_path)

    longer = ow.run(config_of("chapters", 6), folder=tmp_path)

    assert longer.facts["tasks_done_before"] > 0
    assert_same_weights(longer.network, ow.run(config_of("chapters", 6)).network)


@pytest.fixture
def warm(tmp_path):
    """Return the folder of a run whose learning rate depends on the number of its epochs."""
    ow.run(config_of("chapters", 4, **{"training.schedule": "warmup"}), folder=tmp_path / "run")
    return tmp_path / "run"


def test_where_the_schedule_knows_the_end_it_says_why_not_and_the_run_stays_finished(warm):
    before = {path: path.read_bytes() for path in warm.rglob("*") if path.is_file()}

    with pytest.raises(
        SettingError, match=r"epochs = 6.* others spread the learning rate over all"
    ):
        ow.run(config_of("chapters", 6, **{"training.schedule": "warmup"}), folder=warm)

    assert folders.is_finished(warm)
    assert {path for path in before if not path.exists()} == set()
    assert (warm / "result.json").read_bytes() == before[warm / "result.json"]
    assert (warm / "kept-state").exists()


def test_a_run_that_kept_nothing_says_what_to_do(tmp_path, capsys):
    folder = tmp_path / "run"
    ow.run(config_of("chapters", 2, **{"placement.keep_state": False}), folder=folder)

    status = onward("train", f"--resume={folder}", "--epochs=4")

    said = " ".join(capsys.readouterr().err.split())
    assert status
    assert "kept no optimizer state" in said
    assert f"--init {folder}" in said
    assert not (folder / "kept-state").exists()


def test_a_run_that_replaces_it_begins_anew(tmp_path):
    ow.run(config_of("chapters", 4), folder=tmp_path)
    plain = config_of("chapters", 6, **{"placement.keep_state": False})

    replaced = ow.run(plain, folder=tmp_path, overwrite=True)

    assert replaced.facts["tasks_done_before"] == 0
    assert not (tmp_path / "kept-state").exists()
    with pytest.raises(FileError, match="is finished"):
        ow.run(plain, folder=tmp_path)


def test_a_run_in_stages_is_refused_before_it_is_trained(tmp_path):
    config = ow.RunConfig(recipe="uff").with_settings(
        {"network.widths": (16,), "training.epochs": 1, "placement.keep_state": True}
    )

    with pytest.raises(SettingError, match=r"keep_state is for runs of one stage"):
        ow.run(config, folder=tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_a_schedule_that_knows_the_end_is_told_from_the_beginning():
    given = config_of("chapters", 1, **{"training.schedule": "warmup"})

    with pytest.warns(
        ow.OnwardWarning, match=r"placement.keep_state = True has no effect: .*schedule"
    ):
        ow.run(given)


def test_fewer_epochs_do_not_replace_a_finished_run(tmp_path):
    ow.run(config_of("chapters", 4), folder=tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    with pytest.raises(FileError, match=r"has had 4 epochs, and 3 are fewer"):
        ow.run(config_of("chapters", 3), folder=tmp_path)

    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert folders.is_finished(tmp_path)


def test_calibrated_exits_stay_where_the_weights_do(tmp_path):
    ow.run(config_of("chapters", 3), folder=tmp_path)
    data = ow.load_data("digits")
    ow.calibrate(tmp_path, data.x_test, data.y_test, max_error_increase=0.01)

    ow.run(config_of("chapters", 3), folder=tmp_path)
    is_kept = (tmp_path / "exits.json").exists()
    ow.run(config_of("chapters", 4), folder=tmp_path)

    assert is_kept
    assert not (tmp_path / "exits.json").exists()
