"""Objectives: their losses and gradients, what they are asked for, and which samples count."""

import math

import pytest
import torch
from small_objectives import (
    activities,
    block_with,
    cross_entropy,
    draw,
    one_view,
    threshold,
    two_views,
)
from torch import nn

import onward as ow
from onward.batch import Batch
from onward.engine.kernels.closed_form import ALL, OfLinearHead, OfThreshold
from onward.engine.stretches import Training, make_step
from onward.network.blocks import Block
from onward.network.objectives import CrossEntropy, Objective, Threshold


def loss_of(objective, outputs):
    """Return the loss of what a block has put out; neither objective here asks for the inputs."""
    return objective.loss({}, outputs, torch.Generator())


def means_of(metrics):
    """Return metrics as means over samples."""
    return {name: float(total) / number for name, (total, number) in metrics.items()}


def in_closed_form(objective, views):
    """Differentiate the loss as the closed forms do."""
    is_linear = isinstance(objective, CrossEntropy)
    local = OfLinearHead(objective) if is_linear else OfThreshold(objective)
    with torch.no_grad():
        return local.gradient(local.partial(views, ALL), views, ALL)


def by_autograd(objective, views):
    """Differentiate the loss: by activities of each view, and by the objective's parameters."""
    leaves = {name: view.inputs.clone().requires_grad_() for name, view in views.items()}
    loss = loss_of(objective, {name: views[name].replace(inputs=x) for name, x in leaves.items()})
    parameters = dict(objective.named_parameters())
    found = torch.autograd.grad(loss, [*leaves.values(), *parameters.values()])
    by_activities = dict(zip(leaves, found, strict=False))
    by_parameters = dict(zip(parameters, found[len(leaves) :], strict=True))
    return loss.detach(), by_activities, by_parameters


def assert_same_gradient(objective, views):
    found = in_closed_form(objective, views)
    loss, by_activities, by_parameters = by_autograd(objective, views)
    exact = {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(found.loss, loss, **exact)
    torch.testing.assert_close(found.activities, by_activities, **exact)
    torch.testing.assert_close(found.parameters, by_parameters, **exact)


def objective_and_views(name):
    if name == "cross-entropy":
        return cross_entropy(), one_view(activities())
    return threshold(peer=0.03), two_views(activities(seed=1), activities(seed=2))


# Cross-entropy


def test_cross_entropy_is_the_mean_of_minus_the_log_of_the_probability_of_the_true_class():
    objective, x = cross_entropy(), activities()
    label = torch.arange(6) % 3

    loss = loss_of(objective, one_view(x, label=label))

    exponentials = (x @ objective.head.weight.detach().T).exp()
    p = exponentials / exponentials.sum(dim=1, keepdim=True)
    expected = -sum(math.log(p[row, label]) for row, label in enumerate(label.tolist())) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_the_gradient_of_cross_entropy_is_that_of_autograd(samples, scale):
    assert_same_gradient(cross_entropy(), one_view(activities(samples, scale=scale)))


def test_huge_class_scores_do_not_overflow():
    objective, x = cross_entropy(), activities(scale=1e30).float()
    objective.float()

    found = in_closed_form(objective, one_view(x))

    assert loss_of(objective, one_view(x)).isfinite()
    assert found.loss.isfinite()
    assert found.activities["input"].isfinite().all()


def test_the_scores_of_cross_entropy_are_log_probabilities():
    scores = cross_entropy().scores(Batch(activities()))

    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_a_head_of_zeros_finds_all_classes_equally_likely():
    objective = CrossEntropy(nn.Linear(4, 2, bias=False))
    nn.init.zeros_(objective.head.weight)

    scores = objective.scores(Batch(draw(3, 4).float()))

    torch.testing.assert_close(scores, torch.full((3, 2), -math.log(2)))


def test_the_accuracy_of_cross_entropy_is_the_share_of_samples_whose_true_class_scores_highest():
    objective = CrossEntropy(nn.Identity())
    scores = torch.tensor([[3.0, 1.0], [0.0, 1.0], [5.0, 2.0], [2.0, 1.0]])

    metrics = objective.metrics(one_view(scores, label=torch.tensor([0, 1, 1, 0])))

    assert metrics == {"accuracy": (3, 4)}


def test_bf16_class_scores_are_compared_in_fp32():
    objective = CrossEntropy(nn.Identity())

    scores = objective.scores(Batch(torch.zeros(1, 2, dtype=torch.bfloat16)))

    assert scores.dtype == torch.float32


# Threshold


def test_goodness_is_the_mean_square_of_a_sample():
    goodness = threshold(2).goodness(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]))

    assert goodness.tolist() == pytest.approx([12.5, 0.5, 0.0])


