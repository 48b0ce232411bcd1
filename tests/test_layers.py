import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.network.layers import Dense, ReadoutLayer, keep_mask, normalize_length
from onward.recipes.binary import BinaryDense

several = settings(max_examples=40, deadline=None, derandomize=True)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


# Length normalisation


@several
@given(
    samples=st.lists(
        st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5), min_size=1, max_size=4
    ),
    exponent=st.integers(-3, 15),
)
def test_every_row_gets_a_mean_square_of_one_and_a_row_of_zeros_stays_zero(samples, exponent):
    x = torch.tensor(samples)
    x = torch.where(x.abs() < 1e-3, 0.0, x) * 10.0**exponent

    squares = normalize_length(x).square().mean(dim=1)

    expected = (x != 0).any(dim=1).float()
    # What is added to the length, 1e-8, is a hundredth of the shortest samples here.
    torch.testing.assert_close(squares, expected, rtol=0.02, atol=0)


def test_the_mean_square_of_ordinary_samples_is_one_up_to_rounding():
    x = torch.randn(8, 100, generator=draw()) * torch.logspace(-1, 6, 8)[:, None]

    squares = normalize_length(x).square().mean(dim=1)

    torch.testing.assert_close(squares, torch.ones(8), rtol=1e-6, atol=0)


def test_the_length_of_a_row_says_nothing_afterwards():
    x = torch.randn(6, 20, generator=draw())

    torch.testing.assert_close(normalize_length(64 * x), normalize_length(x), rtol=1e-6, atol=1e-6)


def test_no_mean_is_subtracted():
    assert normalize_length(torch.full((1, 4), 3.0)).tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_a_row_keeps_its_direction_and_its_signs():
    x = torch.tensor([[3.0, -4.0, 0.0]])

    normalized = normalize_length(x)

    torch.testing.assert_close(normalized, x * (3**0.5 / 5))


def test_a_row_of_zeros_stays_zero_beside_others():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])

    torch.testing.assert_close(normalize_length(x), x)


def test_a_row_does_not_depend_on_the_others():
    x = torch.randn(4, 7, generator=draw())

    alone = torch.cat([normalize_length(row[None]) for row in x])

    assert normalize_length(x).equal(alone)


def test_all_axes_of_an_image_count_and_its_shape_stays():
    x = torch.randn(3, 2, 4, 5, generator=draw())

    normalized = normalize_length(x)

    assert normalized.shape == x.shape
    assert normalized.flatten(1).equal(normalize_length(x.flatten(1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_activities_keep_their_type(dtype):
    assert normalize_length(torch.ones(2, 3, dtype=dtype)).dtype == dtype


def test_the_length_of_many_bf16_activities_is_summed_in_higher_precision():
    # A sum of 10,000 nines in bf16 would stop growing at 4096.
    x = torch.full((1, 10_000), 3.0, dtype=torch.bfloat16)

    normalized = normalize_length(x)

    # Length, scale and product are rounded to 8 bits.
    assert ((normalized - 1).abs() < 2**-6).all()


def test_bf16_samples_get_a_mean_square_of_one_up_to_the_rounding_of_bf16():
    x = torch.randn(8, 100, generator=draw()).bfloat16()

    squares = normalize_length(x).float().square().mean(dim=1)

    # Length and scale are rounded to 8 bits, 2**-9 at most each, and count twice in a square.
    torch.testing.assert_close(squares, torch.ones(8), rtol=2**-6, atol=0)


# The dense layer


def test_a_dense_layer_is_relu_of_a_linear_map_of_normalized_samples():
    layer = Dense(5, 4, generator=draw())
    with torch.no_grad():
        layer.bias.copy_(torch.randn(4, generator=draw(1)))
    x = torch.randn(6, 5, generator=draw(2))

    activities = layer(x)

    lengths = x.square().mean(dim=1, keepdim=True).sqrt()
    expected = (x / lengths @ layer.weight.T + layer.bias).clamp_min(0)
    torch.testing.assert_close(activities, expected)


def test_pre_activations_are_what_goes_into_the_relu():
    layer = Dense(5, 4, generator=draw())
    x = torch.randn(6, 5, generator=draw(2))

    before = layer.pre_activations(x)

    assert (before < 0).any()
    assert layer(x).equal(before.relu())


def test_a_dense_layer_flattens_images():
    layer = Dense(12, 4, generator=draw())
    x = torch.randn(6, 3, 2, 2, generator=draw(2))

    assert layer(x).equal(layer(x.flatten(1)))


@pytest.mark.parametrize("gain", [1.0, 2**0.5])
def test_first_weights_are_normal_with_a_deviation_of_gain_over_the_root_of_the_inputs(gain):
    weight = Dense(400, 250, generator=draw(), gain=gain).weight.detach() * 400**0.5 / gain

    # 100,000 draws: five standard deviations of mean, variance and share beyond 1.96.
    assert weight.mean().abs() < 0.016
    assert abs(weight.var() - 1) < 0.0224
    assert abs((weight.abs() > 1.96).float().mean() - 0.05) < 0.0035


def test_first_biases_are_zero():
    assert (Dense(3, 4, generator=draw()).bias == 0).all()


def test_without_a_generator_first_weights_follow_from_that_of_torch():
    layers = [Dense(3, 4) for _ in range(2) if torch.manual_seed(0)]

    assert layers[0].weight.equal(layers[1].weight)
    assert layers[0].weight.isfinite().all()


def test_first_weights_follow_from_the_generator():
    first, again, other = (Dense(3, 4, generator=draw(seed)).weight for seed in (0, 0, 1))

    assert first.equal(again)
    assert not first.equal(other)


def test_inputs_are_dropped_in_training_only():
    layer = Dense(64, 64, generator=draw(), dropout=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(64))
    x = torch.ones(1, 64)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        in_training, in_use = (layer.train(mode)(x) for mode in (True, False))

    assert in_training.unique().tolist() == [0.0, 2.0]
    assert in_use.unique().tolist() == [1.0]


def test_dropout_comes_after_normalization():
    layer = Dense(64, 64, generator=draw(), dropout=0.5).train()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(64))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        activities = layer(torch.full((1, 64), 7.0))

    assert activities.unique().tolist() == [0.0, 2.0]


def test_a_layer_prints_its_widths_and_dropout():
    assert repr(Dense(3, 4, generator=draw(), dropout=0.25)) == "Dense(3, 4, dropout=0.25)"


# Masks of dropout in closed form


def mask_of(*shape, dropout=0.5, seed=0, dtype=torch.float32):
    return keep_mask(
        torch.Size(shape), dropout, generator=draw(seed), like=torch.zeros(0, dtype=dtype)
    )


@pytest.mark.parametrize("dropout", [0.01, 0.2, 0.5, 0.9])
def test_a_mask_is_zero_for_its_share_and_scales_the_rest_up(dropout):
    mask = mask_of(100_000, dropout=dropout)

    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - dropout)])
    # Five standard deviations of the binomial.
    bound = 5 * (dropout * (1 - dropout) / 100_000) ** 0.5
    assert abs((mask == 0).double().mean() - dropout) < bound


