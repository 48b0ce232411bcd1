"""What a training step hands on, and what it changes."""

from copy import deepcopy

import pytest
import torch
from small_blocks import (
    CLASSES,
    INPUTS,
    RULES,
    UNITS,
    block_of,
    close,
    dense,
    draw,
    linear,
    objective_of,
    objectives,
    state_of,
    views_of,
)
from torch import nn

import onward as ow
from onward.blocks import Block, StepReport
from onward.checkpoint import weights_sha256
from onward.objectives import CrossEntropy, Threshold
from onward.optimizers import SGD
from onward.steps import AutogradStep, ClosedFormStep, make_step
from onward.views import View

both_ways = pytest.mark.parametrize("closed_form", [True, False])


# What a step hands on


@both_ways
@objectives
def test_outputs_are_those_from_before_the_update(name, closed_form):
    block = block_of(name, SGD(lr=5.0))
    views = views_of(name, seed=0)
    before = {n: block.infer(view.x) for n, view in views.items()}

    outputs, _ = make_step(block, closed_form=closed_form)(views, seed=0, lr_scale=1.0)

    after = {n: block.infer(view.x) for n, view in views.items()}
    for view in views:
        close(outputs[view].x, before[view], 1e-6)
        assert not torch.allclose(outputs[view].x, after[view], atol=1e-3)


@both_ways
@objectives
def test_outputs_are_detached_and_nothing_flows_back_into_the_inputs(name, closed_form):
    block = block_of(name, RULES["sgd"])
    views = views_of(name, seed=0)
    for view in views.values():
        view.x.requires_grad_()

    outputs, _ = make_step(block, closed_form=closed_form)(views, seed=0, lr_scale=1.0)

    assert not any(view.x.requires_grad for view in outputs.values())
    assert all(view.x.grad is None for view in views.values())


@both_ways
@objectives
def test_outputs_keep_the_labels_of_their_rows(name, closed_form):
    views = views_of(name, seed=1)

    outputs, _ = make_step(block_of(name, RULES["sgd"]), closed_form=closed_form)(
        views, seed=0, lr_scale=1.0
    )

    assert outputs.keys() == views.keys()
    assert all(outputs[n].labels.equal(views[n].labels) for n in views)


@both_ways
@objectives
def test_inputs_are_left_as_they_are(name, closed_form):
    views = views_of(name, seed=1)

    make_step(block_of(name, RULES["sgd"]), closed_form=closed_form)(views, seed=0, lr_scale=1.0)

    assert all(view.x.equal(views_of(name, seed=1)[n].x) for n, view in views.items())


@both_ways
def test_the_next_step_leaves_the_outputs_of_the_last_as_they_are(closed_form):
    step = make_step(block_of("threshold", RULES["sgd"]), closed_form=closed_form)
    outputs, _ = step(views_of("threshold", seed=0), seed=0, lr_scale=1.0)
    kept = outputs["positive"].x.clone()

    step(views_of("threshold", seed=1), seed=1, lr_scale=1.0)

    assert outputs["positive"].x.equal(kept)


@both_ways
def test_views_that_the_objective_does_not_learn_from_are_left_out(closed_form):
    views = views_of("cross-entropy", seed=0)
    block, beside = (block_of("cross-entropy", RULES["sgd"]) for _ in range(2))

    make_step(block, closed_form=closed_form)(views, seed=0, lr_scale=1.0)
    outputs, _ = make_step(beside, closed_form=closed_form)(
        {"other": views_of("cross-entropy", seed=1)["input"], **views}, seed=0, lr_scale=1.0
    )

    assert list(outputs) == ["input"]
    assert all(t.equal(state_of(beside)[n]) for n, t in state_of(block).items())


