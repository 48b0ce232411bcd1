import math

import numpy as np
import pytest
import torch

from onward.network.optimizers import SGD, Adam, lr_scale

RULES = [
    Adam(lr=0.01, weight_decay=0.1),
    Adam(lr=0.01),
    SGD(lr=0.1, weight_decay=0.1),
    SGD(lr=0.1, momentum=0.5),
]
STEPS = 50


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(step, like):
    return draw(*like.shape, seed=1000 + step, dtype=like.dtype)


def follow(rule, parameters, gradients, *, lr_scale=1.0, states=None):
    """Let parameters take a step for each entry of gradients."""
    states = states or [rule.init(p) for p in parameters]
    for each in gradients:
        for parameter, own, state in zip(parameters, each, states, strict=True):
            rule.count(state)
            rule.step(parameter, own, state, lr_scale=lr_scale)
    return states


# Against torch and against Hinton


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_torchs_adamw_with_decay_on_matrices_only(dtype, tolerance, weight_decay):
    weight, bias = draw(6, 5, dtype=dtype), draw(6, seed=1, dtype=dtype)
    theirs = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    reference = torch.optim.AdamW(
        [
            {"params": theirs[:1], "weight_decay": weight_decay},
            {"params": theirs[1:], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.95),
        eps=1e-6,
    )
    gradients = [[gradient(t, weight), gradient(t + 100, bias)] for t in range(STEPS)]

    rule = Adam(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=weight_decay)
    follow(rule, [weight, bias], gradients)
    for each in gradients:
        for parameter, own in zip(theirs, each, strict=True):
            parameter.grad = own.clone()
        reference.step()

    for ours, other in zip((weight, bias), theirs, strict=True):
        torch.testing.assert_close(ours, other.detach(), rtol=tolerance, atol=tolerance)


def test_sgd_is_hintons_rule():
    weight, bias = draw(6, 5, dtype=torch.float64), draw(6, seed=1, dtype=torch.float64)
    w, b = weight.numpy().copy(), bias.numpy().copy()
    w_mean, b_mean = np.zeros_like(w), np.zeros_like(b)
    gradients = [[gradient(t, weight), gradient(t + 100, bias)] for t in range(STEPS)]

    follow(SGD(lr=0.01, momentum=0.9, weight_decay=0.001), [weight, bias], gradients)
    for of_weight, of_bias in gradients:
        w_mean = 0.9 * w_mean + 0.1 * of_weight.numpy()
        b_mean = 0.9 * b_mean + 0.1 * of_bias.numpy()
        w = w - 0.01 * (w_mean + 0.001 * w)
        b = b - 0.01 * b_mean

    np.testing.assert_allclose(weight.numpy(), w, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(bias.numpy(), b, rtol=1e-13, atol=1e-13)


def test_the_first_step_of_sgd_already_smooths_the_gradient():
    # torch.optim.SGD takes the whole first gradient, whatever its dampening.
    weight = torch.zeros(1, 1)

    follow(SGD(lr=1.0, momentum=0.75), [weight], [[torch.ones(1, 1)]])

    assert weight.item() == -0.25


@pytest.mark.parametrize("rule", [Adam(lr=0.5, weight_decay=0.5), SGD(lr=0.5, weight_decay=0.5)])
def test_decay_shrinks_weights_and_spares_biases(rule):
    weight, bias = torch.ones(2, 2), torch.ones(2)

    follow(rule, [weight, bias], [[torch.zeros(2, 2), torch.zeros(2)]])

    assert (weight == 0.75).all()
    assert (bias == 1).all()


@pytest.mark.parametrize("rule", [Adam(lr=0.5, weight_decay=0.5), SGD(lr=0.5, weight_decay=0.5)])
def test_decay_is_not_smoothed(rule):
    weight = torch.ones(2, 2)

    states = follow(rule, [weight], [[torch.zeros(2, 2)]])

    assert all((t == 0).all() for name, t in states[0].items() if name != "step")


# State


@pytest.mark.parametrize("rule", RULES)
def test_the_state_is_named_arrays_of_the_shape_of_the_parameter_or_scalars(rule):
    state = rule.init(draw(3, 4))

    assert state
    assert {tuple(t.shape) for t in state.values()} <= {(3, 4), ()}


@pytest.mark.parametrize("rule", RULES)
def test_the_state_starts_at_zero(rule):
    assert all((t == 0).all() for t in rule.init(draw(3, 4)).values())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_keeps_no_state_of_its_own(rule):
    # keras.io shares one Adam among all layers, and with it the count of steps.
    alone, beside = draw(3, 4), draw(3, 4)
    other = draw(5, 5, seed=3)
    gradients = [[gradient(t, alone)] for t in range(5)]

    follow(rule, [alone], gradients)
    states, others = [rule.init(beside)], [rule.init(other)]
    for each in gradients:
        follow(rule, [other], [[gradient(7, other)]], states=others)
        follow(rule, [beside], [each], states=states)

    assert alone.equal(beside)


@pytest.mark.parametrize("rule", RULES)
def test_a_parameter_that_stops_and_goes_on_from_its_state_ends_the_same(rule):
    straight, stopped = draw(3, 4), draw(3, 4)
    gradients = [[gradient(t, straight)] for t in range(10)]

    follow(rule, [straight], gradients)
    states = follow(rule, [stopped], gradients[:4])
    carried = [{name: t.clone() for name, t in state.items()} for state in states]
    follow(rule, [stopped], gradients[4:], states=carried)

    assert straight.equal(stopped)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_left_as_they_are(rule):
    weight, own = draw(3, 4), draw(3, 4, seed=1)

    follow(rule, [weight], [[own]])

    assert own.equal(draw(3, 4, seed=1))


# Slices


def in_slices(rule, samples, columns, size):
    """Take steps at once and in slices of some samples; return both results."""
    whole, sliced = draw(samples, columns), draw(samples, columns)
    state = rule.init(sliced)
    follow(rule, [whole], [[gradient(t, whole)] for t in range(STEPS)])
    for t in range(STEPS):
        rule.count(state)
        for first in range(0, samples, size):
            chosen = slice(first, first + size)
            part = {name: m[chosen] if m.ndim else m for name, m in state.items()}
            rule.step(sliced[chosen], gradient(t, sliced)[chosen], part, lr_scale=1.0)
    return whole, sliced


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("place", [(slice(None), slice(3)), (slice(1, None, 2),)])
def test_a_part_of_a_larger_tensor_learns_like_one_alone_and_leaves_the_rest(rule, place):
    whole = draw(6, 8)
    part, alone = whole[place], whole[place].clone()
    gradients = [[gradient(step, alone)] for step in range(5)]
    rest = torch.ones_like(whole, dtype=torch.bool)
    rest[place] = False

    follow(rule, [part], gradients)
    follow(rule, [alone], gradients)

    assert part.equal(alone)
    assert whole[rest].equal(draw(6, 8)[rest])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("samples", "size"), [(12, 12), (12, 4), (12, 5), (13, 1)])
def test_updating_in_slices_gives_the_same_bits_as_at_once(rule, samples, size):
    whole, sliced = in_slices(rule, samples, 64, size)

    assert whole.equal(sliced)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("samples", "columns", "size"), [(12, 7, 5), (29, 33, 4), (3, 1, 1)])
