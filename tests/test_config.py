import re
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.config import RunConfig, read_run, read_settings
from onward.errors import FileError, SettingError
from onward.recipes import RECIPES
from onward.settings import TrainingConfig


def through_toml(config, folder):
    """Write a run to a file, read it, and return what was read."""
    file = folder / "run.toml"
    file.write_text(config.to_toml())
    return read_run(read_settings(file))


def setting(config, name):
    """Return a setting by its full name."""
    section, _, key = name.rpartition(".")
    return getattr(getattr(config, section) if section else config, key)


def changed(name, value):
    """Return a setting after it was set."""
    return setting(RunConfig().with_settings({name: value}), name)


# A run as a file


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_the_same_after_a_way_through_a_file(name, tmp_path):
    config = RunConfig(recipe=name)

    assert through_toml(config, tmp_path) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_of_a_recipe_has_the_settings_that_it_states(name):
    assert RECIPES[name].defaults
    for full, value in RECIPES[name].defaults.items():
        assert setting(RunConfig(recipe=name), full) == value


def test_a_section_that_is_given_counts_as_it_is_and_others_are_the_recipes():
    training = TrainingConfig(epochs=2)

    config = RunConfig(recipe="hinton", training=training)

    assert config.training == training
    assert (config.network.objective, config.plan.kind) == ("threshold", "stream")


@pytest.mark.parametrize(
    ("name", "says"), [("hintn", "Did you mean hinton"), ("a.py:b", "method=ow.load_recipe")]
)
def test_a_recipe_that_does_not_come_with_onward_is_refused_by_its_name(name, says):
    with pytest.raises(SettingError, match=says):
        RunConfig(recipe=name)


def test_a_run_does_not_become_one_of_another_recipe_by_a_setting():
    with pytest.raises(SettingError, match="of the recipe one-pass cannot be changed to hi"):
        RunConfig().with_settings({"recipe": "hinton"})


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "data.name": st.text(st.characters(codec="utf-8"), max_size=20),
            "data.validation": st.floats(0, 1) | st.integers(0, 500),
            "network.widths": st.lists(st.integers(1, 5000), min_size=1, max_size=4).map(tuple),
            "network.layers_per_block": st.sampled_from([1, "all"]),
            "network.negatives": st.sampled_from([None, "fixed", "hard"]),
            "network.slope": st.none() | st.floats(1e-9, 1e9),
            "optimizer.lr": st.floats(1e-12, 1e6),
            "training.seed": st.integers(-(2**62), 2**62),
            "plan.hint_age": st.none() | st.just("never") | st.integers(0, 100),
            "plan.chapters": st.none() | st.integers(1, 100),
            "placement.iface": st.none() | st.just("eth0"),
        },
    )
)
def test_any_run_is_the_same_after_a_way_through_a_file(tmp_path_factory, changes):
    config = RunConfig().with_settings(changes)

    assert through_toml(config, tmp_path_factory.getbasetemp()) == config


def test_a_file_may_leave_settings_out(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[training]\nepochs = 3\n")

    config = read_run(read_settings(file))

    assert config == RunConfig().with_settings({"training.epochs": 3})


def test_a_file_and_a_flag_say_none_where_a_setting_is_none(tmp_path):
    # The recipe has another slope, which a file without the setting would bring back.
    config = RunConfig(recipe="pff").with_settings({"network.slope": "none"})
    (tmp_path / "run.toml").write_text(config.to_toml())

    read = RunConfig(recipe="pff").with_settings(read_settings(tmp_path / "run.toml"))

    assert config.network.slope is None
    assert read == config


def test_a_missing_file_is_named(tmp_path):
    message = f"The run file {tmp_path / 'none.toml'} cannot be read: No such file or directory."

    with pytest.raises(FileError, match=re.escape(message)):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"epochs =", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(content, tmp_path):
    file = tmp_path / "run.toml"
    file.write_bytes(content)

    with pytest.raises(SettingError, match=re.escape(f"The run file {file} is not valid TOML: ")):
        read_settings(file)


# Names


def test_the_names_of_all_settings_are_those_of_the_fields():
    expected = ["recipe", "recipe_sha256"]
    for section in fields(RunConfig):
        value = getattr(RunConfig(), section.name)
        if is_dataclass(value) and section.name != "method":
            expected += [f"{section.name}.{inner.name}" for inner in fields(value)]

    assert RunConfig().setting_names() == expected


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("training.epoch", "training.epochs"),
        ("trainin.epochs", "training.epochs"),
        ("network.width", "network.widths"),
        ("plan.chapter", "plan.chapters"),
        ("plan.hints_age", "plan.hint_age"),
        ("placement.process", "placement.processes"),
        ("batch_size", "training.batch_size"),
    ],
)
def test_an_unknown_name_suggests_the_one_that_was_meant(name, meant):
    message = f"Unknown setting {name}. Did you mean {meant}?"

    with pytest.raises(SettingError, match=re.escape(message)):
        RunConfig().with_settings({name: 1})


