"""The contract: methods that the library knows nothing of train, run anywhere, and are read.

The methods are those of `contract_cases`, each a network, its data and the plans that it allows.
"""

import json
import math
from functools import cache

import contract_ranks
import pytest
import torch
from contract_blocks import seeded
from contract_cases import CASES, RUNS, Case, staged_networks, train
from contract_data import SAMPLES, vectors
from contract_networks import AGGREGATED, recurrent_network
from contract_objectives import (
    Adversarial,
    Corrupted,
    Denoising,
    adversarial_network,
    denoising_blocks,
)
from safetensors import safe_open
from thinned import thinned

import onward as ow
from onward.launcher import launch


def cases(*names):
    """Let a test run for some cases."""
    return pytest.mark.parametrize("name", names)


every_case = cases(*CASES)
every_case_with_classes = cases(*(n for n, case in CASES.items() if case.exits))
every_case_with_exits = cases(*(n for n, case in CASES.items() if case.exits > 1))
every_run = pytest.mark.parametrize(("name", "kind"), thinned(RUNS))


@cache
def trained(name, kind=None):
    """Return the networks of a case, trained in this process, and the result; to be looked at."""
    return train(CASES[name], kind=kind)


def network_of(name):
    """Return the trained network, and samples that it has not seen."""
    networks, _ = trained(name)
    return networks[-1], CASES[name].data().test


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    """The digest of the weights of each run, as two processes have trained them together."""
    folder = tmp_path_factory.mktemp("contract")
    launch(contract_ranks.NUM_RANKS, [contract_ranks.__file__, str(folder)])
    return json.loads((folder / "rank0.json").read_text())


def assert_same(some, others):
    torch.testing.assert_close(some.state_dict(), others.state_dict(), rtol=0, atol=0)


def are_same(some, others):
    state, other = some.state_dict(), others.state_dict()
    return all(tensor.equal(other[name]) for name, tensor in state.items())


# Training


@every_run
def test_it_trains_to_a_finite_loss(name, kind):
    networks, result = trained(name, kind)

    learning = {n for n, block in enumerate(networks[-1].all_blocks) if not block.is_frozen}
    losses = [p.figures["loss"] for p in result.progress if p.block in learning]
    assert losses
    assert all(map(math.isfinite, losses))


@every_run
def test_it_has_an_accuracy_where_it_names_classes(name, kind):
    _, result = trained(name, kind)

    if CASES[name].exits:
        assert 0 <= result.accuracy <= 1
    else:
        assert result.accuracy is None


@every_case
def test_every_parameter_that_learns_has_learned(name):
    networks, _ = trained(name)

    for network, before in zip(networks, CASES[name].build(), strict=True):
        first = dict(before.named_parameters())
        changed = {n for n, p in network.named_parameters() if not p.equal(first[n])}
        blocks = enumerate(before.all_blocks)
        assert changed == {f"blocks.{k}.{n}" for k, block in blocks for n, _ in block.trained()}


# The first law


@pytest.mark.distributed
@every_run
def test_two_processes_end_with_the_weights_of_one(name, kind, of_two_ranks):
    _, result = trained(name, kind)

    assert of_two_ranks[f"{name}, {kind}"] == result.facts["weights_sha256"]


# The third law


@pytest.mark.parametrize("kind", ["chapters", "stream"])
@cases("adversarial", "tokens")
def test_what_a_later_block_learns_changes_no_earlier_one(name, kind):
    changed = CASES[name].build()
    with torch.no_grad():
        for parameter in changed[0].blocks[1].objective.parameters():
            parameter.mul_(-2)

    train(CASES[name], networks=changed, kind=kind)

    (usual,), _ = trained(name, kind)
    assert_same(changed[0].blocks[0], usual.blocks[0])
    assert not are_same(changed[0].blocks[1].module, usual.blocks[1].module)


@every_case_with_classes
def test_no_target_enters_a_prediction(name):
    network, samples = network_of(name)
    moved = {target: values.roll(1, dims=0) for target, values in samples.targets.items()}
    assert not moved["label"].equal(samples.label)

    assert network.predict(samples.with_targets(**moved)).equal(network.predict(samples))


# Files


