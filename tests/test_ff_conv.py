"""Forward-Forward with convolutions: its views, its loss, what it learns and how it is read."""

import pytest
import torch

import onward as ow
from onward.config import RunConfig
from onward.data import DataInfo
from onward.engine.steps import AutogradStep
from onward.exits.macs import stage_costs
from onward.recipes.convolutions import Maps
from onward.recipes.ff_conv import FFConvConfig, ff_conv
from onward.recipes.labelled import MapThreshold

IMAGES = DataInfo(input_shape=(1, 8, 8), num_classes=3, is_image=True)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(data=IMAGES, **settings):
    small = {"channels": (4, 6, 8), "pooled": (1,), "whitening": False}
    return ff_conv(FFConvConfig(**(small | settings)), data)


def labelled(network, x, labels):
    """Return samples with a label each, as the blocks see them."""
    return network.sampler.with_label(ow.Batch(x), torch.tensor(labels))


def outputs_of(network, seen):
    """Return what each block puts out, by hand."""
    found = []
    for block in network.all_blocks:
        block.eval()
        found.append(block.module(found[-1] if found else seen))
    return found


@pytest.mark.parametrize("size", [(5, 4), (7,)])
def test_the_loss_and_the_scores_are_those_of_the_formula_written_out(size):
    positive, negative = draw(3, 6, *size), draw(3, 6, *size, seed=1)
    objective = MapThreshold(2, Maps(6, size), threshold=0.9, slope=5.0)
    outputs = {
        name: ow.Batch(torch.cat([draw(3, 2, *size, seed=2), maps], dim=1))
        for name, maps in (("positive", positive), ("negative", negative))
    }

    loss = objective.loss(outputs, outputs, torch.Generator())
    scores = objective.scores(outputs["positive"])

    odds = [torch.stack([5 * ((m**2).mean() - 0.9) for m in v]) for v in (positive, negative)]
    probability = [1 / (1 + torch.exp(-each)) for each in odds]
    right = torch.cat([probability[0], 1 - probability[1]])
    torch.testing.assert_close(loss, -right.log().mean())
    torch.testing.assert_close(scores, torch.stack([5 * (m**2).mean() for m in positive]))


