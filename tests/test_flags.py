"""Flags of the command, `--set` and run files: which settings they stand for, and their names."""

from pathlib import Path

import numpy as np
import pytest
from commands import config_of, onward

import onward as ow
from onward.cli import doctor
from onward.cli.flags import FLAGS, read_config
from onward.cli.parser import parse
from onward.config import RunConfig
from onward.errors import DataError, SettingError
from onward.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

# Settings

VALUES = {
    "--data": ("data.name", "mnist", "mnist"),
    "--data-dir": ("data.dir", "/data", "/data"),
    "--label": ("data.label", "species", "species"),
    "--init": ("training.init", "runs/first", "runs/first"),
    "--validation": ("data.validation", "0.25", 0.25),
    "--shift": ("data.shift", "2", 2),
    "--widths": ("network.widths", "32,16", (32, 16)),
    "--heads": ("network.heads", "last", "last"),
    "--negatives": ("network.negatives", "random", "random"),
    "--readout": ("network.readout", "softmax", "softmax"),
    "--dropout": ("network.dropout", "0.5", 0.5),
    "--lr": ("optimizer.lr", "0.25", 0.25),
    "--epochs": ("training.epochs", "12", 12),
    "--batch-size": ("training.batch_size", "64", 64),
    "--seed": ("training.seed", "7", 7),
    "--device": ("training.device", "auto", "auto"),
    "--precision": ("training.precision", "fp32", "fp32"),
    "--threads": ("training.threads", "2", 2),
    "--plan": ("plan.kind", "stream", "stream"),
    "--chapters": ("plan.chapters", "6", 6),
    "--hint-age": ("plan.hint_age", "never", "never"),
    "--shards": ("plan.shards", "4", 4),
    "--shard-by": ("plan.shard_by", "class", "class"),
    "--validate-every": ("plan.validate_every", "3", 3),
    "--patience": ("plan.patience", "3", 3),
    "--keep-best": ("plan.keep_best", "", True),
    "--placement": ("placement.name", "single-layer", "single-layer"),
    "--processes": ("placement.processes", "4", 4),
    "--slices": ("plan.slices", "2", 2),
    "--cut": ("plan.cut", "units", "units"),
    "--replicas": ("placement.replicas", "2", 2),
    "--iface": ("placement.iface", "eth0", "eth0"),
    "--directory": ("placement.directory", "shared", "shared"),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_sets_its_setting_and_no_other(flag):
    setting, text, value = VALUES[flag]

    given = [flag, text] if text else [flag]
    assert config_of(*given) == RunConfig(recipe="one-pass").with_settings({setting: value})


def test_help_shows_flags_in_groups_with_defaults_and_two_examples(capsys):
    assert onward("train", "--help") == 0

    text = capsys.readouterr().out
    titles = ("data:", "network:", "training:", "plan:", "machines:", "run:", "examples:")
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    assert text.index("--epochs EPOCHS", places[0]) > places[2]
    said = " ".join(text.split())
    assert "passes of each block over the samples (default: 10)" in said
    assert "learning rate of the blocks (default" not in said
    assert text[places[-1] :].count("  onward train ") == 2


def test_set_reaches_any_setting():
    config = config_of("--set", "optimizer.lr=0.5", "--set", "network.skip_first = false")

    assert (config.optimizer.lr, config.network.skip_first) == (0.5, False)


def test_set_goes_before_a_flag_and_a_flag_before_the_recipe():
    config = config_of("pff", "--epochs", "5", "--seed", "1", "--set", "training.seed=2")

    assert (config.training.epochs, config.training.seed) == (5, 2)
    assert config.network.negatives == "adaptive"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_what_its_name_stands_for(recipe):
    assert config_of(recipe) == RunConfig(recipe=recipe)


def test_without_a_recipe_the_first_one_is_trained():
    assert config_of() == RunConfig(recipe="one-pass")


def images(folder, shape):
    np.savez(folder / "images.npz", x=np.zeros((4, *shape), np.uint8), y=[0, 1, 0, 1])
    return str(folder / "images.npz")


@pytest.mark.parametrize(
    ("shape", "recipe"),
    [((3, 4, 4), "conv"), ((1, 4, 4), "one-pass"), ((4, 4, 3), "one-pass"), ((3,), "one-pass")],
)
def test_without_a_recipe_convolutions_are_trained_on_images_of_several_channels(
    tmp_path, shape, recipe
):
    data = images(tmp_path, shape)

    assert config_of("--data", data).recipe == recipe
    assert config_of("one-pass", "--data", data).recipe == "one-pass"
    assert ow.RunConfig(data=ow.DataConfig(name=data)).recipe == recipe


@pytest.mark.parametrize("name", ["missing.npz", "damaged.npz"])
def test_a_file_that_cannot_be_read_is_left_for_loading_to_refuse(tmp_path, name):
    (tmp_path / "damaged.npz").write_bytes(b"PK")

    assert config_of("--data", str(tmp_path / name)).recipe == "one-pass"


def test_a_setting_of_dense_blocks_asks_for_a_recipe_by_name(tmp_path):
    data = images(tmp_path, (3, 4, 4))

    with pytest.raises(
        SettingError, match=r"network.widths is no setting of conv.*: one-pass, mono"
    ):
        config_of("--data", data, "--widths", "5,5")
    with pytest.raises(SettingError, match=r"channels is no setting of one-pass.* digits.*: conv,"):
        config_of("--data", "digits", "--set", "network.channels=4")


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 8)])
def test_a_setting_of_convolutions_asks_for_a_recipe_by_the_shape_of_the_samples(tmp_path, shape):
    data = images(tmp_path, shape)

    with pytest.raises(SettingError) as error:
        config_of("--data", data, "--set", "network.channels=4")

    assert f"for {data} (samples of shape {shape}). Name a recipe that has it" in str(error.value)
    assert "such as: onward train conv." in str(error.value)


