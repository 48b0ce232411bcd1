"""How the samples of a data set are held out, and cut into shards."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from contract_data import unlabelled_vectors
from data_files import of_classes
from hypothesis import given, settings
from hypothesis import strategies as st

import onward as ow
from onward.data import shards, split_validation
from onward.errors import DataError, SettingError
from onward.runs.sharding import labelled, split

any_seed = st.integers(0, 2**40)
several = settings(max_examples=50, deadline=None, derandomize=True)

pytestmark = pytest.mark.usefixtures("empty_cache")


def without_test_samples(y, **settings):
    """Make a data set all of whose labels are training samples."""
    return of_classes(
        y, x_test=np.zeros((1, 1)), y_test=np.zeros(1), allow_one_class=True, **settings
    )


@several
@given(
    y=st.lists(st.integers(0, 3), min_size=2, max_size=60),
    size=st.floats(0.01, 0.99) | st.integers(1, 59),
    seed=any_seed,
)
def test_training_and_validation_samples_are_disjoint_and_cover_all_samples(y, size, seed):
    dataset = without_test_samples(y, num_classes=4)
    held = size if isinstance(size, int) else int(np.ceil(size * len(y)))
    if held >= len(y):
        with pytest.raises(DataError, match=f"{size} of {len(y)} samples cannot be held out"):
            split_validation(dataset, size, seed=seed)
        return

    training, validation = split_validation(dataset, size, seed=seed)

    assert sorted(training.tolist() + validation.tolist()) == list(range(len(y)))
    assert len(validation) == held
    assert training.equal(training.sort().values)
    assert validation.equal(validation.sort().values)


@several
@given(
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=5),
    share=st.floats(0.2, 0.8),
    seed=any_seed,
)
def test_validation_samples_have_the_classes_of_all_samples(counts, share, seed):
    dataset = without_test_samples(np.repeat(np.arange(len(counts)), counts))
    held = int(np.ceil(share * sum(counts)))
    if len(counts) > min(held, sum(counts) - held):
        return  # Too few samples on one side for every class to have one.

    _, validation = split_validation(dataset, share, seed=seed)

    expected = torch.tensor(counts) * held / sum(counts)
    of_each_class = dataset.y[validation].bincount(minlength=len(counts))
    assert ((of_each_class - expected).abs() <= 1).all()


def test_the_only_sample_of_a_class_is_kept_and_the_others_are_held_out_by_class():
    dataset = without_test_samples([0] * 8 + [1] + [2] * 4)

    validations = [split_validation(dataset, 3, seed=seed)[1] for seed in range(20)]

    for validation in validations:
        assert dataset.y[validation].bincount(minlength=3).tolist() == [2, 0, 1]


def test_too_few_samples_to_have_some_of_each_class_are_held_out_by_chance():
    dataset = without_test_samples([0] * 9 + [1])

    validations = [split_validation(dataset, 9, seed=seed)[1] for seed in range(20)]

    assert {9 in validation for validation in validations} == {True, False}


@several
@given(
    groups=st.lists(st.integers(-3, 6), min_size=4, max_size=60).filter(lambda g: len(set(g)) > 1),
    share=st.floats(0.05, 0.9),
    seed=any_seed,
)
def test_no_group_has_both_training_and_validation_samples(groups, share, seed):
    dataset = without_test_samples(np.zeros(len(groups)), groups=np.array(groups))
    if np.ceil(share * len(groups)) == len(groups):
        return  # No samples would be left; the first property says what happens then.

    training, validation = split_validation(dataset, share, seed=seed)

    assert sorted(training.tolist() + validation.tolist()) == list(range(len(groups)))
    assert len(training)
    assert len(validation)
    assert not set(dataset.groups[training].tolist()) & set(dataset.groups[validation].tolist())


def test_validation_samples_are_decided_by_the_seed_alone():
    dataset = without_test_samples([0, 1] * 50)

    first, same, other = (split_validation(dataset, 0.1, seed=seed)[1] for seed in (1, 1, 2))

    assert first.equal(same)
    assert not first.equal(other)


@pytest.mark.parametrize("none", [0, 0.0])
def test_validation_of_0_keeps_all_samples_for_training(none):
    training, validation = split_validation(without_test_samples([0, 1, 1]), none, seed=0)

    assert training.tolist() == [0, 1, 2]
    assert validation.tolist() == []


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 1.5, float("nan"), float("inf"), -1, 4, 100])
def test_validation_that_leaves_no_samples_on_one_side_is_refused(wrong):
    message = re.escape(f"{wrong} of 4 samples cannot be held out for validation")

    with pytest.raises(DataError, match=message):
        split_validation(without_test_samples([0, 1, 1, 0]), wrong, seed=0)


def test_validation_of_a_single_group_is_refused():
    dataset = without_test_samples([0, 1, 1, 0], groups=np.full(4, 7))

    with pytest.raises(DataError, match="All 4 samples belong to one group"):
        split_validation(dataset, 0.5, seed=0)


@several
@given(
    y=st.lists(st.integers(0, 9), min_size=1, max_size=80),
    number=st.integers(1, 80),
    by=st.sampled_from(["iid", "class"]),
    seed=any_seed,
)
def test_shards_are_disjoint_cover_all_samples_and_are_of_near_equal_size(y, number, by, seed):
    if number > len(y):
        message = f"{len(y)} samples cannot be split into {number} shards"
        with pytest.raises(DataError, match=message):
            shards(torch.tensor(y), number, by, seed=seed)
        return

    parts = shards(torch.tensor(y), number, by, seed=seed)

    sizes = [len(part) for part in parts]
    assert len(parts) == number
    assert torch.cat(parts).sort().values.tolist() == list(range(len(y)))
    assert max(sizes) - min(sizes) <= 1


def test_shards_by_class_have_two_classes_at_most_where_random_ones_have_many():
    y = torch.arange(1000) % 10

    by_class = [len(y[part].unique()) for part in shards(y, 10, "class", seed=0)]
    at_random = [len(y[part].unique()) for part in shards(y, 10, "iid", seed=0)]

    assert max(by_class) == 2
    assert min(at_random) == 10


@several
@given(y=st.lists(st.integers(0, 4), min_size=60, max_size=90), seed=any_seed)
def test_drawn_shards_are_disjoint_and_cover_all_samples(y, seed):
    parts = shards(torch.tensor(y), 3, "dirichlet", seed=seed, alpha=5.0)

    assert torch.cat(parts).sort().values.tolist() == list(range(len(y)))
    assert all(part.equal(part.sort().values) for part in parts)


def test_the_smaller_alpha_the_fewer_shards_share_a_class():
    y = torch.arange(4000) % 10

    def shares(alpha):
        parts = shards(y, 4, "dirichlet", seed=0, alpha=alpha)
        counts = torch.stack([y[part].bincount(minlength=10) for part in parts]).double()
        return counts / counts.sum(dim=0)

    # Of each class a shard has alpha / (4 alpha) on average, with the variance of a beta variable.
    for alpha in (0.3, 3.0, 300.0):
        expected = (0.25 * 0.75 / (4 * alpha + 1)) ** 0.5
        assert shares(alpha).std().item() == pytest.approx(expected, rel=0.35)


def test_a_shard_that_gets_no_samples_is_refused():
    with pytest.raises(DataError, match=r"plan.shard_alpha = 0\.01, and one got none"):
        shards(torch.arange(20) % 2, 8, "dirichlet", seed=0, alpha=0.01)


@pytest.mark.parametrize("by", ["iid", "class", "dirichlet"])
def test_shards_are_decided_by_the_seed_alone(by):
    y = torch.arange(100) % 10

    first, same, other = (torch.cat(shards(y, 4, by, seed=seed)) for seed in (1, 1, 2))

    assert first.equal(same)
    assert not first.equal(other)


def test_shards_by_another_word_are_refused():
    with pytest.raises(
        DataError, match=r'Samples are split by "iid", .* or by "dirichlet"; got "label"'
    ):
        shards(torch.arange(4), 2, "label", seed=0)


@pytest.mark.parametrize("number", [0, -1])
def test_less_than_one_shard_is_refused(number):
    with pytest.raises(DataError, match=f"4 samples cannot be split into {number} shards"):
        shards(torch.arange(4), number, "iid", seed=0)


# Labels of a share of the training samples


def parts_of(dataset, **changes):
    """Split a data set as a run does, with these settings."""
    settings = {f"data.{name}": value for name, value in changes.items()}
    config = ow.RunConfig().with_settings(settings)
    found = split(config, dataset)
    kept = labelled(config, found.training)
    return found if kept is None else replace(found, training=found.training.take(kept))


def test_a_share_of_the_training_samples_keeps_its_labels_by_class():
    y = (torch.arange(1000) % 10).numpy()
    dataset = ow.dataset(np.arange(1000.0)[:, None], y, test=0.2)

    whole, some = parts_of(dataset), parts_of(dataset, labelled=0.1)
    other = parts_of(dataset, labelled=0.1, split_seed=1)

    assert sorted(some.training.label.bincount().tolist()) == [7] * 8 + [8] * 2
    assert some.validation.inputs.equal(whole.validation.inputs)
    assert some.test.inputs.equal(whole.test.inputs)
    assert set(some.training.inputs.flatten().tolist()) < set(
        whole.training.inputs.flatten().tolist()
    )
    assert not some.training.inputs.equal(other.training.inputs)


def test_labels_are_left_out_also_where_nothing_is_held_out():
    dataset = ow.dataset(np.arange(1000.0)[:, None], np.arange(1000) % 10, test=0.2)

    assert len(parts_of(dataset, labelled=0.25, validation=0).training) == 200


def test_a_share_of_labels_that_leaves_a_class_without_any_is_refused():
    dataset = ow.dataset(np.arange(1000.0)[:, None], np.arange(1000) % 10, test=0.2)

    with pytest.raises(DataError, match=r"720 training samples, labels of 7 are kept, and none of"):
        parts_of(dataset, labelled=0.01)


def test_labels_of_samples_without_any_are_not_left_out():
    with pytest.raises(SettingError, match=r"data\.labelled is 0\.5, but samples cannot be left"):
        parts_of(unlabelled_vectors(), labelled=0.5)


def test_a_share_of_labels_that_leaves_none_is_refused():
    dataset = ow.dataset(np.arange(20.0)[:, None], np.arange(20) % 2, test=0.5)

    with pytest.raises(
        DataError, match=r"labelled = 0.01 keeps no label of 9 samples. Choose 0.2 or more."
    ):
        parts_of(dataset, labelled=0.01)
    parts_of(dataset, labelled=0.2, validation=0)


def test_test_samples_that_are_training_samples_are_warned_of_with_their_number(recwarn):
    x, y = np.arange(60.0).reshape(30, 2), np.arange(30) % 2
    new = x[:20] + 100

    with pytest.warns(ow.OnwardWarning, match="arrays: 30 of 30 test samples are training samples"):
        ow.dataset(x, y, x_test=x, y_test=y)
    with pytest.warns(ow.OnwardWarning, match="2 of 20 validation samples are training samples"):
        ow.dataset(x, y, x_val=np.concatenate([x[:2], new[2:]]), y_val=y[:20])

    # A few are common.
    ow.dataset(x, y, x_test=np.concatenate([x[:1], new[1:]]), y_test=y[:20])
    assert not recwarn.list