def test_the_score_of_a_sample_is_its_sum_of_squares():
    scores = threshold(2).scores(Batch(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])))

    assert scores.tolist() == pytest.approx([25.0, 1.0, 0.0])


def test_goodness_of_an_image_counts_all_its_axes():
    image = torch.ones(2, 3, 4, 5) * 2

    assert threshold(3).goodness(image).tolist() == pytest.approx([4.0, 4.0])
    assert threshold(3).scores(Batch(image)).tolist() == pytest.approx([240.0, 240.0])


def test_goodness_of_bf16_activities_is_summed_in_fp32():
    # A sum in bf16 would stop growing at 256.
    goodness = threshold(4096).goodness(torch.ones(1, 4096, dtype=torch.bfloat16))

    assert goodness.dtype == torch.float32
    assert goodness.item() == pytest.approx(1.0)


def test_the_loss_of_a_threshold_is_binary_cross_entropy_over_positives_and_negatives():
    objective = threshold(threshold=1.5, slope=3.0)
    positive, negative = activities(4, seed=1), activities(6, seed=2)

    loss = loss_of(objective, two_views(positive, negative))

    def p(row):
        return 1 / (1 + math.exp(-3.0 * (row.square().mean().item() - 1.5)))

    expected = -sum(math.log(p(row)) for row in positive)
    expected -= sum(math.log(1 - p(row)) for row in negative)
    assert loss.item() == pytest.approx(expected / 10, rel=1e-12)


