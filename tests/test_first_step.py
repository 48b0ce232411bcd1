"""What is wrong with the parts of a network is noticed before it is trained."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from contract_data import CLASSES, FEATURES, vectors
from torch import nn

import onward as ow
from onward.errors import SettingError

TRAINING = ow.TrainingConfig(epochs=1, batch_size=16)


class Own(ow.Objective):
    """A head, as a user writes it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, CLASSES)

    def loss(self, inputs, outputs, draw):
        (view,) = outputs.values()
        return F.cross_entropy(self.head(view.tensor), view.label)

    def scores(self, outputs):
        return self.head(outputs.tensor).log_softmax(1)


class Two(Own):
    """The same by name, with a group."""

    groups: tuple[str, ...] = ("module", "objective")

    def loss(self, inputs, outputs, draw):
        return {"own": super().loss(inputs, outputs, draw)}

    def group(self, loss):
        return self.groups


def layers():
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU())


def network_of(objective, module=None, *, rule=None, sampler=None, readout=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = ow.Block(module() if module else layers(), objective(), rule or ow.Adam(lr=0.01))
    return ow.Network(
        [block], sampler or ow.Plain(), readout or ow.SumOfHeads(), num_classes=CLASSES
    )


def trained(*given, **named):
    return ow.train(network_of(*given, **named), vectors(), training=TRAINING)


@pytest.fixture
def refused():
    """Train, and return what is said against it."""

    def say(*given, **named):
        with pytest.raises(SettingError) as error:
            trained(*given, **named)
        return str(error.value)

    return say


def test_what_is_right_needs_no_word_and_ends_in_the_same_weights_without_the_trial(monkeypatch):
    def module():
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(Two, module).facts["weights_sha256"]
    monkeypatch.setattr("onward.runs.starting.signs", lambda *_: [])

    assert found == trained(Two, module).facts["weights_sha256"]


# In place


class InPlace(ow.LabelEmbedding):
    """Writes into the samples that it is given."""

    where: str

    def views(self, batch, draw, hints):
        return super().views(self.touched(batch, "views"), draw, hints)

    def neutral(self, batch):
        return super().neutral(self.touched(batch, "neutral"))

    def candidates(self, batch):
        return super().candidates(self.touched(batch, "candidates"))

    def touched(self, batch, where):
        if where == self.where:
            batch.tensor.mul_(0.5)
        return batch


@pytest.mark.parametrize("where", ["views", "neutral", "candidates"])
def test_a_sampler_that_writes_into_the_samples_is_refused_and_they_stay_as_they_are(where):
    sampler = type("InPlace", (InPlace,), {"where": where})(CLASSES)
    block = ow.Block(
        ow.Dense(FEATURES, 8, generator=torch.Generator()),
        ow.Threshold(8, threshold=1.0, slope=8.0),
        ow.Adam(),
    )
    network = ow.Network([block], sampler, ow.GoodnessSweep(skip_first=False), num_classes=CLASSES)
    data = vectors()
    before = data.x.clone(), data.x_test.clone()

    with pytest.raises(SettingError, match=f"InPlace.{where} changes the samples it gets in place"):
        ow.train(network, data, training=TRAINING)

    assert (data.x.equal(before[0]), data.x_test.equal(before[1])) == (True, True)


class ScoresInPlace(Own):
    def scores(self, outputs):
        return super().scores(outputs.replace(inputs=outputs.tensor.mul_(2)))


class MetricsInPlace(Own):
    metric_names = ("largest",)

    def metrics(self, outputs):
        (view,) = outputs.values()
        return {"largest": (view.tensor.mul_(2).amax(), 1)}


class LossInPlace(Own):
    def loss(self, inputs, outputs, draw):
        found = super().loss(inputs, outputs, draw)
        inputs["input"].tensor.mul_(2)
        return found


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (ScoresInPlace, "ScoresInPlace.scores, of block 0, changes what the block puts out in pla"),
        (MetricsInPlace, "MetricsInPlace.metrics, of block 0, changes outputs in place, which"),
        (LossInPlace, "The loss of LossInPlace, of block 0, changes its inputs in place, which"),
    ],
)
def test_an_objective_that_writes_into_what_it_reads_is_refused(refused, objective, says):
    assert says in refused(objective)


