"""The recipe of convolutions: its layers, their grouping into blocks, and what it refuses."""

import numpy as np
import pytest
import torch
from samples import classes, draw
from torch import nn

import onward as ow
from onward.checkpoint import load, save
from onward.data import DataInfo
from onward.data.preprocessing import total_sums
from onward.errors import SettingError
from onward.recipes.conv import ConvConfig, conv
from onward.recipes.convolutions import GridAverage, Maps, averaged, pooled_head

IMAGES = DataInfo(input_shape=(3, 9, 9), num_classes=4, is_image=True)
SMALL = {"channels": (4, 6, 8), "pooled": (1, 3)}


def built(data=IMAGES, **settings):
    return conv(ConvConfig(**(SMALL | settings)), data)


@pytest.mark.parametrize("shape", [(3, 9, 9), (1, 8, 10), (2, 21), (1, 5, 6, 7)])
def test_samples_may_be_images_signals_or_volumes(shape):
    network = built(DataInfo(input_shape=shape, num_classes=4))

    scores = network(torch.randn(5, *shape))

    assert scores.shape == (5, 4)
    assert len(network.blocks) == 3


@pytest.mark.parametrize(
    ("layers", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (7, [3]), ("all", [3])]
)
def test_layers_are_grouped_into_blocks(layers, sizes):
    network = built(layers_per_block=layers)

    assert [len(block.module) for block in network.all_blocks] == sizes


def test_grouping_changes_neither_the_layers_nor_what_they_start_from():
    grouped = []
    for layers in (1, "all"):
        torch.manual_seed(0)
        network = built(layers_per_block=layers)
        grouped.append([layer for block in network.all_blocks for layer in block.module])

    assert [str(layer) for layer in grouped[0]] == [str(layer) for layer in grouped[1]]


def test_a_head_averages_over_a_grid_of_places_or_over_every_place():
    maps = torch.arange(2 * 6 * 6).float().view(1, 2, 6, 6)

    coarse, *_, linear = pooled_head(Maps(2, (6, 6)), 3, grid=2)
    fine, *_ = pooled_head(Maps(2, (6, 6)), 3, grid=9)

    assert coarse(maps)[0, 0].tolist() == [[7.0, 10.0], [25.0, 28.0]]
    assert fine(maps).equal(maps)
    assert linear.weight.shape == (3, 8)
    assert not linear.weight.any()


@pytest.mark.parametrize("shape", [(13,), (8, 7), (4, 5), (9, 6, 5)])
def test_averages_by_products_are_those_of_torch(shape):
    x = torch.rand(2, 3, *shape, dtype=torch.float64)
    size = (4, 3, 2)[: len(shape)]

    assert torch.allclose(averaged(x, size), GridAverage(size)(x))


@pytest.mark.parametrize("units", [0, 7])
def test_a_head_has_hidden_units_where_wished(units):
    *_, last = built(head_units=units).all_blocks[1].objective.head

    assert last.weight.shape == (4, units or 6 * 4 * 4)


def test_filters_are_updated_by_muon_and_keep_their_length():
    x, y = draw().normal(size=(20, 3, 9, 9)).astype("float32"), classes(20)
    network = built()

    ow.train(
        network,
        ow.dataset(x, y, x_test=x, y_test=y),
        training=ow.TrainingConfig(epochs=1, batch_size=20, precision="fp32"),
        validation=0,
    )

    for block in network.all_blocks:
        filters = block.module[0][0].weight.detach()
        assert float(filters.norm()) == pytest.approx(len(filters) ** 0.5)
        assert {n for n, rule in block.rules.items() if not isinstance(rule, ow.Adam)} == {
            "module.0.0.weight"
        }
    assert all(
        isinstance(r, ow.Adam) for b in built(muon=False).all_blocks for r in b.rules.values()
    )


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ((3, 9, 9), {"pooled": (1, 2, 3, 4)}, "names layer 4, and there are 3 layers"),
        ((3, 4, 9), {"pooled": (1, 3)}, "pooled in layer 3: nothing would be left. Pool fewer"),
        ((3, 4, 9), {"pooled": (1, 3)}, "such as --set network.pooled=1, or"),
        ((3, 2, 9), {"pooled": (1, 3)}, "such as --set network.pooled=0, or"),
        ((3, 1, 9), {}, "network.whitening=false"),
        ((64, 1), {}, "if these are (length, channels), give x.transpose(0, 2, 1)."),
        ((7,), {}, "x.reshape(len(x), 1, -1)"),
    ],
)
def test_what_convolutions_cannot_be_built_for_is_refused(shape, settings, said):
    with pytest.raises(SettingError) as error:
        built(DataInfo(input_shape=shape, num_classes=4), **settings)

    assert said in str(error.value)


def test_small_samples_are_pooled_as_often_as_something_is_left():
    network = ow.RECIPES["conv"](
        ow.RECIPES["conv"].settings(), DataInfo(input_shape=(1, 8, 8), num_classes=4)
    )

    pools = [any(isinstance(m, nn.MaxPool2d) for m in b.modules()) for b in network.blocks]
    assert pools == [True, False, True, False, False, False]


@pytest.mark.parametrize("kind", ["chapters", "stream"])
def test_a_last_mini_batch_of_one_is_refused_under_batch_normalization_or_left_out(kind):
    x, y = draw().normal(size=(41, 1, 8, 8)).astype("float32"), classes(41)
    data = DataInfo(input_shape=(1, 8, 8), num_classes=2)
    dataset = ow.dataset(x, y, x_test=x, y_test=y)

    def train(**settings):
        torch.manual_seed(0)
        network = conv(ConvConfig(channels=(8,), pooled=(1,)), data)
        training = ow.TrainingConfig(epochs=3, batch_size=10, precision="fp32", **settings)
        return ow.train(
            network, dataset, training=training, plan=ow.PlanConfig(kind=kind), validation=0
        )

    with pytest.raises(SettingError, match=r"batch_size to 11, or training.drop_last to true"):
        train()
    result = train(drop_last=True)
    # Of batch normalization, which counts the mini-batches.
    assert result.network.all_blocks[0].module[0][2].num_batches_tracked == 3 * 4


