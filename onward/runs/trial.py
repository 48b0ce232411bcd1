"""The trial: a sample goes through a network before it is trained, so that mistakes show then."""

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onward import seeds
from onward.batch import Batch, mapped, parts
from onward.config import RunConfig
from onward.data.augmentation import augmented
from onward.errors import (
    OnwardError,
    OnwardWarning,
    SettingError,
    line_of,
    line_of_user,
    name_of,
    told,
)
from onward.flop_counter import FlopCounter
from onward.network.blocks import Block
from onward.network.networks import Network
from onward.network.passes import passes
from onward.plan.tasks import Plan
from onward.runs.first_step import IN_PLACE, few, versions
from onward.runtime.workers import Settings


def check_weights(network: Network) -> None:
    """Refuse weights that would be trained in another type than float32.

    Raises:
        SettingError: There are some.
    """
    for number, block in enumerate(network.all_blocks):
        for name, parameter in block.trained():
            if parameter.is_floating_point() and parameter.dtype is not torch.float32:
                raise SettingError(
                    f"The parameter {name} of block {number} is {parameter.dtype}, and weights are "
                    f"trained in float32. Call network.float(); training.precision (fp32 or bf16) "
                    f"chooses the arithmetic."
                )


def check_samples(network: Network, training: Batch, config: RunConfig) -> None:
    """Refuse samples, or what is done to them, that the parts of a network do not go with.

    Raises:
        SettingError: Preprocessing has several inputs, or samples have weights that an objective
            does not use.
    """
    own = network.preprocessing
    if own is not None and not isinstance(training.inputs, Tensor):
        raise SettingError(
            f"The preprocessing {type(own).__name__} is for one input, and samples have several."
        )
    is_weighted = training.weights is not None or config.data.class_weights is not None
    for number, block in enumerate(network.all_blocks):
        if is_weighted and not block.objective.uses_weights and not block.is_frozen:
            raise SettingError(
                f"The training samples have weights, and the objective "
                f"{type(block.objective).__name__} of block {number} does not use them. Leave out "
                f"the weights, or use another recipe, such as one-pass. An objective of your own "
                f"multiplies losses by the weights of the batch, and has uses_weights = True."
            )


def check_parts(network: Network, training: Batch, plan: Plan) -> None:
    """Refuse mini-batches of samples that belong together, where no sampler takes parts of them.

    Warn of edges that no block reads.

    Raises:
        SettingError: There are some, or they would have no sample that counts.
    """
    if not training.structure:
        return
    named = ", ".join(training.structure)
    if not any(block.structure for block in network.all_blocks):
        warnings.warn(
            f"The samples belong together ({named}), and no block of this network reads that. "
            f"forwardgnn-sf and the other recipes for graphs do.",
            OnwardWarning,
            stacklevel=2,
        )
    if plan.batch_size >= len(training):
        if network.sampler.takes_parts:
            warnings.warn(
                f"The sampler draws parts of the graph, but one mini-batch holds all "
                f"{len(training):,} nodes. Set training.batch_size (not to 100, which counts as "
                f"not set).",
                OnwardWarning,
                stacklevel=2,
            )
        return
    sampler = type(network.sampler).__name__
    if not network.sampler.takes_parts:
        raise SettingError(
            f"The samples belong together ({named}), and the sampler {sampler} takes them whole, "
            f"so one mini-batch is all of them. Set training.batch_size to {len(training)}; it is "
            f"{plan.batch_size}. Recipes with the setting network.neighbors can also draw parts."
        )
    if plan.kind == "stream":
        raise SettingError(
            f"The sampler {sampler} takes parts of the samples, which belong together ({named}). "
            f"In a stream plan they would be of other sizes in each message. Use --plan chapters."
        )
    least = math.ceil((len(training) + 1) / training.num_counted)
    if plan.batch_size < least:
        raise SettingError(
            f"Only {training.num_counted:,} of {len(training):,} samples are learned from, so some "
            f"mini-batches of {plan.batch_size} would have none. Set training.batch_size to "
            f"{least} or more."
        )