def test_slices_that_end_within_a_vector_register_differ_in_rounding_only(
    rule, samples, columns, size
):
    whole, sliced = in_slices(rule, samples, columns, size)

    # A step adds a rounding of 1e-7 at most, and there are fifty.
    torch.testing.assert_close(whole, sliced, rtol=0, atol=5e-6)


# The learning rate over time


@pytest.mark.parametrize("rule", RULES)
def test_the_scale_is_a_factor_on_the_learning_rate(rule):
    scaled, slower = draw(3, 4), draw(3, 4)
    gradients = [[gradient(t, scaled)] for t in range(5)]

    follow(rule, [scaled], gradients, lr_scale=0.25)
    follow(type(rule)(**{**vars(rule), "lr": rule.lr * 0.25}), [slower], gradients)

    assert scaled.equal(slower)


@pytest.mark.parametrize("rule", RULES)
def test_a_scale_of_zero_changes_no_weight(rule):
    weight = draw(3, 4)

    follow(rule, [weight], [[gradient(0, weight)]], lr_scale=0.0)

    assert weight.equal(draw(3, 4))


@pytest.mark.parametrize("epochs", range(1, 13))
def test_cooldown_is_hintons(epochs):
    for number in range(1, epochs + 1):
        first_half = number <= epochs / 2
        expected = 1.0 if first_half else min(1.0, (1 + 2 * (epochs - number)) / epochs)

        assert lr_scale("cooldown", number - 1, 0.5, epochs) == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [1, 2, 60, 101])
def test_cooldown_ends_at_one_over_the_number_of_epochs(epochs):
    assert lr_scale("cooldown", epochs - 1, 1.0, epochs) == pytest.approx(1 / epochs)


def test_cooldown_changes_between_epochs_only():
    within = {lr_scale("cooldown", 7, fraction, 10) for fraction in (0.01, 0.5, 1.0)}

    assert len(within) == 1


@pytest.mark.parametrize(
    ("done", "scale"),
    [
        (0.0125, 0.25),
        (0.025, 0.5),
        (0.05, 1.0),
        (0.2, 1.0),
        (0.3, 1.0),
        (0.65, 0.501),
        (1.0, 0.001),
    ],
)
def test_warmup_goes_up_for_a_twentieth_stays_and_goes_down_to_almost_nothing(done, scale):
    epochs = 40
    epoch = min(math.floor(done * epochs), epochs - 1)

    assert lr_scale("warmup", epoch, done * epochs - epoch, epochs) == pytest.approx(scale)


@pytest.mark.parametrize("epochs", [1, 3, 10])
@pytest.mark.parametrize("schedule", ["constant", "warmup", "cooldown"])
def test_no_mini_batch_is_without_effect_and_none_exceeds_the_learning_rate(schedule, epochs):
    scales = [
        lr_scale(schedule, epoch, (batch + 1) / 30, epochs)
        for epoch in range(epochs)
        for batch in range(30)
    ]

    assert min(scales) > 0
    assert max(scales) == 1


def test_a_constant_schedule_is_one_throughout():
    assert {lr_scale("constant", epoch, 0.5, 5) for epoch in range(5)} == {1.0}