# What learns


def test_a_group_of_no_part_is_refused_with_the_parts(refused):
    said = refused(lambda: _with(Two(), groups=("objektive", "module")))

    assert "the loss own trains objektive, which is no part of the block. It has module" in said
    assert "objective.head.weight" in said


def _with(objective, **members):
    for name, member in members.items():
        setattr(objective, name, member)
    return objective


class Detached(Own):
    def loss(self, inputs, outputs, draw):
        views = {name: view.replace(inputs=view.tensor.detach()) for name, view in outputs.items()}
        return super().loss(inputs, views, draw)


class OtherHead(Own):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, CLASSES)

    def scores(self, outputs):
        return self.other(outputs.tensor).log_softmax(1)


def fixed():
    return layers().requires_grad_(False)


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        (Detached, "module.0.weight, module.0.bias"),
        (OtherHead, "objective.other.weight, objective.other.bias"),
        (lambda: _with(Two(), groups=("objective",)), "module.0.weight, module.0.bias"),
    ],
)
def test_parameters_that_no_loss_reaches_are_named(objective, names):
    with pytest.warns(ow.OnwardWarning, match=f"No loss reaches {names} of block 0"):
        trained(objective)


def test_parameters_that_are_fixed_on_purpose_are_not(recwarn):
    trained(Detached, fixed)

    assert not [told for told in recwarn if "No loss reaches" in str(told.message)]


@pytest.mark.parametrize("how", ["frozen", "fixed"])
def test_a_network_in_which_nothing_learns_is_told_of(how):
    network = network_of(Own)
    if how == "frozen":
        network.line[0].optimizer = None
    else:
        network.requires_grad_(False)

    with pytest.warns(ow.OnwardWarning, match="Nothing learns: no block has an optimizer and par"):
        ow.train(network, vectors(), training=TRAINING)


class Root(Own):
    def loss(self, inputs, outputs, draw):
        (view,) = outputs.values()
        return super().loss(inputs, outputs, draw) + (view.tensor * 0).sum(1).sqrt().mean()


def test_a_gradient_that_is_not_finite_though_the_loss_is_names_its_parameters():
    says = "The gradient of module.0.weight, module.0.bias of block 0 is not finite in a first step"

    with (
        pytest.warns(ow.OnwardWarning, match=says),
        pytest.raises(ow.OnwardError, match="no longer finite"),
    ):
        trained(Root)


# Chance in inference


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, 8)

    def forward(self, x):
        return F.dropout(self.linear(x), 0.5)


class NoisyScores(Own):
    def scores(self, outputs):
        return super().scores(outputs) + torch.rand(CLASSES)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((Own, Noisy), "Block 0: two passes through the module Noisy give different outputs"),
        ((NoisyScores,), "Block 0: two calls of NoisyScores.scores give different outputs"),
    ],
)
def test_what_draws_at_random_in_inference_is_told_of(parts, says):
    with pytest.warns(ow.OnwardWarning, match=f"{says}.*self.training"):
        trained(*parts)


class Counting(ow.Plain):
    """Another view each time."""

    def __init__(self):
        object.__setattr__(self, "calls", 0)

    def views(self, batch, draw, hints):
        object.__setattr__(self, "calls", self.calls + 1)
        return {"input": batch}


class Tracking(nn.Linear):
    """Keeps a mean of its inputs where torch's modules have a buffer."""

    def __init__(self):
        super().__init__(FEATURES, 8)
        self.mean = nn.Parameter(torch.zeros(FEATURES), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.mean.data.lerp_(x.mean(dim=0), 0.1)
        return super().forward(x)


def test_the_trial_leaves_a_network_and_its_sampler_as_they_are():
    def module():
        return nn.Sequential(Tracking(), nn.BatchNorm1d(8))

    network, seen = network_of(Own, module, sampler=Counting()), []

    class Watching(ow.Listener):
        def begin(self, plan, placement):
            seen.append((copy.deepcopy(network.blocks.state_dict()), network.sampler.calls))

    before = copy.deepcopy(network.blocks.state_dict())
    ow.train(network, vectors(), training=TRAINING, listener=Watching())

    (state, calls), *_ = seen
    assert all(state[name].equal(tensor) for name, tensor in before.items())
    assert calls == 0