def check_augmentation(network: Network, training: Batch, settings: Settings, size: int) -> None:
    """Refuse augmentations that fail on a mini-batch.

    Raises:
        SettingError: One does.
    """
    if settings.augment:
        # A graph is taken whole. An augmentation may work in place, and so gets a copy.
        batch = training.take(torch.arange(min(size, len(training))))
        if batch.structure:
            batch = batch.replace(inputs=mapped(torch.clone, batch.inputs))
        draw = seeds.generator(settings.seed, "trial")

        def tried(seen: Batch) -> Batch:
            for each in settings.augment:
                was_finite = _is_finite(seen)
                seen = augmented(seen, (each,), draw, 0)
                if was_finite and not _is_finite(seen):
                    place = line_of(each)
                    raise SettingError(
                        f"The augmentation {name_of(each)}{f' ({place})' if place else ''} makes "
                        f"values that are NaN or infinite, of samples that have none. A division "
                        f"by zero may be the cause."
                    )
            return seen

        network.transformed(batch, tried)


def check_sampler(network: Network, training: Batch) -> None:
    """Refuse samplers that change samples in place. What fails is left to the training.

    Raises:
        SettingError: One does.
    """
    if training.structure:
        return
    # It may count its calls.
    try:
        sampler = deepcopy(network.sampler)
    except Exception:  # Such as one with an open file.
        return
    batch = network.transformed(few(training))
    asked: dict[str, Callable[[], object]] = {
        "views": lambda: sampler.views(batch, seeds.generator(0, "trial"), None),
        "neutral": lambda: sampler.neutral(batch),
    }
    if network.is_sweep:
        asked["candidates"] = lambda: sampler.candidates(batch)
    for name, ask in asked.items():
        before = versions({"": batch})
        with suppress(Exception), seeds.global_generators_seeded(0):
            ask()
        if versions({"": batch}) != before:
            raise SettingError(
                f"{type(sampler).__name__}.{name} changes the samples it gets in place, and so "
                f"those of the data set or of the caller. Let its first operation make a new "
                f"tensor, such as batch.tensor.clone()."
            )


def _is_finite(batch: Batch) -> bool:
    return all(bool(part.isfinite().all()) for part in parts(batch.inputs))


@torch.no_grad()
def block_costs(network: Network, training: Batch, *, is_counted: bool = True) -> list[int]:
    """Return what passing a sample through each block that is no head costs, in FLOPs.

    The head of its objective is included.

    Args:
        network: The blocks.
        training: Samples like those of the data.
        is_counted: Whether anybody asks; without, each block costs 1.

    Raises:
        SettingError: Samples do not fit a block, or a head scores another number of classes.
    """
    first = network.transformed(training.take(slice(0, 1)))
    blocks = passes(network, network.sampler.neutral(first))
    costs: list[int] = []
    for block in network.line:
        number, scores = len(costs), None
        counter = FlopCounter()
        with counter if is_counted else nullcontext():
            try:
                outputs = next(blocks).outputs
            except Exception as error:
                if not _is_of_module(error):
                    raise
                shape = tuple(parts(training.inputs)[0].shape[1:])
                says = (
                    f"Block {number} cannot take what it reads: {told(error)} The samples of the "
                    f"data have shape {shape}."
                )
                if not parts(first.inputs)[0].is_floating_point():
                    says = (
                        f"The samples, of shape {shape}, are integer codes, such as the bytes of a "
                        f"text. Use the recipe byte-lm, or a module that begins with an "
                        f"nn.Embedding. Block {number} cannot take them: {told(error)}"
                    )
                raise SettingError(says) from error
            try:
                before = versions({"": outputs})
                if block.objective.has_scores:
                    scores = block.scores(outputs)
            except Exception as error:
                if not _is_of_module(error):
                    raise
                shape = tuple(parts(outputs.inputs)[0].shape[1:])
                raise SettingError(
                    f"The objective of block {number} cannot score what the block puts out, of "
                    f"shape {shape}: {told(error)}{_head_advice(block, shape)}"
                ) from error
        if versions({"": outputs}) != before:
            raise SettingError(
                f"{type(block.objective).__name__}.scores, of block {number}, changes what the "
                f"block puts out {IN_PLACE}"
            )
        if scores is not None and scores.ndim > 2:
            raise SettingError(
                f"Block {number} scores each sample with shape {tuple(scores.shape[1:])}; class "
                f"scores have shape ({network.num_classes},). Flatten or pool in its head."
            )
        if scores is not None and scores.ndim == 2 and scores.shape[1] != network.num_classes:
            raise SettingError(
                f"Block {len(costs)} scores {scores.shape[1]} classes, and the network was built "
                f"for {network.num_classes}. Give its head {network.num_classes} outputs."
            )
        costs.append(max(counter.total, 1))
    return costs


