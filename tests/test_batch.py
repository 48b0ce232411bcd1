"""The batch: taking samples of it, and taking it apart and putting it together."""

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import images

from onward.batch import Batch, concatenated, joined, mapped, named, parts
from onward.errors import SettingError

several = settings(max_examples=100, deadline=None, derandomize=True)

names = st.text("abc.0 ", min_size=1, max_size=4)
types = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])


@st.composite
def tensors(draw, samples=None):
    """Draw a tensor of any type; of some samples where their number is given."""
    shape = draw(st.lists(st.integers(0, 3), max_size=2))
    shape = shape if samples is None else [samples, *shape]
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**40)))
    return torch.randint(0, 100, shape, generator=seed).to(draw(types))


def by_name(values, **sizes):
    return st.dictionaries(names, values, **sizes)


@st.composite
def batches(draw, structure=None):
    """Draw a batch with anything that a batch may have."""
    samples = draw(st.integers(0, 5))
    each = tensors(samples)
    numbers = st.integers(0, samples - 1) if samples else st.nothing()
    some = st.lists(numbers, unique=True).map(lambda found: torch.tensor(found, dtype=torch.int64))
    parts = (
        draw(each | by_name(each, min_size=1, max_size=3)),
        draw(by_name(each, max_size=3)),
        draw(st.none() | st.just(torch.arange(samples) + 7)),
        draw(st.none() | st.just(torch.rand(samples, generator=torch.Generator().manual_seed(0)))),
        draw(by_name(tensors(), max_size=2)) if structure is None else structure,
        draw(st.none() | some),
        draw(by_name(each, max_size=2)),
    )
    # Types are checked at random places, which Hypothesis does not like in here.
    was, jaxtyping.config.jaxtyping_disable = jaxtyping.config.jaxtyping_disable, True
    try:
        return Batch(*parts)
    finally:
        jaxtyping.config.jaxtyping_disable = was


def assert_same(actual, expected):
    """Check that two batches are the same, to the bit."""
    found, wanted = actual.tensors(), expected.tensors()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].equal(tensor), name
    for name in ("targets", "structure", "context"):
        assert getattr(actual, name).keys() == getattr(expected, name).keys()
    assert isinstance(actual.inputs, torch.Tensor) == isinstance(expected.inputs, torch.Tensor)


# Apart, and together again


@several
@given(batches())
def test_a_batch_is_put_together_from_its_tensors_as_it_was(batch):
    assert_same(Batch.from_tensors(batch.tensors()), batch)


@several
@given(batches())
def test_a_batch_on_another_device_is_the_same(batch):
    assert_same(batch.to("cpu"), batch)


def test_each_tensor_of_a_batch_has_a_name_of_its_own():
    x = torch.zeros(2, 3)
    batch = Batch(
        {"left": x, "right": x},
        {"label": torch.tensor([0, 1]), "age": torch.tensor([1.0, 2.0])},
        ids=torch.tensor([4, 5]),
        weights=torch.ones(2),
        structure={"edges": torch.zeros(2, 7)},
        index=torch.tensor([1]),
        context={"top": x},
    )

    assert sorted(batch.tensors()) == [
        "context.top",
        "ids",
        "index",
        "inputs.left",
        "inputs.right",
        "structure.edges",
        "targets.age",
        "targets.label",
        "weights",
    ]


# Taking samples


@several
@given(batches(structure={}), st.data())
def test_taken_samples_keep_all_that_is_known_of_them(batch, data):
    numbers = st.integers(0, len(batch) - 1) if len(batch) else st.nothing()
    chosen = torch.tensor(data.draw(st.lists(numbers)), dtype=torch.int64)

    taken = batch.take(chosen)

    whole = batch.replace(index=None).tensors()
    found = taken.replace(index=None).tensors()
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert found[name].equal(tensor[chosen]), name


@several
@given(batches(structure={}), st.integers(0, 5), st.integers(0, 5))
def test_a_slice_of_samples_is_taken_as_their_numbers_are(batch, start, length):
    numbers = torch.arange(len(batch))[start : start + length]

    assert_same(batch.take(slice(start, start + length)), batch.take(numbers))


def test_taken_samples_come_in_the_order_asked_for_and_may_come_twice():
    batch = Batch(torch.tensor([[1.0], [2.0], [3.0]]), {"label": torch.tensor([5, 6, 7])})

    taken = batch.take(torch.tensor([2, 0, 2]))

    assert taken.inputs.tolist() == [[3.0], [1.0], [3.0]]
    assert taken.label.tolist() == [7, 5, 7]


