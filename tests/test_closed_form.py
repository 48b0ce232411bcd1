"""The closed form of a step: it agrees with automatic differentiation, where it is used."""

from copy import deepcopy

import pytest
import torch
from small_blocks import (
    INPUTS,
    RULES,
    UNITS,
    block_of,
    close,
    dense,
    linear,
    objective_of,
    objectives,
    state_of,
    step_of,
    views_of,
)
from torch import nn

import onward as ow
from onward.engine.kernels import closed_form
from onward.engine.kernels.closed_form import ClosedFormStep, has_closed_form
from onward.engine.steps import AutogradStep
from onward.network.blocks import Block
from onward.network.objectives import CrossEntropy, Threshold
from onward.network.optimizers import SGD, Adam

# Closed form and autograd


@pytest.mark.parametrize("samples_a_slice", [None, 1, 3], ids=["whole", "samples", "uneven-slices"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.usefixtures("kept_generator")
@objectives
def test_the_closed_form_ends_where_autograd_ends(
    monkeypatch, name, dropout, rule, samples_a_slice
):
    if samples_a_slice:
        monkeypatch.setattr(closed_form, "SLICE_BYTES", samples_a_slice * INPUTS * 8)
    reference = block_of(name, RULES[rule], dtype=torch.float64, dropout=dropout)
    block = deepcopy(reference)
    step, autograd = step_of(block, closed_form=True), step_of(reference, closed_form=False)
    assert not samples_a_slice or step.slice == samples_a_slice

    for number in range(8):
        views = views_of(name, seed=number, dtype=torch.float64)
        outputs, report = step(views, seed=number, lr_scale=0.5)
        expected, expected_report = autograd(views, seed=number, lr_scale=0.5)

        assert outputs.keys() == expected.keys()
        for view, batch in expected.items():
            close(outputs[view].inputs, batch.inputs, 1e-12)
        close(report.sums, expected_report.sums, 1e-12)
        assert report.active.equal(expected_report.active)
    assert isinstance(step, ClosedFormStep)
    assert isinstance(autograd, AutogradStep)
    close(state_of(block), state_of(reference), 1e-12)


@pytest.mark.parametrize("rule", RULES)
@objectives
def test_in_fp32_the_two_differ_by_rounding(name, rule):
    reference = block_of(name, RULES[rule])
    block = deepcopy(reference)

    for number in range(8):
        views = views_of(name, seed=number)
        ClosedFormStep(block)(views, seed=number, lr_scale=1.0)
        AutogradStep(reference)(views, seed=number, lr_scale=1.0)

    close(block.state_dict(), reference.state_dict(), 1e-5)


@objectives
def test_in_bf16_the_two_differ_by_the_rounding_of_bf16(name):
    reference = block_of(name, RULES["sgd"], precision=torch.bfloat16)
    block = deepcopy(reference)
    before = state_of(block)
    step = ClosedFormStep(block)

    for number in range(8):
        views = views_of(name, seed=number)
        step(views, seed=number, lr_scale=1.0)
        AutogradStep(reference)(views, seed=number, lr_scale=1.0)

    for parameter, _ in block.trained():
        expected = reference.state_dict()[parameter] - before[parameter]
        change = block.state_dict()[parameter] - before[parameter]
        # A bf16 number has 8 bits; gradients are sums of six or twelve products of such.
        assert (change - expected).norm() < 0.03 * expected.norm()


@objectives
def test_bf16_steps_go_the_way_of_fp32_steps(name):
    exact = block_of(name, RULES["sgd"])
    block = deepcopy(exact)
    block.precision = torch.bfloat16
    before = state_of(block)
    step, exact_step = ClosedFormStep(block), ClosedFormStep(exact)

    for number in range(8):
        views = views_of(name, seed=number)
        step(views, seed=number, lr_scale=1.0)
        exact_step(views, seed=number, lr_scale=1.0)

    change, expected = (
        torch.cat([(b.state_dict()[n] - before[n]).flatten() for n, _ in b.trained()])
        for b in (block, exact)
    )
    assert (change - expected).norm() < 0.05 * expected.norm()


def test_bf16_is_for_products_and_weights_and_state_stay_fp32():
    block = block_of("threshold", RULES["adam"], precision=torch.bfloat16)

    outputs, _ = ClosedFormStep(block)(views_of("threshold", seed=0), seed=0, lr_scale=1.0)

    assert outputs["positive"].inputs.dtype == torch.bfloat16
    assert {t.dtype for t in state_of(block).values()} == {torch.float32}


def test_the_next_bf16_step_computes_with_the_updated_weights():
    block = block_of("cross-entropy", SGD(lr=10.0), precision=torch.bfloat16)
    step, views = ClosedFormStep(block), views_of("cross-entropy", seed=0)
    step(views, seed=0, lr_scale=1.0)

    expected = block.infer(views["input"])
    outputs, _ = step(views, seed=1, lr_scale=1.0)

    close(outputs["input"].inputs, expected.inputs, 2**-7)


# Which way


class Leaky(ow.Dense):
    """A dense layer that lets a tenth through where it is silent."""

    def forward(self, x):
        return nn.functional.leaky_relu(self.pre_activations(x), 0.1)


class Smoothed(CrossEntropy):
    """Cross-entropy against labels that are not quite sure."""

    def loss(self, inputs, outputs, draw):
        (view,) = outputs.values()
        logits = self.logits(view.inputs)
        return nn.functional.cross_entropy(logits, view.label, label_smoothing=0.5)


@pytest.mark.parametrize(
    ("module", "objective", "known"),
    [
        (dense(), CrossEntropy(linear()), True),
        (dense(), Threshold(UNITS, threshold=1.0, slope=1.0), True),
        (dense(), CrossEntropy(linear(bias=True)), False),
        (dense(), CrossEntropy(nn.Sequential(linear())), False),
        (nn.Sequential(dense()), CrossEntropy(linear()), False),
        (linear(INPUTS, UNITS), CrossEntropy(linear()), False),
        (Leaky(INPUTS, UNITS, generator=torch.Generator()), CrossEntropy(linear()), False),
    ],
)
def test_a_closed_form_is_known_for_a_dense_layer_with_a_threshold_or_a_plain_linear_head(
    module, objective, known
):
    block = Block(module, objective, Adam())

    assert has_closed_form(block) is known
    assert isinstance(step_of(block, closed_form=True), ClosedFormStep) is known
    assert isinstance(step_of(block, closed_form=False), AutogradStep)


def test_an_objective_with_another_loss_is_not_trained_by_the_closed_form_of_its_base():
    assert not has_closed_form(Block(dense(), Smoothed(linear()), Adam()))


def test_a_layer_derived_from_dense_is_trained_as_it_computes():
    layer = Leaky(INPUTS, UNITS, generator=torch.Generator().manual_seed(0))
    block = Block(layer, objective_of("cross-entropy"), SGD())
    views = views_of("cross-entropy", seed=0)
    expected = block.infer(views["input"]).inputs

    outputs, _ = AutogradStep(block)(views, seed=0, lr_scale=1.0)

    assert (expected < 0).any()
    close(outputs["input"].inputs, expected, 1e-6)
