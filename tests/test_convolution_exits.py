"""Early exit from convolutions, of images of odd sizes and of signals: what it says and costs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import onward as ow
from onward.exits.macs import macs_spent, stage_costs
from onward.exits.outcomes import fixed_depths, follow, look_at
from onward.onnx_files import export, run_exported

CLASSES = 4


def block(layers, head):
    return ow.Block(nn.Sequential(*layers), ow.CrossEntropy(head), ow.Adam(lr=5e-3))


def image_blocks():
    """For what whitening makes of 3 x 10 x 8 pixels: 24 x 9 x 7."""
    mlp = (nn.Flatten(), nn.Linear(8 * 4, 12), nn.GELU(), nn.Linear(12, CLASSES))
    return [
        block(
            [nn.Conv2d(24, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU()],
            nn.Sequential(nn.AdaptiveAvgPool2d(2), *mlp),
        ),
        block(
            [nn.Conv2d(8, 10, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(10), nn.GELU()],
            nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(10, CLASSES)),
        ),
        block(
            [nn.Conv2d(10, 12, 3, padding=1, bias=False), nn.MaxPool2d(2, ceil_mode=True)],
            nn.Sequential(nn.Flatten(), nn.Linear(12 * 2 * 2, CLASSES)),
        ),
    ]


IMAGE_MACS = (
    24 * 12 * 63 + 8 * 24 * 9 * 63 + 8 * 4 * 12 + 12 * CLASSES + CLASSES,
    10 * 8 * 9 * 63 + 10 * CLASSES + CLASSES,
    12 * 10 * 9 * 12 + 12 * 4 * CLASSES + CLASSES,
)
"""Whitening, the convolution, its head, and the comparisons; the others have no whitening."""


def signal_blocks():
    """For two channels of 37 steps."""
    return [
        block(
            [nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6), nn.GELU(), nn.MaxPool1d(2)],
            nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(24, CLASSES)),
        ),
        block(
            [nn.Conv1d(6, 8, 3, stride=2), nn.BatchNorm1d(8), nn.GELU()],
            nn.Sequential(nn.Flatten(), nn.Linear(8 * 7, 9), nn.ReLU(), nn.Linear(9, CLASSES)),
        ),
    ]


SIGNAL_MACS = (
    6 * 2 * 5 * 33 + 24 * CLASSES + CLASSES,
    8 * 6 * 3 * 7 + 8 * 7 * 9 + 9 * CLASSES + CLASSES,
)


@dataclass
class Case:
    """A trained network, samples that it has not seen, and what its stages cost."""

    network: ow.Network
    x: np.ndarray
    y: np.ndarray
    macs: tuple[int, ...]


@pytest.fixture(scope="module", params=[("images", "last"), ("signals", "all")], ids="-".join)
def case(request):
    kind, heads = request.param
    generator = np.random.default_rng(0)
    y = generator.integers(CLASSES, size=900)
    shape, blocks, macs = {
        "images": ((3, 10, 8), image_blocks, IMAGE_MACS),
        "signals": ((2, 37), signal_blocks, SIGNAL_MACS),
    }[kind]
    # Of each class a pattern, weak in some of the samples.
    strength = generator.uniform(0.1, 1.0, size=(900, *[1] * len(shape)))
    patterns = generator.normal(size=(CLASSES, *shape))
    x = (generator.normal(size=(900, *shape)) + strength * patterns[y]).astype(np.float32)
    if kind == "images":
        x = (128 + 30 * x).clip(0, 255).astype(np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ow.Network(
            blocks(),
            ow.Plain(),
            ow.SumOfHeads(heads),
            num_classes=CLASSES,
            preprocessing=ow.Whitening(3, 2) if kind == "images" else None,
        )
    dataset = ow.dataset(
        x[:500], y[:500], x_test=x[500:], y_test=y[500:], is_image=kind == "images"
    )
    training = ow.TrainingConfig(epochs=4, batch_size=50, precision="fp32")
    ow.train(network, dataset, training=training, validation=0)
    return Case(network, x[500:], y[500:], macs)


def some_at_each_exit(case):
    """A policy under which samples leave at every exit."""
    history = look_at(case.network, batch_of(case)).history
    margins = [scores.topk(2, dim=1).values for scores in history[:-1]]
    return ow.ExitPolicy(
        "margin", tuple(float((m[:, 0] - m[:, 1]).quantile(0.6)) * 1.0001 for m in margins)
    )


def batch_of(case):
    return case.network.checked(case.x).with_targets(label=torch.from_numpy(case.y))


def test_each_exit_answers_as_its_readout_says(case):
    network, x = case.network, case.x
    own = [scores.log_softmax(dim=1) for scores in network.scores(x).blocks]

    for number, policy in enumerate(fixed_depths(look_at(network, batch_of(case)))):
        found = ow.answer(network, x, policy)

        expected = own[number] if network.readout.heads == "last" else sum(own[: number + 1])
        torch.testing.assert_close(found.scores.log_softmax(1), expected.log_softmax(1))
        assert found.labels.equal(expected.argmax(dim=1))
        assert (found.exits == number).all()


def test_stages_cost_their_convolutions_heads_and_preprocessing(case):
    costs = stage_costs(case.network)

    assert tuple(cost.row for cost in costs) == case.macs
    parts = [(b.module, b.objective) for b in case.network.all_blocks]
    sizes = [sum(p.nbytes for part in both for p in part.parameters()) for both in parts]
    if case.network.preprocessing is not None:
        sizes[0] += case.network.preprocessing.filters.nbytes
    assert [cost.weight_bytes for cost in costs] == sizes


def test_calibrated_exits_are_those_of_inference(case):
    found = ow.calibrate(case.network, case.x, case.y, max_error_increase=0.02)

    answers = ow.answer(case.network, case.x, found.policy)
    outcome = follow(found.policy, look_at(case.network, batch_of(case)))
    assert found.full_macs == sum(case.macs)
    assert found.mean_macs < 0.9 * found.full_macs
    assert found.newly_wrong <= 8
    assert answers.exits.equal(outcome.exits)
    assert answers.labels.equal(outcome.answers)
    spent = macs_spent(stage_costs(case.network), answers)
    assert float(spent.mean()) == pytest.approx(found.mean_macs)


def test_batches_are_timed_under_each_policy(case):
    policies = {"full": fixed_depths(look_at(case.network, batch_of(case)))[-1]}
    policies["some"] = some_at_each_exit(case)

    found = ow.exits.measure(case.network, case.x, policies, batch_size=1, batches=8)

    assert [len(found[name].seconds) for name in policies] == [8, 8]


def test_exported_files_take_samples_as_they_are_read_and_leave_at_the_same_exits(case, tmp_path):
    policy = some_at_each_exit(case)

    export(case.network, tmp_path, policy)

    labels, exits = run_exported(tmp_path, case.x)
    expected = ow.answer(case.network, case.x, policy)
    assert exits.tolist() == expected.exits.tolist()
    assert labels.tolist() == expected.labels.tolist()
    assert len(np.unique(exits)) == len(case.macs)
    if case.x.dtype == np.uint8:
        as_floats = run_exported(tmp_path, case.x.astype(np.float32) / 255)
        assert as_floats[1].tolist() == exits.tolist()
