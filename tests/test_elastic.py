"""Killed ranks come back: all of them under torchrun, one alone where they share a folder."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from onward.cli.main import main
from onward.runs.folders import read_result

RUN = ("--epochs", "4", "--widths", "8,8", "--placement", "single-layer")

DYING = """
import os, signal, sys, time
from onward.runtime.chapters import ChapterWorker
from onward.cli.main import main

train = ChapterWorker.train

def train_or_die(worker, task, given):
    at = (task.time, task.block)
    if at == (2, 1) and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if at == (3, 0) and "DREAMING" in os.environ and not os.path.exists("slept"):
        open("slept", "w").close()
        time.sleep(20)
    return train(worker, task, given)

ChapterWorker.train = train_or_die
main()
"""
"""The command, but that the rank of block 1 is killed in chapter 2, the first time, and that of
block 0 does not notice if it is told to dream."""

pytestmark = pytest.mark.distributed


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dying.py").write_text(DYING)


@pytest.fixture
def undisturbed():
    """The digest of the weights of a run that nothing happens to."""
    with pytest.raises(SystemExit):
        main(["train", *RUN[:-2], "--out", "undisturbed"])
    return read_result(Path("undisturbed"))["weights_sha256"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def torchrun(*words, timeout=120):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
def test_under_torchrun_all_ranks_start_again_and_end_in_the_same_weights(undisturbed):
    ranks = ("--nproc-per-node", "2", "--max-restarts", "1")

    done = torchrun(*ranks, "dying.py", "train", *RUN, "--out", "run")

    assert done.returncode == 0, done.stderr
    assert "Resuming: " in done.stderr
    assert read_result(Path("run"))["weights_sha256"] == undisturbed


def test_a_rank_that_shares_a_folder_comes_back_alone(undisturbed):
    def start(rank):
        command = [sys.executable, "dying.py", "train", *RUN, "--out", "run"]
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, "--directory", "shared"], env={**os.environ, **variables}
        )

    with start(0) as first:
        with start(1) as second:
            assert second.wait(60) == -signal.SIGKILL
        with start(1) as again:
            assert again.wait(60) == 0
        assert first.wait(60) == 0

    assert read_result(Path("run"))["weights_sha256"] == undisturbed
    assert os.listdir("shared") == []


@pytest.mark.slow
def test_under_torchrun_on_several_machines_all_ranks_start_again(undisturbed):
    """Each agent counts its restarts for itself; one that lost no rank counts none."""
    port = free_port()
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    where += ["--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test", "--max-restarts", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, "dying.py", "train"]
    command += ["one-pass", *RUN, "--resume", "run"]

    agents = [subprocess.Popen(command, env={**os.environ, "DREAMING": ""}) for _ in range(2)]

    assert [agent.wait(150) for agent in agents] == [0, 0]
    assert read_result(Path("run"))["weights_sha256"] == undisturbed
    assert read_result(Path("run"))["tasks_done_before"] > 0


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="pytorch#135712: a restart meets in the store of the last")
def test_torchrun_starts_ranks_again_without_a_store_of_ones_own():
    """Once this passes, `DistributedTransport._meet` can go, but for several machines."""
    Path("plain.py").write_text(
        "import os, signal, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and dist.get_rank() == 1:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "dist.barrier()\n"
        "dist.destroy_process_group()\n"
    )

    done = torchrun("--nproc-per-node", "4", "--max-restarts", "1", "plain.py", timeout=60)

    assert done.returncode == 0
