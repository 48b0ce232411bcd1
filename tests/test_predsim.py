"""Prediction and similarity matching: its loss, what it trains and what it refuses."""

import pytest
import torch
from torch import nn

import onward as ow
from onward.config import RunConfig
from onward.data import DataInfo
from onward.recipes.predsim import PredSimConfig, predsim
from onward.recipes.similarity import PredictionAndSimilarity, cosines

SMALL = {"channels": (6, 8), "pooled": (1,)}
IMAGES = DataInfo(input_shape=(1, 8, 8), num_classes=3, is_image=True)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(data=IMAGES, **settings):
    return predsim(PredSimConfig(**(SMALL | settings)), data)


def alike(first, second):
    """Return the cosine of two lists of numbers, each less its mean."""
    first, second = (values - values.mean() for values in (first, second))
    return first @ second / (first.square().sum() * second.square().sum()).sqrt()


def loss_of(objective, maps, labels):
    outputs = {"input": ow.Batch(maps, {"label": labels})}
    return objective.loss(outputs, outputs, torch.Generator())


@pytest.mark.parametrize("size", [(5, 4), (7,), ()])
def test_the_loss_is_that_of_the_formula_written_out(size):
    maps, labels, samples = draw(4, 6, *size), torch.tensor([0, 1, 1, 2]), range(4)
    compared = nn.Linear(6, 6, bias=False)
    if size:
        compared = (nn.Conv1d, nn.Conv2d)[len(size) - 1](6, 6, 3, padding=1, bias=False)
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    objective = PredictionAndSimilarity(head, compared, similarity=0.7)

    loss = loss_of(objective, maps, labels)

    features = compared(maps)
    if size:
        features = [torch.stack([m.std() for m in sample]) for sample in features]
    classes = torch.eye(3)[labels]
    differences = [
        (alike(features[i], features[j]) - alike(classes[i], classes[j])) ** 2
        for i in samples
        for j in samples
    ]
    logs = head(maps).log_softmax(dim=1)
    prediction = -sum(logs[i, labels[i]] for i in samples) / 4
    torch.testing.assert_close(loss, 0.3 * prediction + 0.7 * sum(differences) / 16)


def test_classes_are_alike_or_as_far_apart_as_they_can_all_be():
    torch.testing.assert_close(
        cosines(torch.eye(4)[[0, 0, 1]])[0], torch.tensor([1.0, 1.0, -1 / 3])
    )


def test_maps_of_one_place_and_samples_that_are_all_alike_have_a_finite_gradient():
    maps = torch.ones(4, 6, 1, 1, requires_grad=True)
    head = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    objective = PredictionAndSimilarity(head, nn.Conv2d(6, 6, 1), similarity=0.9)

    loss_of(objective, maps, torch.tensor([0, 1, 1, 2])).backward()

    assert maps.grad.isfinite().all()


def test_what_compares_samples_is_for_the_training_alone():
    (block, *_) = built().all_blocks

    assert "objective.compared.weight" in dict(block.trained())
    assert [name for name in block.shipped() if name.startswith("objective.")] == [
        "objective.head.2.weight",
        "objective.head.2.bias",
    ]


@pytest.mark.parametrize("shape", [(3, 9, 9), (2, 21)])
def test_samples_may_be_images_or_signals(shape):
    network = built(DataInfo(input_shape=shape, num_classes=4))

    assert network(torch.randn(5, *shape)).shape == (5, 4)


def test_one_block_learns_from_prediction_alone():
    (block,) = built(layers_per_block="all").all_blocks

    assert type(block.objective) is ow.CrossEntropy
    assert "similarity" in PredSimConfig(layers_per_block="all").without_effect()
    assert "similarity" not in PredSimConfig(layers_per_block=2).without_effect()


@pytest.mark.usefixtures("unchecked")
def test_mini_batches_are_not_cut_into_slices():
    config = RunConfig(recipe="predsim").with_settings(
        {"plan.kind": "chapters", "plan.slices": 2, "network.channels": (4,), "network.pooled": ()}
    )

    with pytest.raises(ow.SettingError, match="compares samples with each other"):
        ow.run(config)


@pytest.mark.usefixtures("unchecked")
def test_digits_are_learned():
    config = RunConfig(recipe="predsim").with_settings(
        {"network.channels": (16, 24), "network.pooled": (1, 2), "training.epochs": 4}
    )

    result = ow.run(config.with_settings({"training.batch_size": 50}))

    losses = [p.figures["loss"] for p in result.progress if p.block == 1]
    assert losses[-1] < 0.7 * losses[0]
    assert result.accuracy > 0.9


@pytest.mark.parametrize(("layers_per_block", "widths"), [(1, [6, 8]), (2, [8]), ("all", [8])])
def test_layers_may_be_dense(layers_per_block, widths):
    network = built(layers="dense", layers_per_block=layers_per_block)

    assert [block.objective.head.in_features for block in network.all_blocks] == widths
    assert network(draw(5, 1, 8, 8)).shape == (5, 3)


def test_dense_layers_learn_digits():
    config = RunConfig(recipe="predsim").with_settings(
        {"network.layers": "dense", "network.channels": (100, 100), "training.epochs": 5}
    )

    result = ow.run(config)

    assert result.accuracy > 0.9
