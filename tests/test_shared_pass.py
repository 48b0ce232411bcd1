"""What positives and negatives have in common is multiplied once."""

import pytest
import torch
from small_blocks import INPUTS, RULES, UNITS, block_of, close, draw, step_of
from torch.utils.flop_counter import FlopCounterMode

import onward as ow
from onward.batch import Batch
from onward.engine.kernels.closed_form import SharedPassStep
from onward.engine.steps import AutogradStep

LABELS = 3


def labelled_views(*, seed, samples=6, dtype=torch.float32):
    """Views of the same samples with the right label and with a wrong one in front."""
    labels = (torch.arange(samples) + seed) % LABELS
    rest = draw(samples, INPUTS - LABELS, seed=seed).to(dtype)
    codes = 0.7 * torch.eye(LABELS, dtype=dtype)
    return {
        name: Batch(torch.cat([codes[(labels + shift) % LABELS], rest], dim=1), {"label": labels})
        for shift, name in enumerate(("positive", "negative"))
    }


@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        (torch.float64, torch.float32, 1e-12),
        (torch.float32, torch.float32, 2e-6),
        (torch.float32, torch.bfloat16, 2e-2),
    ],
    ids=["fp64", "fp32", "bf16"],
)
@pytest.mark.parametrize("rule", RULES)
def test_a_shared_pass_is_a_pass_each_up_to_rounding(rule, dtype, precision, tolerance):
    # In bf16 Adam makes a whole step of the sign of a rounding error.
    few = 1 if rule == "adam" and precision is torch.bfloat16 else 4
    by_autograd = block_of("threshold", RULES[rule], dtype=torch.float64)
    shared = block_of("threshold", RULES[rule], dtype=dtype, precision=precision)
    for block in (by_autograd, shared):
        # Peer normalisation has a state, and gradients are asked for twice here.
        block.objective.peer = 0.0
    step = step_of(shared, label_inputs=LABELS)
    assert isinstance(step, SharedPassStep)

    for number in range(few):
        reference = AutogradStep(by_autograd)
        expected = reference.gradients(labelled_views(seed=number, dtype=torch.float64), seed=0)
        found = step.gradients(labelled_views(seed=number, dtype=dtype), seed=0)
        for name, gradient in expected.named.items():
            close(found.named[name].double(), gradient, tolerance)
        for name, view in expected.outputs.items():
            close(found.outputs[name].inputs.double(), view.inputs, tolerance)
        reference(labelled_views(seed=number, dtype=torch.float64), seed=0, lr_scale=0.01)
        outputs, _ = step(labelled_views(seed=number, dtype=dtype), seed=0, lr_scale=0.01)
        assert outputs.keys() == {"positive", "negative"}
    for name, weight in by_autograd.state_dict().items():
        close(shared.state_dict()[name].double(), weight, 5 * tolerance)


def test_mixtures_of_labels_are_refused():
    # A negative of one label and a positive of two are of different lengths before they are
    # normalized, so that more than the label tells them apart.
    config = ow.RunConfig(recipe="pff").with_settings(
        {"network.negatives": "mixed", "training.gradients": "shared-pass"}
    )

    with pytest.raises(ow.SettingError, match="mixed ones differ in two"):
        ow.run(config)


def test_a_shared_pass_multiplies_half_as_much():
    block = block_of("threshold", RULES["sgd"])
    counted = {}
    for label_inputs in (0, LABELS):
        step = step_of(block, label_inputs=label_inputs)
        with FlopCounterMode(display=False) as counter:
            step(labelled_views(seed=0), seed=0, lr_scale=0.0)
        counted[label_inputs] = counter.get_total_flops()

    rest = INPUTS - LABELS
    # Forward and derivative, for six samples with two labels each.
    assert counted[0] - counted[LABELS] == 2 * 2 * 6 * rest * UNITS
