"""Peer normalisation: what it adds to the gradient, and the running mean that it keeps."""

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

from onward.engine.stretches import Training, make_step
from onward.network.objectives import Threshold


def test_the_running_mean_starts_at_a_half_and_keeps_nine_tenths():
    objective = threshold(2, peer=0.03)
    positive = torch.tensor([[1.0, 3.0], [3.0, 5.0]], dtype=torch.float64)

    objective.extra_gradient(two_views(positive, positive))
    first = objective.peer_mean.tolist()
    objective.extra_gradient(two_views(positive, positive))

    assert first == pytest.approx([0.45 + 0.2, 0.45 + 0.4])
    assert objective.peer_mean.tolist() == pytest.approx([0.585 + 0.2, 0.765 + 0.4])


def test_peer_normalization_pulls_every_unit_toward_the_mean_of_all_units():
    objective, strength = threshold(3, peer=0.03), 0.03
    positive = activities(4, 3, seed=1)

    extra = objective.extra_gradient(two_views(positive, activities(4, 3, seed=2)))["positive"]

    mean = 0.9 * 0.5 + 0.1 * positive.mean(dim=0)
    # Hinton adds strength (mean of units - mean) to each sample of what he divides by their number.
    expected = -strength * (mean.mean() - mean) / 4
    torch.testing.assert_close(extra, expected.expand(4, 3), rtol=1e-12, atol=1e-15)


def test_peer_normalization_is_not_weaker_in_a_wider_layer():
    # loeweX takes the mean over units of a square, which is 0.2 / units of Hinton's.
    pulls = []
    for width in (4, 400):
        objective = threshold(width, peer=0.03)
        positive = torch.zeros(1, width, dtype=torch.float64)
        positive[:, : width // 2] = 1
        pulls.append(
            objective.extra_gradient(two_views(positive, positive))["positive"][0, 0].item()
        )

    assert pulls[0] == pytest.approx(pulls[1])


def test_peer_normalization_reaches_silent_units():
    objective = threshold(2, peer=0.03)
    positive = torch.tensor([[0.0, 1.0]], dtype=torch.float64)

    extra = objective.extra_gradient(two_views(positive, positive))["positive"]

    silent, active = extra[0].tolist()
    assert silent < 0 < active


def test_peer_normalization_sees_positives_only():
    objective, positive = threshold(5, peer=0.03), activities(seed=1)

    first = objective.extra_gradient(two_views(positive, activities(seed=2)))
    second = threshold(5, peer=0.03).extra_gradient(two_views(positive, activities(seed=3)))

    assert list(first) == ["positive"]
    assert first["positive"].equal(second["positive"])


@pytest.mark.parametrize("closed_form", [True, False])
def test_without_peer_normalization_nothing_is_added_and_nothing_runs(closed_form):
    block = block_with(Threshold(4, threshold=1.0, slope=4.0))
    step = make_step(block, Training(seed=0, closed_form=closed_form))

    step(two_views(draw(6, 4).float(), draw(6, 4, seed=1).float()), seed=0, lr_scale=1.0)

    assert not block.objective.has_extra_gradient
    assert (block.objective.peer_mean == 0.5).all()


def test_peer_normalization_counts_the_channels_of_images_as_units():
    objective = threshold(3, peer=0.03)
    positive = draw(4, 3, 2, 2, seed=1).clamp_min(0)

    extra = objective.extra_gradient(two_views(positive, positive))["positive"]

    mean = 0.9 * 0.5 + 0.1 * positive.mean(dim=(0, 2, 3))
    # Of the mean over four samples and four places.
    expected = 0.03 * (mean - mean.mean()) / (4 * 4)
    torch.testing.assert_close(objective.peer_mean, mean, rtol=1e-12, atol=1e-15)
    assert extra.shape == positive.shape
    torch.testing.assert_close(extra[0, :, 1, 1], expected, rtol=1e-12, atol=1e-15)


def test_cross_entropy_adds_nothing_to_the_gradient():
    objective = cross_entropy()

    assert not objective.has_extra_gradient
    assert objective.extra_gradient(one_view(activities())) == {}


def test_the_running_mean_is_saved_and_converted_with_the_network():
    # loeweX keeps it in a list, which is neither saved nor moved.
    objective = Threshold(3, threshold=1.0, slope=3.0, peer=0.03)

    assert list(objective.state_dict()) == ["peer_mean"]
    assert objective.double().peer_mean.dtype == torch.float64
