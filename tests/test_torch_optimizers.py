"""Optimizers of torch.optim as rules of a block."""

from functools import partial
from itertools import pairwise

import jaxtyping
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

import onward as ow
from onward.engine.kernels.closed_form import has_closed_form
from onward.engine.stretches import BEGINNING, Training, train_block
from onward.errors import SettingError
from onward.network.optimizers import lr_scale

KINDS = {
    "ASGD": {},
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {"fused": True},
    "Adamax": {},
    "Muon": {"weight_decay": 0.1},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "dampening": 0.5},
}
STEPS = 6
STRETCH = 400


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Counting(torch.optim.Optimizer):
    """Keeps a number, as some optimizers do, and gets slower with it."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                parameter.sub_(parameter.grad, alpha=group["lr"] / state["count"])


class Remembering(Counting):
    """Keeps something that is no array."""

    @torch.no_grad()
    def step(self):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = ["a step"]


def stepped(rule, parameter, states, *, lr_scale=1.0, steps=range(STEPS)):
    """Let a parameter take steps along drawn gradients, with a state that it goes on from."""
    for step in steps:
        rule.step(parameter, draw(*parameter.shape, seed=step), states, lr_scale=lr_scale)


@pytest.mark.parametrize("name", KINDS)
def test_a_rule_of_torch_moves_parameters_as_torch_does_to_the_bit(name):
    kind, arguments = getattr(torch.optim, name), {"lr": 0.02, **KINDS[name]}
    theirs = nn.Parameter(draw(4, 3, seed=100))
    reference = kind([theirs], **arguments)
    for step in range(STEPS):
        theirs.grad = draw(4, 3, seed=step)
        reference.step()

    rule, parameter = ow.optimizer(kind, **arguments), draw(4, 3, seed=100)
    stepped(rule, parameter, rule.init(parameter))

    assert torch.equal(parameter, theirs)


@pytest.mark.parametrize("name", [*KINDS, "Counting"])
def test_the_state_is_arrays_from_which_another_rule_goes_on_to_the_bit(name):
    kind, arguments = getattr(torch.optim, name, Counting), {"lr": 0.02, **KINDS.get(name, {})}
    rule, whole = ow.optimizer(kind, **arguments), draw(4, 3)
    stepped(rule, whole, rule.init(whole))

    parameter = draw(4, 3)
    state = rule.init(parameter)
    stepped(rule, parameter, state, steps=range(2))
    other = ow.optimizer(kind, **arguments)
    # As a message brings it: names and shapes are known before the first step.
    received = {n: t.copy_(state[n].clone()) for n, t in other.init(parameter).items()}
    assert received.keys() == state.keys()
    stepped(other, parameter, received, steps=range(2, STEPS))

    assert torch.equal(parameter, whole)


def test_a_factor_on_the_learning_rate_is_one_on_the_rules_own():
    slow, fast = (ow.optimizer(torch.optim.AdamW, lr=lr) for lr in (0.005, 0.01))
    ours, theirs = draw(4, 3), draw(4, 3)

    stepped(slow, ours, slow.init(ours))
    stepped(fast, theirs, fast.init(theirs), lr_scale=0.5)

    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_filters_are_flattened_for_a_rule_of_matrices_whatever_their_memory(memory_format):
    kind = torch.optim.Muon
    filters = draw(8, 3, 2, 2).to(memory_format=memory_format)
    matrix = draw(8, 3, 2, 2).flatten(1)
    with pytest.raises(SettingError, match="Muon cannot train a parameter of shape"):
        ow.optimizer(kind, lr=0.1).init(filters)

    flattened, plain = ow.optimizer(kind, lr=0.1, flatten=True), ow.optimizer(kind, lr=0.1)
    state, theirs = flattened.init(filters), plain.init(matrix)
    for step in range(STEPS):
        gradient = draw(8, 3, 2, 2, seed=step)
        flattened.step(filters, gradient, state, lr_scale=1.0)
        plain.step(matrix, gradient.flatten(1), theirs, lr_scale=1.0)

    assert torch.equal(filters.flatten(1), matrix)


class Rebinding(Counting):
    """Sets the data of its parameters anew."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter - group["lr"] * parameter.grad


