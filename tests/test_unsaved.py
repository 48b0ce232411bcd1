"""Plain attributes of parts, which no model file holds: rebuilt alike, or told of."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from models import header_of
from test_bad_models import rewrite
from torch import nn

import onward as ow
from onward.checkpoint import load, save
from onward.network.unsaved import unsaved
from onward.recipes.blueprint import Blueprint, build


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """No settings."""


class Coded(ow.Plain):
    """Multiplies inputs by what was drawn for them."""

    def __init__(self, code):
        object.__setattr__(self, "code", code)

    def neutral(self, batch):
        return batch.replace(inputs=batch.tensor * self.code)


class Scored(ow.CrossEntropy):
    """Holds what a test gives it."""

    helpers = ("helper",)

    def __init__(self, head, **members):
        super().__init__(head)
        for name, member in members.items():
            setattr(self, name, member)


def network(code=None, **members):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = Scored(nn.Linear(4, 3), **members)
        block = ow.Block(nn.Linear(4, 4), objective, ow.Adam())
    sampler = ow.Plain() if code is None else Coded(code)
    return ow.Network([block], sampler, ow.SumOfHeads(), num_classes=3)


@ow.recipe(source="a test")
def coded(settings: Nothing, data: ow.DataInfo) -> ow.Network:
    """A block of which the samples are multiplied by what was drawn."""
    return network(torch.randn(4) + np.random.random())


def test_a_recipe_is_seeded_as_in_the_run_when_its_network_is_loaded(path):
    data = ow.DataInfo(input_shape=(4,), num_classes=3)
    trained, x = build(Blueprint(coded, Nothing(), data), seed=7), torch.randn(5, 4)
    save(trained, path)
    before = torch.get_rng_state()

    loaded = load(path, recipe=coded)

    assert loaded(x).equal(trained(x))
    assert torch.get_rng_state().equal(before)
    assert header_of(path)["blueprint"]["seed"] == 7


def linear(seed):
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, seed)
    return layer


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda seed: {"code": torch.full((4,), seed)}, "sampler.code"),
        (lambda seed: {"p": [torch.full((4,), seed)]}, "block 0: objective.p[0]"),
        (lambda seed: {"p": {"a": (np.full(4, seed),)}}, "block 0: objective.p.a[0]"),
        (lambda seed: {"p": [linear(seed)]}, "block 0: objective.p[0].weight"),
    ],
)
def test_other_plain_attributes_are_told_of(path, made, name):
    save(network(**made(1.0)), path)
    load(path, network(**made(1.0)))
    other = network(**made(2.0))

    with pytest.warns(ow.OnwardWarning) as told:
        load(path, other)

    (text,) = [str(each.message) for each in told if "register_buffer" in str(each.message)]
    assert f"{name} has other values" in text
    rewrite(path, unsaved={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, other)


@pytest.mark.parametrize(
    "made",
    [
        lambda seed: {"helper": torch.full((4,), seed)},
        lambda seed: {"cache": None if seed == 1 else torch.ones(3)},
        lambda seed: {"cache": torch.ones(3) if seed == 1 else None},
    ],
    ids=["helper", "emptied", "filled"],
)
def test_what_answers_do_not_need_and_caches_are_no_reason(path, made):
    save(network(**made(1)), path)

    load(path, network(**made(2)))


def test_what_hangs_elsewhere_and_is_saved_is_no_reason(path):
    def built():
        found = network()
        layer = found.line[0].module
        found.line[0].objective.other = [layer, layer.weight.detach()]
        torch.nn.utils.spectral_norm(layer)
        return found

    trained = built()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)
    trained(torch.ones(1, 4))
    save(trained, path)

    load(path, built())


def test_every_module_of_a_list_is_looked_at():
    layers = [nn.Linear(4, 4) for _ in range(20)]
    made = network(own=layers)

    assert len(unsaved(made, made.parameters())) == 40