def test_layers_1_3_and_5_are_pooled_as_far_as_there_are_such():
    def sizes(*channels):
        found = conv(
            ConvConfig(channels=channels), DataInfo(input_shape=(3, 33, 33), num_classes=2)
        )
        maps, each = torch.zeros(1, 3, 33, 33), []
        maps = found.preprocessing(maps)
        for block in found.all_blocks:
            maps = block.module(maps)
            each.append(maps.shape[-1])
        return each

    assert sizes(4) == [16]
    assert sizes(4, 4, 4, 4, 4, 4) == [16, 16, 8, 8, 4, 4]


class Joined(nn.Sequential):
    """Reads several blocks as one."""

    def forward(self, x):
        return super().forward(torch.cat(list(x.values()), dim=1))


def test_a_last_mini_batch_of_one_is_refused_under_batch_normalization_in_a_head():
    x, y = draw().normal(size=(41, 6)).astype("float32"), classes(41)

    def layer(inputs):
        return ow.Block(nn.Linear(inputs, 6), ow.CrossEntropy(nn.Linear(6, 2)), ow.Adam())

    head = ow.Block(
        Joined(nn.Linear(12, 5), nn.BatchNorm1d(5)),
        ow.CrossEntropy(nn.Linear(5, 2), views=("neutral",)),
        ow.Adam(),
        reads=(0, 1),
    )
    network = ow.Network([layer(6), layer(6), head], ow.Plain(), ow.SoftmaxHead(), num_classes=2)

    with pytest.raises(SettingError, match=r"batch_size to 11, or training.drop_last to true"):
        ow.train(
            network,
            ow.dataset(x, y, x_test=x, y_test=y),
            training=ow.TrainingConfig(epochs=1, batch_size=10),
            validation=0,
        )


def correlated_images(samples=200):
    mixed = draw().normal(size=(samples, 2, 6, 6))
    mixed[:, 1] = mixed[:, 0] + 0.1 * mixed[:, 1]
    return torch.from_numpy(mixed)


def test_the_scale_of_samples_does_not_matter_to_whitening():
    x = correlated_images()
    whitened = []
    for scale in (1.0, 1e-3):
        whitening = ow.Whitening(2, 2)
        whitening.fit(total_sums(whitening, [scale * x]))
        whitened.append(whitening(scale * x.float()))

    torch.testing.assert_close(*whitened)


def test_samples_of_zeros_are_whitened_to_zeros():
    whitening = ow.Whitening(2, 2)
    whitening.fit(total_sums(whitening, [torch.zeros(5, 2, 4, 4)]))

    assert not whitening(torch.zeros(5, 2, 4, 4)).any()


def test_whitened_patches_are_uncorrelated_with_a_mean_square_of_1():
    x = correlated_images()
    whitening = ow.Whitening(2, 2, eps=0.0)
    whitening.fit(total_sums(whitening, x.split(64)))

    filters = whitening.filters.double()
    patches = nn.functional.unfold(x, 2, stride=2).movedim(1, 2).flatten(0, 1)
    seen = patches @ filters.flatten(1).T

    moments = seen.T @ seen / len(seen)
    torch.testing.assert_close(moments[:8, :8], torch.eye(8).double(), atol=1e-5, rtol=0)
    assert filters[8:].equal(-filters[:8])
    assert whitening(x.float()).shape == (200, 16, 5, 5)


def test_sums_over_signals_and_volumes_count_patches_that_do_not_overlap():
    for shape, patches in [((3, 7), 3), ((2, 4, 5, 6), 12)]:
        whitening = ow.Whitening(shape[0], len(shape) - 1)
        count, moments = whitening.sums(torch.ones(5, *shape).double())

        assert count.item() == 5 * patches
        assert moments[0, 0] == 5 * patches


def test_a_whitened_network_of_convolutions_learns_patterns():
    x, y = draw().normal(size=(300, 1, 8, 8)).astype("float32"), classes(300)
    x[y == 1, :, 2:5] += 1
    network = conv(
        ConvConfig(channels=(8, 8), pooled=(1,)), DataInfo(input_shape=(1, 8, 8), num_classes=2)
    )

    result = ow.train(
        network, ow.dataset(x, y), training=ow.TrainingConfig(epochs=4, batch_size=20)
    )

    assert result.accuracy > 0.9
    assert network.preprocessing.is_fitted


def test_a_trained_network_of_convolutions_is_saved_and_loaded(tmp_path):
    x, y = draw().normal(size=(60, 3, 9, 9)).astype("float32"), classes(60)
    settings = SMALL | {"layers_per_block": 2}
    config = ow.RunConfig(
        recipe="conv",
        data=ow.DataConfig(name=write(tmp_path, x, y)),
        network=ConvConfig(**settings),
    )
    result = ow.run(config.with_settings({"training.epochs": 1, "training.batch_size": 20}))
    save(result.network, tmp_path / "model.safetensors")

    loaded = load(tmp_path / "model.safetensors")

    assert loaded.scores(x).network.equal(result.network.scores(x).network)


def write(folder, x, y):
    np.savez(folder / "samples.npz", x=x, y=y)
    return str(folder / "samples.npz")
