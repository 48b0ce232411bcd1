"""Settings that were chosen and have no effect are named."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import onward as ow
from onward.cli.main import main
from onward.runs import idle
from onward.runs.sharding import SHARED, split
from onward.values import kinds


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """What the command says when it trains with some settings."""
    monkeypatch.chdir(tmp_path)

    def said(recipe, *assignments):
        arguments = ["--epochs", "1", "--widths", "8,8", "--out", "run", "--overwrite"]
        settings = [word for assignment in assignments for word in ("--set", assignment)]
        with pytest.raises(SystemExit) as ended:
            main(["train", recipe, *arguments, *settings])
        assert ended.value.code == 0
        return [
            line.removeprefix("onward: warning: ")
            for line in capsys.readouterr().err.splitlines()
            if "has no effect" in line
        ]

    return said


@pytest.mark.parametrize(
    ("recipe", "assignment", "reason"),
    [
        ("one-pass", "optimizer.momentum=0.5", "adam has none"),
        ("pff", "optimizer.head_lr=0.5", "the network has no softmax head"),
        ("one-pass", "optimizer.head_weight_decay=0.5", "the network has no softmax head"),
        ("one-pass", "network.threshold=2.0", "it is for the objective threshold"),
        ("one-pass", "network.slope=2.0", "it is for the objective threshold"),
        ("one-pass", "network.peer=0.1", "it is for the objective threshold"),
        ("one-pass", "network.label_strength=2.0", "no label is written into the input"),
        ("pff", "network.heads=last", "it is for the readout heads, and the readout is goodness"),
        ("one-pass", "plan.hint_age=2", "negatives are drawn without hints"),
        ("one-pass", "plan.shard_by=class", "there is one shard (plan.shards)"),
        ("one-pass", "plan.shard_alpha=2.0", "shards are not drawn (plan.shard_by)"),
        ("one-pass", "plan.cut=units", "mini-batches are not cut (plan.slices)"),
        ("one-pass", "placement.iface=lo", "there is one rank"),
        ("one-pass", "placement.restarts=5", "there is one rank"),
    ],
)
def test_a_setting_without_effect_is_named_with_its_value_and_the_reason(
    said, recipe, assignment, reason
):
    name, _, value = assignment.partition("=")

    (text,) = said(recipe, assignment)

    assert text.startswith(f"{name} = {value} has no effect: {reason}")


@pytest.mark.parametrize(("chapters", "is_random"), [(2, True), (3, False)])
def test_negatives_that_never_get_their_hints_are_told_where_the_recipe_has_chosen_them(
    chapters, is_random
):
    # Two blocks: hints are two chapters old.
    config = ow.RunConfig(recipe="pff").with_settings(
        {"network.widths": (8, 8), "training.epochs": chapters}
    )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ow.run(config)

    told = [str(each.message) for each in caught if "without scores" in str(each.message)]
    assert len(told) == is_random
    if is_random:
        assert "come after 2 chapters (plan.hint_age), and there are 2" in told[0]
        assert told[0].endswith("or lower plan.hint_age.")


def test_a_stream_holds_no_activities_of_a_chapter(said):
    (text,) = said("one-pass", "plan.kind=stream", "placement.memory=2.5")

    assert text == "placement.memory = 2.5 has no effect: a stream holds no samples of a chapter."


def test_without_shifts_nothing_is_filled(said):
    (text,) = said("one-pass", "data.shift_fill=reflect")

    assert text == "data.shift_fill = reflect has no effect: nothing is shifted (data.shift)."


def test_without_validation_samples_there_is_nothing_to_validate_often(said):
    (text,) = said("one-pass", "data.validation=0", "plan.validate_every=1")

    assert text == "plan.validate_every = 1 has no effect: there are no validation samples."


@pytest.mark.parametrize("recipe", ["one-pass", "hinton", "pff", "backprop"])
def test_settings_of_recipes_and_those_that_count_are_not_named(said, recipe):
    assert said(recipe, "training.seed=3", "optimizer.lr=0.002", "data.validation=0.2") == []


@pytest.mark.parametrize(("own", "is_idle"), [("cosine", True), (None, False)])
def test_a_schedule_that_no_block_follows_is_named_in_python(own, is_idle):
    draw = np.random.default_rng(0)
    dataset = ow.dataset(draw.normal(size=(40, 3)), np.arange(40) % 2)
    network = ow.mlp((3,), num_classes=2, widths=(8,))
    network.blocks[0].schedule = own
    training = ow.TrainingConfig(epochs=1, batch_size=10, schedule="warmup")

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ow.train(network, dataset, training=training)

    texts = [str(each.message) for each in warned]
    text = "training.schedule = warmup has no effect: all blocks have schedules of their own."
    assert (text in texts) is is_idle


def test_every_name_that_may_be_idle_is_a_setting():
    config = ow.RunConfig()
    text = Path(idle.__file__).read_text()
    names = set(
        re.findall(r'"((?:data|network|optimizer|training|plan|placement)\.[a-z_]+)"', text)
    )

    assert names
    for full in names:
        section, _, name = full.partition(".")
        assert name in kinds(type(getattr(config, section)))


@pytest.mark.parametrize(("name", "value"), [("test", 0.3), ("validation", 0.3)])
def test_a_share_that_is_not_taken_is_named_where_data_have_such_samples(said, name, value):
    x, y = np.random.default_rng(0).normal(size=(200, 3)), np.arange(200) % 2
    np.savez("own.npz", x=x, y=y, x_val=x, y_val=y, x_test=x, y_test=y)

    assert said("one-pass", "data.name=own.npz") == []
    assert said("one-pass", "data.name=own.npz", f"data.{name}={value}") == [
        f"data.{name} = {value} has no effect: own.npz has {name} samples of its own."
    ]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("name", "mnist", "the data set was handed over, samples"),
        ("test", 0.3, "the data set was handed over, samples"),
        ("links", True, "the data set was handed over, samples"),
        ("validation", 0.3, "samples has validation samples of its own"),
    ],
)
def test_what_says_how_data_are_read_is_named_where_they_are_handed_over(name, value, reason):
    x, y = np.random.default_rng(0).normal(size=(200, 3)), np.arange(200) % 2
    samples = ow.dataset(x, y, x_test=x, y_test=y, x_val=x, y_val=y, name="samples")
    usual = ow.RunConfig().with_settings({"network.widths": (8,), "training.epochs": 1})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no effect.*")
        ow.run(usual, dataset=samples)

    with pytest.warns(ow.OnwardWarning) as found:
        ow.run(usual.with_settings({f"data.{name}": value}), dataset=samples)

    texts = [str(each.message) for each in found if "has no effect" in str(each.message)]
    assert texts == [f"data.{name} = {value} has no effect: {reason}."]


def graph_without_validation():
    order = np.arange(40)
    ring = np.stack([order, np.roll(order, 1)])
    x, y = np.random.default_rng(0).normal(size=(40, 3)), order % 2
    parts = {"train": order[:20], "test": order[20:]}
    return ow.graph(x, ring, y, **parts, undirected=True, name="ring")


def samples_with_validation():
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    return ow.dataset(x, y, x_val=x + 1, y_val=y, name="pairs")


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (samples_with_validation, "pairs has validation samples of its own."),
        (graph_without_validation, "nothing is held out of a graph. Give its validation set"),
    ],
)
def test_a_validation_size_is_named_where_nothing_is_held_out(dataset, reason, monkeypatch):
    config = ow.RunConfig(recipe="custom").with_settings({"data.validation": 0.5})

    with pytest.warns(ow.OnwardWarning, match=f"data.validation = 0.5 has no effect: {reason}"):
        split(config, dataset())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split(ow.RunConfig(recipe="custom"), dataset())
        # The command has said it, and has started this process.
        monkeypatch.setenv(SHARED, "data.safetensors")
        split(config, dataset())