class Grouped(Counting):
    """Counts its steps beside the state of parameters."""

    @torch.no_grad()
    def step(self):
        super().step()
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1


def test_a_rule_that_sets_data_anew_moves_the_parameter():
    rule, parameter = ow.optimizer(Rebinding, lr=0.5), torch.ones(2)

    rule.step(parameter, torch.ones(2), rule.init(parameter), lr_scale=1.0)

    assert parameter.tolist() == [0.5, 0.5]


def test_what_a_rule_keeps_beside_the_state_of_parameters_is_refused():
    with pytest.raises(SettingError, match="Grouped changes its param_groups in a step"):
        ow.optimizer(Grouped, lr=0.5).init(torch.ones(2))


def test_parameters_of_double_precision_have_state_of_theirs():
    rule, parameter = ow.optimizer(torch.optim.AdamW, lr=0.1), draw(4, 3).double()

    state = rule.init(parameter)
    rule.step(parameter, draw(4, 3).double(), state, lr_scale=1.0)

    assert state["exp_avg"].dtype == torch.float64


def test_another_optimizer_takes_the_place_of_the_first():
    block = ow.Block(nn.Linear(4, 3), ow.CrossEntropy(nn.Linear(3, 2)), ow.Adam())

    block.optimizer = ow.SGD(lr=0.5)

    assert set(block.rules.values()) == {ow.SGD(lr=0.5)}
    assert set(block.optimizer_state["module.weight"]) == {"momentum"}


def test_a_projection_follows_every_step():
    rule = ow.optimizer(torch.optim.SGD, lr=0.1, project=lambda p: p.clamp_(-0.1, 0.1))
    parameter = draw(4, 3)

    stepped(rule, parameter, rule.init(parameter), steps=range(1))

    assert parameter.abs().max() == 0.1


def test_making_a_state_draws_nothing():
    torch.manual_seed(3)
    expected = torch.rand(1)

    torch.manual_seed(3)
    ow.optimizer(torch.optim.AdamW, lr=0.1).init(torch.zeros(2, 2))

    assert torch.equal(torch.rand(1), expected)


# What is refused


