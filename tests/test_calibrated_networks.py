"""Networks that are calibrated: on which samples, by what settings, what inference then does."""

import math

import pytest
import torch

import onward as ow
from onward.errors import DataError, SettingError
from onward.exits.answers import answer
from onward.exits.calibration import choose
from onward.exits.macs import macs_spent
from onward.exits.outcomes import follow, look_at
from onward.inference import calibrate

pytestmark = pytest.mark.usefixtures("unchecked_module")


@pytest.fixture(scope="module")
def digits():
    return ow.load_data("digits")


@pytest.fixture(scope="module")
def trained(digits):
    """A network that votes, and one that sweeps."""
    found = {}
    for name, settings in {
        "heads": {},
        "sweep": {"objective": "threshold", "negatives": "random", "readout": "goodness"},
    }.items():
        network = ow.mlp(
            digits.input_shape, num_classes=10, widths=(48, 40, 32), is_image=True, **settings
        )
        ow.train(network, digits, training=ow.TrainingConfig(epochs=8, precision="fp32"))
        found[name] = network
    return found


def test_what_is_calculated_is_what_inference_does(digits, trained):
    for network in trained.values():
        seen = look_at(network, digits.test)
        policy = choose(seen, max_error_increase=0.02).policy

        outcome, found = follow(policy, seen), answer(network, digits.test, policy)

        same = outcome.exits == found.exits
        assert same.double().mean() > 0.99
        assert outcome.answers[same].equal(found.labels[same])
        cost = macs_spent(list(seen.costs), found)
        torch.testing.assert_close(outcome.macs[same], cost[same], rtol=0.05, atol=0)


# Samples that may not be taken


def test_training_samples_are_refused_unless_forced_and_that_is_recorded(digits, trained):
    network, x, y = trained["heads"], digits.x, digits.y

    with pytest.raises(DataError, match=r"About (8|9)\d% of these 1,437 samples were trained on"):
        calibrate(network, x, y, max_error_increase=0.01)
    found = calibrate(network, x, y, max_error_increase=0.01, force=True)
    held_out = calibrate(network, digits.x_test, digits.y_test, max_error_increase=0.01)

    assert found.on_training_samples
    assert not held_out.on_training_samples


