"""What ranks, or runs in one process, must agree on, and what a run leaves as it was."""

import threading

import pytest
import torch
import torch.distributed as dist

import onward as ow
from onward.config import PlacementConfig, RunConfig
from onward.errors import PeerLostError
from onward.plan import Product, Thing
from onward.runtime import QUEUE, has_room
from onward.training import _check_alike, peak_memory_bytes
from onward.transport import DistributedTransport, InMemoryTransport


class Notes(InMemoryTransport):
    """A transport that knows what the other rank says: the same, but for some words."""

    def __init__(self, what, ours="", theirs=""):
        super().__init__(0, [self, self])
        self.what, self.ours, self.theirs = what, ours, theirs

    def exchange(self, topic, note):
        return [note, {**note, self.what: note[self.what].replace(self.ours, self.theirs)}]


def check(transport, **settings):
    network = ow.mlp((4,), num_classes=3, widths=(8,))
    _check_alike(network, RunConfig().with_settings(settings), "fp32", transport)


def test_ranks_with_other_settings_are_refused_with_the_difference():
    with pytest.raises(ow.SettingError, match=r"rank 0 has lr = 0\.001; rank 1 has lr = 0\.002\."):
        check(Notes("settings", "lr = 0.001\nweight", "lr = 0.002\nweight"))


def test_ranks_with_other_arithmetic_are_refused():
    with pytest.raises(ow.SettingError, match=r'rank 1 has precision = "bf16"'):
        check(Notes("settings", '"fp32"', '"bf16"'))


def test_ranks_with_other_versions_are_refused():
    with pytest.raises(ow.SettingError, match=r"The ranks have different versions"):
        check(Notes("versions", "torch 2", "torch 3"))


def test_ranks_with_other_weights_are_refused():
    with pytest.raises(ow.SettingError, match=r"The ranks start from different weights\."):
        check(Notes("weights", "a", "b"))


def test_where_data_lie_and_where_tasks_run_may_differ():
    said = []

    class Listening(Notes):
        def exchange(self, topic, note):
            said.append(note["settings"])
            return [note, note]

    check(Listening("weights"), **{"data.dir": "/here", "placement.nodes": 2})
    check(Listening("weights"), **{"data.dir": "/there", "placement.name": "all-layers"})

    assert said[0] == said[1]


def test_a_rank_that_waits_hears_that_another_has_ended():
    transport = object.__new__(DistributedTransport)
    transport.rank, transport.num_ranks, transport.failure = 0, 2, None
    transport.store = dist.HashStore()
    end = threading.Timer(0.1, transport.store.set, ("ended", "1"))
    end.start()

    with pytest.raises(
        PeerLostError, match=r"waited for the others \(data\), and rank 1 has ended"
    ):
        transport.exchange("data", None)
    end.join()


def test_a_mini_batch_that_waits_already_always_has_room_for_the_rest_of_itself():
    full = {Product(Thing.NEUTRAL, time, 0) for time in range(QUEUE)}

    assert has_room(full, Product(Thing.NEUTRAL, QUEUE - 1, 1))
    assert not has_room(full, Product(Thing.NEUTRAL, QUEUE, 0))


def test_one_process_cannot_be_several_nodes():
    config = RunConfig(placement=PlacementConfig(nodes=4))

    with pytest.raises(ow.SettingError, match=r"placement\.nodes is 4, and this is one process"):
        ow.run(config)


def test_a_run_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        training = ow.TrainingConfig(epochs=1, threads=1)
        ow.train(
            ow.mlp((1, 8, 8), num_classes=10, widths=(8,)),
            ow.load_data("digits"),
            training=training,
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_peak_of_memory_grows_with_what_is_held():
    before = peak_memory_bytes()
    held = torch.ones(50_000_000)

    assert peak_memory_bytes() >= before
    assert peak_memory_bytes() > held.nbytes


def test_an_interface_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ow.SettingError, match=r"no network interface nope\. It has .*lo"):
        DistributedTransport("nope")


def test_a_row_counts_once_in_the_figures_of_a_chapter_whatever_its_mini_batch():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(13, 4, generator=draw), torch.arange(13) % 2
    network = ow.mlp((4,), num_classes=2, widths=(8,), optimizer=ow.OptimizerConfig(lr=1e-12))
    dataset = ow.dataset(x, y, x_test=x, y_test=y)

    training = ow.TrainingConfig(epochs=1, batch_size=12, precision="fp32")
    result = ow.train(network, dataset, training=training, validation=0)

    # Nothing was learned, so that the rows of the chapter and of the test are right alike.
    assert result.progress[0].figures["accuracy"] == pytest.approx(result.accuracy)
