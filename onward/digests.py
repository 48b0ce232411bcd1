"""Digests of tensors, by which ranks and files are compared."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

CHUNK = 1000
"""Samples that are read together."""


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the names, shapes, types and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # Large ones may have to be read for it.
        for chunk in tensor.detach().split(CHUNK) if tensor.ndim else [tensor.detach()]:
            array = chunk.cpu().contiguous()
            digest.update(array.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
