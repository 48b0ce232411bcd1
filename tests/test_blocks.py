"""Blocks: what the module and the objective are given of a batch, and what comes out."""

import pytest
import torch
from small_blocks import CLASSES, INPUTS, RULES, UNITS, close, draw, linear, step_of
from torch import nn

import onward as ow
from onward.batch import Batch, laid_out
from onward.engine.stretches import Position, Training, train_block
from onward.errors import SettingError
from onward.network.blocks import Block, Edge, gathered
from onward.network.objectives import CrossEntropy, Objective
from onward.network.optimizers import SGD

SAMPLES = 6


class Neighbours(nn.Module):
    """Adds to each node what those that it is linked with have."""

    def __init__(self):
        super().__init__()
        self.layer = linear(INPUTS, UNITS)

    def forward(self, x, **structure):
        assert list(structure) in ([], ["links"])
        if structure:
            x = x + structure["links"] @ x
        return self.layer(x).relu()


class Seen(Objective):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def loss(self, inputs, outputs, draw):
        self.seen.append((inputs, outputs))
        outputs = next(iter(outputs.values())).inputs
        every = [outputs] if isinstance(outputs, torch.Tensor) else outputs.values()
        return sum(tensor.square().mean() for tensor in every)


def graph(seed=0):
    """Make a graph of six nodes, of whose structure blocks need one part."""
    return Batch(
        draw(SAMPLES, INPUTS, seed=seed),
        {"label": torch.arange(SAMPLES) % CLASSES},
        ids=torch.arange(SAMPLES),
        structure={"links": draw(SAMPLES, SAMPLES, seed=1), "names": torch.zeros(3)},
        index=torch.tensor([0, 2, 3]),
    )


# Structure


def test_a_module_gets_the_members_of_the_structure_that_it_asks_for():
    batch, block = graph(), Block(Neighbours(), Seen(), SGD(), structure=("links",))

    outputs = block.infer(batch)

    expected = block.module(batch.inputs, links=batch.structure["links"])
    assert outputs.inputs.equal(expected.detach())


def test_a_module_that_asks_for_nothing_gets_its_inputs_alone():
    batch, block = graph(), Block(Neighbours(), Seen(), SGD())

    assert block.infer(batch).inputs.equal(block.module(batch.inputs).detach())


def test_outputs_keep_all_that_is_known_of_their_samples():
    batch = graph()

    outputs = Block(Neighbours(), Seen(), SGD(), structure=("links",)).infer(batch)

    assert outputs.targets == batch.targets
    assert outputs.structure == batch.structure
    assert outputs.index is batch.index
    assert outputs.ids is batch.ids


@pytest.mark.parametrize("names", [("positive",), ("positive", "negative")])
def test_every_view_is_passed_with_its_own_structure(names):
    block = Block(Neighbours(), Seen(), RULES["sgd"], structure=("links",))
    views = {}
    for number, name in enumerate(names):
        links = draw(SAMPLES, SAMPLES, seed=10 + number)
        views[name] = graph(seed=number).replace(structure={"links": links})
    expected = {name: block.infer(view).inputs for name, view in views.items()}

    outputs, _ = step_of(block)(views, seed=0, lr_scale=1.0)

    for name, view in outputs.items():
        close(view.inputs, expected[name], 1e-6)
        assert view.structure is views[name].structure


def test_a_block_learns_from_the_nodes_that_count():
    def learned(label):
        batch = graph()
        block = Block(Neighbours(), CrossEntropy(linear(UNITS)), RULES["sgd"], structure=("links",))
        batch = batch.with_targets(label=torch.tensor([0, label, 2, 0, label, label]))
        _, report = step_of(block)({"input": batch}, seed=0, lr_scale=1.0)
        assert report.sums[1] == 3
        return block.module.layer.weight

    assert learned(0).equal(learned(1))


# What is prepared


def sums(x, *, links):
    """Return what neighbours have, without weights."""
    return x + links @ x


def test_what_is_prepared_takes_the_structure_and_the_module_gets_none():
    batch = graph()
    block = Block(Neighbours(), Seen(), SGD(), structure=("links",), prepare=sums)
    beside = Block(Neighbours(), Seen(), SGD(), structure=("links",))

    outputs = block.infer(batch)

    assert outputs.inputs.equal(beside.infer(batch).inputs)
    assert outputs.structure == batch.structure


def test_the_objective_is_given_what_was_prepared():
    batch = graph()
    block = Block(Neighbours(), Seen(), RULES["sgd"], structure=("links",), prepare=sums)
    prepared = block.prepared(batch)

    step_of(block)({"input": prepared}, seed=0, lr_scale=1.0)

    ((inputs, _),) = block.objective.seen
    assert inputs["input"].inputs.equal(batch.inputs + batch.structure["links"] @ batch.inputs)
    assert prepared.targets == batch.targets


