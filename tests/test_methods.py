"""What every method keeps to: it learns, anywhere to the same weights, each block by itself."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from prepared import assert_same_weights, assert_two_ranks_end_as_one, prepare

import onward as ow
from onward.engine.stretches import Training, make_step
from onward.errors import SettingError
from onward.recipes.contrasts import Pairs, SupervisedContrast, Symba
from onward.recipes.hybrids import Hybrids
from onward.recipes.local_fields import LocalFields, LocalLinear
from onward.recipes.settling import Settling
from onward.recipes.towers import PairOfInputs
from onward.runs.sharding import load_data

pytestmark = pytest.mark.usefixtures("unchecked")

WIDE = {"network.widths": (64, 48, 32)}
QUICK = {"training.epochs": 3, "training.batch_size": 100, "data.validation": 0}
RECURRENT = {"network.widths": (48, 32), "network.ticks": 4, "network.counted": (1, 2)}
TINY = {
    "network.layers": 3,
    "network.layers_per_block": 1,
    "network.dim": 32,
    "network.attention_heads": 2,
}
TINY |= {"training.epochs": 4, "training.batch_size": 25, "optimizer.lr": 5e-3}
TEXT = {"network.multi_token": True}
TEXT |= {"data.name": str(Path(__file__).parent / "counting.txt"), "data.context": 16}
STILL = {"data.shift": 0, "data.flip": "none"}
METHODS = {
    "symba": ("symba", WIDE),
    "mono-forward": ("mono-forward", WIDE),
    "supcon": ("supcon", WIDE),
    "tinyfoa": ("tinyfoa", WIDE | {"optimizer.lr": 1e-2}),
    "tinyfoa, real": ("tinyfoa", WIDE | {"network.binary": False, "optimizer.lr": 1e-2}),
    "hinton-unsupervised": ("hinton-unsupervised", WIDE),
    "uff": ("uff", WIDE),
    "uff, denoising": ("uff", WIDE | {"network.cell": "denoising"}),
    "uff, adversarial": ("uff", WIDE | {"network.cell": "gan"}),
    "uff, convolutional": (
        "uff",
        {"network.cell": "convolutional", "network.channels": (8, 12, 16)},
    ),
    "iffcl": ("iffcl", WIDE | {"optimizer.lr": 3e-3}),
    "iffcl, classifier": (
        "iffcl",
        WIDE | {"optimizer.lr": 0.01, "network.loss": "classifier"},
    ),
    "hinton-recurrent": ("hinton-recurrent", RECURRENT),
    "hinton-recurrent, alternating": (
        "hinton-recurrent",
        RECURRENT | {"network.updates": "alternating"},
    ),
    "hinton-recurrent, local fields": (
        "hinton-recurrent",
        RECURRENT | {"network.layers": "local-fields", "network.maps": (2, 2)},
    ),
    "local fields": (
        "hinton-unsupervised",
        {"network.layers": "local-fields", "network.fields": (8, 12, 16)},
    ),
    "ffcl": ("ffcl", {"network.channels": (8, 12), "optimizer.lr": 3e-3}),
    "byte-lm": ("byte-lm", TINY | TEXT | {"training.batch_size": 10}),
    "vit": ("vit", TINY | STILL),
}
"""By name: recipe, and what is changed in it."""

LATER = {
    "hinton-unsupervised, head": ("hinton-unsupervised", WIDE),
    "uff, classifier": ("uff", WIDE | {"network.head_epochs": 2}),
    "ffcl, all layers": ("ffcl", {"network.channels": (4, 6), "optimizer.lr": 0.01}),
}
"""The same for the second stages of recipes."""

VARIANTS = {
    "tinyfoa, real",
    "uff, denoising",
    "uff, adversarial",
    "iffcl, classifier",
    "hinton-recurrent, alternating",
    "hinton-recurrent, local fields",
    "local fields",
}
"""Variants of methods, of which most is tested in a longer run alone."""

CHAPTERS_ALONE = {"uff, denoising", "ffcl, all layers"}
"""Those that have no stream plan, or one block, for which a second rank has no work in it."""

LONG = {*VARIANTS, "hinton-recurrent", "uff, convolutional", "ffcl", "vit"}
"""Those whose learning to the end takes long."""


def prepared(method, **changes):
    recipe, small = (METHODS | LATER)[method]
    stage = 1 if method in LATER else 0
    small = small | ({"training.epochs": 2} if "network.layers_per_block" in small else {})
    return prepare(recipe, QUICK | {"training.precision": "fp32"} | small | changes, stage)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m in LONG)) for m in METHODS]
)
def test_a_method_learns_digits_and_is_read_back_as_it_was(method, tmp_path):
    recipe, small = METHODS[method]
    config = ow.RunConfig(recipe=recipe).with_settings(QUICK | {"training.epochs": 15} | small)

    result = ow.run(config, folder=tmp_path / "run")

    assert result.accuracy > 0.6
    loaded = ow.load(tmp_path / "run" / "model.safetensors")
    test = load_data(config, 0).test
    assert loaded.scores(test.tensor).network.equal(result.network.scores(test.tensor).network)
    assert loaded.predict(test.tensor).equal(result.network.predict(test.tensor))
    assert ow.evaluate(loaded, test).accuracy == result.accuracy


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(method, kind, marks=[pytest.mark.slow] * (method in VARIANTS))
        for method in METHODS | LATER
        for kind in ("chapters", "stream")
        if kind == "stream" or not method.startswith("hinton-recurrent")
        if kind == "chapters" or method not in CHAPTERS_ALONE
    ],
)
def test_a_method_ends_in_the_same_weights_on_two_ranks(method, kind):
    placement = {"chapters": "all-layers", "stream": "stream"}[kind]
    (one,) = prepared(method, **{"plan.kind": kind}).run("sequential", 1)
    two, _ = prepared(method, **{"plan.kind": kind}).run(placement, 2)

    assert_same_weights(two.worker.network, one.worker.network)


@pytest.mark.parametrize("recipe", ["backprop", "channel-goodness"])
def test_two_ranks_have_parts_of_an_epoch_each(recipe):
    small = {"network.channels": (10, 10)} if recipe == "channel-goodness" else WIDE
    changes = QUICK | {"data.shift": 0, "data.flip": "none", "plan.kind": "chapters"} | small
    assert_two_ranks_end_as_one(recipe, changes | {"plan.shards": 2, "plan.chapters": 3})


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=[pytest.mark.slow] * (m in VARIANTS))
        for m in METHODS | LATER
        if not m.startswith("hinton-recurrent") and m not in CHAPTERS_ALONE
    ],
)
def test_a_block_of_a_method_does_not_depend_on_those_after_it(method):
    # Where one process passes on the outputs of blocks themselves, gradients could get back.
    reference, changed = (prepared(method, **{"plan.kind": "stream"}) for _ in range(2))
    blocks = changed.network.all_blocks if method in LATER else changed.network.line
    with torch.no_grad():
        for weights in blocks[-1].parameters():
            weights.mul_(-0.5).add_(0.1)

    assert alike(reference, changed)[: len(blocks)] == [True] * (len(blocks) - 1) + [False]


@pytest.mark.parametrize("updates", ["synchronous", "alternating"])
def test_a_recurrent_layer_does_not_depend_on_what_another_learns_in_the_same_tick(updates):
    # What is learned in the first of two ticks changes states in the second, which none reads.
    once = {"training.epochs": 1, "training.batch_size": 660, "network.widths": (48, 32)}
    once |= {"network.updates": updates, "network.ticks": 2, "network.counted": (0,)}
    reference, changed = prepared("hinton-recurrent", **once), prepared("hinton-recurrent", **once)
    changed.network.all_blocks[-1].objective.threshold = 0.0

    assert alike(reference, changed) == [True, False]


def alike(one, other):
    """Return which blocks two runs end with the same weights of."""
    found, expected = (deepcopy(run.run("sequential", 1)[0].worker.network) for run in (one, other))
    return [
        all(t.equal(b.state_dict()[name]) for name, t in a.state_dict().items())
        for a, b in zip(found.all_blocks, expected.all_blocks, strict=True)
    ]


@pytest.mark.parametrize("method", METHODS | LATER)
def test_all_weights_of_a_method_that_learn_have_moved(method):
    run = prepared(method)
    before = {n: p.clone() for n, p in run.network.named_parameters()}
    (runtime,) = run.run("sequential", 1)

    moved = {n: not p.equal(before[n]) for n, p in runtime.worker.network.named_parameters()}
    learns = {
        f"blocks.{number}.{name}": name in dict(block.trained())
        for number, block in enumerate(runtime.worker.network.all_blocks)
        for name, _ in block.named_parameters()
    }
    assert moved == learns


@pytest.mark.parametrize(("stride", "padding"), [(1, 2), (2, 0), (3, 1)])
def test_few_units_at_a_place_see_what_many_would(stride, padding, monkeypatch):
    layer = LocalLinear(2, 7, field=3, stride=stride, padding=padding, units=3).double()
    x = torch.rand(4, 98, dtype=torch.float64, generator=draw())
    torch.nn.init.normal_(layer.bias, generator=draw())

    def found():
        put_out = layer(x)
        (gradient,) = torch.autograd.grad(put_out.square().sum(), layer.weight)
        return put_out, gradient

    actual = found()
    monkeypatch.setattr("onward.recipes.local_fields.FEW_UNITS", 0)
    expected = found()

    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_biases_of_local_fields_do_not_decay():
    layer = LocalLinear(1, 6, field=3, stride=2, padding=1, units=2)
    weight = layer.weight.detach().clone()
    objective = ow.Threshold(18, threshold=0.0, slope=1.0)
    block = ow.Block(LocalFields(layer), objective, ow.SGD(lr=0.1, weight_decay=1.0))
    # Without inputs and with units that are silent, decay is all that changes anything.
    torch.nn.init.constant_(layer.bias, -1.0)
    views = {name: ow.Batch(torch.zeros(5, 1, 6, 6)) for name in ("positive", "negative")}

    make_step(block, Training(seed=0, closed_form=False), views)(views, seed=0, lr_scale=1.0)

    assert torch.allclose(layer.weight, 0.9 * weight)
    assert (layer.bias == -1.0).all()


def test_local_fields_that_have_answered_first_learn_afterwards():
    layer = LocalLinear(1, 6, field=3, stride=2, padding=1, units=2)
    x = torch.rand(2, 36, generator=draw())

    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()

    assert layer.weight.grad.any()


def test_peer_normalization_raises_silent_units_of_local_fields():
    layer = LocalFields(LocalLinear(1, 4, field=2, stride=2, units=3))
    with torch.no_grad():
        layer.linear.bias[0] = -100
    objective = ow.Threshold(12, threshold=1.0, slope=1.0, peer=1.0)
    block = ow.Block(layer, objective, ow.SGD(lr=0.1))
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    views = {name: ow.Batch(images) for name in ("positive", "negative")}
    step = make_step(block, Training(seed=0, closed_form=False), views)

    step(views, seed=0, lr_scale=1.0)

    raised = layer.linear.bias[0] - -100
    assert raised > 0


def test_peer_normalization_raises_silent_units_of_a_recurrent_layer():
    layer = Settling(
        torch.nn.Linear(5, 4), torch.nn.Linear(3, 4), damping=0.3, reads=("below", "above")
    )
    with torch.no_grad():
        layer.below.bias[1] = -100
    objective = ow.Threshold(4, threshold=1.0, slope=1.0, peer=1.0)
    block = ow.Block(layer, objective, ow.SGD(lr=0.1))
    sizes = {"below": 5, "above": 3, "before": 4}
    inputs = {name: torch.rand(6, size, generator=draw(size)) for name, size in sizes.items()}
    views = {name: ow.Batch(inputs) for name in ("positive", "negative")}
    expected = layer(inputs)
    step = make_step(block, Training(seed=0, closed_form=False), views)

    outputs, _ = step(views, seed=0, lr_scale=1.0)

    assert outputs["positive"].tensor.equal(expected)
    assert layer.below.bias[1] - -100 > 0


def test_scores_of_symba_are_logits_and_its_gap_is_of_goodness():
    objective = Symba(slope=40.0)
    views = {
        "positive": ow.Batch(torch.tensor([[1.0, 3.0]])),
        "negative": ow.Batch(torch.ones(1, 2)),
    }

    assert objective.scores(views["positive"]).tolist() == [200.0]
    assert objective.gap(views).tolist() == [4.0]
    assert objective.metrics(views)["goodness_gap"][0] == 4.0


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", [Hybrids(), Pairs(), PairOfInputs()])
def test_a_mini_batch_of_one_sample_is_refused(sampler):
    batch = ow.Batch(torch.rand(1, 1, 8, 8), {"label": torch.tensor([0])})

    with pytest.raises(SettingError, match=r"mini-batch of one sample .* training.drop_last"):
        sampler.views(batch, draw(), None)


def test_supervised_contrast_refuses_a_mini_batch_of_one_sample():
    view = {"input": ow.Batch(torch.rand(1, 4), {"label": torch.tensor([0])})}

    with pytest.raises(SettingError, match="mini-batch of one sample"):
        SupervisedContrast(0.1).loss(view, view, draw())


def test_supervised_contrast_counts_samples_with_another_of_their_class():
    labels = torch.tensor([3, 1, 3, 2, 3])
    view = {"input": ow.Batch(torch.rand(5, 4), {"label": labels})}

    assert SupervisedContrast(0.1).metrics(view) == {"paired": (3, 5)}


def test_a_hybrid_shows_some_of_both_samples():
    images = torch.arange(1.0, 401)[:, None, None, None].expand(-1, 1, 6, 6)

    views = Hybrids(smoothing=6).views(ow.Batch(images), draw(), None)

    seen = [set(image.unique().tolist()) for image in views["negative"].tensor]
    assert all(len(both) == 2 and own in both for own, both in enumerate(seen, 1))


def test_hybrids_of_samples_that_are_too_small_for_the_mask_are_refused():
    with pytest.raises(SettingError, match=r"blurred 60 times .* 3 x 3 pixels"):
        Hybrids(smoothing=60).views(ow.Batch(torch.rand(500, 1, 3, 3)), draw(), None)
    with pytest.raises(SettingError, match=r"these samples have shape \(9,\)"):
        Hybrids().views(ow.Batch(torch.rand(5, 9)), draw(), None)


def test_supervised_contrast_is_in_float32_where_the_block_is_in_bf16():
    view = {"input": ow.Batch(torch.rand(6, 8, generator=draw()), {"label": torch.arange(6) % 2})}
    expected = SupervisedContrast(0.1).loss(view, view, draw())

    with torch.autocast("cpu", torch.bfloat16):
        found = SupervisedContrast(0.1).loss(view, view, draw())

    assert found.equal(expected)


@pytest.mark.parametrize("counted", [(), (1, 4), (2, 2)])
def test_ticks_that_never_come_or_count_twice_are_refused(counted):
    with pytest.raises(SettingError, match=r"ticks from 0 to 3 \(.*\), each once; got \["):
        ow.RECIPES["hinton-recurrent"].settings(ticks=4, counted=counted)


def test_cells_of_one_number_are_refused():
    info = ow.DataInfo(input_shape=(1, 8, 8), num_classes=10, is_image=True)
    uff = ow.RECIPES["uff"]

    with pytest.raises(SettingError, match=r"one number alone becomes 0.*widths is \[8, 1\]"):
        uff(uff.settings(widths=(8, 1)), info, ow.TrainingConfig(), ow.PlanConfig())