@pytest.fixture
def untyped(monkeypatch):
    """Check no types, which a user's script does not do either."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_an_optimizer_that_asks_for_the_loss_again_is_refused_by_name():
    with pytest.raises(SettingError, match="LBFGS needs a closure"):
        ow.optimizer(torch.optim.LBFGS, lr=0.1)


def test_state_that_is_no_array_is_refused_by_its_name():
    with pytest.raises(SettingError, match="Remembering keeps history, a list"):
        ow.optimizer(Remembering, lr=0.1).init(torch.zeros(2))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: ow.optimizer("adam", lr=0.1), "takes a class of torch.optim"),
        (lambda: ow.optimizer(torch.optim.AdamW, rate=0.1), "unexpected keyword argument 'rate'"),
        (lambda: ow.optimizer(torch.optim.AdamW, lr=-1.0), "Invalid learning rate"),
    ],
)
def test_what_is_no_optimizer_is_refused_when_it_is_made(given, says):
    with pytest.raises(SettingError, match=says):
        given()


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, torch.optim.AdamW([nn.Parameter(torch.zeros(2))])]
)
def test_a_block_given_torchs_own_optimizer_says_how_it_is_given(optimizer):
    with pytest.raises(SettingError, match=r"ow\.optimizer\(torch\.optim\.Adam, lr="):
        ow.Block(nn.Linear(4, 2), ow.CrossEntropy(nn.Identity()), optimizer)


# Several in a block


def rules_by_name(optimizer):
    block = ow.Block(nn.Linear(4, 3), ow.CrossEntropy(nn.Linear(3, 2)), optimizer)
    return {name: rule.lr for name, rule in block.rules.items()}


def test_the_first_choice_that_fits_is_the_rule_of_a_parameter():
    def is_vector(name, parameter):
        return parameter.ndim == 1

    rules = {"objective": ow.Adam(lr=1.0), is_vector: ow.Adam(lr=2.0), "": ow.Adam(lr=3.0)}

    assert rules_by_name(rules) == {
        "module.weight": 3,
        "module.bias": 2,
        "objective.head.weight": 1,
        "objective.head.bias": 1,
    }


def test_a_name_is_no_beginning_of_another_word():
    with pytest.raises(SettingError, match=r"'module\.bia' is for no parameter"):
        rules_by_name({"module.bia": ow.Adam(), "": ow.Adam()})


def test_a_parameter_without_an_optimizer_is_named():
    with pytest.raises(SettingError, match=r"No optimizer is given for the parameter objective"):
        rules_by_name({"module": ow.Adam()})


def test_a_parameter_that_does_not_learn_needs_no_optimizer():
    module = nn.Linear(4, 3).requires_grad_(False)

    block = ow.Block(module, ow.CrossEntropy(nn.Linear(3, 2)), {"objective": ow.Adam()})

    assert set(block.rules) == {"objective.head.weight", "objective.head.bias"}


def test_a_block_with_a_rule_of_torch_learns_by_autograd():
    def block(optimizer):
        layer = ow.Dense(4, 3, generator=torch.Generator())
        return ow.Block(layer, ow.CrossEntropy(nn.Linear(3, 2, bias=False)), optimizer)

    assert has_closed_form(block(ow.Adam()))
    assert not has_closed_form(block(ow.optimizer(torch.optim.AdamW, lr=0.1)))
    assert not has_closed_form(
        block({"module.weight": ow.optimizer(torch.optim.Muon), "": ow.Adam()})
    )


# Schedules


def factors(schedule, *, of_training="constant", epochs=4):
    """Return how far each epoch moves a weight that a gradient of one pulls."""

    class Pulled(ow.Objective):
        def loss(self, inputs, outputs, draw):
            return outputs["input"].tensor.sum()

    sgd = ow.optimizer(torch.optim.SGD, lr=1.0)
    block = ow.Block(nn.Linear(1, 1, bias=False), Pulled(), sgd, schedule=schedule)
    training = Training(seed=0, epochs=epochs, schedule=of_training)
    views, at, weights = {"input": ow.Batch(torch.ones(1, 1))}, BEGINNING, []
    for _ in range(epochs):
        weights.append(block.module.weight.item())
        at, _ = train_block(block, [views], training, start=at, batches=1)
    weights.append(block.module.weight.item())
    return [before - after for before, after in pairwise(weights)]


def test_a_block_has_a_schedule_of_its_own_by_name_or_as_a_function_of_what_is_done():
    assert factors(None, of_training="cooldown") == pytest.approx([1, 1, 0.75, 0.25], abs=1e-6)
    assert factors("cooldown") == pytest.approx([1, 1, 0.75, 0.25], abs=1e-6)
    assert factors(lambda done: 1 - done / 2, of_training="cooldown") == pytest.approx(
        [0.875, 0.75, 0.625, 0.5], abs=1e-6
    )


def test_a_schedule_of_no_known_name_is_refused_when_the_block_is_made():
    with pytest.raises(SettingError, match="There is no schedule 'cosin'"):
        factors("cosin")


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("cosine", lambda sgd: CosineAnnealingLR(sgd, T_max=STRETCH)),
        ("one-cycle", lambda sgd: OneCycleLR(sgd, 1.0, total_steps=STRETCH + 1)),
    ],
)
def test_schedules_with_a_name_of_torchs_are_torchs(name, scheduler):
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = scheduler(sgd)

    for step in range(STRETCH):
        (expected,) = reference.get_last_lr()
        assert lr_scale(name, 0, step / STRETCH, 1) == pytest.approx(expected, abs=0.01)
        sgd.step()
        reference.step()


def scaled(parameter, to):
    parameter.mul_(to / parameter.norm())


def test_a_projection_is_known_by_its_arguments_too():
    rules = [
        ow.optimizer(torch.optim.SGD, lr=0.1, project=partial(scaled, to=most)) for most in (1, 2)
    ]

    assert repr(rules[0]) == "SGD(lr=0.1, project=scaled(to=1))"
    assert repr(rules[0]) != repr(rules[1])