def test_a_block_that_prepares_learns_what_one_learns_whose_module_does_the_same():
    batch = graph()
    prepares = Block(
        Neighbours(), CrossEntropy(linear()), RULES["adam"], structure=("links",), prepare=sums
    )
    computes = Block(Neighbours(), CrossEntropy(linear()), RULES["adam"], structure=("links",))

    for seed in range(3):
        step_of(prepares)({"input": prepares.prepared(batch)}, seed=seed, lr_scale=1.0)
        step_of(computes)({"input": computes.prepared(batch)}, seed=seed, lr_scale=1.0)

    close(prepares.state_dict(), computes.state_dict(), 1e-6)


def test_nothing_is_prepared_for_a_block_that_asks_for_nothing():
    batch = graph()

    assert Block(Neighbours(), Seen(), SGD()).prepared(batch) is batch


def test_what_is_prepared_has_no_graph():
    layer = linear(INPUTS, INPUTS)
    block = Block(Neighbours(), Seen(), SGD(), prepare=lambda x, **structure: layer(x))

    assert not block.prepared(graph()).inputs.requires_grad


# Several reads


def test_what_one_edge_brings_is_what_the_module_gets():
    like, x = graph(), draw(SAMPLES, 3)

    found = gathered([(Edge(4), x)], like)

    assert found.inputs is x
    assert found.context == {}
    assert (found.targets, found.index) == (like.targets, like.index)


def test_several_edges_to_the_module_come_by_name():
    x, y, z = (draw(SAMPLES, 3, seed=seed) for seed in range(3))

    found = gathered([(Edge("input"), x), (Edge(2), y), (Edge(0, name="first"), z)], graph())

    assert found.inputs == {"input": x, "2": y, "first": z}


def test_several_outputs_of_a_block_come_by_the_name_of_the_edge_and_their_own():
    x, y, z = (draw(SAMPLES, 3, seed=seed) for seed in range(3))

    found = gathered([(Edge(1), {"left": x, "right": y}), (Edge(0), z)], graph())

    assert found.inputs == {"1.left": x, "1.right": y, "0": z}


def test_several_outputs_over_one_edge_keep_their_names():
    x, y = draw(SAMPLES, 3), draw(SAMPLES, 3, seed=1)

    assert gathered([(Edge(1), {"left": x, "right": y})], graph()).inputs == {
        "left": x,
        "right": y,
    }


def test_what_an_edge_brings_to_the_objective_is_context_and_the_module_does_not_see_it():
    x, y, z = (draw(SAMPLES, 3, seed=seed) for seed in range(3))
    reads = [
        (Edge(0), x),
        (Edge(2, to="objective", name="top"), y),
        (Edge(1, to="objective"), {"a": z}),
    ]

    found = gathered(reads, graph())

    assert found.inputs is x
    assert found.context == {"top": y, "1.a": z}


def test_the_objective_sees_the_context_of_what_the_block_has_read():
    block = Block(linear(3, UNITS), Seen(), RULES["sgd"])
    top = draw(SAMPLES, 2, seed=1)
    read = gathered(
        [(Edge(0), draw(SAMPLES, 3)), (Edge(2, to="objective", name="top"), top)],
        Batch(draw(SAMPLES, 1)),
    )

    step_of(block)({"input": read}, seed=0, lr_scale=1.0)
    outputs = block.infer(read)

    ((inputs, seen),) = block.objective.seen
    assert inputs["input"].context == seen["input"].context == {"top": top}
    # It is not for the blocks above.
    assert outputs.context == {}


class Summed(nn.Module):
    """A layer for each of two inputs, and two outputs: their sum and their difference."""

    def __init__(self):
        super().__init__()
        self.first, self.second = linear(3, UNITS, seed=1), linear(4, UNITS, seed=2)

    def forward(self, inputs):
        a, b = self.first(inputs["0"]), self.second(inputs["input"])
        return {"sum": a + b, "difference": a - b}


@pytest.mark.parametrize("names", [("input",), ("positive", "negative")])
def test_a_block_of_several_inputs_and_outputs_learns_and_hands_on_all(names):
    block = Block(Summed(), Seen(), SGD(lr=1.0, momentum=0.0))
    like = Batch(draw(SAMPLES, 1), {"label": torch.arange(SAMPLES) % CLASSES})
    views = {
        name: gathered(
            [(Edge(0), draw(SAMPLES, 3, seed=n)), (Edge("input"), draw(SAMPLES, 4, seed=9 + n))],
            like,
        )
        for n, name in enumerate(names)
    }
    before = block.module.first.weight.clone()
    expected = {name: block.infer(view).inputs for name, view in views.items()}

    outputs, report = step_of(block)(views, seed=0, lr_scale=1.0)

    assert outputs.keys() == views.keys()
    for name, view in outputs.items():
        assert list(view.inputs) == ["sum", "difference"]
        close(view.inputs, expected[name], 1e-6)
        assert view.label.equal(like.label)
    assert len(report.active) == 2 * UNITS
    assert not block.module.first.weight.equal(before)


