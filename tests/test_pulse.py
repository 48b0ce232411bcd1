"""Alive, late, gone: what a rank that waits says of the one that it waits for."""

import threading

import pytest
from in_memory import InMemoryTransport

from onward.errors import PeerLostError
from onward.transport import pulse, waiting
from onward.transport.pulse import Pulse
from onward.transport.waiting import Waiting


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pulse, "time", clock)
    monkeypatch.setattr(waiting, "time", clock)
    return clock


@pytest.fixture
def pair():
    """The transport of a rank that waits, and that of the one it waits for."""
    return InMemoryTransport.group(2)


def watch(clock, transport, said, beats, peer_timeout=100.0, every=10.0):
    """Look again and again, while the other rank beats or does not."""
    awaited = Waiting("the weights of block 0, time 3,", 1, is_short=False)
    watcher = Pulse(transport, peer_timeout, said.append)
    for beat in beats:
        transport.peers[1].put("beat", [beat, "train, 0T3"])
        clock.now += every
        watcher.look(awaited)


def test_a_rank_that_lives_may_take_as_long_as_it_likes(clock, pair):
    said = []

    watch(clock, pair[0], said, range(1000))

    assert said == [
        "rank 0 has waited 110 s for the weights of block 0, time 3, from rank 1, which is alive "
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
    awaited, watcher = Waiting("word", 1, is_short=False), Pulse(pair[0], 100.0, print)
    watcher.look(awaited)
    clock.now += 101.0

    with pytest.raises(PeerLostError, match="last: has not started"):
        watcher.look(awaited)


def test_a_connection_that_does_not_come_about_is_no_long_wait(clock, pair):
    awaited, watcher = Waiting("a connection", 1, is_short=True), Pulse(pair[0], 100.0, print)

    clock.now += 99
    watcher.look(awaited)
    clock.now += 2
    pair[1].put("beat", [1, "starts"])

    with pytest.raises(PeerLostError, match=r"a connection from rank 1, which lives\. All ranks"):
        watcher.look(awaited)


def test_a_rank_that_hears_nothing_at_all_ends(pair, monkeypatch, capsys):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    ended, goes_on = threading.Event(), threading.Event()
    monkeypatch.setattr(pulse.os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(pair[0], "put", lambda topic, note: goes_on.wait(10))

    with Pulse(pair[0], 0.05, print):
        assert ended.wait(10)
        goes_on.set()

    assert "has heard nothing for 0 s from where the ranks meet" in capsys.readouterr().err


def test_a_note_that_nobody_reads_ends_nothing(clock, pair):
    def closed(text):
        raise BrokenPipeError

    watch(clock, pair[0], type("Said", (), {"append": staticmethod(closed)}), [1] * 8)


def test_a_silent_rank_ends_what_waits_for_it(pair, monkeypatch):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    transport, woken = pair[0], threading.Event()
    transport.on_failure = woken.set

    with Pulse(transport, 0.05, print), transport.doing.wait("word", 1):
        assert woken.wait(10)

    assert isinstance(transport.failure, PeerLostError)


def test_a_rank_that_nothing_wakes_is_ended(pair, monkeypatch, capsys):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(pulse, "GRACE_SECONDS", 0.05)
    left = threading.Event()
    monkeypatch.setattr(pulse, "exit_process", lambda status: left.set())

    with Pulse(pair[0], 0.05, print), pair[0].doing.wait("its part of a step", 1):
        assert left.wait(10)

    assert "onward: rank 0: Rank 0 has waited" in capsys.readouterr().err


def test_a_rank_that_has_gone_on_is_not_ended(pair, monkeypatch):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(pulse, "GRACE_SECONDS", 0.05)
    left, woken = threading.Event(), threading.Event()
    monkeypatch.setattr(pulse, "exit_process", lambda status: left.set())
    pair[0].on_failure = woken.set

    with Pulse(pair[0], 0.05, print):
        with pair[0].doing.wait("word", 1):
            assert woken.wait(10)
        assert not left.wait(0.3)


def test_a_rank_says_what_it_does(pair, monkeypatch):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    pair[0].doing.what = "train, 0T3"

    with Pulse(pair[0], 100.0, print):
        while pair[1].get("beat", 0) is None or pair[1].get("beat", 0)[0] < 3:
            pass

    assert pair[1].get("beat", 0)[1] == "train, 0T3"
