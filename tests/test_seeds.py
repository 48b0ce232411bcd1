import random
from itertools import product

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import onward as ow
from onward.checkpoint import weights_sha256
from onward.engine.steps import Step, StepReport
from onward.engine.stretches import Position, Training, learn
from onward.errors import DivergedError
from onward.seeds import derive, generator, global_generators_kept

several = settings(max_examples=60, deadline=None, derandomize=True)
whole = st.integers(-(2**70), 2**70)
arguments = st.tuples(whole, st.text(max_size=8), st.lists(whole, max_size=4)).map(
    lambda parts: (parts[0], parts[1], *parts[2])
)


def draws_from_torch():
    """Make a network whose module draws from torch's global generator in training."""
    with global_generators_kept():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU())
        block = ow.Block(module, ow.CrossEntropy(nn.Linear(8, 2)), ow.Adam(lr=0.01))
    return ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=2)


@pytest.fixture
def dataset():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=draw)
    return ow.dataset(x.numpy(), (x[:, 0] > 0).long().numpy())


def train(network, dataset, **settings):
    """Train for two epochs of small mini-batches."""
    training = ow.TrainingConfig(epochs=2, batch_size=10, **settings)
    ow.train(network, dataset, training=training)


# Derived numbers


@several
@given(arguments)
def test_the_same_arguments_give_the_same_numbers(named):
    first, second = generator(*named), generator(*named)

    assert torch.rand(9, generator=first).equal(torch.rand(9, generator=second))


@several
@given(arguments, arguments)
def test_other_arguments_give_other_numbers(named, others):
    assume(named != others)

    assert derive(*named) != derive(*others)


@pytest.mark.parametrize(
    "others",
    [
        (1, "order", 2, 3),
        (0, "Order", 2, 3),
        (0, "order", 3, 3),
        (0, "order", 2, 4),
        (0, "order", 3, 2),
        (0, "order", 23),
        (0, "order", 2, 3, 0),
        (0, "order", 2),
        (0, "order2", 3),
    ],
)
def test_every_argument_counts_and_so_does_its_place(others):
    assert derive(*others) != derive(0, "order", 2, 3)


@several
@given(arguments)
def test_a_derived_seed_is_one_that_torch_takes(named):
    assert 0 <= derive(*named) < 2**63


def test_derived_numbers_are_the_same_in_every_process_and_version():
    # Recorded. Other numbers would change the weights of every run, and so are a breaking change.
    assert derive(0, "order", 3) == 7083005079152612860
    assert derive(17, "weights") == 8945674414936941376


def test_neighboring_seeds_give_independent_numbers():
    samples = torch.stack(
        [torch.randn(1000, generator=generator(s, "weights", 0)) for s in range(30)]
    )

    correlations = torch.corrcoef(samples) - torch.eye(30)

    # Each of the 435 has a standard deviation of 1 / sqrt(1000); five of them are 0.16.
    assert correlations.abs().max() < 0.16


class Recorder(Step):
    """Remembers what it was called with, and learns nothing."""

    def __init__(self):
        self.seeds = []
        self.block = ow.Block(nn.Linear(1, 1), ow.CrossEntropy(nn.Identity()), ow.Adam())

    def __call__(self, views, *, seed, lr_scale):
        self.seeds.append(seed)
        return {}, StepReport.of(torch.zeros(()), 1, {}, torch.zeros(1, dtype=torch.bool))


def seeds_of_steps(seed, ticks=1):
    """Return the seeds of all steps of two blocks in two epochs of three mini-batches."""
    step, training = Recorder(), Training(seed=seed, epochs=2)
    for block, epoch, batch, tick in product(range(2), range(2), range(3), range(ticks)):
        at = Position(epoch, batch)
        learn(step, {}, training, number=block, at=at, batches=3, tick=tick)
    return step.seeds


def test_every_step_of_every_block_draws_numbers_of_its_own():
    assert len(set(seeds_of_steps(0))) == 12