def test_channels_that_come_last_are_told_before_the_recipe(tmp_path):
    data = images(tmp_path, (8, 8, 3))

    with pytest.raises(DataError, match="looks like height x width x channels"):
        config_of("--data", data, "--set", "network.channels=4")


def test_a_setting_that_no_recipe_has_is_guessed_where_no_recipe_is_named():
    with pytest.raises(SettingError, match=r"network.width\. Did you mean network.widths\?"):
        config_of("--data", "digits", "--set", "network.width=4")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_learning_rate(recipe):
    assert config_of(recipe, "--lr", "0.1").optimizer.lr == 0.1


def test_a_setting_of_another_section_is_guessed_by_its_name():
    Path("run.toml").write_text('recipe = "conv"\n[network]\nlr = 0.02\n')

    with pytest.raises(SettingError, match=r"network\.lr\. Did you mean optimizer\.lr\?"):
        config_of("run.toml")


@pytest.mark.parametrize(
    ("recipe", "old", "new"),
    [("backprop", "one_block=true", "layers_per_block"), ("vit", "heads=2", "attention_heads")],
)
def test_an_old_name_of_a_setting_of_the_network_is_refused_with_its_name_of_now(recipe, old, new):
    with pytest.raises(SettingError, match=rf"Did you mean network\.{new}\?"):
        config_of(recipe, "--set", f"network.{old}")


def test_a_run_file_changes_the_recipe_that_it_names():
    Path("run.toml").write_text('recipe = "hinton"\n[training]\nepochs = 3\n')

    expected = RunConfig(recipe="hinton").with_settings({"training.epochs": 3, "training.seed": 5})
    assert config_of("run.toml", "--seed", "5") == expected


def test_a_run_file_that_names_no_recipe_changes_the_first_one():
    Path("run.toml").write_text("[training]\nepochs = 3\n")

    expected = RunConfig(recipe="one-pass").with_settings({"training.epochs": 3})
    assert config_of("run.toml") == expected


def test_the_defaults_of_the_command_are_those_of_the_settings():
    assert RunConfig().recipe == read_config(parse(["train"])).recipe


# Names of flags and settings


def test_processes_have_a_short_flag():
    assert config_of("-n", "4") == config_of("--processes", "4")


def test_a_flag_that_was_renamed_is_read_by_its_old_name_with_a_note(capsys):
    assert config_of("--nodes", "4") == config_of("--processes", "4")

    assert capsys.readouterr().err == "onward: note: --nodes is now called --processes.\n"


@pytest.mark.parametrize(
    "arguments", [["run.toml"], ["--set", "placement.nodes=4"]], ids=["run file", "--set"]
)
def test_a_setting_that_was_renamed_is_read_by_its_old_name_with_a_note(arguments, capsys):
    Path("run.toml").write_text("[placement]\nnodes = 4\n")

    assert config_of(*arguments) == config_of("--processes", "4")

    said = "onward: note: placement.nodes is now called placement.processes.\n"
    assert capsys.readouterr().err == said


def test_set_goes_before_a_flag_and_a_flag_before_a_file_by_old_names_too():
    Path("run.toml").write_text("[placement]\nnodes = 2\n")

    assert config_of("run.toml", "-n", "3").placement.processes == 3
    old = config_of("run.toml", "-n", "3", "--set", "placement.nodes=4")
    assert old.placement.processes == 4


def test_names_of_now_need_no_note(capsys):
    config_of("-n", "4", "--set", "placement.processes=4")

    assert capsys.readouterr().err == ""


def test_of_several_ranks_one_notes_an_old_name(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")

    config_of("--nodes", "4", "--set", "placement.nodes=4")

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["train", "plan", "doctor"])
def test_old_flags_are_not_in_the_help(command, capsys):
    onward(command, "--help")

    shown = capsys.readouterr().out
    assert "--processes" in shown
    assert "--nodes" not in shown


def test_a_flag_that_is_misspelled_suggests_the_name_of_now(capsys):
    assert onward("plan", "--process", "2") == 2

    said = "onward: There is no flag --process. Did you mean --processes?\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("flag", "note"),
    [("--processes", ""), ("-n", ""), ("--nodes", "onward: note: --nodes is now called --proc")],
)
def test_doctor_starts_processes(flag, note, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(doctor, "launch", lambda num, command: started.append(num))

    assert onward("doctor", flag, "2") == 0

    assert started == [2]
    assert capsys.readouterr().err.startswith(note)
