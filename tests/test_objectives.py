import math

import pytest
import torch
from torch import nn

import onward as ow
from onward.blocks import Block
from onward.objectives import CrossEntropy, Metrics, Objective, Threshold
from onward.views import View


def draw(*shape, seed=0):
    """Draw normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(rows, num_classes=3):
    return torch.arange(rows) % num_classes


def one_view(x, **named):
    """Make the view of an objective without negatives."""
    return {"input": View(x, named.get("labels", labels_of(len(x))))}


def two_views(positive, negative):
    """Make the views of an objective with negatives."""
    return {
        "positive": View(positive, labels_of(len(positive))),
        "negative": View(negative, labels_of(len(negative))),
    }


def activities(rows=6, width=5, *, seed=0, scale=1.0):
    """Make activities as a ReLU puts them out: some of them zero, and one row of several."""
    x = draw(rows, width, seed=seed).clamp_min(0) * scale
    x[1:2] = 0
    return x


def cross_entropy(width=5, num_classes=3):
    head = nn.Linear(width, num_classes, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(draw(num_classes, width, seed=9))
    return CrossEntropy(head)


def threshold(width=5, **named):
    return Threshold(width, **({"threshold": 1.0, "slope": float(width)} | named)).double()


def by_autograd(objective, views):
    """Differentiate the loss: by activities of each view, and by the objective's parameters."""
    leaves = {name: view.x.clone().requires_grad_() for name, view in views.items()}
    loss = objective.loss({name: View(x, views[name].labels) for name, x in leaves.items()})
    parameters = dict(objective.named_parameters())
    found = torch.autograd.grad(loss, [*leaves.values(), *parameters.values()])
    by_activities = dict(zip(leaves, found, strict=False))
    by_parameters = dict(zip(parameters, found[len(leaves) :], strict=True))
    return loss.detach(), by_activities, by_parameters


def assert_same_gradient(objective, views):
    found = objective.gradient(views)
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
    labels = labels_of(6)

    loss = objective.loss(one_view(x, labels=labels))

    exponentials = (x @ objective.head.weight.detach().T).exp()
    p = exponentials / exponentials.sum(dim=1, keepdim=True)
    expected = -sum(math.log(p[row, label]) for row, label in enumerate(labels.tolist())) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_the_gradient_of_cross_entropy_is_that_of_autograd(rows, scale):
    assert_same_gradient(cross_entropy(), one_view(activities(rows, scale=scale)))


def test_huge_class_scores_do_not_overflow():
    objective, x = cross_entropy(), activities(scale=1e30).float()
    objective.float()

    found = objective.gradient(one_view(x))

    assert objective.loss(one_view(x)).isfinite()
    assert found.loss.isfinite()
    assert found.activities["input"].isfinite().all()


def test_the_scores_of_cross_entropy_are_log_probabilities():
    scores = cross_entropy().scores(activities())

    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_a_head_of_zeros_finds_all_classes_equally_likely():
    objective = CrossEntropy(nn.Linear(4, 2, bias=False))
    nn.init.zeros_(objective.head.weight)

    scores = objective.scores(torch.rand(3, 4, generator=torch.Generator().manual_seed(0)))

    torch.testing.assert_close(scores, torch.full((3, 2), -math.log(2)))


def test_the_accuracy_of_cross_entropy_is_the_share_of_rows_whose_true_class_scores_highest():
    objective = CrossEntropy(nn.Identity())
    scores = torch.tensor([[3.0, 1.0], [0.0, 1.0], [5.0, 2.0], [2.0, 1.0]])

    metrics = objective.metrics(one_view(scores, labels=torch.tensor([0, 1, 1, 0])))

    assert metrics.accuracy == 0.75
    assert metrics.goodness_gap.isnan()


def test_bf16_class_scores_are_compared_in_fp32():
    objective = CrossEntropy(nn.Identity())

    assert objective.scores(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32


# Threshold


def test_goodness_is_the_mean_square_of_a_row():
    goodness = threshold(2).goodness(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]))

    assert goodness.tolist() == pytest.approx([12.5, 0.5, 0.0])


def test_the_score_of_a_row_is_its_sum_of_squares():
    scores = threshold(2).scores(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]))

    assert scores.tolist() == pytest.approx([25.0, 1.0, 0.0])


def test_goodness_of_an_image_counts_all_its_axes():
    image = torch.ones(2, 3, 4, 5) * 2

    assert threshold(60).goodness(image).tolist() == pytest.approx([4.0, 4.0])
    assert threshold(60).scores(image).tolist() == pytest.approx([240.0, 240.0])


def test_goodness_of_bf16_activities_is_summed_in_fp32():
    # A sum in bf16 would stop growing at 256.
    goodness = threshold(4096).goodness(torch.ones(1, 4096, dtype=torch.bfloat16))

    assert goodness.dtype == torch.float32
    assert goodness.item() == pytest.approx(1.0)