@every_case
def test_a_saved_network_is_loaded_into_one_that_was_freshly_built(name, path):
    network, _ = network_of(name)
    fresh = CASES[name].build()[-1]
    assert not are_same(fresh.blocks[0].module, network.blocks[0].module)

    ow.save(network, path)
    ow.load(path, fresh)

    for block, other in zip(fresh.blocks, network.blocks, strict=True):
        assert_same(block.module, other.module)


@every_case_with_classes
def test_a_loaded_network_predicts_as_before(name, path):
    network, samples = network_of(name)
    fresh = CASES[name].build()[-1]

    ow.save(network, path)
    ow.load(path, fresh)

    assert fresh.predict(samples).equal(network.predict(samples))
    assert fresh.scores(samples).network.equal(network.scores(samples).network)


HELPERS = {
    "denoising": ("decoder",),
    "denoising, no readout": ("decoder",),
    "adversarial": ("decoder", "discriminator"),
    "recurrent": ("predictor",),
    "predsim": ("compared",),
    "predsim, dense": ("compared",),
}
"""What objectives need for the training alone."""


@cases(*HELPERS)
def test_helpers_of_the_training_are_not_in_the_file(name, path):
    network, _ = network_of(name)
    learned = {n for n, _ in network.named_parameters()}

    ow.save(network, path)

    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    for helper in HELPERS[name]:
        assert any(f".{helper}." in n for n in learned)
        assert not any(f".{helper}." in n for n in names)
    assert any(".module." in n for n in names)


@cases(*HELPERS)
def test_loading_leaves_helpers_of_the_training_alone(name, path):
    network, _ = network_of(name)
    fresh, built = CASES[name].build()[-1], dict(CASES[name].build()[-1].named_parameters())

    ow.save(network, path)
    ow.load(path, fresh)

    for parameter_name, parameter in fresh.named_parameters():
        if any(f".{helper}." in parameter_name for helper in HELPERS[name]):
            assert parameter.equal(built[parameter_name])


# Early exit


def leaving(name, samples, thresholds):
    """Answer with demands on the margin at some exits, by number; at others, none leave."""
    network, _ = network_of(name)
    each = tuple(thresholds.get(number, math.inf) for number in range(CASES[name].exits - 1))
    return ow.answer(network, samples, ow.ExitPolicy("margin", each))


def lead(scores):
    best, second = scores.topk(2, dim=1).values.unbind(dim=1)
    return best - second


@every_case_with_classes
def test_no_demand_is_met_at_the_first_exit(name):
    _, samples = network_of(name)

    answers = leaving(name, samples, {0: 0.0})

    assert answers.exits.eq(0).all()


@every_case_with_classes
def test_samples_that_never_leave_early_are_answered_as_predicted(name):
    network, samples = network_of(name)

    answers = leaving(name, samples, {})

    assert answers.exits.eq(CASES[name].exits - 1).all()
    assert answers.labels.equal(network.predict(samples))


@every_case_with_exits
def test_samples_that_stay_are_answered_as_if_none_had_left(name):
    network, samples = network_of(name)
    middle = (CASES[name].exits - 1) // 2
    there = leaving(name, samples, {middle: 0.0})
    leads = lead(there.scores)
    demand = float(leads.median())

    answers = leaving(name, samples, {middle: demand})

    leaves = leads >= demand
    assert not leaves.all()
    assert answers.exits.eq(middle).equal(leaves)
    assert answers.labels.equal(torch.where(leaves, there.labels, network.predict(samples)))


# Samplers


def test_a_view_goes_on_from_the_output_of_another_where_the_sampler_says_so():
    seen = {}

    class Watching(Denoising):
        def loss(self, inputs, outputs, draw):
            clean, noisy = inputs["clean"].tensor, inputs["noisy"].tensor
            seen.setdefault(id(self), []).append(clean.equal(noisy))
            return super().loss(inputs, outputs, draw)

    network = seeded(
        lambda: ow.Network(denoising_blocks(Watching), Corrupted(), None, num_classes=0)
    )()

    train(CASES["denoising, no readout"], networks=[network])

    first, second = (seen[id(block.objective)] for block in network.blocks)
    assert not any(first)
    assert all(second)


