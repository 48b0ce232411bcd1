"""Data of many kinds: images, vectors, several inputs, a graph and sentences; small and seeded."""

import torch

import onward as ow

CLASSES, SAMPLES, TEST_SAMPLES = 3, 48, 24
FEATURES = 12
VOCABULARY, LENGTH = 12, 10


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(*shape, seed=1):
    """Return samples that lie around a point for each class, and their classes."""
    y = torch.arange(SAMPLES + TEST_SAMPLES) % CLASSES
    return 2 * draw(CLASSES, *shape, seed=seed)[y] + draw(len(y), *shape, seed=seed + 1), y


def arrays_of(*shape):
    x, y = labelled(*shape)
    return ow.dataset(
        x[:SAMPLES], y[:SAMPLES], x_test=x[SAMPLES:], y_test=y[SAMPLES:], num_classes=CLASSES
    )


def images():
    return arrays_of(3, 8, 8)


def vectors():
    return arrays_of(FEATURES)


def split(name, samples, num_classes=CLASSES):
    """Return a data set of one batch: the first samples to learn from, the others for the test."""
    numbers = torch.arange(len(samples))
    return ow.Dataset(
        name=name,
        training=samples.take(numbers[:SAMPLES]),
        test=samples.take(numbers[SAMPLES:]),
        num_classes=num_classes,
    )


def unlabelled_vectors():
    x, _ = labelled(FEATURES)
    return split("unlabelled", ow.Batch(x), num_classes=0)


def two_sides():
    """Two measurements of every sample, of different sizes."""
    left, y = labelled(FEATURES)
    right, _ = labelled(8, seed=11)
    return split("two sides", ow.Batch({"left": left, "right": right}, {"label": y}))


def graph():
    """One graph: its first nodes count in training, the others in the test."""
    x, y = labelled(FEATURES)
    nodes = torch.arange(len(x))
    links = torch.randint(len(x), (2, 100), generator=torch.Generator().manual_seed(5))
    edges = torch.cat([torch.stack([nodes, nodes.roll(CLASSES)]), links], dim=1)
    whole = ow.Batch(x, {"label": y}, structure={"edge_index": edges}, index=nodes[:SAMPLES])
    return ow.Dataset(
        name="graph",
        training=whole,
        test=whole.replace(index=nodes[SAMPLES:]),
        num_classes=CLASSES,
    )


def sentences():
    """Token ids, with the class of the first token and whether their sum is odd."""
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(VOCABULARY, (SAMPLES + TEST_SAMPLES, LENGTH), generator=generator)
    targets = {"label": tokens[:, 0] % CLASSES, "parity": tokens.sum(dim=1) % 2}
    return split("sentences", ow.Batch(tokens, targets))