def test_the_loss_of_a_threshold_is_binary_cross_entropy_over_positives_and_negatives():
    objective = threshold(threshold=1.5, slope=3.0)
    positive, negative = activities(4, seed=1), activities(6, seed=2)

    loss = objective.loss(two_views(positive, negative))

    def p(row):
        return 1 / (1 + math.exp(-3.0 * (row.square().mean().item() - 1.5)))

    expected = -sum(math.log(p(row)) for row in positive)
    expected -= sum(math.log(1 - p(row)) for row in negative)
    assert loss.item() == pytest.approx(expected / 10, rel=1e-12)


def test_a_slope_of_the_width_is_hintons_sum_of_squares_against_the_number_of_units():
    objective = threshold(5, threshold=1.0, slope=5.0)
    positive, negative = activities(seed=1), activities(seed=2)

    loss = objective.loss(two_views(positive, negative))

    above = 5 - positive.square().sum(dim=1)
    below = negative.square().sum(dim=1) - 5
    expected = (torch.cat([above, below]).exp() + 1).log().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_rows_at_the_threshold_are_a_coin_toss():
    objective = threshold(2, threshold=12.5, slope=7.0)
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)

    assert objective.loss(two_views(row, row)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("slope", [0.1, 1.0, 5.0, 1000.0])
@pytest.mark.parametrize(("positives", "negatives"), [(6, 6), (1, 1), (2, 5)])
def test_the_gradient_of_a_threshold_is_that_of_autograd(slope, positives, negatives):
    views = two_views(activities(positives, seed=1), activities(negatives, seed=2))

    assert_same_gradient(threshold(slope=slope, threshold=0.7, peer=0.03), views)


@pytest.mark.parametrize("rows", [2, 3])
def test_the_gradient_of_a_threshold_is_that_of_autograd_for_images_too(rows):
    positive, negative = draw(rows, 3, 2, 2), draw(rows, 3, 2, 2, seed=1)

    assert_same_gradient(threshold(12), two_views(positive, negative))


@pytest.mark.parametrize("scale", [1e2, 1e6, 1e12])
def test_a_huge_goodness_does_not_overflow(scale):
    # log(1 + exp(goodness)), as mpezeshki's tutorial has it, is infinite from 89 on.
    huge = activities(scale=scale).float()[2:]
    objective = Threshold(5, threshold=1.0, slope=5.0)

    for views in (two_views(huge, huge), two_views(huge, huge * 0), two_views(huge * 0, huge)):
        found = objective.gradient(views)

        assert objective.loss(views).isfinite()
        assert found.loss.isfinite()
        assert all(derivative.isfinite().all() for derivative in found.activities.values())


def test_a_huge_goodness_of_negatives_costs_as_much_as_it_is_above_the_threshold():
    objective = threshold(1, threshold=1.0, slope=1.0)
    positive, negative = (torch.full((1, 1), value, dtype=torch.float64) for value in (1e4, 1e3))

    loss = objective.loss(two_views(positive, negative))

    assert loss.item() == pytest.approx((1e6 - 1) / 2)


def test_the_gradient_raises_the_goodness_of_positives_and_lowers_that_of_negatives():
    positive, negative = activities(seed=1), activities(seed=2)

    found = threshold().gradient(two_views(positive, negative)).activities

    active = positive > 0
    assert (found["positive"][active] < 0).all()
    assert (found["negative"][negative > 0] > 0).all()


def test_the_accuracy_of_a_threshold_is_the_share_of_rows_on_the_right_side():
    positive = torch.tensor([[2.0], [0.5], [3.0]])
    negative = torch.tensor([[0.0], [2.0], [0.5]])

    metrics = threshold(1).metrics(two_views(positive, negative))

    assert metrics.accuracy.item() == pytest.approx(4 / 6)


def test_the_goodness_gap_is_the_mean_goodness_of_positives_above_that_of_negatives():
    positive = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    negative = torch.tensor([[0.0, 2.0]])

    metrics = threshold(2).metrics(two_views(positive, negative))

    # Mean squares of 2 and 8, and of 2.
    assert metrics.goodness_gap.item() == pytest.approx(3.0)


# Both


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_the_metrics_of_the_closed_form_are_those_of_the_objective(name):
    objective, views = objective_and_views(name)

    found, expected = objective.gradient(views).metrics, objective.metrics(views)

    torch.testing.assert_close(found.accuracy, expected.accuracy)
    torch.testing.assert_close(found.goodness_gap, expected.goodness_gap, equal_nan=True)


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_a_loss_is_a_mean_so_that_twice_the_rows_cost_the_same(name):
    objective, views = objective_and_views(name)
    twice = {n: View(torch.cat([v.x, v.x]), v.labels.repeat(2)) for n, v in views.items()}

    assert objective.loss(twice).item() == pytest.approx(objective.loss(views).item())


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_the_derivative_has_the_type_of_the_activities(name):
    objective, views = objective_and_views(name)
    objective.float()
    in_bf16 = {n: View(v.x.bfloat16(), v.labels) for n, v in views.items()}

    found = objective.gradient(in_bf16)

    assert {d.dtype for d in found.activities.values()} == {torch.bfloat16}
    assert all(d.dtype == torch.float32 for d in found.parameters.values())
    assert found.loss.dtype == torch.float32


@pytest.mark.parametrize("name", ["cross-entropy", "threshold"])
def test_looking_at_loss_gradient_scores_and_metrics_changes_nothing(name):
    objective, views = objective_and_views(name)
    state = {key: t.clone() for key, t in objective.state_dict().items()}
    inputs = {n: v.x.clone() for n, v in views.items()}

    objective.loss(views)
    objective.gradient(views)
    objective.metrics(views)
    objective.scores(next(iter(inputs.values())))

    assert all(t.equal(state[key]) for key, t in objective.state_dict().items())
    assert all(v.x.equal(inputs[n]) for n, v in views.items())


# Peer normalisation


def test_the_running_mean_starts_at_a_half_and_keeps_nine_tenths():
    objective = threshold(2, peer=0.03)
    positive = torch.tensor([[1.0, 3.0], [3.0, 5.0]], dtype=torch.float64)

    objective.nudge(two_views(positive, positive))
    first = objective.peer_mean.tolist()
    objective.nudge(two_views(positive, positive))

    assert first == pytest.approx([0.45 + 0.2, 0.45 + 0.4])
    assert objective.peer_mean.tolist() == pytest.approx([0.585 + 0.2, 0.765 + 0.4])


def test_peer_normalization_pulls_every_unit_toward_the_mean_of_all_units():
    objective, strength = threshold(3, peer=0.03), 0.03
    positive = activities(4, 3, seed=1)

    nudge = objective.nudge(two_views(positive, activities(4, 3, seed=2)))["positive"]

    mean = 0.9 * 0.5 + 0.1 * positive.mean(dim=0)
    # Hinton adds strength (mean of units - mean) to each row of what he divides by the rows.
    expected = -strength * (mean.mean() - mean) / 4
    torch.testing.assert_close(nudge, expected.expand(4, 3), rtol=1e-12, atol=1e-15)


def test_peer_normalization_is_not_weaker_in_a_wider_layer():
    # loeweX takes the mean over units of a square, which is 0.2 / units of Hinton's.
    pulls = []
    for width in (4, 400):
        objective = threshold(width, peer=0.03)
        positive = torch.zeros(1, width, dtype=torch.float64)
        positive[:, : width // 2] = 1
        pulls.append(objective.nudge(two_views(positive, positive))["positive"][0, 0].item())

    assert pulls[0] == pytest.approx(pulls[1])


def test_peer_normalization_reaches_silent_units():
    objective = threshold(2, peer=0.03)
    positive = torch.tensor([[0.0, 1.0]], dtype=torch.float64)

    nudge = objective.nudge(two_views(positive, positive))["positive"]

    silent, active = nudge[0].tolist()
    assert silent < 0 < active


def test_peer_normalization_sees_positives_only():
    objective, positive = threshold(5, peer=0.03), activities(seed=1)

    first = objective.nudge(two_views(positive, activities(seed=2)))
    second = threshold(5, peer=0.03).nudge(two_views(positive, activities(seed=3)))

    assert list(first) == ["positive"]
    assert first["positive"].equal(second["positive"])


def test_without_peer_normalization_nothing_is_nudged_and_nothing_runs():
    objective = threshold(5)

    assert objective.nudge(two_views(activities(), activities())) == {}
    assert (objective.peer_mean == 0.5).all()


def test_cross_entropy_nudges_nothing():
    assert cross_entropy().nudge(one_view(activities())) == {}


def test_the_running_mean_is_saved_and_converted_with_the_network():
    # loeweX keeps it in a list, which is neither saved nor moved.
    objective = Threshold(3, threshold=1.0, slope=3.0, peer=0.03)

    assert list(objective.state_dict()) == ["peer_mean"]
    assert objective.double().peer_mean.dtype == torch.float64


# What inference needs


class Decoder(Objective):
    """Rebuilds the label from the activities with weights that are for training only."""

    views = ("input",)
    ships = False

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(4, 1)

    def loss(self, outputs):
        (view,) = outputs.values()
        return (self.decoder(view.x)[:, 0] - view.labels).square().mean()

    def gradient(self, outputs):
        raise NotImplementedError

    def scores(self, activities):
        return activities

    def metrics(self, outputs):
        return Metrics(torch.tensor(float("nan")), torch.tensor(float("nan")))


def block_with(objective):
    return Block(ow.Dense(4, 4, generator=torch.Generator().manual_seed(0)), objective, ow.Adam())


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
