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
    step_of,
    views_of,
)
from torch import nn

import onward as ow
from onward.batch import Batch
from onward.checkpoint import weights_sha256
from onward.engine.kernels.closed_form import ClosedFormStep
from onward.engine.steps import AutogradStep, StepReport
from onward.network.blocks import Block
from onward.network.objectives import CrossEntropy, Threshold
from onward.network.optimizers import SGD

both_ways = pytest.mark.parametrize("closed_form", [True, False])


# What a step hands on


@both_ways
@objectives
def test_outputs_are_those_from_before_the_update(name, closed_form):
    block = block_of(name, SGD(lr=5.0))
    views = views_of(name, seed=0)
    before = {n: block.infer(view) for n, view in views.items()}

    outputs, _ = step_of(block, closed_form=closed_form)(views, seed=0, lr_scale=1.0)

    after = {n: block.infer(view) for n, view in views.items()}
    for view in views:
        close(outputs[view].inputs, before[view].inputs, 1e-6)
        assert not torch.allclose(outputs[view].inputs, after[view].inputs, atol=1e-3)


@both_ways
@objectives
def test_outputs_are_detached_and_nothing_flows_back_into_the_inputs(name, closed_form):
    block = block_of(name, RULES["sgd"])
    views = views_of(name, seed=0)
    for view in views.values():
        view.inputs.requires_grad_()

    outputs, _ = step_of(block, closed_form=closed_form)(views, seed=0, lr_scale=1.0)

    assert not any(view.inputs.requires_grad for view in outputs.values())
    assert all(view.inputs.grad is None for view in views.values())


@both_ways
@objectives
def test_outputs_keep_the_labels_of_their_samples(name, closed_form):
    views = views_of(name, seed=1)

    outputs, _ = step_of(block_of(name, RULES["sgd"]), closed_form=closed_form)(
        views, seed=0, lr_scale=1.0
    )

    assert outputs.keys() == views.keys()
    assert all(outputs[n].label.equal(views[n].label) for n in views)


@both_ways
@objectives
def test_inputs_are_left_as_they_are(name, closed_form):
    views = views_of(name, seed=1)

    step_of(block_of(name, RULES["sgd"]), closed_form=closed_form)(views, seed=0, lr_scale=1.0)

    expected = views_of(name, seed=1)
    assert all(view.inputs.equal(expected[n].inputs) for n, view in views.items())


@both_ways
def test_the_next_step_leaves_the_outputs_of_the_last_as_they_are(closed_form):
    step = step_of(block_of("threshold", RULES["sgd"]), closed_form=closed_form)
    outputs, _ = step(views_of("threshold", seed=0), seed=0, lr_scale=1.0)
    kept = outputs["positive"].inputs.clone()

    step(views_of("threshold", seed=1), seed=1, lr_scale=1.0)

    assert outputs["positive"].inputs.equal(kept)


