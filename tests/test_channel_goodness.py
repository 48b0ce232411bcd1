"""Channels that compete for classes: their goodness, what is learned and what is refused."""

import pytest
import torch

import onward as ow
from onward.config import RunConfig
from onward.data import DataInfo
from onward.errors import SettingError
from onward.recipes.channel_goodness import ChannelGoodnessConfig, channel_goodness
from onward.recipes.goodness import ClassGoodness

IMAGES = DataInfo(input_shape=(1, 8, 8), num_classes=3, is_image=True)


def built(data=IMAGES, **settings):
    small = {"channels": (6, 9), "pooled": (1,)}
    return channel_goodness(ChannelGoodnessConfig(**(small | settings)), data)


@pytest.mark.parametrize("size", [(5, 4), (7,)])
@pytest.mark.parametrize("goodness", ["square", "mean"])
def test_the_loss_and_the_scores_are_those_of_the_formula_written_out(goodness, size):
    maps = torch.randn(4, 6, *size, generator=torch.Generator().manual_seed(0))
    labels, samples = torch.tensor([0, 1, 1, 2]), range(4)
    objective = ow.CrossEntropy(ClassGoodness(3, goodness, slope=4.0))
    outputs = {"input": ow.Batch(maps, {"label": labels})}

    loss = objective.loss(outputs, outputs, torch.Generator())
    scores = objective.scores(outputs["input"])

    power = 2 if goodness == "square" else 1
    each = [[(sample[2 * c : 2 * c + 2] ** power).mean() for c in range(3)] for sample in maps]
    logs = (4 * torch.tensor(each)).log_softmax(dim=1)
    torch.testing.assert_close(scores, logs)
    torch.testing.assert_close(loss, -sum(logs[i, labels[i]] for i in samples) / 4)


@pytest.mark.parametrize(
    ("settings", "slope"),
    [({}, 3.0), ({"goodness": "mean"}, 10.0), ({"goodness": "mean", "slope": 2.0}, 2.0)],
)
def test_the_slope_is_usual_for_its_goodness_or_given(settings, slope):
    for block in built(**settings).all_blocks:
        assert block.objective.head.slope == slope


def test_objectives_have_no_weights_of_their_own():
    for block in built().all_blocks:
        assert not list(block.objective.parameters())


def test_channels_that_cannot_be_divided_are_refused_with_those_that_can():
    with pytest.raises(SettingError) as error:
        built(DataInfo(input_shape=(1, 8, 8), num_classes=7), channels=(14, 16, 50))

    assert "16 channels cannot be divided among 7 classes" in str(error.value)
    assert "--set network.channels=14,21,56" in str(error.value)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6, 10])
def test_usual_channels_fit_usual_numbers_of_classes(classes):
    network = channel_goodness(
        ChannelGoodnessConfig(), DataInfo(input_shape=(3, 32, 32), num_classes=classes)
    )

    assert len(network.all_blocks) == 6


@pytest.mark.parametrize("shape", [(3, 9, 9), (2, 21)])
def test_samples_may_be_images_or_signals(shape):
    network = built(DataInfo(input_shape=shape, num_classes=3))

    assert network(torch.randn(5, *shape)).shape == (5, 3)


def test_one_block_learns_with_a_classifier_and_any_channels():
    network = built(layers_per_block="all", channels=(5, 8))

    (block,) = network.all_blocks
    assert "objective.head.2.weight" in dict(block.named_parameters())
    idle = ChannelGoodnessConfig(layers_per_block="all").without_effect()
    assert {"goodness", "slope", "heads"} <= idle.keys()


@pytest.mark.parametrize("goodness", ["square", "mean"])
@pytest.mark.usefixtures("unchecked")
def test_digits_are_learned(goodness):
    config = RunConfig(recipe="channel-goodness").with_settings(
        {
            "network.channels": (20, 30),
            "network.pooled": (1, 2),
            "network.goodness": goodness,
            "training.epochs": 4,
            "training.batch_size": 50,
        }
    )

    result = ow.run(config)

    losses = [p.figures["loss"] for p in result.progress if p.block == 1]
    assert losses[-1] < 0.7 * losses[0]
    assert result.accuracy > 0.9
