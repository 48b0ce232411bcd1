"""Small samples, and small networks that are trained on them."""

import numpy as np
import torch

import onward as ow

FP32 = ["--set", "training.precision=fp32"]
SHORT = ow.TrainingConfig(epochs=2, batch_size=20)


def draw(seed=0):
    """Return a generator, so that no test depends on what others have drawn."""
    return np.random.default_rng(seed)


def trained(x, y, **settings):
    dataset = ow.dataset(x, y)
    network = ow.mlp(dataset.input_shape, num_classes=2, widths=(8,), is_image=dataset.is_image)
    ow.train(network, dataset, training=SHORT, **settings)
    return network


def classes(samples=60):
    return np.arange(samples) % 2


def pixels(samples=60):
    return draw().integers(256, size=(samples, 1, 4, 4), dtype=np.uint8)


def seeded(seed=0):
    """Return a generator of torch."""
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=seeded(seed))


def network():
    """Return a network for samples such as `pixels`."""
    return ow.mlp((1, 4, 4), num_classes=2, widths=(8, 8))


def assert_wrong(negatives, labels, num_classes):
    assert negatives.shape == labels.shape
    assert (negatives != labels).all()
    assert (negatives >= 0).all()
    assert (negatives < num_classes).all()
