"""Blocks that stop by themselves, within the chapter in which they learn."""

import pytest
from prepared import assert_same_weights, prepare
from torch import nn

import onward as ow
from onward.errors import SettingError
from onward.runtime.block_stopping import BlockStopping

pytestmark = pytest.mark.usefixtures("unchecked_module")

SETTINGS = {
    "network.widths": (24, 20, 16),
    "training.epochs": 24,
    "training.batch_size": 100,
    "training.precision": "fp32",
    "training.schedule": "constant",
    "optimizer.lr": 0.01,
    "plan.chapters": 2,
    "plan.block_patience": 1,
}
CASES = {
    "heads": ("one-pass", {}),
    "a sweep": ("pff", {"network.negatives": "random"}),
}


def trained(recipe="one-pass", **changes):
    return ow.run(ow.RunConfig(recipe=recipe).with_settings(SETTINGS | changes))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "number"), [("all-layers", 2), ("single-layer", 3)])
def test_blocks_stop_alike_on_any_ranks(case, name, number):
    recipe, changes = CASES[case]
    (one,) = prepare(recipe, SETTINGS | changes).run("sequential", 1)

    first, *_ = prepare(recipe, SETTINGS | changes).run(name, number)

    assert_same_weights(first.worker.network, one.worker.network)


def test_a_block_ends_with_the_weights_that_were_best():
    once = {"plan.chapters": 1, "plan.block_patience": 2, "plan.block_validate_every": 2}

    result = trained(**once)
    longer = trained(**once | {"training.epochs": 48})
    unstopped = trained(**once | {"plan.block_patience": "none"})

    # More epochs than it takes change nothing.
    assert_same_weights(result.network, longer.network)
    assert result.facts["weights_sha256"] != unstopped.facts["weights_sha256"]
    # Blocks end at a validation, before the last epoch, and the result says when.
    epochs = result.facts["block_epochs"]
    assert epochs == longer.facts["block_epochs"]
    assert all(n % 2 == 0 and 0 < n < 24 for n in epochs)
    assert [
        entry.figures["epochs"] for entry in result.progress if entry.block is not None
    ] == epochs
    assert unstopped.facts["block_epochs"] == [24.0] * 3
    assert result.accuracy > 0.85


def test_a_block_stops_by_what_the_network_up_to_it_gets_right():
    network, validation = trained().network, ow.load_data("digits").test
    each = network.scores_of(validation).blocks

    for number in range(len(each)):
        stopping = BlockStopping(
            network, number, validation, monitor="accuracy", every=1, patience=1
        )
        stopping.is_done()
        total = sum(each[: number + 1])
        assert stopping.merit == int((total.argmax(dim=1) == validation.label).sum())


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("one-pass", {"data.validation": 0}, "no validation samples that could tell"),
        ("one-pass", {"plan.kind": "stream"}, r"none stops by itself\. Use plan\.patience"),
        ("one-pass", {"plan.shards": 2}, "each of 2 shards .* by samples of its own"),
        ("one-pass", {"plan.slices": 2}, r"ranks that share a block \(plan\.slices\)"),
        ("pff", {"network.readout": "softmax"}, "has those of a head over several blocks"),
    ],
    ids=str,
)
def test_where_blocks_cannot_stop_alike_it_is_refused(recipe, changes, message):
    with pytest.raises(SettingError, match=message):
        trained(recipe, **changes)


def test_blocks_beside_each_other_do_not_stop_by_themselves():
    blocks = [
        ow.Block(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8)),
            ow.CrossEntropy(nn.Linear(8, 10)),
            ow.Adam(),
            reads=("input",),
        )
        for _ in range(2)
    ]
    network = ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=10)

    with pytest.raises(SettingError, match="does not read the block before it"):
        ow.train(network, ow.load_data("digits"), plan=ow.PlanConfig(block_patience=1))


def test_chapters_of_too_few_epochs_are_told():
    with pytest.warns(ow.OnwardWarning, match=r"block_patience = 1 has no effect: blocks learn"):
        trained(**{"plan.chapters": 24})