# Losses


@pytest.mark.parametrize(
    ("silent", "stays", "learns"),
    [("discriminator", "discriminator", "decoder"), ("generator", "decoder", "discriminator")],
)
def test_each_of_several_losses_trains_its_own_parameters_alone(silent, stays, learns):
    class Half(Adversarial):
        def loss(self, inputs, outputs, draw):
            losses = super().loss(inputs, outputs, draw)
            return losses | {silent: 0 * losses[silent]}

    build = seeded(lambda: adversarial_network(Half))
    network, before = build(), build()

    train(CASES["adversarial"], networks=[network])

    objective, first = network.blocks[0].objective, before.blocks[0].objective
    assert_same(getattr(objective, stays), getattr(first, stays))
    assert not are_same(getattr(objective, learns), getattr(first, learns))


def test_a_loss_that_compares_samples_is_not_computed_in_slices():
    with pytest.raises(ow.SettingError, match="not a mean over samples"):
        train(CASES["towers"], slices=2)


@pytest.mark.parametrize("block", [0, 1])
def test_a_head_that_does_not_learn_stays_as_it_was_drawn(block):
    network, _ = network_of("fixed heads")
    (before,) = CASES["fixed heads"].build()

    assert_same(network.blocks[block].objective, before.blocks[block].objective)
    assert not are_same(network.blocks[block].module, before.blocks[block].module)


# Graphs


def test_what_does_not_depend_on_weights_is_done_once_a_view_and_not_every_epoch():
    def calls(epochs):
        AGGREGATED.clear()
        train(CASES["graph, prepared"], epochs=epochs, chapters=1)
        return sorted(AGGREGATED)

    assert calls(epochs=1) == calls(epochs=4)


def test_a_graph_that_is_prepared_is_learned_as_one_that_is_not():
    prepared, samples = network_of("graph, prepared")
    usual, _ = network_of("graph")

    torch.testing.assert_close(prepared.scores(samples).network, usual.scores(samples).network)


@cases("graph", "graph, prepared")
def test_nodes_that_do_not_count_teach_nothing(name):
    dataset, (usual,) = CASES[name].data(), trained(name)[0]
    label = dataset.training.label.clone()
    label[SAMPLES:] = 0
    other = ow.Dataset(
        name="graph",
        training=dataset.training.with_targets(label=label),
        test=dataset.test,
        num_classes=dataset.num_classes,
    )

    (network,), _ = train(CASES[name], dataset=other)

    assert_same(network, usual)


@cases("graph", "graph, prepared")
def test_only_nodes_that_count_are_in_the_accuracy(name):
    network, samples = network_of(name)
    _, result = trained(name)

    predicted = network.predict(samples)

    assert len(predicted) == len(samples)
    right = (predicted == samples.label)[samples.index]
    assert result.accuracy == pytest.approx(right.float().mean().item())


def test_a_graph_is_not_cut_into_mini_batches():
    case = CASES["graph"]

    with pytest.raises(ow.SettingError, match="batch_size"):
        train(Case(case.build, case.data, case.exits, batch_size=10))


# Edges with a delay


def test_a_chapter_plan_has_no_delayed_edges():
    with pytest.raises(ow.SettingError, match="delay"):
        train(CASES["recurrent"], kind="chapters")


def test_a_delay_needs_ticks_where_an_epoch_has_several_mini_batches():
    once = Case(lambda: [recurrent_network(ticks=1)], vectors, 3, kinds=("stream",))

    with pytest.raises(ow.SettingError, match="delay"):
        train(once)


# Stages


def test_the_result_of_several_stages_is_that_of_the_last():
    (_, last), result = trained("stages")

    assert result.network is last


def test_a_later_stage_goes_on_from_what_an_earlier_one_has_learned():
    build = seeded(lambda: staged_networks(ow.SGD(lr=0.0)))
    networks, before = build(), build()

    train(CASES["stages"], networks=networks)

    # The second stage changes nothing, so what has changed is from the first.
    for block, first in zip(networks[-1].blocks, before[-1].blocks, strict=True):
        assert_same(block.objective, first.objective)
        assert not are_same(block.module, first.module)
