"""What is compared: recipes with settings, run files, and twins."""

from pathlib import Path

import pytest
from own_recipe import SOURCE

from onward.comparison.entries import read_entries, twin_of
from onward.errors import SettingError
from onward.recipes.user import load_recipe


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
    assert config.network.is_backpropagation


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


@pytest.mark.parametrize(
    "given",
    [
        "byte-lm:network.layers_per_block=4",
        "conv:network.layers_per_block=6",
        "mono-forward:network.layers_per_block=all",
    ],
)
def test_settings_that_are_backpropagation_need_no_twin(given):
    (entry,) = read_entries([given], {})

    assert entry.is_twin


def test_settings_that_are_no_backpropagation_have_a_twin():
    given = ["backprop:network.layers_per_block=1", "predsim:network.layers_per_block=6"]

    entries = read_entries(given, {})

    assert [each.is_twin for each in entries] == [False, False, True, True]


def test_recipes_with_other_layers_have_twins_of_their_own():
    entries = read_entries(["gff", "byte-lm"], {})

    assert [twin_of(each, entries)[0] for each in entries[:2]] == [
        "gff:network.layers_per_block=all",
        "byte-lm:network.layers_per_block=all",
    ]


def test_a_setting_of_all_makes_no_local_training_of_a_twin():
    _, twin = read_entries(["one-pass"], {"network.layers_per_block": 1})

    assert twin.config.network.is_backpropagation


SAYS_TWIN = SOURCE.replace('"a test", defaults', '"a test", twin={"network.lr": 1.0}, defaults')


@pytest.mark.usefixtures("own_recipe")
def test_a_recipe_of_ones_own_says_which_settings_make_its_twin():
    answer = "is_backpropagation = property(lambda self: self.lr == 1)"
    Path("mine.py").write_text(SAYS_TWIN.replace("lr: float = 0.01", f"lr: float = 0.01; {answer}"))

    entry, twin = read_entries(["mine.py:small"], {})

    assert (twin.name, twin.config.network.lr) == ("mine.py:small:network.lr=1.0", 1)
    assert twin_of(entry, [entry, twin])[0] == twin.name


@pytest.mark.usefixtures("own_recipe")
def test_a_twin_that_does_not_say_that_it_is_one_is_refused():
    Path("mine.py").write_text(SAYS_TWIN)

    with pytest.raises(SettingError, match="Give Settings a property is_backpropagation"):
        read_entries(["mine.py:small"], {})


BOTH = """
@dataclass(frozen=True, kw_only=True)
class Whole:
    units: tuple[int, ...] = (8,)
    is_backpropagation = property(lambda self: True)

@ow.recipe(source="a test")
def whole(settings: Whole, data: ow.DataInfo) -> ow.Network:
    "All layers together."
    return small(Settings(units=settings.units), data)

@ow.recipe(source="a test", twin=whole)
def local(settings: Settings, data: ow.DataInfo) -> ow.Network:
    "Layer by layer."
    return small(settings, data)
"""


@pytest.mark.usefixtures("own_recipe")
@pytest.mark.parametrize("more", [[], ["mine.py:whole"]])
def test_the_twin_of_a_recipe_of_ones_own_may_be_another_one(more):
    Path("mine.py").write_text(SOURCE + BOTH)

    entry, twin = found = read_entries(["mine.py:local", *more], {})

    assert (twin.name, twin.is_twin) == ("mine.py:whole", True)
    assert twin.config.recipe_sha256 == entry.config.recipe_sha256 is not None
    assert twin_of(entry, found)[0] == "mine.py:whole"


@pytest.mark.usefixtures("own_recipe")
@pytest.mark.parametrize("name", ["nonsense", "mine.py:whole"])
def test_a_twin_that_does_not_come_with_onward_is_refused_where_its_recipe_is_loaded(name):
    Path("mine.py").write_text(SOURCE + BOTH.replace("twin=whole", f"twin={name!r}"))

    with pytest.raises(SettingError, match=f"mine.py:local is to be {name}, .*twin=FUNCTION"):
        load_recipe("mine.py:local")


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
