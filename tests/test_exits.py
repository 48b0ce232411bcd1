"""Exit policies: pure functions of scores, which travel as data."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward.errors import SettingError
from onward.exits.policies import CONFIDENCES, ExitPolicy, full_depth

SCORES = torch.tensor([[[0.0, 3.0, 1.0]], [[2.0, 1.0, 0.0]], [[5.0, 1.0, 4.5]]])
"""Three exits, one sample, three classes."""


def sure(name, *, exits=3):
    return float(CONFIDENCES[name](SCORES[:exits]))


# How sure


def test_the_margin_is_the_lead_of_the_best_over_the_second():
    assert [sure("margin", exits=n) for n in (1, 2, 3)] == [2.0, 1.0, 0.5]


def test_the_largest_score_counts_as_it_is():
    assert [sure("max-score", exits=n) for n in (1, 2, 3)] == [3.0, 2.0, 5.0]


def test_probability_is_that_of_a_softmax():
    e = [math.exp(v) for v in (2.0, 1.0, 0.0)]

    assert sure("probability", exits=2) == pytest.approx(e[0] / sum(e), rel=1e-6)


def test_entropy_is_negative_and_zero_for_a_class_that_is_certain():
    certain = torch.tensor([[[0.0, -math.inf, -math.inf], [0.0, 0.0, -math.inf]]])

    assert CONFIDENCES["entropy"](certain).tolist() == pytest.approx([0.0, -math.log(2)])


def test_patience_counts_the_exits_that_agree_with_this_one():
    assert [sure("patience", exits=n) for n in (1, 2, 3)] == [1.0, 1.0, 2.0]


def test_labels_that_were_dropped_are_no_second_best():
    assert CONFIDENCES["margin"](torch.tensor([[[1.0, -math.inf]]])).tolist() == [math.inf]


# When samples leave


def test_samples_leave_from_the_threshold_on_and_all_leave_at_the_end():
    policy = ExitPolicy("margin", (2.1, 1.0))

    assert [bool(policy.leaves(SCORES[:n])) for n in (1, 2, 3)] == [False, True, True]


def test_at_full_depth_samples_leave_at_the_end_only():
    policy = full_depth(3)

    assert [bool(policy.leaves(SCORES[:n])) for n in (1, 2, 3)] == [False, False, True]


def test_a_threshold_below_everything_lets_all_leave():
    assert bool(ExitPolicy("margin", (-math.inf, 0.0)).leaves(SCORES[:1]))


def test_a_row_leaves_when_all_labels_but_one_are_dropped():
    never = (math.inf, math.inf)

    assert bool(ExitPolicy("margin", never, drops=(1.9, 1.9)).leaves(SCORES[:1]))
    assert not bool(ExitPolicy("margin", never, drops=(2.1, 1.9)).leaves(SCORES[:1]))


# As data


numbers = st.floats(allow_nan=False)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4))
def test_a_policy_is_the_same_after_a_way_through_json(values):
    thresholds, drops = zip(*values, strict=True)
    policy = ExitPolicy("margin", thresholds, drops)

    assert ExitPolicy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


@pytest.mark.parametrize(
    "change",
    [
        {"confidence": "hunch"},
        {"thresholds": "many"},
        {"thresholds": ["nan"]},
        {"thresholds": 3},
        {"drops": [1.0, 2.0]},
        {"neurons": None},
    ],
    ids=str,
)
def test_what_is_no_policy_is_refused(change):
    found = ExitPolicy("margin", (1.0,)).to_json() | change

    with pytest.raises(SettingError):
        ExitPolicy.from_json(found)


def test_a_policy_without_numbers_is_refused():
    with pytest.raises(SettingError, match="thresholds that are numbers; got NaN"):
        ExitPolicy("margin", (math.nan,))
    with pytest.raises(SettingError, match="drops that are numbers; got NaN"):
        ExitPolicy("margin", (1.0,), (math.nan,))


def test_what_lacks_a_part_is_no_policy():
    for name in ("confidence", "thresholds", "drops"):
        found = ExitPolicy("margin", (1.0,)).to_json()
        del found[name]
        with pytest.raises(SettingError, match="no exit policy"):
            ExitPolicy.from_json(found)


def test_a_file_from_before_neurons_were_removed_is_read_where_it_has_none():
    policy = ExitPolicy("margin", (1.0,))

    assert ExitPolicy.from_json(policy.to_json() | {"neurons": []}) == policy
    with pytest.raises(SettingError, match="sigmoid was removed, and max-score decides the same"):
        ExitPolicy.from_json(
            {"confidence": "sigmoid", "thresholds": [0.5], "drops": [], "neurons": [[1.0, 2.0]]}
        )
