"""Stages: several trainings of the same modules, and placements of one's own."""

import jaxtyping
import pytest
import torch
from contract_cases import CASES, staged_networks, train
from contract_data import vectors
from cuts import Cut, CutAfter

import onward as ow

pytestmark = pytest.mark.usefixtures("unchecked_module")

CASE = CASES["stages"]
SETTINGS = {
    "training": ow.TrainingConfig(epochs=3, batch_size=CASE.batch_size, precision="fp32"),
    "plan": ow.PlanConfig(),
}


def stages():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [ow.Stage(network=n, **SETTINGS) for n in staged_networks(ow.Adam(lr=0.01))]


def trained(**changes):
    return ow.train(stages(), vectors(), validation=0, **changes)


@pytest.mark.parametrize("reports", [2, 8, 9, 11])
def test_stages_go_on_after_a_cut_between_them_and_inside(reports, tmp_path):
    # Three chapters of three blocks, then three of two.
    expected = trained()
    with pytest.raises(Cut):
        trained(folder=tmp_path, listener=CutAfter(reports))

    result = trained(folder=str(tmp_path))

    assert result.facts["weights_sha256"] == expected.facts["weights_sha256"]
    done = [r.facts["tasks_done_before"] for r in (*result.earlier, result)]
    assert done[0] > 0
    assert (done[1] > 0) is (reports >= 9)


def test_a_stage_begins_with_what_the_one_before_has_learned():
    networks = [stage.network for stage in stages()]
    (first, second) = [ow.Stage(network=network, **SETTINGS) for network in networks]

    ow.train(first.network, vectors(), validation=0, **SETTINGS)
    learned = first.network.blocks[2].module[0].weight.clone()
    frozen = [p.requires_grad_(False) for p in first.network.blocks[2].module.parameters()]
    ow.train(second.network, vectors(), validation=0, **SETTINGS)

    assert frozen[0] is second.network.blocks[1].module[0].weight
    assert second.network.blocks[1].module[0].weight.equal(learned)


def test_the_results_of_earlier_stages_are_kept():
    result = trained()

    assert [r.accuracy for r in result.earlier] == [None]
    assert len({p.block for p in result.earlier[0].progress}) == 3
    assert result.accuracy > 0.5


def test_stages_have_settings_of_their_own():
    with pytest.raises(ow.SettingError, match="each with its own training and plan"):
        ow.train(stages(), vectors(), training=ow.TrainingConfig())


def test_there_is_one_stage_at_least():
    with pytest.raises(ow.SettingError, match=r"a list of ow\.Stage"):
        ow.train([], vectors())


# Placements of one's own


def test_a_placement_of_ones_own_must_fit_the_ranks():
    network = CASES["pairs"].build()[0]

    with pytest.raises(ow.PlacementError, match=r"has 2 ranks, in teams of .1, 1., "):
        ow.train(
            network, vectors(), **SETTINGS, placement=ow.Placement(teams=(1, 1), owners=(0, 1, 1))
        )


def test_a_placement_of_ones_own_names_a_team_for_each_block():
    network = CASES["pairs"].build()[0]

    with pytest.raises(ow.PlacementError, match=r"blocks to the teams .0, 3."):
        ow.train(network, vectors(), **SETTINGS, placement=ow.Placement(owners=(0, 3)))


def test_a_placement_of_ones_own_changes_no_weight():
    _, expected = train(CASES["pairs"])
    network = CASES["pairs"].build()[0]
    training = ow.TrainingConfig(epochs=2, batch_size=CASES["pairs"].batch_size, precision="fp32")

    result = ow.train(network, vectors(), training=training, placement=ow.Placement(), validation=0)

    assert result.facts["weights_sha256"] == expected.facts["weights_sha256"]
    assert result.facts["placement"] == "custom"


# What a run of a user's network goes on with


def pairs_run(folder, slope=1.0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = [torch.nn.Linear(12, 8), torch.nn.Linear(8, 8)]
        blocks = [
            ow.Block(m, ow.Threshold(8, threshold=1.0, slope=slope), ow.Adam()) for m in modules
        ]
    sampler = ow.LabelEmbedding(3, place="prepend", **changes)
    network = ow.Network(blocks, sampler, ow.GoodnessSweep(), num_classes=3)
    x = torch.rand(40, 9, generator=torch.Generator().manual_seed(0))
    dataset = ow.dataset(x, torch.arange(40) % 3)
    training = ow.TrainingConfig(epochs=4, batch_size=8, precision="fp32")
    listener = CutAfter(3) if folder is not None and not any(folder.iterdir()) else None
    return ow.train(network, dataset, training=training, listener=listener, folder=folder)


@pytest.mark.parametrize("changes", [{"slope": 2.0}, {"negatives": "fixed"}])
def test_a_run_does_not_go_on_with_another_objective_or_sampler(changes, tmp_path):
    with pytest.raises(Cut):
        pairs_run(tmp_path)

    with pytest.raises(ow.SettingError, match="is of a run with other settings"):
        pairs_run(tmp_path, **changes)


def test_graphs_are_not_cut_into_shards():
    case = CASES["graph"]

    with pytest.raises(ow.SettingError, match="cannot be cut into shards"):
        train(case, shards=2)


# What is refused at once


def test_a_view_has_as_many_samples_as_its_batch():
    class Doubled(ow.Plain):
        def views(self, batch, draw, hints):
            return {"input": batch.take(torch.arange(len(batch)).repeat(2))}

    layer = torch.nn.Linear(12, 8)
    block = ow.Block(layer, ow.CrossEntropy(torch.nn.Linear(8, 3)), ow.Adam())
    network = ow.Network([block], Doubled(), ow.SumOfHeads(), num_classes=3)

    with pytest.raises(ValueError, match="Doubled makes a view input of "):
        ow.train(network, vectors(), **SETTINGS, validation=0)


def test_a_sampler_may_draw_from_the_global_generator_and_leaves_it_as_it_was():
    class Noisy(ow.Plain):
        def views(self, batch, draw, hints):
            return {"input": batch.replace(inputs=batch.inputs + torch.randn(batch.inputs.shape))}

    def digest():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = torch.nn.Linear(vectors().input_shape[0], 8)
            block = ow.Block(layer, ow.CrossEntropy(torch.nn.Linear(8, 3)), ow.Adam())
        network = ow.Network([block], Noisy(), ow.SumOfHeads(), num_classes=3)
        return ow.train(network, vectors(), **SETTINGS, validation=0).facts["weights_sha256"]

    before = torch.get_rng_state()
    first = digest()
    assert torch.get_rng_state().equal(before)
    torch.rand(5)

    assert digest() == first


def test_a_placement_is_no_word(monkeypatch):
    # The types of the tests' own calls are checked before the library sees them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    with pytest.raises(ow.SettingError, match=r"ow.PlacementConfig.name='all-layers'.*'stream'"):
        ow.train(CASES["pairs"].build()[0], vectors(), **SETTINGS, placement="stream")