@torch.no_grad()
def check_single_samples(network: Network, training: Batch, plan: Plan) -> None:
    """Refuse mini-batches of one sample where it would be compared or averaged with others.

    So batch normalisation does, where it would see one number a channel, and objectives that are no
    mean over samples; in a stream plan, samplers that make pairs.

    Raises:
        SettingError: There are some.
    """

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(f"{type(module).__name__} takes means over a mini-batch")

    def smallest(batch_size: int) -> int:
        if plan.drop_last:
            return batch_size
        return min(samples % batch_size or batch_size for samples in plan.samples)

    size, single = plan.batch_size, []  # type: int, list[str]
    if training.structure or smallest(size) > 1:
        return
    learning = [block for block in network.all_blocks if not block.is_frozen]
    for objective in (block.objective for block in learning):
        if not objective.is_mean:
            single.append(f"{type(objective).__name__} compares the samples of a mini-batch")
    one = network.transformed(training.take(slice(0, 1)))
    if plan.kind == "stream" and not network.sampler.needs_hints:
        network.sampler.views(one, seeds.generator(0, "trial"), None)
    norms = [m for block in learning for m in block.modules() if isinstance(m, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        passed = passes(network, network.sampler.neutral(one)) if norms else []
        for block, each in zip(network.all_blocks, passed, strict=False):
            if block.objective.has_scores:
                block.scores(each.outputs)
    finally:
        for hook in hooks:
            hook.remove()
    if single:
        others = (*range(size + 1, min(plan.samples) + 1), *range(size - 1, 1, -1))
        fits = next((other for other in others if smallest(other) > 1), None)
        raise SettingError(
            f"{single[0]}, and of "
            f"{', '.join(map(str, plan.samples))} samples in mini-batches of {size} "
            f"{'the last one has' if size > 1 else 'all have'} one sample. "
            + (f"Set training.batch_size to {fits}" if fits else "It takes more samples")
            + (", or training.drop_last to true." if size > 1 else ".")
        )


def _is_of_module(error: Exception) -> bool:
    """Return whether an error is one of shapes and types, or comes from a user's module."""
    if isinstance(error, OnwardError):
        return False
    return isinstance(error, RuntimeError | IndexError) or line_of_user(error) is not None


def _head_advice(block: Block, shape: tuple[int, ...]) -> str:
    """Say what to do about a head that does not fit what its block puts out."""
    if len(shape) > 1:
        return " A linear head behind a convolution needs nn.Flatten before it."
    layers = [m for m in block.objective.modules() if isinstance(m, nn.Linear)]
    if not layers or not shape or layers[0].in_features == shape[0]:
        return ""
    return (
        f" The block puts out {shape[0]} numbers a sample, and its head takes "
        f"{layers[0].in_features}: make them the same."
    )