def test_every_place_of_a_mask_is_drawn_on_its_own():
    kept = mask_of(8000, 16) > 0

    # Places of 16 columns: five standard deviations of a correlation are 0.056.
    correlations = torch.corrcoef(kept.T.float()) - torch.eye(16)
    assert correlations.abs().max() < 0.056


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_mask_has_the_shape_and_type_that_was_asked_for(shape, dtype):
    mask = mask_of(*shape, dtype=dtype)

    assert (tuple(mask.shape), mask.dtype) == (shape, dtype)


def test_a_mask_follows_from_its_generator():
    first, again, other = (mask_of(50, seed=seed) for seed in (0, 0, 1))

    assert first.equal(again)
    assert not first.equal(other)


def test_a_mask_without_dropout_is_one_everywhere():
    assert (mask_of(1000, dropout=0.0) == 1).all()


# The layer that reads several blocks


def test_a_readout_layer_is_a_linear_map_of_the_normalized_activities_of_each_block():
    layer = ReadoutLayer((3, 2), 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 5, generator=draw()))
    first, second = torch.rand(6, 3, generator=draw(1)), torch.rand(6, 2, generator=draw(2)) * 100

    scores = layer({"0": first, "1": second})

    a, b = (x / x.square().mean(dim=1, keepdim=True).sqrt() for x in (first, second))
    torch.testing.assert_close(scores, a @ layer.weight[:, :3].T + b @ layer.weight[:, 3:].T)


def test_a_readout_layer_is_a_sum_of_what_each_block_adds():
    layer = ReadoutLayer((3, 2), 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 5, generator=draw()))
    first, second = torch.rand(6, 3, generator=draw(1)), torch.rand(6, 2, generator=draw(2)) * 100

    added = layer.part(0, first) + layer.part(1, second)

    torch.testing.assert_close(added, layer({"0": first, "1": second}))


def test_a_readout_layer_that_reads_one_block_is_given_one_tensor():
    layer = ReadoutLayer((3,), 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 3, generator=draw()))
    x = torch.rand(6, 3, generator=draw(1))

    assert layer(x).equal(layer({"0": x}))


def test_a_readout_layer_starts_at_zero_and_has_no_bias():
    layer = ReadoutLayer((3, 2), 4)

    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {"weight": (4, 5)}
    assert (layer.weight == 0).all()


# Binary layers


def test_weights_count_by_their_sign_alone_and_units_are_0_or_1():
    layer = BinaryDense(64, 200)
    x = torch.randn(50, 64, generator=draw())

    units = layer(x)

    products = normalize_length(x) @ layer.weight.sign().T / 8 + layer.bias
    assert torch.equal(units, (products > 0).float())


def test_gradients_go_through_signs_and_through_units_between_minus_1_and_1():
    layer = BinaryDense(16, 200)
    x, weights = torch.randn(50, 16, generator=draw()), torch.randn(50, 200, generator=draw(1))

    (layer(x) * weights).sum().backward()

    x = normalize_length(x)
    products = x @ layer.weight.detach().sign().T / 4
    expected = ((products.abs() <= 1) * weights).T @ x / 4
    assert (products.abs() > 1).any()
    torch.testing.assert_close(layer.weight.grad, expected)
