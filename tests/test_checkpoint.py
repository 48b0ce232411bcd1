"""Models as files: there and back, what they hold, and never half-written."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import CLASSES, INPUTS, custom_network, draw, header_of, network_of
from safetensors.torch import load_file
from test_bad_models import rewrite
from torch import nn
from weight_jobs import convolutions

import onward as ow
from onward import checkpoint
from onward.checkpoint import FORMAT, PRECISIONS, load, save, shipped, weights_sha256
from onward.config import RunConfig
from onward.errors import FileError
from onward.network.objectives import CrossEntropy
from onward.network.optimizers import Adam
from onward.recipes.blueprint import Blueprint, build

DENSE = ("one-pass", "hinton", "pff", "backprop")
recipes = pytest.mark.parametrize("recipe", DENSE)


def assert_same_scores(network, other, x):
    expected, found = other.scores(x), network.scores(x)
    assert found.network.equal(expected.network)
    assert all(a.equal(b) for a, b in zip(found.blocks, expected.blocks, strict=True))


# There and back


@recipes
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("input_shape", [(INPUTS,), (1, 3, 3)], ids=["vectors", "images"])
def test_a_network_that_was_saved_and_loaded_gives_the_same_scores(
    path, recipe, precision, input_shape
):
    network, x = network_of(recipe, input_shape=input_shape), draw(9, *input_shape)
    network.set_precision(PRECISIONS[precision])

    save(network, path)
    loaded = load(path)

    assert_same_scores(loaded, network, x)
    assert weights_sha256(loaded) == weights_sha256(network)
    assert {block.precision for block in loaded.all_blocks} == {PRECISIONS[precision]}


def test_a_network_with_channels_last_gives_the_same_scores_once_it_is_loaded(path):
    network, x = convolutions(), draw(9, 1, 8, 8)
    network.set_memory_format(torch.channels_last)

    save(network, path)
    loaded = load(path, convolutions(1))

    assert_same_scores(loaded, network, x)
    assert loaded.memory_format is torch.channels_last
    assert [t.stride() for t in loaded.state_dict().values()] == [
        t.stride() for t in network.state_dict().values()
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"skip_first": False},
        {"label_strength": 3.0},
        {"readout": "softmax"},
        {"threshold": 2.0, "slope": 5.0},
    ],
)
def test_settings_that_scores_depend_on_come_back(path, settings):
    network = network_of("hinton", **settings)

    save(network, path)

    assert_same_scores(load(path), network, draw(9, INPUTS))


@pytest.mark.parametrize("heads", ["all", "last"])
def test_the_heads_that_vote_come_back(path, heads):
    network = network_of(heads=heads)

    save(network, path)

    assert_same_scores(load(path), network, draw(9, INPUTS))


@recipes
def test_a_trained_network_comes_back(path, recipe):
    network = network_of(recipe)
    x = draw(30, INPUTS)
    dataset = ow.dataset(x.numpy(), (torch.arange(30) % CLASSES).numpy())
    kind = RunConfig(recipe=recipe).plan.kind
    ow.train(
        network,
        dataset,
        training=ow.TrainingConfig(epochs=1, batch_size=8),
        plan=ow.PlanConfig(kind=kind),
    )

    save(network, path)

    assert_same_scores(load(path), network, x)


def test_a_custom_network_comes_back_with_its_running_statistics(path):
    network, other = custom_network(seed=0), custom_network(seed=1)

    save(network, path)
    loaded = load(path, other)

    assert loaded is other
    assert_same_scores(loaded, network, draw(9, INPUTS))
    assert other.all_blocks[0].module[1].num_batches_tracked == 5


def test_weights_can_be_loaded_into_a_network_of_the_same_settings(path, saved):
    other = network_of("hinton", seed=8)

    load(path, other)

    assert weights_sha256(other) == weights_sha256(saved)


def test_a_model_is_found_in_the_folder_of_its_run(tmp_path, saved):
    assert weights_sha256(load(tmp_path)) == weights_sha256(saved)


def test_a_run_that_is_not_finished_has_no_model_and_can_go_on(tmp_path):
    (tmp_path / "state").mkdir()

    with pytest.raises(
        FileError, match=f"The run is not finished.*onward train --resume {tmp_path}"
    ):
        load(tmp_path)


def test_the_path_of_a_model_may_be_text(path, saved):
    assert weights_sha256(load(str(path))) == weights_sha256(saved)


def test_saving_leaves_the_network_as_it_was(path):
    network = network_of("hinton")
    before = {name: t.clone() for name, t in network.state_dict().items()}

    save(network, path)

    assert all(t.equal(before[name]) for name, t in network.state_dict().items())


def test_the_same_network_makes_the_same_file(tmp_path, saved, path):
    save(saved, tmp_path / "again")

    assert (tmp_path / "again").read_bytes() == path.read_bytes()


# What a file holds


def test_a_file_holds_what_inference_needs_by_name(path, saved):
    assert load_file(path).keys() == shipped(saved).keys()
    assert sorted(shipped(saved)) == [
        "blocks.0.module.bias",
        "blocks.0.module.weight",
        "blocks.1.module.bias",
        "blocks.1.module.weight",
        "blocks.2.module.bias",
        "blocks.2.module.weight",
        "blocks.3.module.weight",
    ]


def test_the_header_says_threshold_slope_and_input_normalization_of_each_block(path):
    save(network_of("hinton", threshold=0.5), path)

    blocks = header_of(path)["blocks"]

    # Where none is set, the slope is the number of units.
    assert blocks[:3] == [
        {
            "objective": "Threshold",
            "input_normalization": "mean square 1",
            "threshold": 0.5,
            "slope": units,
        }
        for units in (8.0, 7.0, 6.0)
    ]
    assert blocks[3]["objective"] == "CrossEntropy"


@pytest.mark.parametrize(
    "recipe",
    [
        "one-pass",
        "pff",
        pytest.param(
            "backprop",
        ),
    ],
)
def test_every_block_of_dense_layers_says_how_its_input_is_normalized(path, recipe):
    save(network_of(recipe), path)

    said = [block.get("input_normalization") for block in header_of(path)["blocks"]]
    assert set(said) == {"mean square 1"}


def test_the_header_says_the_format_the_version_the_precision_and_the_digest(path, saved):
    header = header_of(path)

    assert header["format"] == FORMAT == 3
    assert header["version"]
    assert header["precision"] == "fp32"
    assert header["weights_sha256"] == weights_sha256(saved)


def test_the_header_holds_the_settings_of_the_network(path, saved):
    blueprint = header_of(path)["blueprint"]

    assert blueprint["settings"]["widths"] == [8, 7, 6]
    assert blueprint["settings"]["negatives"] == "hard"
    data = blueprint["data"]
    assert (data["input_shape"], data["num_classes"]) == ([INPUTS], CLASSES)
    assert (blueprint["recipe"], blueprint["recipe_sha256"]) == ("hinton", None)


def test_a_file_that_holds_how_it_was_trained_is_read(tmp_path):
    path, config = tmp_path / "model.safetensors", ow.RunConfig(recipe="vit")
    data = ow.DataInfo(input_shape=(1, 8, 8), num_classes=2, is_image=True)
    settings = replace(config.network, layers=2, dim=8, attention_heads=2)
    network = build(Blueprint(ow.RECIPES["vit"], settings, data))
    save(network, path)
    found = header_of(path)["blueprint"]
    old = {"lr": 0.1, "heads": found["settings"].pop("attention_heads")}
    rewrite(path, blueprint=found | {"settings": found["settings"] | old})

    loaded = load(path)

    assert loaded.blueprint.settings == settings
    assert weights_sha256(loaded) == weights_sha256(network)


@pytest.mark.parametrize(
    ("recipe", "shape", "old"),
    [
        ("backprop", (5,), {"one_block": True}),
        ("one-pass", (5,), {"one_block": False}),
        ("gff", (3, 5), {"layers_per_block": "one"}),
    ],
)
def test_a_file_with_old_names_of_settings_is_read(path, recipe, shape, old):
    network = network_of(recipe, widths=(4, 3), input_shape=shape)
    save(network, path)
    found = header_of(path)["blueprint"]
    del found["settings"]["layers_per_block"]
    rewrite(path, blueprint=found | {"settings": found["settings"] | old})

    loaded = load(path)

    assert loaded.blueprint == network.blueprint
    assert weights_sha256(loaded) == weights_sha256(network)


def test_a_file_of_version_0_1_is_read(tmp_path):
    path, saved = tmp_path / "model.safetensors", network_of("hinton")
    save(saved, path)
    found = header_of(path)["blueprint"]
    rewrite(path, format=1, blueprint={"config": found["settings"], **found["data"]})

    network = load(path)

    assert weights_sha256(network) == weights_sha256(saved)
    assert network.blueprint.recipe.name == "dense"


# The digest


def test_every_byte_of_every_weight_counts():
    network = network_of("hinton", widths=(2, 2))
    digests = {weights_sha256(network)}
    flips = 0
    for tensor in shipped(network).values():
        array = tensor.numpy().reshape(-1).view(np.uint8)
        for byte in range(0, len(array), 3):
            array[byte] ^= 1
            digests.add(weights_sha256(network))
            array[byte] ^= 1
            flips += 1

    assert len(digests) == 1 + flips


class Holding(nn.Module):
    """Holds one array under a name."""

    def __init__(self, name, array):
        super().__init__()
        self.register_buffer(name, array)


def digest_of(name, array):
    block = ow.Block(Holding(name, array), CrossEntropy(nn.Identity()), Adam())
    return weights_sha256(ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=2))


def test_name_shape_and_type_count_even_where_the_bytes_are_the_same():
    digests = {
        digest_of("a", torch.zeros(2, 6)),
        digest_of("b", torch.zeros(2, 6)),
        digest_of("a", torch.zeros(3, 4)),
        digest_of("a", torch.zeros(12)),
        digest_of("a", torch.zeros(2, 6, dtype=torch.int32)),
        digest_of("a", torch.zeros(2, 3, dtype=torch.float64)),
    }

    assert len(digests) == 6


def test_arrays_of_every_type_have_a_digest():
    for dtype in (torch.bool, torch.int64, torch.bfloat16, torch.float16, torch.float64):
        assert len(digest_of("a", torch.zeros((), dtype=dtype))) == 64


def test_an_array_has_one_digest_however_it_lies_in_memory():
    array = draw(3, 4)

    assert digest_of("a", array.T.contiguous()) == digest_of("a", array.T)


def test_the_number_of_a_block_counts():
    first, second = (custom_network(seed).all_blocks[0] for seed in (0, 1))
    digests = {
        weights_sha256(ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES))
        for blocks in ([first, second], [second, first])
    }

    assert len(digests) == 2


def test_what_is_for_training_only_does_not_count():
    network = network_of("hinton")
    before = weights_sha256(network)

    network.line[0].objective.peer_mean.fill_(9.0)
    network.line[0].optimizer_state["module.weight"]["momentum"].fill_(9.0)

    assert weights_sha256(network) == before


# Nothing half-written


def assert_not_saved(network, path, folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileError, match="The model cannot be written to"):
        save(network, path)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_does_not_exist_is_not_made(tmp_path):
    assert_not_saved(network_of(), tmp_path / "nowhere" / "model.safetensors", tmp_path)


def test_a_file_in_the_place_of_the_folder_is_said_to_be_in_the_way(tmp_path):
    (tmp_path / "taken").write_text("text")

    assert_not_saved(network_of(), tmp_path / "taken" / "model.safetensors", tmp_path)


def test_a_folder_in_the_place_of_the_file_stays(path, tmp_path):
    path.mkdir()

    assert_not_saved(network_of(), path, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_nothing_is_written_into_a_read_only_folder(path, tmp_path):
    tmp_path.chmod(0o500)

    assert_not_saved(network_of(), path, tmp_path)


def test_a_disk_that_fills_up_leaves_the_model_that_was_there(monkeypatch, path, saved, tmp_path):
    whole = path.read_bytes()

    def write_half(tensors, filename, metadata):
        Path(filename).write_bytes(whole[: len(whole) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", write_half)
    assert_not_saved(network_of(seed=8), path, tmp_path)

    assert path.read_bytes() == whole


def test_a_new_model_takes_the_place_of_the_old_and_leaves_nothing_beside_it(path, saved, tmp_path):
    network = network_of("one-pass", seed=8)

    save(network, path)

    assert weights_sha256(load(path)) == weights_sha256(network)
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_is_read_in_another_way_does_not_take_the_weights(path):
    def network(heads):
        with torch.random.fork_rng():
            block = ow.Block(nn.Linear(4, 4), ow.CrossEntropy(nn.Linear(4, 3)), ow.Adam())
        return ow.Network([block], ow.Plain(), ow.SumOfHeads(heads), num_classes=3)

    save(network("all"), path)

    with pytest.raises(
        FileError, match=r"read by SumOfHeads\(heads='all', ticks=None\), 1 ticks, and this"
    ):
        load(path, network("last"))


class Applied(nn.Module):
    """A layer whose text holds an address in memory."""

    def __init__(self):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), lambda x: x

    def forward(self, x):
        return self.function(self.linear(x))

    def extra_repr(self):
        return f"function={self.function}"


def network_with(activation, head=None):
    with torch.random.fork_rng():
        module = nn.Sequential(Applied(), activation)
        objective = ow.CrossEntropy(head or nn.Sequential(nn.Linear(4, 3)))
    block = ow.Block(module, objective, ow.Adam())
    return ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=3)


@pytest.mark.parametrize(
    ("changed", "now", "was"),
    [
        ({"activation": nn.Tanh()}, "(1): Tanh()", "(1): ReLU()"),
        ({"activation": nn.Sequential()}, "(1): Sequential()", "(1): ReLU()"),
        ({"head": nn.Sequential(nn.Linear(4, 3), nn.ReLU())}, "(1): ReLU()", "nothing"),
    ],
)
def test_a_network_of_other_modules_takes_the_weights_with_a_warning(path, changed, now, was):
    save(network_with(nn.ReLU()), path)

    with pytest.warns(ow.OnwardWarning) as told:
        load(path, network_with(**{"activation": nn.ReLU()} | changed))

    assert f"block 0 has {now}, and that of the file {was}. Its predictions" in str(told[0].message)


def test_a_network_that_drops_more_in_training_answers_alike(path):
    save(network_with(nn.Dropout(0.1)), path)

    load(path, network_with(nn.Dropout(0.5)))


@pytest.mark.parametrize("changes", [{}, {"modules": None}], ids=["same", "older"])
def test_a_network_of_the_same_modules_and_an_older_file_need_no_warning(path, changes):
    save(network_with(nn.ReLU()), path)
    rewrite(path, **changes)

    load(path, network_with(nn.ReLU() if not changes else nn.Tanh()))