def test_a_layer_is_the_formula_written_out():
    (block, *_) = built().all_blocks
    (layer,) = block.module.layers
    x = draw(5, 1, 8, 8)
    codes = torch.eye(3)[[0, 1, 2, 0, 1]]
    layer.train()

    found = layer(x, codes)

    scaled = torch.stack([image / (image**2).mean().sqrt() for image in x])
    seen = layer.pool(layer.convolution(scaled))
    mean, variance = seen.mean(dim=(0, 2, 3)), seen.var(dim=(0, 2, 3), unbiased=False)
    normed = (seen - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
    each = [(m - m.mean()) / (m.var(unbiased=False) + 1e-5).sqrt() for m in normed]
    added = layer.label.weight.T[[0, 1, 2, 0, 1]]
    expected = (torch.stack(each) + added.view(5, -1, 1, 1)).clamp(min=0)
    torch.testing.assert_close(found, expected)


def test_the_label_is_handed_on_from_block_to_block():
    network = built()
    seen = labelled(network, draw(2, 1, 8, 8), [2, 0]).tensor

    for outputs in outputs_of(network, seen):
        expected = torch.eye(3)[[2, 0]].view(2, 3, 1, 1).expand(-1, -1, *outputs.shape[2:])
        assert outputs[:, :3].equal(expected)


def test_planes_of_the_label_are_no_units_that_are_active_or_cost_squares():
    network = built()
    (block, *_) = network.all_blocks
    for layer in block.module.layers:
        layer.label.weight.data.fill_(-1e3)
    views = {
        name: labelled(network, draw(2, 1, 8, 8), labels)
        for name, labels in (("positive", [0, 1]), ("negative", [2, 0]))
    }

    _, report = AutogradStep(block)(views, seed=0, lr_scale=0.0)

    assert report.active.tolist() == [False] * 4
    # A convolution of 9 places, what the label adds, and the squares.
    *_, last = stage_costs(network, (1, 8, 8))
    assert last.each == 16 * 6 * 8 * 9 + 3 * 8 + 16 * 8


def test_every_block_reads_the_label_from_its_planes():
    network = built()

    for block in network.all_blocks[1:]:
        maps = draw(2, block.module.layers[0].convolution.weight.shape[1], 4, 4)
        some, others = (
            block.module(labelled(network, maps, labels).tensor)[:, 3:]
            for labels in ([0, 1], [1, 1])
        )
        assert not some[0].equal(others[0])


def test_the_class_is_that_whose_label_has_most_goodness_without_the_first_block():
    network = built()
    x = draw(4, 1, 8, 8)

    scores = network(x)

    for label in range(3):
        _, *others = outputs_of(network, labelled(network, x, [label] * 4).tensor)
        each = [maps[:, 3:] for maps in others]
        goodness = [maps.shape[1] * (maps**2).mean(dim=(1, 2, 3)) for maps in each]
        torch.testing.assert_close(scores[:, label], sum(goodness))


@pytest.mark.parametrize("readout", ["goodness", "softmax"])
@pytest.mark.parametrize("shape", [(3, 9, 9), (2, 21)])
def test_samples_may_be_images_or_signals(shape, readout):
    network = built(DataInfo(input_shape=shape, num_classes=4), readout=readout)

    assert network(torch.randn(5, *shape)).shape == (5, 4)


def test_a_softmax_head_is_read_block_by_block():
    network = built(readout="softmax")
    module = network.head.module
    for each in module.parameters():
        torch.nn.init.normal_(each)
    x = draw(5, 1, 8, 8)
    neutral = network.sampler.neutral(ow.Batch(x)).tensor

    scores = network.scores(x).network

    read = {}
    for number, block in enumerate(network.line):
        read[str(number)] = block.module(read[str(number - 1)] if number else neutral)
    torch.testing.assert_close(scores, module(read).log_softmax(dim=1))
    assert network.num_exits == 3
    found = [cost.weight_bytes for cost in stage_costs(network, (1, 8, 8))]
    each = [
        [*block.module.parameters(), *module.heads[k].parameters()]
        for k, block in enumerate(network.line)
    ]
    assert found == [sum(4 * tensor.numel() for tensor in own) for own in each]


@pytest.mark.parametrize(("layers", "sizes"), [(1, [1, 1, 1]), (2, [2, 1])])
def test_layers_are_grouped_into_blocks(layers, sizes):
    network = built(layers_per_block=layers)

    assert [len(block.module.layers) for block in network.all_blocks] == sizes


def test_one_block_learns_with_a_classifier_and_no_label_in_the_input():
    network = built(layers_per_block="all")

    (block,) = network.all_blocks
    assert type(block.objective) is ow.CrossEntropy
    assert isinstance(network.sampler, ow.Plain)
    idle = FFConvConfig(layers_per_block="all").without_effect()
    assert {"negatives", "threshold", "slope", "readout"} <= idle.keys()


@pytest.mark.parametrize(
    ("settings", "floor"),
    [({}, 0.85), ({"network.negatives": "hard", "network.readout": "softmax"}, 0.9)],
    ids=["random", "hard"],
)
@pytest.mark.usefixtures("unchecked")
def test_digits_are_learned(settings, floor):
    config = RunConfig(recipe="ff-conv").with_settings(
        {
            "network.channels": (16, 24),
            "network.pooled": (1, 2),
            "training.epochs": 4,
            "training.batch_size": 50,
        }
    )

    result = ow.run(config.with_settings(settings))

    losses = [p.figures["loss"] for p in result.progress if p.block == 1]
    assert losses[-1] < 0.8 * losses[0]
    assert result.accuracy > floor