@both_ways
def test_views_that_the_objective_does_not_learn_from_are_left_out(closed_form):
    views = views_of("cross-entropy", seed=0)
    block, beside = (block_of("cross-entropy", RULES["sgd"]) for _ in range(2))

    step_of(block, closed_form=closed_form)(views, seed=0, lr_scale=1.0)
    outputs, _ = step_of(beside, closed_form=closed_form)(
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
    outputs = {n: block.infer(view) for n, view in views.items()}
    objective, metrics = block.objective, block.objective.metrics(outputs)
    loss = objective.loss(views, outputs, torch.Generator())

    _, report = step_of(block, closed_form=closed_form)(views, seed=0, lr_scale=1.0)

    means = [float(total) / number for total, number in metrics.values()]
    assert list(metrics) == list(objective.metric_names)
    assert report.means() == pytest.approx([loss.item(), *means])
    assert report.loss == report.means()[0]
    assert report.sums[1] == sum(len(view) for view in views.values())
    assert report.active.nonzero()[:, 0].tolist() == [0, 1, 3, 4, 5, 6]


def test_reports_add_up():
    def report(loss, samples, right, active):
        metrics = {"accuracy": (torch.tensor(right), samples)}
        return StepReport.of(torch.tensor(loss), samples, metrics, torch.tensor(active))

    first = report(1.0, 1, 1, [True, False, False]).added_to(None)
    total = report(4.0, 3, 0, [False, True, False]).added_to(first)

    # The loss of a sample counts once, whatever its mini-batch.
    assert total.loss == (1 * 1.0 + 3 * 4.0) / 4
    assert total.means() == [total.loss, 1 / 4]
    assert total.active.tolist() == [True, True, False]


class Counted(nn.Linear):
    """Counts how often it is used."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_a_step_uses_its_head_once_and_metrics_of_other_samples_once_more():
    objective = ow.CrossEntropy(Counted(UNITS, CLASSES))
    block = ow.Block(nn.Sequential(nn.Linear(INPUTS, UNITS), nn.ReLU()), objective, ow.SGD())
    views = views_of("cross-entropy", seed=0)

    outputs, report = step_of(block)(views, seed=0, lr_scale=0.0)
    assert objective.head.calls == 1
    # Nothing was learned yet, so that they are the figures of that step.
    metrics = objective.metrics(outputs)

    assert objective.head.calls == 2
    assert report.means()[1] == float(metrics["accuracy"][0]) / metrics["accuracy"][1]


def test_active_units_are_looked_for_until_all_have_been():
    asked = []

    def report(*active):
        def find():
            asked.append(active)
            return torch.tensor(active)

        return StepReport.of(torch.zeros(()), 1, {}, find)

    total = report(True, False, False).added_to(None)
    for units in ([False, True, False], [False, False, True], [False] * 3, [True] * 3, [True] * 3):
        total = report(*units).added_to(total)

    assert total.active.tolist() == [True, True, True]
    # Whether all have been is asked after the first, second and fourth.
    assert len(asked) == 4


# What a step changes


@both_ways
@objectives
def test_a_step_changes_weights_biases_and_the_state_of_the_optimizer(name, closed_form):
    block = block_of(name, RULES["sgd"])
    before = state_of(block)

    step_of(block, closed_form=closed_form)(views_of(name, seed=0), seed=0, lr_scale=1.0)

    after = state_of(block)
    assert all(not t.equal(before[key]) for key, t in after.items())


@both_ways
@objectives
def test_a_step_changes_its_own_block_only(name, closed_form):
    below, block, above = (
        Block(dense(UNITS, seed=k), objective_of(name), RULES["sgd"]) for k in range(3)
    )
    views = views_of(name, seed=0, inputs=UNITS)
    outputs, _ = step_of(below, closed_form=closed_form)(views, seed=0, lr_scale=1.0)
    above.init_optimizer()
    before = [state_of(below), state_of(above)]

    step_of(block, closed_form=closed_form)(outputs, seed=1, lr_scale=1.0)

    for other, expected in zip((below, above), before, strict=True):
        assert all(t.equal(expected[key]) for key, t in state_of(other).items())


@both_ways
def test_without_a_learning_rate_no_weight_moves(closed_form):
    block = block_of("threshold", RULES["sgd"])
    before = state_of(block)

    step_of(block, closed_form=closed_form)(views_of("threshold", seed=0), seed=0, lr_scale=0.0)

    after = state_of(block)
    assert all(after[name].equal(before[name]) for name, _ in block.trained())


@pytest.mark.parametrize(
    ("frozen", "closed_form"),
    [
        ("module.weight", False),
        ("module.bias", False),
        ("objective.head.weight", False),
        ("module.weight", True),
        ("module.bias", True),
        ("objective.head.weight", True),
    ],
)
def test_a_frozen_parameter_stays_and_the_others_learn(frozen, closed_form):
    block = block_of("cross-entropy", RULES["sgd"])
    block.get_parameter(frozen).requires_grad_(False)
    block.reset_optimizer()
    before = state_of(block)

    step_of(block, closed_form=closed_form)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)

    changed = [name for name, t in block.state_dict().items() if not t.equal(before[name])]
    assert changed == [name for name in block.state_dict() if name != frozen]


def test_a_layer_that_is_frozen_after_its_block_was_made_stays():
    block = block_of("threshold", RULES["sgd"])
    block.module.weight.requires_grad_(False)
    before = block.module.weight.clone()

    step_of(block, closed_form=True)(views_of("threshold", seed=0), seed=0, lr_scale=1.0)

    assert block.module.weight.equal(before)


@both_ways
def test_a_block_that_is_frozen_whole_is_passed_through(closed_form):
    block = block_of("threshold", RULES["sgd"]).requires_grad_(False)
    block.reset_optimizer()
    before = state_of(block)

    step_of(block, closed_form=closed_form)(views_of("threshold", seed=0), seed=0, lr_scale=1.0)

    assert all(block.state_dict()[name].equal(before[name]) for name, _ in block.named_parameters())


@pytest.mark.parametrize("kind", ["chapters", "stream"])
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
    batch = Batch(torch.full((200, 100), 3.0), {"label": torch.arange(200) % CLASSES})
    step = step_of(block, closed_form=closed_form)
    outputs, _ = step({"input": batch}, seed=seed, lr_scale=0.0)
    return outputs["input"].inputs


@both_ways
def test_dropout_drops_its_share_and_scales_the_rest_up(closed_form):
    x = dropped(passing(0.2), seed=0, closed_form=closed_form)

    assert x.unique().tolist() == pytest.approx([0.0, 1.25])
    # 20,000 draws: five standard deviations of the binomial are 283.
    assert abs((x == 0).sum() - 4000) < 283


def test_dropout_draws_each_input_of_each_sample_on_its_own():
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
    batch = Batch(torch.full((1, 100), 3.0), {"label": torch.tensor([1])})

    outputs, _ = ClosedFormStep(block)({"input": batch}, seed=0, lr_scale=1.0)

    changed = (block.module.weight != before).any(dim=0)
    assert changed.equal(outputs["input"].inputs[0] > 0)


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
def test_passing_samples_through_changes_nothing_and_drops_nothing():
    block = mixed_block()
    AutogradStep(block)(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)
    before, batch = state_of(block), views_of("cross-entropy", seed=1)["input"]

    first, second = block.infer(batch), block.infer(batch)
    block.scores(first)

    assert first.inputs.equal(second.inputs)
    assert all(t.equal(before[name]) for name, t in state_of(block).items())


@pytest.mark.parametrize("closed_form", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 0), (torch.bfloat16, 2**-7)])
def test_a_step_passes_samples_through_the_block_as_it_now_is(closed_form, precision, tolerance):
    block = block_of("cross-entropy", SGD(lr=10.0), dropout=0.5, precision=precision)
    step, batch = step_of(block, closed_form=closed_form), Batch(draw(4, INPUTS, seed=9))
    before = step.infer(batch)
    step(views_of("cross-entropy", seed=0), seed=0, lr_scale=1.0)

    after = step.infer(batch)

    assert not after.inputs.equal(before.inputs)
    close(after.inputs, block.infer(batch).inputs, tolerance)


@pytest.mark.usefixtures("kept_generator")
@pytest.mark.parametrize("trains", [True, False])
def test_a_module_that_changes_its_input_is_refused(trains):
    # The samples are the data set's, or the outputs of another block.
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(INPUTS, UNITS))
    block = Block(module, CrossEntropy(linear()), RULES["sgd"])
    views = views_of("cross-entropy", seed=0)

    with pytest.raises(ValueError, match=r"The module Sequential changes its input in place"):
        AutogradStep(block)(views, seed=0, lr_scale=1.0) if trains else block.infer(views["input"])


def test_a_network_predicts_within_torchs_inference_mode():
    network = ow.mlp((4,), num_classes=3, widths=(8,))

    with torch.inference_mode():
        assert network.predict(torch.zeros(2, 4)).shape == (2,)


@pytest.mark.usefixtures("kept_generator")
def test_a_step_trains_again_after_samples_were_passed_through():
    block, beside = mixed_block(), mixed_block()
    views = views_of("cross-entropy", seed=0)
    block.infer(views["input"])

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
    nn.functional.cross_entropy(whole(view.inputs), view.label).backward()
    for name, parameter in reference.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        close(block.get_parameter(name).detach(), expected, 1e-6)


def test_channels_of_images_are_reported_as_units():
    block = Block(nn.Conv2d(1, 4, 2, bias=True), Threshold(4, threshold=1.0, slope=1.0), SGD())
    with torch.no_grad():
        block.module.weight.copy_(draw(4, 1, 2, 2))
        block.module.bias.copy_(torch.tensor([50.0, -50.0, 50.0, -50.0]))
    views = {
        name: Batch(draw(3, 1, 4, 4, seed=k), {"label": torch.tensor([0, 1, 2])})
        for k, name in enumerate(("positive", "negative"))
    }

    _, report = AutogradStep(block)(views, seed=0, lr_scale=1.0)

    assert report.active.tolist() == [True, False, True, False]
