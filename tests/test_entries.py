"""What is compared: recipes with settings, run files, and twins."""

import pytest

from onward.comparison.entries import read_entries, twin_of


def test_dense_blocks_have_backprop_for_a_twin_with_layers_and_data_like_theirs():
    common = {"data.shift": 1}
    given = ["pff:network.widths=8,8,8:training.epochs=7", "hinton"]

    *others, twin = read_entries(given, common)

    config = twin.config
    assert [each.name for each in others] == given
    assert (twin.name, twin.is_twin) == ("backprop", True)
    assert config.network.widths == (8, 8, 8)
    assert (config.training.epochs, config.training.batch_size) == (7, 64)
    assert config.data == others[0].config.data
    assert config.network.one_block


def test_convolutions_have_themselves_in_one_block_for_a_twin():
    given = ["conv:network.channels=4,4", "predsim", "one-pass"]

    entries = read_entries(given, {})

    dense, conv = entries[3:]
    assert [dense.name, conv.name] == ["backprop", "conv:network.layers_per_block=all"]
    assert conv.config.network.channels == (4, 4)
    assert conv.config.network.layers_per_block == "all"


def test_a_twin_that_is_named_is_not_added_again():
    entries = read_entries(["backprop", "one-pass"], {})

    assert [each.name for each in entries] == ["backprop", "one-pass"]


def test_settings_of_an_entry_count_more_than_those_of_all():
    common = {"network.negatives": "fixed", "training.epochs": 3}

    first, second = read_entries(["pff:network.negatives=random", "pff"], common, twin=False)

    assert first.config.network.negatives == "random"
    assert second.config.network.negatives == "fixed"
    assert first.config.training.epochs == second.config.training.epochs == 3


def test_a_run_file_is_a_recipe_with_its_settings(tmp_path):
    file = tmp_path / "wide.toml"
    file.write_text('recipe = "pff"\n[network]\nwidths = [24, 24]\n[training]\nepochs = 9\n')

    plain, changed = read_entries(
        [file, f"{file}:network.negatives=random"], {"training.batch_size": 20}, twin=False
    )

    assert [plain.name, changed.name] == ["wide.toml", "wide.toml:network.negatives=random"]
    assert plain.config.recipe == changed.config.recipe == "pff"
    assert plain.config.network.widths == changed.config.network.widths == (24, 24)
    assert (plain.config.training.epochs, plain.config.training.batch_size) == (9, 20)
    assert changed.config.network.negatives == "random"


@pytest.mark.usefixtures("own_recipe")
def test_a_recipe_that_chooses_its_optimizers_has_no_settings_of_them():
    given = ["mine.py:small", "one-pass"]

    own, dense = read_entries(given, {"optimizer.lr": 0.01}, twin=False)

    assert (own.without, dense.without) == (("optimizer.lr",), ())
    assert dense.config.optimizer.lr == 0.01


def test_a_twin_gets_as_many_updates_where_a_mini_batch_takes_several():
    given = ["forwardgnn-top-to-input:network.ticks=4:training.epochs=50"]

    entry, twin = read_entries(given, {})

    assert (entry.config.training.epochs, twin.config.training.epochs) == (50, 200)


def test_whether_a_twin_has_the_same_layers_is_told_by_what_has_an_effect():
    fields = "hinton-unsupervised:network.layers=local-fields"
    names = ["one-pass", fields, "hinton-unsupervised", "hinton-recurrent", "iffcl"]

    *entries, twin = read_entries(names, {"network.widths": (2000,) * 4})

    told = {entry.name: twin_of(entry, [*entries, twin]) for entry in entries}
    assert {name: is_alike for name, (_, is_alike) in told.items()} == {
        "one-pass": True,
        fields: False,
        "hinton-unsupervised": True,
        "hinton-recurrent": False,
        "iffcl": False,
    }