def test_training_samples_are_known_after_a_way_through_a_file(digits, trained, tmp_path):
    ow.save(trained["heads"], tmp_path / "model.safetensors")
    network = ow.load(tmp_path / "model.safetensors")

    with pytest.raises(DataError, match="were trained on"):
        calibrate(network, digits.x[:300], digits.y[:300], max_error_increase=0.01)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "Give either"),
        ({"max_error_increase": 0.1, "target_macs": 5.0}, "Give either"),
        ({"target_macs": 5.0, "delta": 0.1}, "delta and bound need max_error_increase"),
        ({"target_macs": 5.0, "bound": "ucb"}, "delta and bound need max_error_increase"),
        ({"target_macs": math.nan}, "target_macs is a number of operations above 0; got nan"),
        (
            {"max_error_increase": 1.5},
            "max_error_increase is a fraction of the samples, from 0 to below 1; got 1.5",
        ),
        ({"max_error_increase": 0.1, "delta": 0.0}, "delta is a probability, above 0"),
        ({"max_error_increase": 0.1, "confidence": "hunch"}, "There is no confidence hunch"),
        ({"max_error_increase": 0.1, "bound": "luck"}, "There is no bound luck. Known are fixed-"),
        ({"max_error_increase": 0.1, "risk": "all"}, "There is no risk all. Known are lost, net"),
        ({"max_error_increase": 0.1, "bound": "ucb"}, "with probability 1 - delta: give delta"),
        (
            {"max_error_increase": 0.1, "bound": "expectation", "delta": 0.1},
            "promises a mean over calibrations, which has no delta",
        ),
        (
            {"max_error_increase": 0.1, "delta": 0.1, "risk": "net"},
            "The bound fixed-sequence holds for lost samples alone",
        ),
        (
            {"max_error_increase": 0.1, "bound": "expectation", "risk": "net"},
            "take the bound ucb, or the risk lost",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(digits, trained, wrong, message):
    with pytest.raises(SettingError, match=message):
        calibrate(trained["heads"], digits.x_test, digits.y_test, **wrong)


def test_a_batch_that_has_its_classes_needs_no_others(digits, trained):
    network = trained["heads"]

    found = calibrate(network, digits.test, max_error_increase=0.01)

    assert found == calibrate(network, digits.x_test, digits.y_test, max_error_increase=0.01)


def test_a_guarantee_that_cannot_be_given_is_warned_of(digits, trained):
    network = trained["heads"]

    with pytest.warns(ow.OnwardWarning, match="that half needs 2,995 samples, otherwise more"):
        found = calibrate(network, digits.test, max_error_increase=0.001, delta=0.05)

    assert found.mean_macs == found.full_macs


def test_samples_that_do_not_count_are_left_out(digits, trained):
    network, some = trained["heads"], torch.arange(0, 360, 3)

    found = calibrate(network, digits.test.replace(index=some), max_error_increase=0.01)

    assert found == calibrate(network, digits.test.take(some), max_error_increase=0.01)


def test_samples_without_classes_calibrate_nothing(digits, trained):
    with pytest.raises(DataError, match="These samples have no classes"):
        calibrate(trained["heads"], digits.x_test, max_error_increase=0.01)


def test_samples_that_belong_together_have_nothing_to_save(digits, trained):
    graph = digits.test.replace(structure={"edge_index": torch.zeros(2, 1, dtype=torch.int64)})

    with pytest.raises(SettingError, match=r"belong together \(edge_index\)"):
        calibrate(trained["heads"], graph, max_error_increase=0.01)


def test_a_network_that_names_no_classes_has_no_exits(digits):
    network = ow.mlp(digits.input_shape, num_classes=10, widths=(8, 8))
    network.readout = None

    with pytest.raises(SettingError, match="This network has no readout"):
        calibrate(network, digits.test, max_error_increase=0.01)


def test_samples_that_are_not_finite_are_refused(digits, trained):
    x = digits.x_test.clone()
    x[7, 0, 3, 3] = math.nan

    with pytest.raises(DataError, match="NaN or infinite"):
        calibrate(trained["heads"], x, digits.y_test, max_error_increase=0.01)


def test_no_samples_calibrate_nothing(digits, trained):
    with pytest.raises(DataError, match="There are 0 samples to calibrate on, and two are needed"):
        calibrate(trained["heads"], digits.x_test[:0], digits.y_test[:0], max_error_increase=0.01)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (lambda y: y + 1, "from 0 to 9 for this network; these run from 1 to 10"),
        (lambda y: y - 1, "these run from -1 to 8"),
        (lambda y: y + 0.5, r"y holds \d\.5 in row 0\. It needs classes, as whole"),
        (lambda y: y[:-1], r"y has the shape \(359,\), but there are 360 samples"),
        (lambda y: y[:, None], r"y has the shape \(360, 1\), .* Give y\.ravel\(\)\."),
    ],
    ids=["one too high", "one too low", "halves", "too few", "two axes"],
)
def test_what_are_no_classes_of_the_samples_is_refused(digits, trained, classes, message):
    wrong = classes(digits.y_test).numpy()

    with pytest.raises(DataError, match=message):
        calibrate(trained["heads"], digits.x_test, wrong, max_error_increase=0.01)


def test_a_network_with_one_exit_has_nothing_to_leave(digits):
    network = ow.mlp(digits.input_shape, num_classes=10, widths=(8, 8), layers_per_block="all")

    with pytest.raises(SettingError, match="has one exit, its end"):
        calibrate(network, digits.x_test, digits.y_test, max_error_increase=0.01)


def test_networks_of_ones_own_are_calibrated_as_well(digits):
    torch.manual_seed(0)
    blocks = [
        ow.Block(
            torch.nn.Sequential(torch.nn.Conv2d(inputs, 4, 3), torch.nn.ReLU()),
            ow.CrossEntropy(
                torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * side**2, 10))
            ),
            ow.Adam(lr=0.01),
        )
        for inputs, side in ((1, 6), (4, 4))
    ]
    network = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)
    ow.train(network, digits, training=ow.TrainingConfig(epochs=3))

    found = calibrate(network, digits.x_test, digits.y_test, max_error_increase=0.02)

    # Nine weights for each of 4 x 6 x 6 places, then 36 for each of 4 x 4 x 4; heads; comparisons.
    first, second = 9 * 144 + 144 * 10 + 10, 36 * 64 + 64 * 10 + 10
    assert found.full_macs == first + second
    assert first <= found.mean_macs < found.full_macs