def test_a_slope_of_the_width_is_hintons_sum_of_squares_against_the_number_of_units():
    objective = threshold(5, threshold=1.0, slope=5.0)
    positive, negative = activities(seed=1), activities(seed=2)

    loss = loss_of(objective, two_views(positive, negative))

    above = 5 - positive.square().sum(dim=1)
    below = negative.square().sum(dim=1) - 5
    expected = (torch.cat([above, below]).exp() + 1).log().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_samples_at_the_threshold_are_a_coin_toss():
    objective = threshold(2, threshold=12.5, slope=7.0)
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)

    assert loss_of(objective, two_views(row, row)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("slope", [0.1, 1.0, 5.0, 1000.0])
@pytest.mark.parametrize(("positives", "negatives"), [(6, 6), (1, 1), (2, 5)])
def test_the_gradient_of_a_threshold_is_that_of_autograd(slope, positives, negatives):
    views = two_views(activities(positives, seed=1), activities(negatives, seed=2))

    assert_same_gradient(threshold(slope=slope, threshold=0.7, peer=0.03), views)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_gradient_of_a_threshold_is_that_of_autograd_for_images_too(samples):
    positive, negative = draw(samples, 3, 2, 2), draw(samples, 3, 2, 2, seed=1)

    assert_same_gradient(threshold(3), two_views(positive, negative))


@pytest.mark.parametrize("scale", [1e2, 1e6, 1e12])
def test_a_huge_goodness_does_not_overflow(scale):
    # log(1 + exp(goodness)), as mpezeshki's tutorial has it, is infinite from 89 on.
    huge = activities(scale=scale).float()[2:]
    objective = Threshold(5, threshold=1.0, slope=5.0)

    for views in (two_views(huge, huge), two_views(huge, huge * 0), two_views(huge * 0, huge)):
        found = in_closed_form(objective, views)

        assert loss_of(objective, views).isfinite()
        assert found.loss.isfinite()
        assert all(derivative.isfinite().all() for derivative in found.activities.values())


def test_a_huge_goodness_of_negatives_costs_as_much_as_it_is_above_the_threshold():
    objective = threshold(1, threshold=1.0, slope=1.0)
    positive, negative = (torch.full((1, 1), value, dtype=torch.float64) for value in (1e4, 1e3))

    loss = loss_of(objective, two_views(positive, negative))

    assert loss.item() == pytest.approx((1e6 - 1) / 2)


def test_the_gradient_raises_the_goodness_of_positives_and_lowers_that_of_negatives():
    positive, negative = activities(seed=1), activities(seed=2)

    found = in_closed_form(threshold(), two_views(positive, negative)).activities

    active = positive > 0
    assert (found["positive"][active] < 0).all()
    assert (found["negative"][negative > 0] > 0).all()


def test_a_threshold_tells_the_share_of_samples_on_the_right_side():
    positive = torch.tensor([[2.0], [0.5], [3.0]])
    negative = torch.tensor([[0.0], [2.0], [0.5]])

    metrics = threshold(1).metrics(two_views(positive, negative))

    assert metrics["told_apart"] == (4, 6)


def test_the_goodness_gap_is_the_mean_goodness_of_positives_above_that_of_negatives():
    positive = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    negative = torch.tensor([[0.0, 2.0]])

    metrics = threshold(2).metrics(two_views(positive, negative))

    # Mean squares of 2 and 8, and of 2.
    assert means_of(metrics)["goodness_gap"] == pytest.approx(3.0)


# Both


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_the_metrics_of_the_closed_form_are_those_of_the_objective(name):
    objective, views = objective_and_views(name)

    found, expected = in_closed_form(objective, views).metrics, objective.metrics(views)

    assert tuple(found) == tuple(expected) == objective.metric_names
    assert means_of(found) == pytest.approx(means_of(expected))


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_a_loss_is_a_mean_so_that_twice_the_samples_cost_the_same(name):
    objective, views = objective_and_views(name)
    twice = {n: v.take(torch.arange(len(v)).repeat(2)) for n, v in views.items()}

    assert loss_of(objective, twice).item() == pytest.approx(loss_of(objective, views).item())


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_the_derivative_has_the_type_of_the_activities(name):
    objective, views = objective_and_views(name)
    objective.float()
    in_bf16 = {n: v.replace(inputs=v.inputs.bfloat16()) for n, v in views.items()}

    found = in_closed_form(objective, in_bf16)

    assert {d.dtype for d in found.activities.values()} == {torch.bfloat16}
    assert all(d.dtype == torch.float32 for d in found.parameters.values())
    assert found.loss.dtype == torch.float32


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_looking_at_loss_gradient_scores_and_metrics_changes_nothing(name):
    objective, views = objective_and_views(name)
    state = {key: t.clone() for key, t in objective.state_dict().items()}
    inputs = {n: v.inputs.clone() for n, v in views.items()}

    loss_of(objective, views)
    in_closed_form(objective, views)
    objective.metrics(views)
    objective.scores(next(iter(views.values())))

    assert all(t.equal(state[key]) for key, t in objective.state_dict().items())
    assert all(v.inputs.equal(inputs[n]) for n, v in views.items())


# What inference needs


class Decoder(Objective):
    """Rebuilds the inputs from the activities with weights that are for training only."""

    views = ("input",)

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(4, 4)

    def loss(self, inputs, outputs, draw):
        return (self.decoder(outputs["input"].inputs) - inputs["input"].inputs).square().mean()


def test_the_head_of_cross_entropy_ships():
    block = block_with(CrossEntropy(nn.Linear(4, 3, bias=False)))

    assert sorted(block.shipped()) == ["module.bias", "module.weight", "objective.head.weight"]


def test_the_running_mean_of_a_threshold_does_not_ship():
    block = block_with(Threshold(4, threshold=1.0, slope=4.0, peer=0.03))

    assert sorted(block.shipped()) == ["module.bias", "module.weight"]


def test_a_decoder_is_trained_but_does_not_ship():
    block = block_with(Decoder())

    trained = [name for name, _ in block.trained()]
    assert trained == [
        "module.weight",
        "module.bias",
        "objective.decoder.weight",
        "objective.decoder.bias",
    ]
    assert sorted(block.shipped()) == ["module.bias", "module.weight"]


def test_running_statistics_of_a_module_ship():
    block = Block(nn.BatchNorm1d(4), Decoder(), ow.Adam())

    assert "module.running_mean" in block.shipped()


# What objectives are asked for


def test_a_loss_is_all_that_an_objective_must_have():
    objective = Decoder()

    assert not objective.has_scores
    assert not objective.has_extra_gradient
    assert objective.metrics({}) == {}
    with pytest.raises(NotImplementedError):
        objective.scores(Batch(torch.zeros(1, 4)))


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_built_in_objectives_have_scores(name):
    assert objective_and_views(name)[0].has_scores


def test_only_a_head_that_changes_nothing_has_logits_for_scores():
    assert CrossEntropy(nn.Identity()).scores_are_logits
    assert not cross_entropy().scores_are_logits


# Weights of samples, and samples that do not count


def weighted(name, **known):
    """Return an objective, and what it learns from, with further fields of the batch."""
    objective, views = objective_and_views(name)
    return objective, {n: view.replace(**known) for n, view in views.items()}


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_the_weight_of_a_sample_is_a_factor_on_its_part_of_the_mean(name):
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0]).double()
    objective, views = weighted(name, weights=weights)

    loss = loss_of(objective, views)

    alone = []
    for number in range(6):
        chosen = {
            n: v.replace(weights=None).take(slice(number, number + 1)) for n, v in views.items()
        }
        alone.append(loss_of(objective, chosen).item())
    expected = sum(w * own for w, own in zip(weights.tolist(), alone, strict=True)) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_weights_of_one_change_nothing(name):
    objective, views = weighted(name, weights=torch.ones(6))
    _, plain = objective_and_views(name)

    assert loss_of(objective, views).item() == pytest.approx(loss_of(objective, plain).item())


