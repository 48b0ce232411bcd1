from copy import deepcopy

import pytest
import torch
from torch import nn

import onward as ow
from onward import steps
from onward.blocks import Block, StepReport
from onward.checkpoint import weights_sha256
from onward.objectives import CrossEntropy, Threshold
from onward.optimizers import SGD, Adam
from onward.steps import AutogradStep, ClosedFormStep, has_closed_form, make_step
from onward.views import View

UNITS, INPUTS, CLASSES = 7, 5, 3

RULES = {
    "adam": Adam(lr=0.01, weight_decay=0.1),
    "sgd": SGD(lr=0.1, weight_decay=0.1),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(inputs=INPUTS, units=UNITS, *, seed=0, **settings):
    return ow.Dense(inputs, units, generator=torch.Generator().manual_seed(seed), **settings)


def linear(inputs=UNITS, outputs=CLASSES, *, seed=5, bias=False):
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(draw(outputs, inputs, seed=seed) / inputs**0.5)
        if bias:
            layer.bias.zero_()
    return layer


def objective_of(name, units=UNITS):
    if name == "cross-entropy":
        return CrossEntropy(linear(units))
    # A slope below Hinton's, so that no row of this small layer is sure and every one teaches.
    return Threshold(units, threshold=0.8, slope=3.0, peer=0.03)


def block_of(name, rule, *, dtype=torch.float32, precision=torch.float32, **settings):
    block = Block(dense(**settings), objective_of(name), rule).to(dtype)
    block.precision = precision
    block.forget()
    block.begin()
    return block


def views_of(name, *, seed, rows=6, inputs=INPUTS, dtype=torch.float32):
    labels = (torch.arange(rows) + seed) % CLASSES
    names = ("input",) if name == "cross-entropy" else ("positive", "negative")
    return {
        view: View(draw(rows, inputs, seed=100 * seed + i).to(dtype), labels)
        for i, view in enumerate(names)
    }


def state_of(block):
    """Return all that a step may change: weights, running means, moments."""
    moments = {f"{n}.{part}": t for n, parts in block.moments.items() for part, t in parts.items()}
    return {name: t.clone() for name, t in (block.state_dict() | moments).items()}


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


objectives = pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
both_ways = pytest.mark.parametrize("closed_form", [True, False])


# Closed form and autograd


@pytest.mark.parametrize("rows_a_slice", [None, 1, 3], ids=["whole", "rows", "uneven-slices"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.usefixtures("kept_generator")
@objectives
def test_the_closed_form_ends_where_autograd_ends(monkeypatch, name, dropout, rule, rows_a_slice):
    if rows_a_slice:
        monkeypatch.setattr(steps, "SLICE_BYTES", rows_a_slice * INPUTS * 8)
    reference = block_of(name, RULES[rule], dtype=torch.float64, dropout=dropout)
    block = deepcopy(reference)
    step, autograd = make_step(block, closed_form=True), make_step(reference, closed_form=False)

    for number in range(8):
        views = views_of(name, seed=number, dtype=torch.float64)
        outputs, report = step(views, seed=number, lr_scale=0.5)
        expected, expected_report = autograd(views, seed=number, lr_scale=0.5)

        close({n: v.x for n, v in outputs.items()}, {n: v.x for n, v in expected.items()}, 1e-12)
        close(report.sums, expected_report.sums, 1e-12)
        assert report.active.equal(expected_report.active)
    assert isinstance(step, ClosedFormStep)
    assert isinstance(autograd, AutogradStep)
    close(state_of(block), state_of(reference), 1e-12)


def test_many_slices_were_made_in_the_test_above(monkeypatch):
    monkeypatch.setattr(steps, "SLICE_BYTES", 3 * INPUTS * 8)

    step = ClosedFormStep(block_of("threshold", RULES["sgd"], dtype=torch.float64))

    assert 1 < step.slice < UNITS
    assert UNITS % step.slice


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


def test_bf16_is_for_products_and_weights_and_moments_stay_fp32():
    block = block_of("threshold", RULES["adam"], precision=torch.bfloat16)

    outputs, _ = ClosedFormStep(block)(views_of("threshold", seed=0), seed=0, lr_scale=1.0)

    assert outputs["positive"].x.dtype == torch.bfloat16
    assert {t.dtype for t in state_of(block).values()} == {torch.float32}


def test_the_next_bf16_step_computes_with_the_updated_weights():
    block = block_of("cross-entropy", SGD(lr=10.0), precision=torch.bfloat16)
    step, views = ClosedFormStep(block), views_of("cross-entropy", seed=0)
    step(views, seed=0, lr_scale=1.0)

    expected = block.infer(views["input"].x)
    outputs, _ = step(views, seed=1, lr_scale=1.0)

    close(outputs["input"].x, expected, 2**-7)


# Which way


class Leaky(ow.Dense):
    """A dense layer that lets a tenth through where it is silent."""

    def forward(self, x):
        return nn.functional.leaky_relu(self.pre_activations(x), 0.1)


class Smoothed(CrossEntropy):
    """Cross-entropy against labels that are not quite sure."""

    def loss(self, outputs):
        (view,) = outputs.values()
        return nn.functional.cross_entropy(self.logits(view.x), view.labels, label_smoothing=0.5)


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
    assert isinstance(make_step(block, closed_form=True), ClosedFormStep) is known
    assert isinstance(make_step(block, closed_form=False), AutogradStep)


def test_an_objective_with_another_loss_is_not_trained_by_the_closed_form_of_its_base():
    assert not has_closed_form(Block(dense(), Smoothed(linear()), Adam()))


def test_a_layer_derived_from_dense_is_trained_as_it_computes():
    layer = Leaky(INPUTS, UNITS, generator=torch.Generator().manual_seed(0))
    block = Block(layer, objective_of("cross-entropy"), SGD())
    views = views_of("cross-entropy", seed=0)
    expected = block.infer(views["input"].x)

    outputs, _ = AutogradStep(block)(views, seed=0, lr_scale=1.0)

    assert (expected < 0).any()
    close(outputs["input"].x, expected, 1e-6)


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


@pytest.fixture
def kept_generator():
    """Keep what modules draw from the global generator out of other tests."""
    with torch.random.fork_rng():
        yield


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
