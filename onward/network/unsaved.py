"""What hangs on the parts of a network as plain attributes, and so is not saved with it."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from onward.digests import tensors_sha256
from onward.network.networks import Network

OWN = {"_parameters", "_buffers", "_modules"}
"""Attributes of modules in which torch keeps what is saved."""


def unsaved(network: Network, saved: Iterable[Tensor]) -> dict[str, str]:
    """Return digests, by name, of tensors and arrays that answers may need and no file holds.

    Those of samplers, readouts, layers and objectives that score, also in lists, tuples and dicts,
    and those of modules that hang there.

    Args:
        network: What is looked at.
        saved: What a file holds of it.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in saved}
    found: dict[str, str] = {}
    for name, tensor in _hanging(network):
        is_held = tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0
        if is_held and tensor.untyped_storage().data_ptr() not in known:
            found[name] = tensors_sha256({"": tensor})
    return found


def _hanging(network: Network) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, part in (("sampler", network.sampler), ("readout", network.readout)):
        whole = part if isinstance(part, nn.Module) else getattr(part, "__dict__", {})
        yield from _inside(name, whole, seen)
    for number, block in enumerate(network.all_blocks):
        yield from _of_module(f"block {number}: module", block.module, seen)
        if block.objective.has_scores:
            yield from _of_module(f"block {number}: objective", block.objective, seen)


def _of_module(path: str, whole: nn.Module, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield what hangs on a module, and on those that are registered in it."""
    helpers = getattr(whole, "helpers", ())
    for name, module in whole.named_modules():
        for attribute, value in vars(module).items():
            # torch makes a plain weight of weight_orig, and of weight_g and weight_v.
            own = dict(module.named_parameters(recurse=False))
            is_made = any(known.startswith(f"{attribute}_") for known in own)
            is_helper = (name or attribute).partition(".")[0] in helpers
            if not (is_made or is_helper or attribute in OWN):
                where = ".".join(part for part in (path, name, attribute) if part)
                yield from _inside(where, value, seen)


def _inside(path: str, value: object, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a value with where they are: those of lists, tuples, dicts, modules."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield path, torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _inside(f"{path}[{number}]", each, seen)
    elif isinstance(value, dict):
        for key, each in value.items():
            inner = f"{path}.{key}" if isinstance(key, str) else f"{path}[{key}]"
            yield from _inside(inner, each, seen)
    elif isinstance(value, nn.Module):
        # These tensors are made anew, and say nothing by their identity.
        for key, tensor in value.state_dict().items():
            if isinstance(tensor, Tensor):
                yield f"{path}.{key}", tensor
        yield from _of_module(path, value, seen)