def test_an_edge_is_called_by_its_source_unless_it_has_a_name():
    assert [Edge(3).key, Edge("input").key, Edge(3, name="top").key] == ["3", "input", "top"]


def test_before_the_first_visit_a_delayed_edge_brings_zeros():
    assert Edge(1, delay=1, shape=(2, 3)).zeros(Batch(torch.ones(5, 1))).equal(torch.zeros(5, 2, 3))


def test_a_module_puts_out_tensors():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    block = Block(Two(), CrossEntropy(nn.Linear(4, 3)), SGD())

    with pytest.raises(SettingError, match="The module Two puts out a tuple; a block hands on"):
        block.forward(Batch(torch.zeros(2, 4)))


@pytest.mark.parametrize(
    ("outputs", "shape"),
    [
        (lambda x: x[1:], r"\(19, 4\)"),
        (lambda x: x.mean(dim=0, keepdim=True), r"\(1, 4\)"),
        (lambda x: x.sum(), r"\(\)"),
        (lambda x: {"whole": x, "half": x[::2]}, r"\(10, 4\)"),
    ],
)
def test_a_module_puts_out_as_many_samples_as_it_is_given(outputs, shape):
    class Odd(nn.Module):
        def forward(self, x):
            return outputs(x)

    block = Block(Odd(), CrossEntropy(nn.Linear(4, 3)), SGD())

    with pytest.raises(SettingError, match=f"The module Odd puts out shape {shape} for 20 samples"):
        block.forward(Batch(torch.zeros(20, 4)))


def test_layers_without_shapes_are_refused_until_they_have_seen_a_sample():
    module = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    head = nn.Linear(4, 3)

    with pytest.raises(SettingError, match=r"module.0.weight has no shape until.* Call the layers"):
        Block(module, CrossEntropy(head), SGD())
    with pytest.raises(SettingError, match=r"objective.head.weight has no shape until"):
        Block(nn.Linear(2, 4), CrossEntropy(nn.LazyLinear(3)), SGD())
    module(torch.zeros(1, 2))
    Block(module, CrossEntropy(head), SGD())


# How images and filters lie in memory


def convolution():
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, CLASSES))
    return ow.Block(nn.Conv2d(2, 4, 3), ow.CrossEntropy(head), ow.Adam())


def strides(tensors):
    return [tensor.stride() for tensor in tensors]


def test_a_released_block_knows_how_its_weights_will_lie_in_memory():
    held, released = convolution(), convolution()
    released.release()

    for block in (held, released):
        block.set_memory_format(torch.channels_last)
        block.reset_optimizer()

    assert released.is_released
    assert (36 // 2, 1, 6, 2) in strides(held.weights())
    assert strides(released.layouts()) == strides(held.weights())
    assert strides(released.optimizer_tensors()) == strides(held.optimizer_tensors())


def test_a_block_gets_images_as_they_lie_in_memory_from_wherever_they_come():
    block = convolution()
    block.set_memory_format(torch.channels_last)
    samples = Batch(draw(5, 2, 8, 8), context={"above": draw(5, 3, 4, 4)})
    last = samples.replace(inputs=samples.tensor.contiguous(memory_format=torch.channels_last))

    for batch in (samples, last):
        prepared = block.prepared(batch)
        assert prepared.tensor.stride() == (128, 1, 16, 2)
        assert prepared.context["above"].stride() == (48, 1, 12, 3)
        assert prepared.tensor.equal(samples.tensor)


def test_an_axis_of_one_has_the_stride_of_its_memory_format():
    image = draw(2, 1, 4, 4)

    assert image.is_contiguous(memory_format=torch.channels_last)
    last = laid_out(image, torch.channels_last)
    assert last.stride() == (16, 1, 4, 1)
    assert last.equal(image)
    # Torch takes it for contiguous, and convolutions round otherwise.
    assert last.is_contiguous()
    assert laid_out(last, torch.contiguous_format).stride() == image.stride()
    assert laid_out(last, torch.contiguous_format).equal(image)


def test_a_block_learns_alike_when_its_memory_format_is_chosen_on_the_way():
    def learned(memory_format):
        torch.manual_seed(0)
        block = convolution()
        for number in range(2):
            train_block(block, stretch, Training(seed=0), start=Position(number, 0), batches=5)
            block.set_memory_format(memory_format)
        return block

    batch = Batch(draw(12, 2, 8, 8), {"label": torch.arange(12) % CLASSES})
    stretch = [{"input": batch}] * 5
    samples, last = learned(torch.contiguous_format), learned(torch.channels_last)

    torch.testing.assert_close(last.weights(), samples.weights(), rtol=0, atol=1e-4)