@both_ways
@objectives
def test_a_step_reports_the_loss_and_the_units_that_were_active(name, closed_form):
    block = block_of(name, RULES["sgd"])
    with torch.no_grad():
        block.module.bias[2] = -100.0
    views = views_of(name, seed=0)
    outputs = {n: View(block.infer(view.x), view.labels) for n, view in views.items()}
    loss, metrics = block.objective.loss(outputs), block.objective.metrics(outputs)

    _, report = make_step(block, closed_form=closed_form)(views, seed=0, lr_scale=1.0)

    expected = torch.stack([loss.detach(), metrics.accuracy, metrics.goodness_gap])
    torch.testing.assert_close((report.sums / report.rows).float(), expected, equal_nan=True)
    assert report.rows == sum(len(view.labels) for view in views.values())
    assert report.active.nonzero()[:, 0].tolist() == [0, 1, 3, 4, 5, 6]


def test_reports_add_up():
    first = StepReport(1, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, False]))
    second = StepReport(2, torch.tensor([4.0, 5.0, 6.0]), torch.tensor([False, True, False]))

    total = first.add(second)

    assert (total.rows, total.sums.tolist()) == (3, [5.0, 7.0, 9.0])
    assert total.active.tolist() == [True, True, False]


# What a step changes


@both_ways
@objectives
def test_a_step_changes_weights_biases_and_moments(name, closed_form):
    block = block_of(name, RULES["sgd"])
    before = state_of(block)

    make_step(block, closed_form=closed_form)(views_of(name, seed=0), seed=0, lr_scale=1.0)

    after = state_of(block)
    assert all(not t.equal(before[key]) for key, t in after.items())


@both_ways
@objectives
def test_a_step_changes_its_own_block_only(name, closed_form):
    below, block, above = (
        Block(dense(UNITS, seed=k), objective_of(name), RULES["sgd"]) for k in range(3)
    )
    views = views_of(name, seed=0, inputs=UNITS)
    outputs, _ = make_step(below, closed_form=closed_form)(views, seed=0, lr_scale=1.0)
    above.begin()
    before = [state_of(below), state_of(above)]

    make_step(block, closed_form=closed_form)(outputs, seed=1, lr_scale=1.0)

    for other, expected in zip((below, above), before, strict=True):
        assert all(t.equal(expected[key]) for key, t in state_of(other).items())


@both_ways
def test_without_a_learning_rate_no_weight_moves(closed_form):
    block = block_of("threshold", RULES["sgd"])
    before = state_of(block)

    make_step(block, closed_form=closed_form)(views_of("threshold", seed=0), seed=0, lr_scale=0.0)

    after = state_of(block)
    assert all(after[name].equal(before[name]) for name, _ in block.trained())


@pytest.mark.parametrize(
    ("frozen", "closed_form"),
    [
        ("module.weight", False),
        ("module.bias", False),
        ("objective.head.weight", False),
        pytest.param("module.weight", True),
        pytest.param("module.bias", True),
        ("objective.head.weight", True),
    ],
)
def test_a_frozen_parameter_stays_and_the_others_learn(frozen, closed_form):
    block = block_of("cross-entropy", RULES["sgd"])
    block.get_parameter(frozen).requires_grad_(False)
    block.forget()
    before = state_of(block)

    make_step(block, closed_form=closed_form)(
        views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0
    )

    changed = [name for name, t in block.state_dict().items() if not t.equal(before[name])]
    assert changed == [name for name in block.state_dict() if name != frozen]


def test_a_layer_that_is_frozen_after_its_block_was_made_stays():
    block = block_of("threshold", RULES["sgd"])
    block.module.weight.requires_grad_(False)
    before = block.module.weight.clone()

    make_step(block, closed_form=True)(views_of("threshold", seed=0), seed=0, lr_scale=1.0)

    assert block.module.weight.equal(before)


@both_ways
def test_a_block_that_is_frozen_whole_is_passed_through(closed_form):
    block = block_of("threshold", RULES["sgd"]).requires_grad_(False)
    block.forget()
    before = state_of(block)

    make_step(block, closed_form=closed_form)(views_of("threshold", seed=0), seed=0, lr_scale=1.0)

    assert all(block.state_dict()[name].equal(before[name]) for name, _ in block.named_parameters())


