"""The recipe `hinton` against an implementation of its own, mini-batch by mini-batch."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import onward as ow
from onward.batch import Batch
from onward.plan.streams import StreamPlan
from onward.plan.tasks import Product, ProductKind, line
from onward.recipes.blueprint import Blueprint, build
from onward.recipes.dense import dense
from onward.runtime.streams import StreamWorker
from onward.runtime.workers import Settings, Shard
from onward.settings import NetworkConfig, OptimizerConfig

CLASSES = 3

both_ways = pytest.mark.parametrize("closed_form", [True, False])


@dataclass
class Hinton:
    """The algorithm of Hinton's Matlab code, mini-batch by mini-batch, in numpy.

    Written from what the code does, as published, with nothing of the library's.
    """

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    peer: float = 0.03
    epsilon: float = 0.01
    cost: float = 0.001
    softmax_epsilon: float = 0.1
    softmax_cost: float = 0.003
    smoothing: float = 0.9

    def __post_init__(self):
        self.num_classes = CLASSES
        self.units = [len(b) for b in self.biases]
        self.softmax = [np.zeros((n, self.num_classes)) for n in self.units[1:]]
        self.means = [np.full(n, 0.5) for n in self.units]
        self.weight_ema = [np.zeros_like(w) for w in self.weights]
        self.bias_ema = [np.zeros_like(b) for b in self.biases]
        self.softmax_ema = [np.zeros_like(s) for s in self.softmax]

    def overlay(self, images, label):
        samples = images.copy()
        samples[:, : self.num_classes] = label
        return samples

    def passed(self, samples):
        """Return the normalised inputs of each layer, and its activities."""
        normalized, activities = [self.normalized(samples)], []
        for w, b in zip(self.weights, self.biases, strict=True):
            activities.append(np.maximum(normalized[-1] @ w + b, 0))
            normalized.append(self.normalized(activities[-1]))
        return normalized, activities

    @staticmethod
    def normalized(samples):
        return samples / np.sqrt((samples**2).mean(axis=1, keepdims=True))

    def minibatch(self, images, labels, draw_negatives, gain):
        """Learn from a mini-batch; `draw_negatives` is given the logits of the neutral pass."""
        samples, truth = len(images), np.eye(self.num_classes)[labels]
        inputs, activities = self.passed(self.overlay(images, truth))
        weight_sums, bias_sums = [], []
        for layer, h in enumerate(activities):
            p = 1 / (1 + np.exp(-((h**2).sum(axis=1, keepdims=True) - self.units[layer])))
            self.means[layer] = 0.9 * self.means[layer] + 0.1 * h.mean(axis=0)
            pull = self.peer * (self.means[layer].mean() - self.means[layer])
            d = (1 - p) * h + pull
            weight_sums.append(inputs[layer].T @ d)
            bias_sums.append(d.sum(axis=0))

        neutral, _ = self.passed(self.overlay(images, 1 / self.num_classes))
        logits = sum(n @ s for n, s in zip(neutral[2:], self.softmax, strict=True))
        q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for i, n in enumerate(neutral[2:]):
            self.softmax_ema[i] = self.smoothed(self.softmax_ema[i], n.T @ (truth - q) / samples)
            change = self.softmax_ema[i] - self.softmax_cost * self.softmax[i]
            self.softmax[i] = self.softmax[i] + gain * self.softmax_epsilon * change

        negatives = np.eye(self.num_classes)[draw_negatives(logits)]
        inputs, activities = self.passed(self.overlay(images, negatives))
        for layer, h in enumerate(activities):
            p = 1 / (1 + np.exp(-((h**2).sum(axis=1, keepdims=True) - self.units[layer])))
            d = -p * h
            weight_sums[layer] = weight_sums[layer] + inputs[layer].T @ d
            bias_sums[layer] = bias_sums[layer] + d.sum(axis=0)
        for layer in range(len(self.units)):
            self.weight_ema[layer] = self.smoothed(
                self.weight_ema[layer], weight_sums[layer] / samples
            )
            self.bias_ema[layer] = self.smoothed(self.bias_ema[layer], bias_sums[layer] / samples)
            change = self.weight_ema[layer] - self.cost * self.weights[layer]
            self.weights[layer] = self.weights[layer] + gain * self.epsilon * change
            self.biases[layer] = self.biases[layer] + gain * self.epsilon * self.bias_ema[layer]

    def smoothed(self, ema, new):
        return self.smoothing * ema + (1 - self.smoothing) * new


@pytest.fixture
def in_float64(monkeypatch):
    """Compute everything in float64, with nothing added to lengths."""
    monkeypatch.setattr("onward.network.layers.TINY", 0.0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@both_ways
@pytest.mark.usefixtures("in_float64")
def test_a_stream_with_hints_of_this_mini_batch_is_hintons_algorithm(closed_form):
    # Given fourteen images, and epochs of four mini-batches, the last of two images.
    epochs, batch_size, draw_inputs = 4, 4, torch.Generator().manual_seed(1)
    images = torch.rand(14, 1, 3, 4, generator=draw_inputs)
    labels = torch.arange(14) % CLASSES
    config = NetworkConfig(
        widths=(9, 8, 7),
        objective="threshold",
        negatives="hard",
        readout="goodness",
        peer=0.03,
    )
    rule = OptimizerConfig(
        name="sgd", lr=0.01, weight_decay=0.001, head_lr=0.1, head_weight_decay=0.003
    )
    data = ow.DataInfo(input_shape=(1, 3, 4), num_classes=CLASSES, is_image=True)
    network = build(Blueprint(dense, config, data), optimizer=rule, seed=2)
    reference = Hinton(
        [b.module.weight.detach().T.numpy().copy() for b in network.line],
        [b.module.bias.detach().numpy().copy() for b in network.line],
    )
    plan = StreamPlan(
        nodes=line(3, (1, 2)),
        epochs=epochs,
        chapters=epochs,
        batch_size=batch_size,
        samples=(14,),
        hint_age=0,
        validate_every=None,
        has_validation=False,
    )
    samples = Batch(images, {"label": labels}, ids=torch.arange(14))
    shards = {0: Shard(samples, samples.take(slice(0, 0)))}
    settings = Settings(seed=3, schedule="cooldown", closed_form=closed_form)
    worker = StreamWorker(plan, network, shards, settings)

    # When both learn from the same mini-batches, with the negatives that the worker draws.
    made = {}
    for task in plan.tasks():
        made |= worker.execute(task, {product: made[product] for product in plan.needs(task)})
    for time in range(plan.steps):
        epoch, batch = divmod(time, 4)
        chosen = worker.order(epoch, 0)[batch * batch_size :][:batch_size]
        (hints,) = made[Product(ProductKind.HINTS, time, 0)]

        def drawn(logits, time=time, chosen=chosen, hints=hints):
            expected = torch.from_numpy(logits).log_softmax(dim=1).float()
            torch.testing.assert_close(hints, expected, rtol=1e-6, atol=1e-6)
            negative = worker.sampled(samples.take(chosen), hints, time, 0)["negative"]
            return negative.inputs.flatten(1)[:, :CLASSES].argmax(dim=1).numpy()

        number = epoch + 1
        gain = 1 if number <= epochs / 2 else (1 + 2 * (epochs - number)) / epochs
        images_seen = images[chosen].flatten(1).numpy()
        reference.minibatch(images_seen, labels[chosen].numpy(), drawn, gain)

    # Then all ends in the same numbers, by way of hints that were more than a guess.
    exact = {"rtol": 1e-10, "atol": 1e-10}
    for layer, block in enumerate(network.line):
        state = {name: t.numpy() for name, t in block.state_dict().items()}
        np.testing.assert_allclose(state["module.weight"], reference.weights[layer].T, **exact)
        np.testing.assert_allclose(state["module.bias"], reference.biases[layer], **exact)
        np.testing.assert_allclose(state["objective.peer_mean"], reference.means[layer], **exact)
    head = network.head.module.weight.detach().numpy()
    np.testing.assert_allclose(head, np.concatenate(reference.softmax).T, **exact)
    assert hints.std() > 0.01
    assert math.isclose(gain, 1 / epochs)
