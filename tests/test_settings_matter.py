"""Every setting of the recipes of convolutions does something, or says that it does nothing."""

from typing import Literal, get_args, get_origin

import pytest
import torch
from samples import classes, draw

import onward as ow
from onward.data import DataInfo
from onward.recipes.catalog import RECIPES
from onward.values import kinds

RECIPES_OF_IMAGES = ("conv", "predsim", "channel-goodness", "ff-conv")
SMALL = {"channels": (4, 4), "pooled": (1,)}
DATA = DataInfo(input_shape=(1, 7, 7), num_classes=2, is_image=True)


def another(value, kind):
    """Return another value of a setting."""
    if get_origin(kind) is Literal:
        return next(word for word in get_args(kind) if word != value)
    if isinstance(value, bool):
        return not value
    if value is None or isinstance(value, float):
        return value / 2 if value else 0.5
    return 2 if value != 2 else 3


CASES = [
    pytest.param(recipe, name, id=f"{recipe} {name}")
    for recipe in RECIPES_OF_IMAGES
    for name in kinds(RECIPES[recipe].settings)
    if name not in SMALL and name not in RECIPES[recipe].settings().without_effect()
]


def trained(recipe, **settings):
    """Return the weights after two mini-batches, and scores."""
    x, y = draw().normal(size=(16, 1, 7, 7)).astype("float32"), classes(16)
    method = RECIPES[recipe]
    torch.manual_seed(0)
    network = method(method.settings(**SMALL | settings), DATA)
    ow.train(
        network,
        ow.dataset(x, y, x_test=x, y_test=y),
        training=ow.TrainingConfig(epochs=1, batch_size=8, precision="fp32"),
        validation=0,
    )
    return {**network.state_dict(), "scores": network(torch.from_numpy(x))}


@pytest.fixture(scope="module")
def usual():
    return {recipe: trained(recipe) for recipe in RECIPES_OF_IMAGES}


def is_same(some, other):
    tensors = {name: t for name, t in some.items() if isinstance(t, torch.Tensor)}
    return some.keys() == other.keys() and all(
        tensor.shape == other[name].shape and tensor.equal(other[name])
        for name, tensor in tensors.items()
    )


@pytest.mark.parametrize(("recipe", "name"), CASES)
def test_a_setting_changes_weights_or_scores(recipe, name, usual):
    settings = RECIPES[recipe].settings
    value = another(getattr(settings(), name), kinds(settings)[name])

    assert not is_same(trained(recipe, **{name: value}), usual[recipe]), value


def test_the_same_settings_change_nothing(usual):
    assert all(is_same(trained(recipe), usual[recipe]) for recipe in RECIPES_OF_IMAGES)
