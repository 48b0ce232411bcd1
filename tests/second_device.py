"""A second device, whose tensors lie in the memory of the processor.

It refuses what a GPU refuses, such as tensors of two devices in one operation, and counts what a
GPU would be waited for. So that what is written for one is tested where there is none.
"""

import functools
import re
from pathlib import Path

import torch
from torch.utils import cpp_extension

NAME = "second"

SOURCE = Path(__file__).with_suffix(".cpp")


class Module:
    """What torch asks of the module of a device."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def _is_in_bad_fork(self):
        return False

    def current_device(self):
        return 0

    def device_count(self):
        return 1

    def synchronize(self, device=None):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def mem_get_info(self, device=None):
        return 1 << 34, 1 << 34

    def manual_seed(self, seed):
        built().manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device=None):
        return built().get_rng_state()

    def set_rng_state(self, state, device=None):
        built().set_rng_state(state)


@functools.cache
def built():
    """Build it, which takes half a minute the first time, and tell torch of it."""
    # One for each version of torch.
    name = "second_device_" + re.sub(r"\W", "_", torch.__version__)
    found = cpp_extension.load(name, [str(SOURCE)], extra_cflags=["-O0"])
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, Module())
    torch.utils.generate_methods_for_privateuse1_backend()
    return found


def second_device():
    """Return the device."""
    built()
    return torch.device(NAME, 0)


def waits():
    """Return how often it was waited for so far."""
    return built().waits()
