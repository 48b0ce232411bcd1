"""Devices: what the blocks of a process compute on."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor

from onward.errors import SettingError

CPU = torch.device("cpu")
"""The processor, on which data lie and finished networks rest."""

WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""What cuBLAS needs for products that are the same each time."""


def find_device(name: str) -> torch.device:
    """Return the device that the setting `training.device` stands for in this process.

    The ranks of a machine take its GPUs in turn; where there are fewer, several share one.

    Args:
        name: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        SettingError: This machine has none.
    """
    reason = why_no_gpu() if name == "cuda" else None
    if reason is not None:
        raise SettingError(
            f"training.device is cuda, and {reason}; or set training.device to cpu. A run that was "
            f"begun on a GPU can go on only on one."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise SettingError(
            f"training.device is mps, and torch {torch.__version__} finds no Apple GPU on this "
            f"machine. Set training.device to cpu."
        )
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("mps") if name == "mps" else CPU


def why_no_gpu() -> str | None:
    """Return why torch can use no GPU here, and what to do; None where it can."""
    if torch.cuda.is_available():
        return None
    built_for = torch.version.cuda
    if built_for is None:
        return (
            f"this torch, {torch.__version__}, is built without CUDA. Install one that is built "
            f"with it (pytorch.org, Get Started)"
        )
    return (
        f"torch sees no GPU. There is none, or its driver is older than CUDA {built_for}, for "
        f"which torch is built: nvidia-smi shows both"
    )


def resolve_precision(name: str, device: torch.device) -> str:
    """Return the arithmetic that `auto` stands for on a device of this machine."""
    if name != "auto":
        return name
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        has_bf16 = bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return "bf16" if has_bf16 else "fp32"


def machine(device: torch.device) -> dict[str, Any]:
    """Return what there is to know of what a run computes on."""
    return {
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "load": psutil.getloadavg()[0],
        "gpu": device_name(device),
    }


def device_name(device: torch.device) -> str | None:
    """Return what a GPU is called; None of a processor."""
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def brought(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device, itself where it lies there; a GPU is not waited for."""
    if tensor.is_cpu and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def wait_for(device: torch.device) -> None:
    """Wait until all that was asked of a device is done."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def free_bytes(device: torch.device) -> int:
    """Return the memory of a GPU that is free, or held by torch for tensors to come."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    free = int(torch.get_device_module(device).mem_get_info(device)[0])
    if device.type == "cuda":
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free


def device_key(device: torch.device) -> str:
    """Return what tells a GPU from all others, whatever number it has in this process."""
    if device.type != "cuda":
        return str(device)
    return f"{device_name(device)} {torch.cuda.get_device_properties(device).uuid}"


def peak_bytes(device: torch.device) -> int:
    """Return the most that tensors have taken of the memory of a GPU; 0 where that is not known."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def forget_peak(device: torch.device) -> None:
    """Let `peak_bytes` begin anew from what tensors take now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def release_memory(device: torch.device) -> None:
    """Give back what torch holds of the memory of a GPU and no tensor uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Have a GPU compute the same bits each time, where its kernels can; the processor does anyway.

    Torch warns of kernels that cannot.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault(*WORKSPACE)
    cudnn: Any = torch.backends.cudnn
    fill: Any = torch.utils.deterministic
    products: Any = (torch.backends.cuda.matmul, cudnn.conv)
    precisions = [each.fp32_precision for each in products]
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        (cudnn.benchmark, cudnn.deterministic),
        fill.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.benchmark, cudnn.deterministic = False, True
    for each in products:
        # Not in TF32, which would be less precise than fp32 says.
        each.fp32_precision = "ieee"
    # All that is read has been written before.
    fill.fill_uninitialized_memory = False
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic = before[2]
        for each, precision in zip(products, precisions, strict=True):
            each.fp32_precision = precision
        fill.fill_uninitialized_memory = before[3]
