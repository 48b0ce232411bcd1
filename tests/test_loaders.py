"""Data sets and loaders of torch as samples: read through once, in order."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import onward as ow
from onward.data import loaders
from onward.data.loaders import read_pairs

X = torch.arange(700 * 3, dtype=torch.float32).reshape(700, 3)
Y = torch.arange(700) % 3


class Named(Dataset):
    """Samples whose labels are names, as numpy arrays of bytes."""

    def __len__(self):
        return 300

    def __getitem__(self, number):
        return np.full(
            (1, 2, 2), number % 256, dtype=np.uint8
        ), "even" if number % 2 == 0 else "odd"


class Stream(IterableDataset):
    """Samples that come without a known length."""

    def __iter__(self):
        yield from zip(X, Y.tolist(), strict=True)


class Of(Dataset):
    """Items as they are given."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


def pairs_of(dataset):
    """Return all samples of a data set beside their labels, sorted."""
    x, y = torch.cat([dataset.x, dataset.x_test]), torch.cat([dataset.y, dataset.y_test])
    return sorted(zip(map(tuple, x.flatten(1).tolist()), y.tolist(), strict=True))


@pytest.mark.parametrize(
    "given",
    [
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=64),
        DataLoader(TensorDataset(X, Y), batch_size=64, shuffle=True),
        Stream(),
    ],
    ids=["data set", "loader", "shuffled", "stream"],
)
def test_each_sample_keeps_its_label(given):
    dataset = ow.dataset(given)

    assert pairs_of(dataset) == pairs_of(ow.dataset(X, Y))
    assert dataset.num_classes == 3


def test_samples_come_in_the_order_of_the_data_set():
    x, y = read_pairs(TensorDataset(X, Y), "x")

    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize(
    "given",
    [
        DataLoader(TensorDataset(X, Y), batch_size=64, shuffle=True, drop_last=True),
        DataLoader(Stream(), batch_size=64, num_workers=2),
    ],
    ids=["shuffled", "workers"],
)
def test_a_loader_gives_each_sample_once_in_the_order_of_its_data_set(given):
    x, y = read_pairs(given, "x")

    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize(
    "chosen",
    [
        {"batch_size": 2, "sampler": SubsetRandomSampler([7, 2, 5])},
        {"batch_size": 2, "sampler": [5, 7, 2], "drop_last": True},
        {"batch_sampler": [[7, 5], [2]]},
    ],
    ids=["sampler", "list", "batches"],
)
def test_a_loader_of_some_samples_gives_these_alone(chosen):
    x, y = read_pairs(DataLoader(TensorDataset(X, Y), **chosen), "x")

    assert torch.equal(x, X[[2, 5, 7]])
    assert torch.equal(y, Y[[2, 5, 7]])


def test_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()

    read_pairs(TensorDataset(X, Y), "x")
    read_pairs(DataLoader(TensorDataset(X, Y), batch_size=64, shuffle=True), "x")

    assert torch.equal(torch.get_rng_state(), before)


def test_labels_may_be_names_and_bytes_stay_bytes():
    dataset = ow.dataset(Named())

    assert dataset.class_names == ("even", "odd")
    assert dataset.x.dtype == torch.uint8
    assert torch.equal(dataset.x[:, 0, 0, 0] % 2, dataset.y.byte())


def test_validation_and_test_samples_may_come_from_loaders():
    given = TensorDataset(X, Y)

    dataset = ow.dataset(given, x_val=given, x_test=DataLoader(given, batch_size=50))

    assert torch.equal(dataset.x_test, dataset.x)
    assert torch.equal(dataset.validation.tensor, dataset.x)


def test_a_loader_and_labels_beside_it_are_refused():
    with pytest.raises(
        ow.DataError, match=r"x is a TensorDataset, which brings the classes\. Leave"
    ):
        ow.dataset(TensorDataset(X, Y), Y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TensorDataset(X), "x gives a list of 1; a tensor of samples and their labels are needed."),
        (TensorDataset(X, X, Y), "x gives a list of 3; a tensor of samples and their labels"),
        (Of({"x": X[0], "y": 1}), "x gives a dict; a tensor of samples and their labels are nee"),
        (Of((X[0], 0), (X[0, :2], 1)), "x: samples make no batch: stack expects each tensor to be"),
        (Of((object(), 0)), "x: samples make no batch: default_collate: batch must contain"),
        (Of(), "x gives no samples"),
        (
            DataLoader(TensorDataset(X, Y), batch_size=None),
            "x is a loader that makes no batches. Give it a b",
        ),
        (
            DataLoader(TensorDataset(X, Y), 10, sampler=WeightedRandomSampler([1.0] * 700, 700)),
            "x is a loader that gives some samples twice, such as number",
        ),
        (
            DataLoader(TensorDataset(X, Y), 10, sampler=RandomSampler(Y, replacement=True)),
            "x is a loader that gives some samples twice, such as number",
        ),
        (
            DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [1, 2]]),
            "x is a loader that gives some samples twice, such as number 1, so that they would",
        ),
        (
            DataLoader(Of((X[0], 0), (X[0, :2], 1)), batch_size=1),
            "x: samples have several shapes, such as (2,), (3,)",
        ),
    ],
)
def test_what_gives_no_pairs_is_refused_in_a_sentence(given, message):
    with pytest.raises(ow.DataError) as refused:
        ow.dataset(given)

    assert str(refused.value).startswith(f"arrays: {message}")


class Broken(Of):
    """A data set with a mistake of its own."""

    def __getitem__(self, number):
        raise RuntimeError("the disk is gone")


def test_a_mistake_in_a_data_set_is_shown_as_it_is():
    with pytest.raises(RuntimeError, match="the disk is gone"):
        ow.dataset(Broken(1))


def test_there_is_no_bar_where_nobody_watches(capsys):
    read_pairs(TensorDataset(X, Y), "x")

    assert capsys.readouterr() == ("", "")


def test_a_bar_is_shown_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(loaders, "CHUNK", 10)

    read_pairs(TensorDataset(X, Y), "people: x")

    assert "reading people: x" in capsys.readouterr().err
