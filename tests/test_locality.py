"""The third law: no gradient crosses a block boundary."""

import pytest
import torch
from in_memory import run_in_memory
from torch import nn

import onward as ow
from onward.batch import Batch
from onward.config import RunConfig
from onward.engine import stretches
from onward.network.blocks import Block
from onward.network.objectives import CrossEntropy, Threshold
from onward.network.optimizers import SGD, Adam
from onward.placement import Placement
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.runs.preparation import nodes_of, preview
from onward.runtime import streams
from onward.runtime.workers import Settings, Shard

pytestmark = pytest.mark.usefixtures("unchecked")

INPUTS, UNITS, CLASSES, BLOCKS = 6, 8, 3, 4

plans = pytest.mark.parametrize("kind", [ChapterPlan, StreamPlan], ids=["chapters", "stream"])
families = pytest.mark.parametrize(
    ("family", "closed_form"),
    [
        ("cross-entropy", True),
        ("threshold", True),
        ("threshold", False),
        # Layers with running statistics, and with dropout from torch's global generator.
        ("modules", False),
    ],
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs, outputs, seed):
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.copy_(draw(outputs, inputs, seed=seed) / inputs**0.5)
    return layer


def block_of(family, number, *, seed=0, optimizer=None, objective=None):
    """Make one block; `seed` decides its first weights."""
    inputs = UNITS if number else INPUTS + CLASSES * (family == "threshold")
    weights = torch.Generator().manual_seed(100 * seed + number)
    module = ow.Dense(inputs, UNITS, generator=weights)
    if family == "modules":
        module = nn.Sequential(module, nn.BatchNorm1d(UNITS), nn.Dropout(0.2))
    if objective is None and family == "threshold":
        objective = Threshold(UNITS, threshold=1.0, slope=2.0, peer=0.03)
    elif objective is None:
        objective = CrossEntropy(linear(UNITS, CLASSES, seed=50 + number))
    return Block(module, objective, optimizer or Adam(lr=0.01))


def network_of(family, **changes):
    """Make a network of four blocks; `changes` are blocks by number."""
    blocks = [changes.get(f"block_{k}") or block_of(family, k) for k in range(BLOCKS)]
    if family == "threshold":
        sampler = ow.LabelEmbedding(CLASSES, place="prepend")
        return ow.Network(blocks, sampler, ow.GoodnessSweep(), num_classes=CLASSES)
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=CLASSES)


def trained(kind, network, *, closed_form=True):
    """Train a network on twenty samples for two epochs of three mini-batches."""
    plan = kind(
        nodes=nodes_of(network),
        epochs=2,
        chapters=2,
        batch_size=8,
        samples=(20,),
        hint_age=None,
        validate_every=None,
        has_validation=False,
    )
    label = torch.arange(20) % CLASSES
    samples = Batch(draw(20, INPUTS, seed=1), {"label": label}, ids=torch.arange(20))
    shard = Shard(samples, samples.take(slice(0, 0)))
    settings = Settings(seed=0, closed_form=closed_form)
    placement = Placement("sequential", (1,), ())
    with torch.random.fork_rng():
        run_in_memory(plan, placement, [network], {0: shard}, settings)
    return network


def same(block, other):
    return all(t.equal(other.state_dict()[name]) for name, t in block.state_dict().items())


def other_objective(family):
    if family == "threshold":
        return Threshold(UNITS, threshold=0.3, slope=20.0, peer=0.5)
    return CrossEntropy(nn.Sequential(linear(UNITS, CLASSES, seed=77), nn.Tanh()))


CHANGES = {
    "objective": lambda family: {"objective": other_objective(family)},
    "optimizer": lambda family: {"optimizer": SGD(lr=0.3, weight_decay=0.1)},
    "first weights": lambda family: {"seed": 9},
}


@plans
@families
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_a_block_reaches_those_above_and_none_below(kind, family, closed_form, change):
    changed = block_of(family, 2, **CHANGES[change](family))

    reference = trained(kind, network_of(family), closed_form=closed_form)
    network = trained(kind, network_of(family, block_2=changed), closed_form=closed_form)

    unchanged = [same(a, b) for a, b in zip(network.line, reference.line, strict=True)]
    assert unchanged == [True, True, False, False]


@plans
@pytest.mark.parametrize("closed_form", [True, False])
def test_what_a_softmax_head_learns_changes_no_block_while_there_are_no_hints(kind, closed_form):
    def learned(head_lr):
        network = ow.mlp(
            (INPUTS,),
            num_classes=CLASSES,
            widths=(UNITS, UNITS),
            objective="threshold",
            negatives="random",
            readout="softmax",
            optimizer=ow.OptimizerConfig(head_lr=head_lr),
        )
        return trained(kind, network, closed_form=closed_form)

    network, reference = learned(0.1), learned(1e-6)

    assert not same(network.head, reference.head)
    assert all(same(a, b) for a, b in zip(network.line, reference.line, strict=True))


@plans
@families
def test_no_block_is_given_inputs_with_a_graph_in_training(monkeypatch, kind, family, closed_form):
    given = []
    learn = stretches.learn

    def watched(step, views, training, **where):
        outputs, report = learn(step, views, training, **where)
        given.extend(view.inputs for view in (*views.values(), *outputs.values()))
        return outputs, report

    for module in (stretches, streams):
        monkeypatch.setattr(module, "learn", watched)
    trained(kind, network_of(family), closed_form=closed_form)

    assert len(given) >= BLOCKS * 6 * 2
    assert not any(x.requires_grad for x in given)


@plans
@families
def test_no_gradient_is_left_on_any_parameter(kind, family, closed_form):
    network = trained(kind, network_of(family), closed_form=closed_form)

    assert all(parameter.grad is None for parameter in network.parameters())


# Every block learns


@plans
def test_a_block_may_learn_from_other_views_than_the_block_above_it(kind):
    objective = CrossEntropy(linear(UNITS, CLASSES, seed=50))
    objective.views = ("positive",)
    first = block_of("threshold", 0, objective=objective)
    network = network_of("threshold", block_0=first)
    before = [block.module.weight.clone() for block in network.line]

    trained(kind, network)

    assert not any(b.module.weight.equal(w) for b, w in zip(network.line, before, strict=True))


@pytest.mark.parametrize("recipe", ["one-pass", "hinton", "pff", "backprop"])
def test_all_weights_of_every_block_move_in_training(recipe):
    # FF_unsupervised detaches what its loss is made of: no hidden layer of it ever learns.
    config = RunConfig(recipe=recipe).with_settings(
        {"network.widths": (12, 11, 10), "training.epochs": 1, "training.batch_size": 100}
    )
    first = preview(config, 1, with_weights=True)[0].network

    result = ow.run(config)

    before = dict(first.named_parameters())
    still = [n for n, p in result.network.named_parameters() if p.equal(before[n])]
    assert len(before) == len(list(result.network.parameters()))
    assert still == []