@pytest.mark.parametrize("closed_form", [True, False])
@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_a_sample_of_weight_zero_teaches_nothing(name, closed_form):
    def learned(last):
        objective, views = weighted(name, weights=torch.tensor([1.0] * 5 + [0.0]).double())
        # Peer normalisation is no part of the loss.
        objective.peer = 0.0
        block = Block(block_with(objective, width=5).module.double(), objective, ow.SGD(lr=0.1))
        views = {n: v.replace(inputs=torch.cat([v.inputs[:5], last])) for n, v in views.items()}
        step = make_step(block, Training(seed=0, closed_form=closed_form), views)
        step(views, seed=0, lr_scale=1.0)
        return {n: p.detach() for n, p in block.trained()}

    first, second = learned(draw(1, 5, seed=7)), learned(draw(1, 5, seed=8))

    for parameter, found in first.items():
        torch.testing.assert_close(found, second[parameter], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_samples_outside_the_index_count_neither_in_the_loss_nor_in_the_metrics(name):
    counted = torch.tensor([0, 2, 5])
    objective, views = weighted(name, index=counted, structure={"edges": torch.zeros(2, 4)})
    _, plain = objective_and_views(name)

    alone = {n: view.take(counted) for n, view in plain.items()}

    assert loss_of(objective, views).item() == pytest.approx(loss_of(objective, alone).item())
    assert means_of(objective.metrics(views)) == pytest.approx(means_of(objective.metrics(alone)))