def test_every_visit_of_a_mini_batch_draws_numbers_of_its_own():
    assert len(set(seeds_of_steps(0, ticks=3))) == 36


def test_the_steps_of_another_run_draw_other_numbers():
    assert set(seeds_of_steps(0)).isdisjoint(seeds_of_steps(1))


# Torch's global generator


def test_the_global_generator_is_restored_after_use():
    before = torch.get_rng_state()

    with global_generators_kept():
        torch.manual_seed(7)
        torch.rand(3)

    assert torch.get_rng_state().equal(before)


def test_the_global_generator_is_restored_after_an_error():
    before = torch.get_rng_state()

    with pytest.raises(RuntimeError, match="must match"), global_generators_kept():
        torch.rand(3) + torch.rand(4)

    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("gradients", ["closed-form", "autograd"])
def test_training_leaves_the_global_generator_as_it_was(dataset, gradients, dropout):
    network = ow.mlp((4,), num_classes=2, widths=(8,), dropout=dropout)
    before = torch.get_rng_state()

    train(network, dataset, gradients=gradients)

    assert torch.get_rng_state().equal(before)


def test_training_a_module_that_draws_from_the_global_generator_leaves_it_as_it_was(dataset):
    network = draws_from_torch()
    before = torch.get_rng_state()

    train(network, dataset)

    assert torch.get_rng_state().equal(before)


def test_training_that_fails_leaves_the_global_generator_as_it_was(dataset):
    network = draws_from_torch()
    torch.nn.init.constant_(network.all_blocks[0].module[0].bias, float("inf"))
    before = torch.get_rng_state()

    with pytest.raises(DivergedError, match="no longer finite"):
        train(network, dataset)

    assert torch.get_rng_state().equal(before)


def test_training_does_not_depend_on_the_state_of_the_global_generator(dataset):
    network = draws_from_torch()
    first_weights = {name: t.clone() for name, t in network.state_dict().items()}
    digests = set()
    for state in (1, 2):
        network.load_state_dict(first_weights)
        with global_generators_kept():
            torch.manual_seed(state)
            train(network, dataset)
        digests.add(weights_sha256(network))

    assert len(digests) == 1


class Noisy(ow.Plain):
    """Draws noise from the global generators of numpy and random."""

    def views(self, batch, draw, hints):
        noise = torch.from_numpy(np.random.standard_normal(batch.tensor.shape)).float()
        return {"input": batch.replace(inputs=batch.tensor + noise * random.random())}


def test_samplers_may_draw_from_numpy_and_random_which_are_as_they_were(monkeypatch, dataset):
    # What checks types draws from `random`.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    digests = set()
    for state in (1, 2):
        network = draws_from_torch()
        network.sampler = Noisy()
        np.random.seed(state)
        random.seed(state)
        before = str(np.random.get_state()), random.getstate()
        train(network, dataset)
        assert (str(np.random.get_state()), random.getstate()) == before
        digests.add(weights_sha256(network))

    assert len(digests) == 1


def test_another_seed_ends_in_other_weights(dataset):
    digests = set()
    for seed in (0, 1):
        network = ow.mlp((4,), num_classes=2, widths=(8,))
        train(network, dataset, seed=seed)
        digests.add(weights_sha256(network))

    assert len(digests) == 2


@pytest.mark.parametrize("objective", ["cross-entropy", "threshold"])
def test_first_weights_do_not_depend_on_the_state_of_the_global_generator(objective):
    settings = {"negatives": "hard", "readout": "goodness"} if objective == "threshold" else {}
    digests = set()
    for state in (1, 2):
        with global_generators_kept():
            torch.manual_seed(state)
            network = ow.mlp((4,), num_classes=2, widths=(8, 8), objective=objective, **settings)
        digests.add(weights_sha256(network))

    assert len(digests) == 1


def test_building_a_network_leaves_the_global_generator_as_it_was():
    before = torch.get_rng_state()

    ow.mlp((4,), num_classes=2, widths=(8, 8))

    assert torch.get_rng_state().equal(before)