def test_taken_samples_are_those_of_every_input():
    batch = Batch({"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([[3], [4]])})

    taken = batch.take(torch.tensor([1]))

    assert {name: tensor.tolist() for name, tensor in taken.inputs.items()} == {
        "a": [[2.0]],
        "b": [[4]],
    }


def test_of_a_batch_with_a_structure_all_stays_and_the_taken_samples_count():
    graph = Batch(
        torch.eye(4),
        {"label": torch.tensor([0, 1, 0, 1])},
        structure={"edges": torch.tensor([[0, 1, 2], [1, 2, 3]])},
    )

    taken = graph.take(torch.tensor([3, 1]))

    assert len(taken) == 4
    assert_same(taken.replace(index=None), graph)
    assert taken.index.tolist() == [3, 1]
    assert taken.num_counted == 2
    assert graph.take(slice(1, 3)).index.tolist() == [1, 2]


def test_the_samples_that_count_are_a_batch_of_their_own():
    graph = Batch(
        torch.eye(4),
        {"label": torch.tensor([5, 6, 7, 8])},
        ids=torch.arange(4),
        weights=torch.arange(4.0),
        structure={"edges": torch.zeros(2, 3)},
        index=torch.tensor([3, 1]),
    )

    counted = graph.counted

    assert counted.inputs.equal(torch.eye(4)[[3, 1]])
    assert counted.label.tolist() == [8, 6]
    assert counted.ids.tolist() == [3, 1]
    assert counted.weights.tolist() == [3.0, 1.0]
    assert (counted.structure, counted.index) == ({}, None)


def test_all_samples_count_where_nothing_else_is_said():
    batch = Batch(torch.eye(3))

    assert batch.counted is batch
    assert batch.num_counted == 3


@several
@given(batches(structure={}), st.data())
def test_a_taken_sample_counts_if_it_counted_before(batch, data):
    numbers = st.integers(0, len(batch) - 1) if len(batch) else st.nothing()
    chosen = data.draw(st.lists(numbers))

    taken = batch.take(torch.tensor(chosen, dtype=torch.int64))

    if batch.index is None:
        assert taken.index is None
    else:
        counted = batch.index.tolist()
        expected = [place for place, number in enumerate(chosen) if number in counted]
        assert taken.index.tolist() == expected


# What a batch knows


def test_inputs_keep_their_type():
    tokens = torch.tensor([[3, 1], [2, 9]])

    assert Batch(tokens).take(slice(0, 1)).inputs.dtype == torch.int64


def test_several_inputs_are_not_one_tensor():
    batch = Batch({"a": torch.zeros(1), "b": torch.zeros(1)})

    with pytest.raises(TypeError, match="The inputs are a, b, and one tensor is needed here"):
        _ = batch.tensor


def test_a_copy_has_other_inputs_or_further_targets_and_the_batch_stays():
    batch = Batch(torch.zeros(2, 1), {"label": torch.tensor([0, 1])})

    other = batch.replace(inputs=torch.ones(2, 1)).with_targets(sign=torch.tensor([1, -1]))

    assert other.inputs.tolist() == [[1.0], [1.0]]
    assert list(other.targets) == ["label", "sign"]
    assert batch.inputs.tolist() == [[0.0], [0.0]]
    assert list(batch.targets) == ["label"]


@pytest.mark.parametrize(
    "more",
    [
        {"inputs": {"a": torch.zeros(2, 1)}},
        {"weights": torch.ones(2)},
        {"structure": {"edges": torch.zeros(2, 3)}},
        {"index": torch.tensor([0])},
        {"context": {"top": torch.zeros(2, 1)}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_batch_is_plain_where_one_tensor_has_samples_that_count_the_same(more):
    batch = Batch(torch.zeros(2, 1), {"label": torch.tensor([0, 1])}, ids=torch.arange(2))

    assert batch.is_plain
    assert not batch.replace(**more).is_plain


# One tensor, or several


def test_one_tensor_and_several_are_looked_at_alike():
    x, y = torch.tensor([1.0]), torch.tensor([2.0])

    assert parts(x) == [x]
    assert parts({"a": x, "b": y}) == [x, y]
    assert mapped(lambda t: t + 1, x).tolist() == [2.0]
    assert mapped(lambda t: t + 1, {"a": x, "b": y}) == {"a": x + 1, "b": y + 1}
    assert named(x, "3") == {"3": x}
    assert named({"a": x, "b": y}, "3") == {"3.a": x, "3.b": y}


def test_batches_are_joined_one_after_the_other():
    x, y = torch.tensor([[1.0]]), torch.tensor([[2.0]])

    assert concatenated([x]) is x
    assert concatenated([x, y]).tolist() == [[1.0], [2.0]]
    assert concatenated([{"a": x}, {"a": y}])["a"].tolist() == [[1.0], [2.0]]


def test_taking_nodes_of_a_graph_never_makes_others_count():
    edges = {"edge_index": torch.tensor([[0, 1], [1, 2]])}
    batch = Batch(torch.eye(4), structure=edges, index=torch.tensor([1, 3]))

    assert batch.take(torch.tensor([0, 1, 2])).index.tolist() == [1]


def test_targets_of_another_number_of_samples_are_refused():
    with pytest.raises(ValueError, match="The batch has 3 samples, and label is of 2"):
        Batch(torch.eye(3), {"label": torch.tensor([0, 1])})


# Batches that are joined


def test_joined_batches_are_those_of_all_samples():
    parts = [
        Batch(images(n, 2, seed=n), {"label": torch.arange(n)}, torch.arange(n), torch.ones(n))
        for n in (2, 3)
    ]

    whole = joined(parts)

    assert whole.inputs.equal(torch.cat([part.inputs for part in parts]))
    assert whole.ids.tolist() == whole.label.tolist() == [0, 1, 0, 1, 2]
    assert whole.weights.equal(torch.ones(5))
    assert whole.index is None


def test_of_joined_batches_those_count_that_counted():
    parts = [Batch(images(2, 2), index=torch.tensor([1])), Batch(images(3, 2))]

    assert joined(parts).index.tolist() == [1, 2, 3, 4]


def test_batches_that_hold_other_targets_are_not_joined():
    with pytest.raises(SettingError, match=r"inputs; inputs, targets\.label"):
        joined([Batch(images(2, 2)), Batch(images(1, 2), {"label": torch.tensor([0])})])


def test_where_the_class_is_asked_for_other_targets_are_named():
    batch = Batch(torch.eye(2), {"labels": torch.tensor([0, 1])})

    with pytest.raises(SettingError, match="have none, but labels: the data have no target called"):
        _ = batch.label
