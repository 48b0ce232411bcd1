"""Devices: which one is found, and that runs on another than the processor are the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import cpp_extension

import onward as ow
from onward.devices import brought, find_device, machine, resolve_precision, without_tf32
from onward.runtime.resume import BEGUN, open_store
from onward.transport.copies import Copies
from onward.transport.messages import SingleProcessTransport

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
    with pytest.raises(ow.SettingError, match=r"device is cuda, and .*set --device to cpu"):
        find_device("cuda")
    with pytest.raises(ow.SettingError, match="finds no Apple GPU on this machine"):
        find_device("mps")
    assert find_device("auto") == find_device("cpu") == CPU


def test_no_tf32_is_left_on_and_torch_is_put_back_as_it_was():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def told():
        return [each.fp32_precision for each in (matmul, cudnn.conv, cudnn.rnn)]

    def by_old_names():
        torch.set_float32_matmul_precision("high")

    def by_new_names():
        matmul.fp32_precision = "tf32"
        cudnn.conv.fp32_precision = "ieee"  # The other stays as it is.

    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    for change in (lambda: None, by_old_names, by_new_names):
        change()
        there = told()
        with without_tf32():
            assert "tf32" not in told()
            # Others ask by the old names, inside of a training.
            assert not matmul.allow_tf32
            assert not cudnn.allow_tf32
        assert [each.replace("none", "ieee") for each in told()] == [
            each.replace("none", "ieee") for each in there
        ]
    torch.set_float32_matmul_precision(before[0])
    cudnn.allow_tf32 = before[1]


def flushes_denormals():
    return bool(torch.full((), torch.finfo(torch.float32).tiny) / 2 == 0)


@pytest.mark.parametrize("before", [False, True])
def test_training_takes_denormal_numbers_for_0_and_then_torch_does_as_before(before):
    seen = set()

    class Spy(nn.Module):
        def forward(self, x):
            seen.add(flushes_denormals())
            return 2 * x

    objective = ow.CrossEntropy(nn.Linear(5, 3))
    block = ow.Block(nn.Sequential(Spy(), nn.Linear(4, 5)), objective, ow.Adam())
    network = ow.Network([block], ow.Plain(), ow.SumOfHeads(), num_classes=3)
    x, y = torch.rand(20, 4), torch.arange(20) % 3
    samples = ow.dataset(x, y, x_test=x, y_test=y)
    torch.set_flush_denormal(before)
    try:
        ow.train(
            network, samples, validation=0, training=ow.TrainingConfig(epochs=1, batch_size=10)
        )
        after = flushes_denormals()
    finally:
        torch.set_flush_denormal(False)

    assert True in seen
    assert after is before


def test_large_samples_are_brought_piece_by_piece(monkeypatch):
    monkeypatch.setattr("onward.devices.PINNED_BYTES", 100)
    x = torch.arange(70.0).reshape(7, 10)

    # A device whose tensors have no content.
    found = brought(x, "meta")

    assert (found.shape, found.device.type) == ((7, 10), "meta")


def test_what_a_gpu_has_no_room_for_in_a_thread_is_told_as_that():
    transport = SingleProcessTransport()
    error = torch.OutOfMemoryError("CUDA out of memory.")

    transport.fail(error)

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        transport.check_connections("waited")


def test_a_run_is_not_resumed_on_another_device(tmp_path):
    begun = {"settings": "seed: 1\ndevice: cuda", "first_weights": []}
    (tmp_path / "rank-0").mkdir()
    (tmp_path / "rank-0" / BEGUN).write_text(json.dumps(begun))

    with pytest.raises(ow.SettingError, match=r"computed on cuda, .*Resume it with --device cuda"):
        open_store(tmp_path, 0, "", "seed: 1\ndevice: cpu", [], 1)


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
