"""Fits the preprocessing of a network on the training samples of all shards."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from onward.config import RunConfig
from onward.errors import OnwardError, SettingError, line_of_user, told
from onward.inputs import CHUNK
from onward.networks import Network
from onward.preprocessing import total_sums
from onward.runtime.workers import Shard
from onward.sharding import is_private
from onward.transport.messages import Transport

PIECE = 30_000
"""Numbers that a rank gives others at once."""


def fit_preprocessing(
    network: Network, config: RunConfig, shards: Mapping[int, Shard], transport: Transport
) -> None:
    """Fit what a network does to samples, on the training samples of all shards in their order.

    Raises:
        SettingError: There are several inputs, or images are shifted.
    """
    own = network.preprocessing
    if own is None or own.is_fitted:
        return
    if not isinstance(next(iter(shards.values())).training.inputs, Tensor):
        raise SettingError(
            f"The preprocessing {type(own).__name__} is for one input, and samples have several."
        )
    if config.data.shift:
        raise SettingError(
            f"data.shift is {config.data.shift}, and shifted images would be preprocessed already. "
            f"Leave out the shift, or ow.Network(preprocessing=...)."
        )

    def chunks(shard: Shard) -> Iterator[Tensor]:
        training = shard.training.counted
        for part in torch.arange(len(training)).split(CHUNK):
            yield network.inputs(training.take(part).tensor)

    try:
        each = [total_sums(own, chunks(shard)) for _, shard in sorted(shards.items())]
        if is_private(config):
            # One shard a rank.
            each = _gathered(each[0], transport)
        own.fit([torch.stack(parts).sum(dim=0) for parts in zip(*each, strict=True)])
    except Exception as error:
        if isinstance(error, OnwardError) or line_of_user(error) is None:
            raise
        raise SettingError(
            f"The preprocessing {type(own).__name__} cannot be fitted: {told(error)}"
        ) from error
    own.is_fitted = True


def _gathered(sums: list[Tensor], transport: Transport) -> list[list[Tensor]]:
    """Return the sums of all ranks, in order, which travel in pieces."""
    pieces = torch.cat([part.flatten() for part in sums]).split(PIECE)
    every = [transport.all_gather(f"sums {n}", piece.tolist()) for n, piece in enumerate(pieces)]
    found = []
    for theirs in zip(*every, strict=True):
        numbers = torch.tensor(
            [number for piece in theirs for number in piece], dtype=torch.float64
        )
        parts = numbers.split([part.numel() for part in sums])
        found.append([part.view_as(like) for part, like in zip(parts, sums, strict=True)])
    return found
