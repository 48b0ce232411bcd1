"""What a training step makes of an objective's losses: of several, of an extra gradient."""

from copy import deepcopy
from types import MappingProxyType

import pytest
import torch
from small_blocks import (
    INPUTS,
    RULES,
    UNITS,
    block_of,
    close,
    linear,
    objective_of,
    state_of,
    step_of,
    views_of,
)
from torch import nn

import onward as ow
from onward.engine.steps import AutogradStep
from onward.errors import SettingError
from onward.network.blocks import Block
from onward.network.objectives import Objective
from onward.network.optimizers import SGD

# Several losses


class Adversaries(Objective):
    """A decoder that rebuilds the inputs, and a judge that tells them from what it rebuilds."""

    views = ("input",)

    groups = MappingProxyType(
        {"judge": ("objective.judge",), "decoder": ("module", "objective.decoder")}
    )

    def __init__(self):
        super().__init__()
        self.decoder, self.judge = linear(UNITS, INPUTS, seed=1), linear(INPUTS, 1, seed=2)

    def losses(self, inputs, outputs):
        real = inputs["input"].inputs
        rebuilt = self.decoder(outputs["input"].inputs)
        told = self.judge(torch.cat([real, rebuilt]))
        wanted = torch.tensor([1.0, 0.0]).repeat_interleave(len(real))[:, None]
        loss = nn.functional.binary_cross_entropy_with_logits
        return {"judge": loss(told, wanted), "decoder": loss(told, 1 - wanted)}

    def loss(self, inputs, outputs, draw):
        return self.losses(inputs, outputs)

    def group(self, loss):
        return self.groups[loss]


def adversaries():
    module = nn.Sequential(linear(INPUTS, UNITS), nn.Tanh())
    return Block(module, Adversaries(), SGD(lr=0.1, momentum=0.0))


def test_of_several_losses_each_trains_its_own_parameters_and_no_others():
    block, views = adversaries(), views_of("cross-entropy", seed=0)
    reference = deepcopy(block)

    AutogradStep(block)(views, seed=0, lr_scale=1.0)

    view = views["input"]
    outputs = {"input": view.replace(inputs=reference.module(view.inputs))}
    losses = reference.objective.losses(views, outputs)
    parameters = dict(reference.named_parameters())
    for loss, prefixes in Adversaries.groups.items():
        own = {n: p for n, p in parameters.items() if n.startswith(prefixes)}
        found = torch.autograd.grad(losses[loss], list(own.values()), retain_graph=True)
        for (name, parameter), gradient in zip(own.items(), found, strict=True):
            assert gradient.abs().max() > 0
            close(block.get_parameter(name).detach(), parameter.detach() - 0.1 * gradient, 1e-6)


@pytest.mark.parametrize("trained", ["judge", "decoder"])
def test_what_a_loss_does_not_train_stays_where_the_other_is_left_out(trained):
    class One(Adversaries):
        def loss(self, inputs, outputs, draw):
            return {trained: self.losses(inputs, outputs)[trained]}

    block = Block(adversaries().module, One(), RULES["sgd"])
    before = state_of(block)

    AutogradStep(block)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)

    for name, tensor in block.state_dict().items():
        assert tensor.equal(before[name]) is not name.startswith(Adversaries.groups[trained])


def test_the_loss_that_is_reported_is_the_sum_of_several():
    block, views = adversaries(), views_of("cross-entropy", seed=0)
    losses = block.objective.losses(views, {"input": block.infer(views["input"])})

    _, report = AutogradStep(block)(views, seed=0, lr_scale=1.0)

    assert report.loss == pytest.approx(sum(loss.item() for loss in losses.values()))


def test_several_losses_in_slices_are_those_of_the_whole():
    whole, sliced = adversaries(), adversaries()
    views = views_of("cross-entropy", seed=0)

    _, expected = AutogradStep(whole)(views, seed=0, lr_scale=1.0)
    _, found = step_of(sliced, slices=3)(views, seed=0, lr_scale=1.0)

    close(state_of(sliced), state_of(whole), 1e-6)
    assert found.loss == pytest.approx(expected.loss)


def test_two_losses_that_train_the_same_parameter_are_refused():
    class Both(Adversaries):
        groups = MappingProxyType({"judge": ("objective.judge",), "decoder": ("objective",)})

    block = Block(adversaries().module, Both(), RULES["sgd"])

    with pytest.raises(ValueError, match=r"Several losses of Both train objective\.judge\.weight"):
        AutogradStep(block)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)


def test_an_objective_with_several_losses_must_say_what_each_trains():
    class Silent(Adversaries):
        group = Objective.group

    block = Block(adversaries().module, Silent(), RULES["sgd"])

    with pytest.raises(
        NotImplementedError, match=r"has several losses, judge among them.*`group\(loss\)`"
    ):
        AutogradStep(block)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)


# An extra gradient


class Halved(ow.Dense):
    """A dense layer whose outputs are half as large."""

    def forward(self, x):
        return self.pre_activations(x).relu() / 2


def test_a_layer_derived_from_dense_computes_its_own_way_with_an_extra_gradient_too():
    layer = Halved(INPUTS, UNITS, generator=torch.Generator().manual_seed(0))
    block = Block(layer, objective_of("threshold"), RULES["sgd"])
    views = views_of("threshold", seed=0)
    expected = block.infer(views["positive"])

    outputs, _ = AutogradStep(block)(views, seed=0, lr_scale=1.0)

    assert block.objective.has_extra_gradient
    close(outputs["positive"].inputs, expected.inputs, 1e-6)


def test_an_extra_gradient_reaches_silent_units_of_a_graph_as_of_other_samples():
    plain, on_graph = (block_of("threshold", RULES["sgd"]) for _ in range(2))
    for block in (plain, on_graph):
        with torch.no_grad():
            block.module.bias[2] = -100.0
    views = views_of("threshold", seed=0)
    graphs = {n: v.replace(structure={"edges": torch.zeros(2, 3)}) for n, v in views.items()}

    AutogradStep(plain)(views, seed=0, lr_scale=1.0)
    AutogradStep(on_graph)(graphs, seed=0, lr_scale=1.0)

    assert on_graph.module.bias[2] != -100.0
    close(state_of(on_graph), state_of(plain), 1e-6)


def test_a_loss_is_one_number(monkeypatch):
    block = block_of("cross-entropy", RULES["sgd"])
    monkeypatch.setattr(
        type(block.objective), "loss", lambda self, inputs, outputs, draw: torch.zeros(6)
    )

    with pytest.raises(
        SettingError, match=r"loss of CrossEntropy is a tensor of \(6,\); it must be"
    ):
        step_of(block, closed_form=False)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "none"),
        (("accuracy", "error"), "accuracy, error"),
        (("correct",), "correct"),
    ],
)
def test_metrics_have_the_names_that_the_objective_tells(monkeypatch, names, told):
    block = block_of("cross-entropy", RULES["sgd"])
    monkeypatch.setattr(block.objective, "metric_names", names)
    says = f"CrossEntropy.metrics returns accuracy, and its metric_names are {told}. Both must be"

    with pytest.raises(SettingError, match=says):
        step_of(block, closed_form=False)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)