@pytest.mark.parametrize(
    "kind",
    [
        "chapters",
        pytest.param(
            "stream",
        ),
    ],
)
def test_a_second_training_starts_from_the_weights_alone(kind):
    dataset = ow.dataset(draw(40, INPUTS).numpy(), (torch.arange(40) % CLASSES).numpy())
    settings = {
        "training": ow.TrainingConfig(epochs=1, batch_size=8),
        "plan": ow.PlanConfig(kind=kind),
    }
    network, fresh = (
        ow.mlp((INPUTS,), num_classes=CLASSES, widths=(UNITS,), seed=seed) for seed in (0, 1)
    )
    ow.train(network, dataset, **settings)
    fresh.load_state_dict(network.state_dict())

    ow.train(network, dataset, **settings)
    ow.train(fresh, dataset, **settings)

    assert weights_sha256(network) == weights_sha256(fresh)


# Dropout


def passing(dropout, units=100):
    """Make a block that hands on its inputs, so that what was dropped can be seen."""
    block = Block(
        dense(units, units, dropout=dropout),
        CrossEntropy(linear(units)),
        SGD(),
    )
    with torch.no_grad():
        block.module.weight.copy_(torch.eye(units))
    return block


def dropped(block, seed, closed_form=True):
    rows = {"input": View(torch.full((200, 100), 3.0), torch.arange(200) % CLASSES)}
    outputs, _ = make_step(block, closed_form=closed_form)(rows, seed=seed, lr_scale=0.0)
    return outputs["input"].x


@both_ways
def test_dropout_drops_its_share_and_scales_the_rest_up(closed_form):
    x = dropped(passing(0.2), seed=0, closed_form=closed_form)

    assert x.unique().tolist() == pytest.approx([0.0, 1.25])
    # 20,000 draws: five standard deviations of the binomial are 283.
    assert abs((x == 0).sum() - 4000) < 283


def test_dropout_draws_each_input_of_each_row_on_its_own():
    x = dropped(passing(0.5), seed=0) == 0

    # 100 of 200 and 50 of 100 expected; five standard deviations are 35.4 and 25.
    assert ((x.sum(dim=0) - 100).abs() < 35.4).all()
    assert ((x.sum(dim=1) - 50).abs() <= 25).all()


@both_ways
def test_dropout_follows_from_the_seed_of_the_step(closed_form):
    first, again, other = (dropped(passing(0.5), seed, closed_form) for seed in (1, 1, 2))

    assert first.equal(again)
    assert not first.equal(other)


def test_the_closed_form_draws_nothing_from_torchs_global_generator():
    before = torch.get_rng_state()

    dropped(passing(0.5), seed=0)

    assert torch.get_rng_state().equal(before)


def test_dropped_inputs_teach_nothing():
    block = passing(0.5)
    before = block.module.weight.clone()
    rows = {"input": View(torch.full((1, 100), 3.0), torch.tensor([1]))}

    outputs, _ = ClosedFormStep(block)(rows, seed=0, lr_scale=1.0)

    changed = (block.module.weight != before).any(dim=0)
    assert changed.equal(outputs["input"].x[0] > 0)


# Modules of other kinds


def mixed_block(rule=RULES["sgd"]):
    """Make a block of layers that behave otherwise in training than in use."""
    module = nn.Sequential(
        linear(INPUTS, UNITS, bias=True), nn.BatchNorm1d(UNITS), nn.ReLU(), nn.Dropout(0.5)
    )
    return Block(module, objective_of("cross-entropy"), rule)


@pytest.mark.usefixtures("kept_generator")
def test_running_statistics_change_once_in_a_step_of_their_own_block():
    block, other = mixed_block(), mixed_block()
    step = AutogradStep(block)

    step(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)

    assert block.module[1].num_batches_tracked == 1
    assert not (block.module[1].running_mean == 0).all()
    assert other.module[1].num_batches_tracked == 0


