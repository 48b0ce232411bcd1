"""A folder that ranks share."""

import os

import pytest

from onward.errors import FileError, PeerLostError
from onward.transport.directory import DirectoryTransport
from onward.transport.messages import OPEN


@pytest.fixture
def shared(tmp_path):
    """Open a rank in a folder, and forget it afterwards."""
    yield lambda rank: DirectoryTransport(tmp_path, rank, 2, "all-layers")
    OPEN.clear()


def test_a_rank_that_ends_by_itself_ends_the_others(shared):
    first, second = shared(0), shared(1)

    second.say_ended()

    with pytest.raises(PeerLostError, match="rank 1 has ended"):
        first.check_peers()


def test_a_rank_that_had_ended_before_may_come_back(shared):
    shared(1).say_ended()

    first = shared(0)
    first.check_peers()
    shared(1)
    first.check_peers()


def test_a_rank_that_comes_back_and_ends_again_ends_the_others(shared, tmp_path):
    shared(1).say_ended()
    first = shared(0)
    os.utime(tmp_path / "ended-1", (0, 0))

    with pytest.raises(PeerLostError, match="rank 1 has ended"):
        first.check_peers()


def test_notes_of_another_rank_are_heard(shared):
    first, second = shared(0), shared(1)

    second.put("word", [1, 2])

    assert first.get("word", 0) is None
    assert first.get("word", 1) == [1, 2]


def test_a_damaged_note_is_named(shared, tmp_path):
    first = shared(0)
    shared(1).put("word", 1)
    (tmp_path / "notes-1" / "word.json").write_text("{")

    with pytest.raises(FileError, match=r"notes-1/word.json is damaged"):
        first.get("word", 1)


def test_a_folder_with_something_else_in_it_is_refused(shared, tmp_path):
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(FileError, match=r"holds something else \(thesis.txt\)"):
        shared(0)
