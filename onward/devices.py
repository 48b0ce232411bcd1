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

PINNED_BYTES = 1 << 28
"""Larger tensors, such as all samples, are not pinned: memory that once was stays so."""


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
        raise SettingError(f"training.device is cuda, and {reason}; or set --device to cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise SettingError(
            f"training.device is mps, and torch {torch.__version__} finds no Apple GPU on this "
            f"machine. Set --device to cpu."
        )
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("mps") if name == "mps" else CPU


def why_no_gpu() -> str | None:
    """Return why torch can use no GPU here, and what to do; None where it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is not None:
        return (
            f"torch sees no GPU. There is none, or its driver is older than CUDA "
            f"{torch.version.cuda}, for which torch is built: nvidia-smi shows both"
        )
    if torch.version.hip is not None:
        return f"torch, built for ROCm {torch.version.hip}, sees no GPU; rocminfo lists them"
    return (
        f"this torch, {torch.__version__}, is built without CUDA. Install one that is built with "
        f"it (pytorch.org, Get Started)"
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
    kind = torch.device(device).type
    if tensor.is_cpu and kind != "cpu" and tensor.nbytes > PINNED_BYTES:
        # Piece by piece: samples in a file are never read together.
        found = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        number = max(1, len(tensor) * PINNED_BYTES // tensor.nbytes)
        for start in range(0, len(tensor), number):
            found[start : start + number] = tensor[start : start + number]
        return found
    if tensor.is_cpu and kind == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def wait_for(device: torch.device) -> None:
    """Wait until all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
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
def denormals_flushed() -> Iterator[None]:
    """Flush denormal numbers (below 1e-38) to zero on the CPU, and afterwards do as before.

    The optimizer state of weights that no longer receive a gradient decays to such numbers and
    stays there, and Adam's step then takes up to seven times as long (docs/log.md, 2026-11-29).
    """
    before = bool(torch.full((), torch.finfo(torch.float32).tiny) / 2 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Have a GPU compute the same bits each time, where its kernels can; the processor does anyway.

    Torch warns of kernels that cannot.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    fill: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        (cudnn.benchmark, cudnn.deterministic),
        fill.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.benchmark, cudnn.deterministic = False, True
    # All that is read has been written before.
    fill.fill_uninitialized_memory = False
    try:
        # Others copy to and from tensors of the default stream.
        stream = torch.cuda.default_stream(device)
        with torch.cuda.device(device), torch.cuda.stream(stream), without_tf32():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic = before[2]
        fill.fill_uninitialized_memory = before[3]


@contextmanager
def without_tf32() -> Iterator[None]:
    """Have a GPU compute in fp32 where fp32 is said, and then as before.

    Torch has two sets of names for this. It refuses to read one where the other has made
    differences that this one has no words for, so what is read by one is put back by it.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    try:
        products, put_back = torch.get_float32_matmul_precision(), None
    except RuntimeError:
        products, put_back = "highest", matmul.fp32_precision
    try:
        others = [cudnn.allow_tf32]
    except RuntimeError:
        others = [cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        if put_back is not None:
            matmul.fp32_precision = put_back
        if len(others) == 1:
            cudnn.allow_tf32 = others[0]
        else:
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = others