@pytest.mark.usefixtures("kept_generator")
def test_passing_rows_through_changes_nothing_and_drops_nothing():
    block = mixed_block()
    AutogradStep(block)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)
    before, x = state_of(block), views_of("cross-entropy", seed=1)["input"].x

    first, second = block.infer(x), block.infer(x)
    block.scores(first)

    assert first.equal(second)
    assert all(t.equal(before[name]) for name, t in state_of(block).items())


@pytest.mark.parametrize("closed_form", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 0), (torch.bfloat16, 2**-7)])
def test_a_step_passes_rows_through_the_block_as_it_now_is(closed_form, precision, tolerance):
    block = block_of("cross-entropy", SGD(lr=10.0), dropout=0.5, precision=precision)
    step, x = make_step(block, closed_form=closed_form), draw(4, INPUTS, seed=9)
    before = step.infer(x)
    step(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)

    after = step.infer(x)

    assert not after.equal(before)
    close(after, block.infer(x), tolerance)


@pytest.mark.usefixtures("kept_generator")
@pytest.mark.parametrize("trains", [True, False])
def test_a_module_that_changes_its_input_is_refused(trains):
    # The rows are the data set's, or those of another block.
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(INPUTS, UNITS))
    block = Block(module, CrossEntropy(linear()), RULES["sgd"])
    views = views_of("cross-entropy", seed=0)

    with pytest.raises(ValueError, match=r"The module Sequential changes its input in place"):
        AutogradStep(block)(views, seed=0, lr_scale=1.0) if trains else block.infer(
            views["input"].x
        )


def test_a_network_predicts_within_torchs_inference_mode():
    network = ow.mlp((4,), num_classes=3, widths=(8,))

    with torch.inference_mode():
        assert network.predict(torch.zeros(2, 4)).shape == (2,)


@pytest.mark.usefixtures("kept_generator")
def test_a_step_trains_again_after_rows_were_passed_through():
    block, beside = mixed_block(), mixed_block()
    views = views_of("cross-entropy", seed=0)
    block.infer(views["input"].x)

    AutogradStep(block)(views, seed=3, lr_scale=1.0)
    AutogradStep(beside)(views, seed=3, lr_scale=1.0)

    assert all(t.equal(state_of(beside)[name]) for name, t in state_of(block).items())


@pytest.mark.usefixtures("kept_generator")
def test_running_statistics_of_a_head_change_once_in_a_step():
    head = nn.Sequential(nn.BatchNorm1d(UNITS), linear())
    block = Block(dense(), CrossEntropy(head), RULES["sgd"])

    AutogradStep(block)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)

    assert head[0].num_batches_tracked == 1


def test_a_block_of_several_layers_learns_by_backpropagation_within():
    module = nn.Sequential(linear(INPUTS, UNITS, bias=True), nn.ReLU(), linear(UNITS, UNITS))
    block = Block(module, objective_of("cross-entropy"), SGD(lr=0.1, momentum=0.0))
    reference, views = deepcopy(block), views_of("cross-entropy", seed=0)

    AutogradStep(block)(views, seed=0, lr_scale=1.0)

    view = views["input"]
    whole = nn.Sequential(reference.module, reference.objective.head)
    nn.functional.cross_entropy(whole(view.x), view.labels).backward()
    for name, parameter in reference.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        close(block.get_parameter(name).detach(), expected, 1e-6)


def test_channels_of_images_are_reported_as_units():
    block = Block(nn.Conv2d(1, 4, 2, bias=True), Threshold(36, threshold=1.0, slope=1.0), SGD())
    with torch.no_grad():
        block.module.weight.copy_(draw(4, 1, 2, 2))
        block.module.bias.copy_(torch.tensor([50.0, -50.0, 50.0, -50.0]))
    views = {
        name: View(draw(3, 1, 4, 4, seed=k), torch.tensor([0, 1, 2]))
        for k, name in enumerate(("positive", "negative"))
    }

    _, report = AutogradStep(block)(views, seed=0, lr_scale=1.0)

    assert report.active.tolist() == [True, False, True, False]
