"""Fits what a network knows of its data: input transformation, names of classes, preprocessing."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from onward.config import RunConfig
from onward.data import Dataset
from onward.data.inputs import CHUNK
from onward.data.preprocessing import total_sums
from onward.data.quoting import listed
from onward.data.tables import columns_listed
from onward.errors import DataError, OnwardError, OnwardWarning, SettingError, line_of_user, told
from onward.network.networks import Network
from onward.network.stages import Stage
from onward.runs.sharding import DataSummary, is_private
from onward.runtime.workers import Shard
from onward.settings import Standardize
from onward.transport.messages import Transport
from onward.world import current_rank

FIRST = slice(0, 1000)
"""Training samples that are looked at to see whether a network trained before takes them."""


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


def fit_inputs(
    stages: Sequence[Stage], summary: DataSummary, dataset: Dataset, standardize: Standardize
) -> None:
    """Let networks take the samples and the classes of the run: stages see them alike.

    Raises:
        SettingError: One tells fewer classes apart than the samples have, or stages would
            preprocess samples otherwise.
        DataError: One was trained before, on samples of another kind or shape.
    """
    networks = [stage.network for stage in stages]
    for network in networks:
        if network.readout is not None and summary.num_classes > network.num_classes:
            raise SettingError(
                f"The data have {summary.num_classes} classes, and the network was built for "
                f"{network.num_classes}. Give num_classes={summary.num_classes}."
            )
        _check_names(network, summary)
        _check_columns(network, summary)
        if network.preprocessing is not networks[0].preprocessing:
            raise SettingError(
                "The stages have networks with different preprocessing, and train the same "
                "modules. Give all of them the same object."
            )
    before = next((network for network in networks if network.inputs.is_fitted), None)
    known = summary.inputs if before is None else before.inputs
    if before is not None:
        _check_samples(before, summary, dataset)
        if standardize != "auto" and current_rank() == 0:
            warnings.warn(
                f"data.standardize = {standardize} has no effect: the network was trained before, "
                f"and keeps its input transformation.",
                OnwardWarning,
                stacklevel=4,
            )
    for network in networks:
        network.inputs = known
        if network.num_classes:
            network.class_names = summary.class_names


def _check_samples(network: Network, summary: DataSummary, dataset: Dataset) -> None:
    """Refuse samples that a network trained before does not take, and warn of another scale.

    Raises:
        DataError: They are of another kind or shape.
    """
    kinds = (network.inputs.kind, summary.inputs.kind)
    if "older" not in kinds and (kinds[0] == "kept") is not (kinds[1] == "kept"):
        texts = [
            "something else, such as token ids"
            if kind == "kept"
            else "one input of type float32 or uint8"
            for kind in kinds
        ]
        raise DataError(
            f"The network was trained on {texts[0]}, and {dataset.name} has {texts[1]}. Give "
            f"samples like those it was trained on."
        )
    with warnings.catch_warnings():
        if current_rank() != 0:
            warnings.simplefilter("ignore", OnwardWarning)
        samples = dataset.training
        network.checked(samples if samples.structure else samples.take(FIRST), dataset.name)


def _check_names(network: Network, summary: DataSummary) -> None:
    """Refuse data whose classes have other names than those a network was trained on.

    Raises:
        SettingError: They have, or there are others beside them.
    """
    ours, theirs = network.class_names, summary.class_names
    if network.readout is None or ours == theirs:
        return
    if network.inputs.is_fitted:
        texts = [f"the classes {listed(n)}" if n else "numbered classes" for n in (ours, theirs)]
        raise SettingError(
            f"The network was trained on {texts[0]}, and the data have {texts[1]}. "
            f"Give ow.dataset the same class_names."
        )
    if theirs is not None and network.num_classes != len(theirs):
        raise SettingError(
            f"The data name {len(theirs)} classes, and the network was built for "
            f"{network.num_classes}. Give num_classes={len(theirs)}."
        )


def _check_columns(network: Network, summary: DataSummary) -> None:
    """Refuse samples with other columns than those a network was trained on.

    Raises:
        SettingError: Their names are others, or in another order.
    """
    ours, theirs = network.inputs.feature_names, summary.inputs.feature_names
    if ours is None or theirs is None or ours == theirs:
        return
    texts = " and ".join(columns_listed(names) for names in (ours, theirs))
    raise SettingError(
        f"The network was trained on other columns than the data have, or in another order: "
        f"{texts}. Give ow.dataset the same columns, x[list(network.inputs.feature_names)]."
    )


@contextmanager
def inputs_kept_on_error(stages: Sequence[Stage]) -> Iterator[None]:
    """Leave networks as they were where a run is refused."""
    before = [(stage.network.inputs, stage.network.class_names) for stage in stages]
    try:
        yield
    except BaseException:
        for stage, kept in zip(stages, before, strict=True):
            stage.network.inputs, stage.network.class_names = kept
        raise
