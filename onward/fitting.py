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


def fit_preprocessing(
    network: Network, config: RunConfig, shards: Mapping[int, Shard], transport: Transport
) -> None:
    """Fit what a network does to samples, on the training samples of all shards in their order.

    Raises:
        SettingError: It fails.
    """
    own = network.preprocessing
    if own is None or own.is_fitted:
        return

    def chunks(shard: Shard) -> Iterator[Tensor]:
        training = shard.training.counted
        for part in torch.arange(len(training)).split(CHUNK):
            yield network.inputs(training.take(part).tensor)

    try:
        each = [total_sums(own, chunks(shard)) for _, shard in sorted(shards.items())]
        if is_private(config):
            # One shard a rank.
            (own_sums,) = each
            every = transport.all_gather("sums", [part.tolist() for part in own_sums])
            each = [[torch.tensor(part, dtype=torch.float64) for part in sums] for sums in every]
        own.fit([torch.stack(parts).sum(dim=0) for parts in zip(*each, strict=True)])
    except Exception as error:
        if isinstance(error, OnwardError) or line_of_user(error) is None:
            raise
        raise SettingError(
            f"The preprocessing {type(own).__name__} cannot be fitted: {told(error)}"
        ) from error
    own.is_fitted = True
