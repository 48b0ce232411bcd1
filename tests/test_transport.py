"""Messages between ranks. What gloo does to careless callers is in the names of the tests."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from ranks import results
from transport_jobs import MEGABYTE, sizes

from onward.errors import PeerLostError, SettingError
from onward.transport import messages
from onward.transport.buffers import LINE, SMALL, Buffers
from onward.transport.distributed import IN_FLIGHT, DistributedTransport
from onward.transport.messages import SingleProcessTransport, Transport

distributed = pytest.mark.distributed


@pytest.fixture(scope="module")
def group():
    """What four processes told of each job."""
    return results()


# Memory for what arrives


def large(dtype=torch.float32):
    return torch.empty(3, SMALL, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_a_buffer_has_the_shape_and_type_asked_for_and_begins_a_cache_line(dtype):
    buffer = Buffers().empty_like(large(dtype))

    assert (buffer.shape, buffer.dtype) == ((3, SMALL), dtype)
    assert buffer.data_ptr() % LINE == 0
    assert buffer.fill_(1).sum() == 3 * SMALL


def test_memory_is_used_again_once_the_tensor_is_gone():
    buffers = Buffers()
    buffer = buffers.empty_like(large())
    address = buffer.data_ptr()
    assert buffers.empty_like(large()).data_ptr() != address

    del buffer

    assert address in [buffers.empty_like(large()).data_ptr() for _ in range(2)]


def test_memory_is_in_use_as_long_as_anything_shares_it():
    buffers, parameter = Buffers(), torch.nn.Parameter(large())
    parameter.data = buffers.empty_like(large()).fill_(1)
    part = buffers.empty_like(large()).fill_(2)[1]

    others = [buffers.empty_like(large()).fill_(3) for _ in range(4)]

    assert len({t.data_ptr() for t in others}) == 4
    assert (parameter == 1).all()
    assert (part == 2).all()


def test_reserved_memory_is_what_is_handed_out():
    buffers = Buffers()
    buffers.reserve([[large()], [large(), torch.empty(())]])
    ready = {memory.ctypes.data for memory in buffers.free[large().nbytes]}

    taken = [buffers.empty_like(large()) for _ in range(2)]

    assert {t.data_ptr() for t in taken} == ready
    assert len(ready) == 2


# In one process


def test_one_rank_hears_its_own_note():
    assert SingleProcessTransport().all_gather("topic", {"a": 1}) == [{"a": 1}]


def test_a_long_note_travels_in_pieces(monkeypatch):
    monkeypatch.setattr(messages, "PIECE", 10)
    transport, note = SingleProcessTransport(), {"numbers": [0.1, 2.5e-300] * 20}

    assert transport.all_gather("topic", note) == [note]
    assert all(len(piece) <= 10 for _, piece in transport.notes.values())
    assert len(transport.notes) == -(-len(json.dumps(note)) // 10)


# Over gloo


@distributed
def test_a_message_sent_before_it_is_asked_for_is_kept_though_the_sender_drops_everything(group):
    _, received = group["dropped_by_the_sender"]

    assert received == [[1000 * number + 1, number] for number in range(IN_FLIGHT)]


@distributed
def test_messages_arrive_while_the_receiver_computes(group):
    _, told = group["while_the_receiver_computes"]

    assert told["arrived_before_waiting"] == 8
    assert told["products"] > 0


@distributed
def test_a_receiver_that_waits_for_seconds_loses_neither_message_nor_connection(group):
    _, received = group["after_a_long_wait"]

    assert [number for number, _ in received] == [0, 1]
    assert min(seconds for _, seconds in received) > 2


@distributed
def test_each_pair_of_ranks_keeps_the_order_of_many_messages_of_all_sizes(group):
    for dest, by_source in enumerate(group["in_order"]):
        for source, received in by_source.items():
            expected = sizes(int(source), dest)

            assert received == [
                [number, size, number + 4 * int(source)] for number, size in enumerate(expected)
            ]
            assert max(expected) > MEGABYTE / 2


@distributed
def test_messages_of_tens_of_megabytes_go_through(group):
    # Beyond 8 MiB torch's store gives up, which is why weights do not go through it.
    assert group["large"] == [[], [True, True]]


@distributed
def test_tensors_of_all_types_and_shapes_arrive_as_they_are(group):
    sender, receiver = group["of_all_types"]

    assert receiver["same"] == [True] * 7
    assert sender["bytes_sent"] == 5 * 4 + 5 * 8 + 3 * 2 + 8 + 2 + 6 * 4 + 6 * 4


@distributed
def test_a_sender_far_ahead_of_the_receiver_waits_and_nothing_is_lost(group):
    sender, receiver, other = group["more_than_may_be_on_their_way"]

    assert sender["other"] < receiver["at"] < sender["at"]
    assert other["received"] == [0]
    assert receiver["received"] == list(range(len(receiver["received"])))
    assert len(receiver["received"]) == 2 * IN_FLIGHT


@distributed
def test_every_rank_hears_the_notes_of_all_in_order_of_rank(group):
    words = [{"who": f"rank {rank} ✓", "what": [None, 0.5]} for rank in range(4)]

    assert group["notes"] == [[[0, 1, 2, 3], words]] * 4


@distributed
def test_no_rank_parts_before_everything_is_received(group):
    sender, receiver = group["closing"]

    (at,) = receiver["received"]
    assert sender["closed"] > at
    assert receiver["closed"] > at


@distributed
def test_ranks_of_one_machine_listen_on_loopback_only(group):
    for rank in group["listening"]:
        assert rank == {"addresses": ["127.0.0.1"], "interface": "lo"}


# What ends a wait


def test_a_rank_that_waits_hears_that_another_has_ended():
    transport = starting(0, 2, None)
    transport.store = dist.HashStore()
    end = threading.Timer(0.1, transport.store.set, ("ended", "1"))
    end.start()

    with pytest.raises(PeerLostError, match=r"Rank 0 waited for others, and rank 1 has ended"):
        transport.all_gather("data", None)
    end.join()


# Who has started together


def starting(rank, num_ranks, store):
    """Return a rank that has not connected yet."""
    transport = object.__new__(DistributedTransport)
    Transport.__init__(transport)
    transport.rank, transport.num_ranks, transport.meeting = rank, num_ranks, store
    transport.store = dist.HashStore()
    return transport


def words_of(store, ranks, num_ranks=3):
    """Return the word on which ranks agree that start now."""
    with ThreadPoolExecutor() as threads:
        meet = [threads.submit(starting(rank, num_ranks, store)._meet) for rank in ranks]
        return {future.result(timeout=20) for future in meet}


def test_ranks_that_start_together_agree_on_a_word_of_their_own():
    store = dist.HashStore()

    starts = [words_of(store, ranks) for ranks in ((0, 1, 2), (2, 1, 0), (1, 0, 2))]

    assert [len(words) for words in starts] == [1, 1, 1]
    assert len(set.union(*starts)) == 3


def test_what_ranks_that_were_killed_have_said_counts_for_nothing():
    store, late = dist.HashStore(), []
    words_of(store, (0, 1, 2))
    first, second = starting(0, 3, store), starting(1, 3, store)
    with ThreadPoolExecutor() as threads:
        alone = [threads.submit(rank._meet) for rank in (first, second)]
        time.sleep(0.3)
        late = [future.done() for future in alone]
        for rank in (first, second):
            rank.fail(PeerLostError("killed"))
        assert all(isinstance(future.exception(20), PeerLostError) for future in alone)

    assert late == [False, False]
    assert len(words_of(store, (0, 1, 2))) == 1


def test_an_interface_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(SettingError, match=r"no network interface nope\. It has .*lo"):
        DistributedTransport("nope")
