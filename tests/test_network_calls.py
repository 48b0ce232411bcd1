"""A network that is called like any module of torch: scores, probabilities, ONNX."""

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import onward as ow
from onward.batch import CHUNK_SAMPLES

SHAPE = (1, 8, 8)
GOODNESS = {"objective": "threshold", "negatives": "random"}
NETWORKS = {
    "heads": {},
    "softmax head": GOODNESS | {"readout": "softmax"},
    "sweep": GOODNESS | {"readout": "goodness", "skip_first": False},
    "convolutions": None,
}


def convolutions():
    """Build blocks of convolutions, with running statistics."""
    modules = [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()),
    ]
    heads = [
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
        for channels in (4, 8)
    ]
    blocks = [
        ow.Block(module, ow.CrossEntropy(head), ow.Adam())
        for module, head in zip(modules, heads, strict=True)
    ]
    return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)


@pytest.fixture(params=NETWORKS)
def network(request):
    """A network of each kind, with no weight at zero."""
    settings = NETWORKS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if settings is None:
            built = convolutions()
        else:
            built = ow.mlp(SHAPE, num_classes=10, widths=(16, 12), is_image=True, **settings)
        for parameter in built.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return built


def draw(samples, seed=0):
    return torch.rand(samples, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_a_call_returns_the_class_scores(network):
    x = draw(CHUNK_SAMPLES + 3)

    scores = network(x)

    assert scores.dtype == torch.float32
    assert scores.equal(network.scores(x).network)
    assert scores.argmax(dim=1).equal(network.predict(x))
    assert network(x.numpy()).equal(scores)
    assert network(ow.Batch(x)).equal(scores)


def test_a_call_is_inference_whatever_the_mode_and_autograd(network):
    x = draw(5).requires_grad_()
    expected = network.scores(x.detach()).network

    found = network.train()(x)

    assert found.equal(expected)
    assert not found.requires_grad


def test_probabilities_are_the_softmax_of_the_scores(network):
    x = draw(5)

    found = network.predict_proba(x)

    torch.testing.assert_close(found, network(x).exp() / network(x).exp().sum(1, keepdim=True))
    assert found.argmax(dim=1).equal(network.predict(x))


def test_probabilities_of_a_softmax_head_are_its_own():
    head = ow.Block(nn.Flatten(), ow.CrossEntropy(nn.Linear(64, 3), views=("neutral",)), ow.Adam())
    network = ow.Network([head], ow.Plain(), ow.SoftmaxHead(), num_classes=3)
    x = draw(4)

    logits = head.objective.head(x.flatten(1))

    torch.testing.assert_close(network.predict_proba(x), logits.softmax(dim=1).detach())


def test_probabilities_of_several_heads_are_their_product_normalized():
    network = ow.mlp(SHAPE, num_classes=10, widths=(16, 12), is_image=True)
    x = draw(4)

    each = [scores.exp() for scores in network.scores(x).blocks]

    product = each[0] * each[1]
    expected = product / product.sum(dim=1, keepdim=True)
    torch.testing.assert_close(network.predict_proba(x), expected)


def test_probabilities_of_a_sweep_are_the_odds_of_the_objective_normalized():
    network = ow.mlp(SHAPE, num_classes=10, widths=(16,), is_image=True, **NETWORKS["sweep"])
    (block,), x = network.all_blocks, draw(4)

    activities = block.infer(network.sampler.candidates(ow.Batch(x)))

    positive = (block.objective.slope * (block.objective.goodness(activities.tensor) - 1)).sigmoid()
    odds = (positive / (1 - positive)).reshape(4, 10).double()
    expected = (odds / odds.sum(dim=1, keepdim=True)).float()
    torch.testing.assert_close(network.predict_proba(x), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "is_open",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["five samples", "any number"],
)
@pytest.mark.parametrize(
    "precision",
    [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16],
    ids=["fp32", "bf16"],
)
def test_torch_exports_a_network_to_onnx_with_the_same_scores(
    network, is_open, precision, tmp_path, monkeypatch
):
    onnxruntime = pytest.importorskip("onnxruntime")
    # A number of samples that is left open is no int.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    network.set_precision(precision)
    network.set_memory_format(torch.channels_last)
    shapes = ({0: torch.export.Dim("samples", min=1)},) if is_open else None

    program = torch.onnx.export(
        network, (draw(5),), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    program.save(tmp_path / "network.onnx")

    assert all(block.precision is precision for block in network.all_blocks)
    assert network.memory_format is torch.channels_last
    network.set_precision(torch.float32)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (name,) = (given.name for given in session.get_inputs())
    for samples in (1, 5, 7) if is_open else (5,):
        x = draw(samples, seed=1)
        (found,) = session.run(None, {name: x.numpy()})
        np.testing.assert_allclose(found, network(x).numpy(), rtol=1e-5, atol=1e-5)
