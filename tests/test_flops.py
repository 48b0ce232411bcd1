"""Operations of a run, counted over real steps, against what layers of known sizes take."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from prepared import prepare
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import onward as ow
from onward.costs import flops
from onward.flop_counter import FlopCounter
from onward.runs import preparation
from onward.simulation import simulate

SMALL = {"data.validation": 0, "network.widths": (24, 16), "training.epochs": 4}
ROWS, INPUTS, CLASSES = 1437, 64, 10
"""Training samples of digits, their pixels and classes."""


def begun(recipe, **changes):
    named = {name.replace("__", "."): value for name, value in changes.items()}
    config = ow.RunConfig(recipe=recipe).with_settings(SMALL | named)
    (stage,) = preparation.preview(config, 1, with_weights=True)
    return stage


def counted(stage):
    return flops.count_steps(stage.plan, stage.network, stage.shard, stage.settings)


def step(inputs, units):
    """Return the operations a sample of a block with a linear head, in closed form."""
    # Forward and for the weights; logits, and for activities and head; two sums over samples.
    return 4 * inputs * units + 6 * units * CLASSES + 4 * units


def test_a_product_is_a_multiplication_and_an_addition_for_each_pair():
    assert flops.count(torch.mm, torch.zeros(5, 3), torch.zeros(3, 4)) == 2 * 5 * 3 * 4


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_each_gradient_of_a_convolution_takes_what_the_convolution_takes(kind, groups):
    layer = kind(8, 16, 3, padding=1, groups=groups)
    x = torch.zeros(2, 8, 5, 6)

    forward = flops.count(layer, x)

    assert forward == 2 * 2 * 5 * 6 * layer.weight.numel()
    assert flops.count(lambda: layer(x).sum().backward()) == 2 * forward
    assert flops.count(lambda: layer(x.clone().requires_grad_()).sum().backward()) == 3 * forward


def test_a_chapter_plan_counts_steps_and_passes_through_frozen_blocks():
    stage = begun("one-pass", network__dropout=0.0)

    found = flops.of_training(stage.plan, counted(stage))

    passed = 2 * INPUTS * 24
    assert found == pytest.approx(4 * ROWS * (step(INPUTS, 24) + step(24, 16) + passed))


def test_samples_of_a_chapter_are_passed_once_however_many_epochs_it_has():
    stage = begun("one-pass", network__dropout=0.0, plan__chapters=2)

    found = flops.of_training(stage.plan, counted(stage))

    passed = 2 * INPUTS * 24
    steps = step(INPUTS, 24) + step(24, 16)
    assert found == pytest.approx(ROWS * (4 * steps + 2 * passed))


def test_a_stream_passes_nothing_a_second_time():
    stage = begun("one-pass", network__dropout=0.0, plan__kind="stream")

    found = flops.of_training(stage.plan, counted(stage))

    assert found == pytest.approx(4 * ROWS * (step(INPUTS, 24) + step(24, 16)))


HARD = {"network.negatives": "hard", "network.readout": "softmax", "plan.hint_age": 1}


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("conv", {"plan.chapters": 1, "data.shift": 0}),
        ("conv", {"plan.chapters": 1, "data.shift": 1}),
        ("ff-conv", {"plan.chapters": 2, "data.shift": 1, **HARD}),
        ("ff-conv", {"plan.chapters": 4, "data.shift": 0, **HARD}),
    ],
    ids=["long chapters", "augmented", "hints of augmented samples", "hints of short chapters"],
)
def test_what_is_counted_is_what_the_tasks_of_chapters_do(recipe, changes):
    settings = {
        "data.validation": 0,
        "data.flip": "none",
        "network.channels": (3, 4),
        "network.pooled": (1, 2),
        "network.whitening": False,
        "training.epochs": 2,
        "training.batch_size": 256,
        "training.drop_last": True,
        "plan.kind": "chapters",
    }
    prepared = prepare(recipe, settings | changes)
    costs = flops.count_steps(
        prepared.plan, prepared.network, prepared.shards[0], prepared.settings
    )

    found = flops.of_training(prepared.plan, costs)

    # To place the tasks, one sample is passed.
    assert found == pytest.approx(flops.count(prepared.run, "sequential", 1), rel=1e-3)


def test_hints_of_a_chapter_plan_cost_a_sweep_over_all_labels():
    hinted = begun("pff", plan__hint_age=1)
    never = begun("pff", plan__hint_age="never")

    more = flops.of_training(hinted.plan, counted(hinted))
    more -= flops.of_training(never.plan, counted(never))

    # The first block multiplies what labels have in common once. Three of four chapters score.
    sweep = 2 * (INPUTS - CLASSES) * 24 + CLASSES * 2 * 24 * 16
    assert more == pytest.approx(3 * ROWS * sweep)


def test_hints_of_a_stream_are_scores_of_its_head():
    hinted = begun("hinton", network__readout="softmax")
    # That of all blocks but the first.
    scores = 2 * 16 * CLASSES

    costs = counted(hinted)
    other = flops.count_steps(
        replace(hinted.plan, hint_age=None), hinted.network, hinted.shard, hinted.settings
    )

    assert costs.train[-1] - other.train[-1] == scores * hinted.plan.batch_size


def test_validations_count_nothing():
    often = begun("one-pass", data__validation=0.1, plan__validate_every=1)
    once = begun("one-pass", data__validation=0.1)

    assert flops.of_training(often.plan, counted(often)) == flops.of_training(
        once.plan, counted(once)
    )


@pytest.mark.parametrize("recipe", ["hinton", "mono-forward"])
def test_a_long_stream_is_known_from_two_epochs(recipe):
    stage = begun(recipe)
    costs = counted(stage)

    found = flops.of_training(stage.plan, costs)

    assert found == pytest.approx(simulate(stage.plan, stage.placement, costs).busy[0])


def test_what_ranks_send_is_what_the_simulation_says():
    stage = begun("one-pass")
    costs = counted(stage)

    found = flops.traffic(stage.plan, costs, stage.costs, 4)

    placement = preparation.place_plan(stage.config, stage.plan, 4, stage.costs)
    sent = simulate(stage.plan, placement, costs).bytes_by_link
    assert found == (4, "all-layers", sum(sent.values()))
    assert found.num_bytes > 3 * 4 * (INPUTS * 24 + 24 * 16)


def test_a_stream_of_two_blocks_has_work_for_two_ranks():
    stage = begun("mono-forward")

    found = flops.traffic(stage.plan, counted(stage), stage.costs, 4)

    assert found is not None
    assert (found.ranks, found.placement) == (2, "stream")


def test_one_block_has_nothing_to_send():
    stage = begun("backprop")

    assert flops.traffic(stage.plan, counted(stage), stage.costs, 4) is None


def test_inference_of_a_sweep_passes_a_sample_once_for_each_label():
    sweep, heads = begun("pff").network, begun("one-pass").network

    found = flops.of_inference(sweep)

    passes = 2 * (INPUTS * 24 + CLASSES * 24 * 16)
    assert passes < found < 1.2 * passes
    assert flops.of_inference(heads) == 2 * (INPUTS * 24 + 24 * 16 + (24 + 16 + 2) * CLASSES)


def test_it_counts_what_torch_counts():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 5))
    x = torch.rand(2, 3, 6, 6)
    with FlopCounterMode(display=False) as theirs:
        layers(x).square().sum().backward()
    with FlopCounter() as ours:
        layers(x).square().sum().backward()

    assert ours.total == theirs.get_total_flops() > 0
    with torch.inference_mode():  # Layers come undivided.
        assert flops.count(layers, x) == 2 * 2 * (4 * 27 * 16 + 64 * 5)


def test_counting_leaves_the_compiler_of_torch_where_it_is():
    code = "import sys, torch, onward as ow; from onward.costs.flops import count\n"
    code += "assert count(torch.mm, torch.zeros(2, 3), torch.zeros(3, 4)) == 48\n"
    code += "assert 'torch._dynamo' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)
