"""Alive, late, gone: what a rank that waits says of the one that it waits for."""

import threading

import pytest

from onward import pulse
from onward.errors import PeerLostError
from onward.pulse import Doing, Pulse, Waiting
from onward.transport import InMemoryTransport


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pulse, "time", clock)
    return clock


@pytest.fixture
def pair():
    """The transport of a rank that waits, and that of the one it waits for."""
    return InMemoryTransport.group(2)


def watch(clock, transport, said, beats, peer_timeout=100.0, every=10.0):
    """Look again and again, while the other rank beats or does not."""
    waiting = Waiting("the weights of block 0, time 3,", 1)
    watcher = Pulse(transport, Doing(), peer_timeout, said.append)
    for beat in beats:
        transport.peers[1].tell("beat", [beat, "train, 0T3"])
        clock.now += every
        watcher.look(waiting)


def test_a_rank_that_lives_may_take_as_long_as_it_likes(clock, pair):
    said = []

    watch(clock, pair[0], said, range(1000))

    assert said == [
        "rank 0 has waited 40 s for the weights of block 0, time 3, from rank 1, which is alive "
        "(train, 0T3)."
    ]


def test_a_rank_that_is_silent_for_a_while_is_late(clock, pair):
    said = []

    watch(clock, pair[0], said, [1, 1, 1, 1, 1, 2, 3, 4])

    assert said == [
        "rank 0 has waited 40 s for the weights of block 0, time 3, from rank 1, which is silent "
        "for 30 s."
    ]


def test_a_rank_that_is_silent_for_too_long_is_gone(clock, pair):
    said = []

    with pytest.raises(PeerLostError) as gone:
        watch(clock, pair[0], said, [5] * 20)

    assert str(gone.value) == (
        "Rank 0 has waited 120 s for the weights of block 0, time 3, from rank 1, which has said "
        "nothing for 110 s (last: train, 0T3) and counts as gone: placement.peer_timeout is 100 s."
    )


def test_a_rank_that_has_never_spoken_is_gone_as_well(clock, pair):
    waiting, watcher = Waiting("word", 1), Pulse(pair[0], Doing(), 100.0, print)
    watcher.look(waiting)
    clock.now += 101.0

    with pytest.raises(PeerLostError, match="last: has not started"):
        watcher.look(waiting)


def test_a_silent_rank_ends_what_waits_for_it(pair, monkeypatch):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    transport = pair[0]
    woken = threading.Event()
    transport.on_failure = woken.set
    doing = Doing()
    doing.waiting = Waiting("word", 1)
    watcher = Pulse(transport, doing, 0.05, print)

    watcher.start()

    assert woken.wait(10)
    assert isinstance(transport.failure, PeerLostError)
    watcher.stop()


def test_a_rank_says_what_it_does(pair, monkeypatch):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    doing = Doing()
    doing.what = "train, 0T3"
    watcher = Pulse(pair[0], doing, 100.0, print)
    watcher.start()
    while pair[1].heard("beat")[0] is None or pair[1].heard("beat")[0][0] < 3:
        pass
    watcher.stop()

    assert pair[1].heard("beat")[0][1] == "train, 0T3"
