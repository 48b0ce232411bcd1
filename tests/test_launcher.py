"""Ranks of one machine: started, started again, stopped."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from onward import launcher
from onward.errors import SettingError
from onward.launcher import launch

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

IN_A_GROUP = """
import os, sys, time
import torch.distributed as dist
from onward.transport.distributed import DistributedTransport
transport = DistributedTransport()
transport.connect()
word = transport.all_gather("word", transport.rank * 2)
os.write(1, f"rank {transport.rank} {word}\\n".encode())
"""


def ranks(source, num_ranks=2, restarts=0):
    """Start ranks that run a program, from a process of their own, since signals go there."""
    launch = (
        "import sys; from onward.launcher import launch; "
        f"sys.exit(launch({num_ranks}, ['-c', sys.argv[1]], {restarts}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", launch, source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_all_ranks_meet():
    with ranks(IN_A_GROUP + "transport.finish(); transport.close()", 3) as process:
        out, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == [f"rank {rank} [0, 2, 4]" for rank in range(3)]


def test_ranks_are_given_variables_that_this_process_does_not_get(tmp_path, monkeypatch):
    monkeypatch.delenv("OF_THE_RANKS", raising=False)
    monkeypatch.chdir(tmp_path)
    told = "import os; open(os.environ['RANK'], 'w').write(os.environ['OF_THE_RANKS'])"

    assert launch(2, ["-c", told], variables={"OF_THE_RANKS": "some"}) == 0

    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "0": "some",
        "1": "some",
    }
    assert "OF_THE_RANKS" not in os.environ


def test_what_ranks_of_one_machine_listen_at_is_open_to_this_machine_alone():
    with ranks(IN_A_GROUP + "print('here', flush=True); time.sleep(60)") as process:
        for line in process.stdout:
            if line.startswith("here"):
                break
        open_at = listening(children(process.pid))
        process.send_signal(signal.SIGTERM)

    assert open_at
    assert open_at <= LOOPBACK


def test_windows_which_hands_on_no_sockets_is_refused(monkeypatch):
    monkeypatch.setattr(launcher.sys, "platform", "win32")

    with pytest.raises(SettingError, match="--processes does not work on Windows"):
        launch(2, [])


def children(pid):
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def listening(pids):
    """Return the addresses at which processes listen."""
    found = set()
    for pid in pids:
        for connection in psutil.Process(pid).net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return found


def test_the_status_is_that_of_the_rank_that_failed(capfd):
    fail = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"

    assert launch(2, ["-c", fail]) == 7
    assert capfd.readouterr().err == ""


def test_a_rank_that_was_killed_is_named(capfd):
    kill = "os.kill(os.getpid(), 9)"
    die = f"import os, time; {kill} if os.environ['RANK'] == '1' else time.sleep(60)"

    assert launch(2, ["-c", die]) == 128 + signal.SIGKILL
    assert capfd.readouterr().err == "onward: rank 1 was ended by SIGKILL.\n"


def test_all_ranks_start_again_after_one_was_killed(capfd):
    source = r"""
import os, time
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
os.write(1, f"try {attempt} rank {rank}\n".encode())  # At once, not word by word.
if (attempt, rank) == ("0", "1"):
    os.kill(os.getpid(), 9)
if attempt == "0":
    time.sleep(60)
"""
    assert launch(2, ["-c", source], restarts=3) == 0

    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == [f"try {t} rank {r}" for t in (0, 1) for r in (0, 1)]
    assert err == (
        "onward: rank 1 was ended by SIGKILL; all ranks go on from what is finished (restart 1 of "
        "3).\n"
    )


def test_a_rank_that_is_killed_when_rank_0_has_all_is_not_missed(capfd):
    source = """
import os, time
if os.environ["RANK"] == "1":
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
"""
    assert launch(2, ["-c", source], restarts=3) == 0
    assert capfd.readouterr().err == ""


def test_ranks_are_not_started_again_more_often_than_asked_for(capfd):
    die = "import os; os.kill(os.getpid(), 9)"

    assert launch(1, ["-c", die], restarts=2) == 128 + signal.SIGKILL
    assert len(capfd.readouterr().err.splitlines()) == 3


def test_a_rank_that_fails_by_itself_is_not_started_again(capfd):
    assert launch(1, ["-c", "import sys; print('once'); sys.exit(2)"], restarts=3) == 2
    assert capfd.readouterr().out == "once\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_rank_once_and_ends_the_launcher(number):
    source = r"""
import os, signal, sys, time
def stop(number, frame):
    os.write(1, b"asked %d\n" % number)
    time.sleep(0.5)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
os.write(1, b"here\n")
time.sleep(60)
"""
    with ranks(source, 2, restarts=3) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["here\n"] * 2
        process.send_signal(number)
        out, err = process.communicate(timeout=30)

    assert out == f"asked {int(number)}\n" * 2
    assert re.search(r"Stopped: \d", err)


def test_a_second_signal_ends_ranks_that_do_not_listen():
    source = r"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"here\n")
time.sleep(60)
"""
    with ranks(source) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["here\n"] * 2
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)

    assert time.monotonic() - start < 10


def test_ranks_end_when_what_has_started_them_was_killed():
    beating = (
        IN_A_GROUP
        + """
from onward.transport.pulse import Pulse
with Pulse(transport, 600.0, print):
    print("here", os.getpid(), flush=True)
    time.sleep(60)
"""
    )
    with ranks(beating) as process:
        pids = []
        for line in process.stdout:
            if line.startswith("here"):
                pids.append(int(line.split()[1]))
            if len(pids) == 2:
                break
        process.kill()
        deadline = time.monotonic() + 15
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)

        assert not any(map(is_alive, pids))


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
