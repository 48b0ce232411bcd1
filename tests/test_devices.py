"""Devices: which one is found, and that runs on another than the processor are the same."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import onward as ow
from onward.devices import find_device, machine, resolve_precision
from onward.transport.copies import Copies

CPU = torch.device("cpu")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_runs_on_a_second_device(which):
    if not shutil.which("c++") or not cpp_extension.is_ninja_available():
        pytest.skip("The second device is built by a C++ compiler and ninja, and one is missing.")
    file = Path(__file__).parent / "on_second_device.py"
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", which]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), *options],
        capture_output=True,
        text=True,
        cwd=file.parent.parent,
    )

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


def test_a_device_that_is_missing_is_named_with_what_to_install():
    with pytest.raises(ow.SettingError, match=r"device is cuda, and .*set training.device to cpu"):
        find_device("cuda")
    with pytest.raises(ow.SettingError, match="finds no Apple GPU on this machine"):
        find_device("mps")
    assert find_device("auto") == find_device("cpu") == CPU


def test_ranks_of_a_machine_take_its_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    found = []
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(str(find_device("auto")))

    assert found == ["cuda:0", "cuda:1", "cuda:0"]
    assert find_device("cpu") == CPU


def test_precision_follows_the_device(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)

    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("auto", torch.device("cuda")) == "bf16"
    assert resolve_precision("fp32", torch.device("cuda")) == "fp32"


def test_copies_of_tensors_of_the_processor_are_they_themselves():
    tensor = torch.ones(3)

    assert Copies([tensor]).wait()[0] is tensor
    assert machine(CPU)["gpu"] is None
