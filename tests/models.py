"""Networks that are saved, and the headers of their files."""

import json

import torch
from safetensors import safe_open
from torch import nn

import onward as ow
from onward.config import RunConfig
from onward.network.objectives import CrossEntropy
from onward.network.optimizers import Adam
from onward.recipes.blueprint import Blueprint, build

INPUTS, CLASSES = 5, 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network_of(recipe="one-pass", *, widths=(8, 7, 6), seed=3, input_shape=(INPUTS,), **settings):
    """Make the network of a recipe, with no weight at zero."""
    config = RunConfig(recipe=recipe).with_settings(
        {"network.widths": widths} | {f"network.{n}": v for n, v in settings.items()}
    )
    data = ow.DataInfo(input_shape=input_shape, num_classes=CLASSES, is_image=len(input_shape) > 1)
    blueprint = Blueprint(config.method, config.network, data)
    network = build(blueprint, optimizer=config.optimizer, seed=seed)
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.add_(0.1 * draw(*parameter.shape, seed=number))
    return network


def custom_network(seed=0, units=4):
    """Make a network of no settings, with running statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(INPUTS, units), nn.BatchNorm1d(units), nn.ReLU())
        block = ow.Block(module, CrossEntropy(nn.Linear(units, CLASSES)), Adam())
        module[1].running_mean.normal_()
        module[1].num_batches_tracked.fill_(seed + 5)
    return ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["onward"])