def test_a_name_like_no_other_suggests_nothing():
    with pytest.raises(SettingError, match=r"^Unknown setting zzz\.$"):
        RunConfig().with_settings({"zzz": 1})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[trainings]\nepochs = 3\n", "trainings.epochs"),
        ("[training.more]\nepochs = 3\n", "training.more"),
        ("training = 3\n", "training"),
    ],
)
def test_an_unknown_section_of_a_file_is_named(text, name, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(text)

    with pytest.raises(SettingError, match=re.escape(f"Unknown setting {name}.")):
        read_run(read_settings(file))


# Values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        pytest.param("training.epochs", "5", 5, id="whole number"),
        pytest.param("optimizer.lr", "5", 5.0, id="number"),
        pytest.param("optimizer.lr", "1e-3", 0.001, id="number with an exponent"),
        pytest.param("data.name", "5", "5", id="text that looks like a number"),
        pytest.param("network.skip_first", "true", True, id="true"),
        pytest.param("network.skip_first", "False", False, id="false"),
        pytest.param("network.layers_per_block", "1", 1, id="one of a number and a word: number"),
        pytest.param("training.precision", "bf16", "bf16", id="one of several words"),
        pytest.param("network.widths", "500,400", (500, 400), id="whole numbers"),
        pytest.param("network.widths", "500", (500,), id="one whole number"),
        pytest.param("network.widths", "500, 400", (500, 400), id="whole numbers with a blank"),
        pytest.param("data.validation", "500", 500, id="a number of samples"),
        pytest.param("data.validation", "0.5", 0.5, id="a share"),
        pytest.param("plan.chapters", "4", 4, id="whole number or none"),
        pytest.param("plan.hint_age", "4", 4, id="whole number or a word: number"),
        pytest.param("plan.hint_age", "never", "never", id="whole number or a word: word"),
        pytest.param("network.slope", "20", 20.0, id="number or none"),
    ],
)
def test_text_from_a_command_line_is_read_as_the_type_of_the_setting(name, text, value):
    found = changed(name, text)

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.epochs", 5),
        ("optimizer.lr", 0.5),
        ("network.skip_first", True),
        ("network.widths", (1, 2)),
        ("data.validation", 5),
        ("data.validation", 0.5),
        ("plan.chapters", None),
        ("plan.hint_age", "never"),
        ("placement.name", None),
    ],
)
def test_a_value_of_the_right_type_is_taken_as_it_is(name, value):
    assert changed(name, value) == value


def test_a_whole_number_is_taken_for_a_number():
    found = changed("optimizer.lr", 1)

    assert (found, type(found)) == (1.0, float)


def test_a_list_as_in_a_file_is_taken_for_whole_numbers():
    assert changed("network.widths", [500, 400]) == (500, 400)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("training.epochs", "2.5", "training.epochs must be a whole number; got '2.5'."),
        ("training.epochs", 2.5, "training.epochs must be a whole number; got 2.5."),
        ("training.epochs", 5.0, "training.epochs must be a whole number; got 5.0."),
        ("training.epochs", True, "training.epochs must be a whole number; got True."),
        ("training.epochs", None, "training.epochs must be a whole number; got None."),
        ("training.epochs", [5], "training.epochs must be a whole number; got [5]."),
        ("optimizer.lr", "fast", "optimizer.lr must be a number; got 'fast'."),
        ("optimizer.lr", True, "optimizer.lr must be a number; got True."),
        ("data.name", 5, "data.name must be text; got 5."),
        ("network.skip_first", "yes", "network.skip_first must be true or false; got 'yes'."),
        ("network.skip_first", 1, "network.skip_first must be true or false; got 1."),
        (
            "network.layers_per_block",
            "2",
            "network.layers_per_block must be one of 1, all; got '2'.",
        ),
        ("network.layers_per_block", True, "layers_per_block must be one of 1, all; got True."),
        (
            "training.precision",
            "fp16",
            "training.precision must be one of auto, fp32, bf16; got 'fp16'.",
        ),
        ("network.heads", 1, "network.heads must be one of all, last; got 1."),
        (
            "network.negatives",
            "few",
            "network.negatives must be one of fixed, random, adaptive, hard, gradual, nearest, "
            "mixed; got 'few'.",
        ),
        (
            "network.widths",
            [],
            "network.widths must be whole numbers separated by commas (at least one); got [].",
        ),
        ("network.widths", "500,x", "network.widths must be a whole number; got 'x'."),
        ("network.widths", [500, 2.5], "network.widths must be a whole number; got 2.5."),
        (
            "network.widths",
            500,
            "network.widths must be whole numbers separated by commas; got 500.",
        ),
        (
            "plan.hint_age",
            "old",
            "plan.hint_age must be a whole number of 0 or more, or never; got 'old'.",
        ),
        (
            "plan.hint_age",
            1.5,
            "plan.hint_age must be a whole number of 0 or more, or never; got 1.5.",
        ),
        ("plan.chapters", True, "plan.chapters must be a whole number of 1 or more; got True."),
        (
            "data.validation",
            "all",
            "data.validation must be a number of 0 or more, or a whole number of 0 or more;",
        ),
        ("network.slope", "steep", "network.slope must be a number above 0; got 'steep'."),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        RunConfig().with_settings({name: value})


def test_a_changed_run_is_a_copy():
    first = RunConfig()

    second = first.with_settings({"training.epochs": 3, "plan.chapters": 3})

    assert first == RunConfig()
    assert (second.training.epochs, second.plan.chapters) == (3, 3)


def test_the_last_of_several_settings_counts():
    config = RunConfig().with_settings({"training.epochs": 3})

    assert config.with_settings({"training.epochs": 4}).training.epochs == 4


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("placement.keep_every", "placement.checkpoint_every"),
        ("placement.nodes", "placement.processes"),
    ],
)
def test_a_setting_that_was_renamed_is_read_by_its_old_name(old, name):
    # Run folders of earlier versions have it.
    assert setting(RunConfig().with_settings({old: 3}), name) == 3


@pytest.mark.parametrize("name", ["training.gpu", "device", "training.cuda"])
def test_what_a_gpu_is_called_elsewhere_leads_to_the_device(name):
    with pytest.raises(SettingError, match=r"Did you mean training\.device"):
        RunConfig().with_settings({name: "cuda"})


def test_an_old_value_is_still_read():
    assert RunConfig().with_settings({"plan.cut": "rows"}).plan.cut == "samples"
