"""The first step, tried on a few samples: what learns nothing, or answers at random, shows then."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from onward import seeds
from onward.batch import Batch, parts
from onward.engine.steps import AutogradStep
from onward.network.blocks import Block
from onward.network.networks import Network
from onward.network.passes import Passed, passes
from onward.network.readouts import is_head
from onward.network.samplers import NEUTRAL

SAMPLES = 8
"""Samples of the trial, spread over all."""

ALIKE = 1e-3
"""How much two answers to the same samples may differ by rounding, as a share."""


class Sign(NamedTuple):
    """What is wrong with a network."""

    is_certain: bool
    """Whether it is refused, or only warned of."""
    text: str


def few(training: Batch, most: int = SAMPLES) -> Batch:
    """Return copies of a few samples, spread over all."""
    number = min(most, SAMPLES, len(training))
    return training.take(torch.arange(number) * len(training) // max(number, 1))


def signs(network: Network, training: Batch | None, seed: int, batch_size: int) -> list[Sign]:
    """Return what is wrong with the first step of a network, which stays as it is.

    What fails is left to the training, which tells of it. Not looked at are samples with a
    structure, blocks whose weights are elsewhere, and those after them.
    """
    found: list[Sign] = []
    if not any(any(True for _ in block.trained()) for block in network.all_blocks):
        text = "Nothing learns: no block has an optimizer and parameters that require a gradient."
        found.append(Sign(False, text))
    if training is not None and not training.structure:
        try:
            with seeds.global_generators_seeded(seeds.derive(seed, "trial")):
                for sign in _tried(network, few(training, batch_size), seed):
                    found.append(sign)
        except Exception:
            return found
    return found


def _tried(network: Network, samples: Batch, seed: int) -> Iterator[Sign]:
    sampler, seen = deepcopy(network.sampler), network.transformed(samples)
    views = sampler.views(seen, seeds.generator(seed, "trial"), None)
    views = {**views, NEUTRAL: (neutral := sampler.neutral(seen))}
    # A view is often what inference sees.
    each = {id(view): passes(network, view) for view in views.values()}
    second = passes(network, neutral)
    for number, block in enumerate(network.all_blocks):
        if block.is_released:
            return
        done = {view: next(own) for view, own in each.items()}
        passed = {name: done[id(view)] for name, view in views.items()}
        if text := _random(block, passed[NEUTRAL].outputs, next(second).outputs):
            yield Sign(False, f"Block {number}: {text} {RANDOM}")
            return
        if any(True for _ in block.trained()):
            # A pass may change whatever a module holds. The state of its optimizer is not needed.
            own = deepcopy(block, {id(block.optimizer_state): {}})
            names = [NEUTRAL] if is_head(block) else sampler.names
            yield from _learned(own, number, {name: passed[name] for name in names}, seed)


RANDOM = (
    "give different outputs for the same samples in inference. Random draws, if that is the cause, "
    "belong in training, where self.training is true: F.dropout(x, 0.5, self.training), or "
    "nn.Dropout."
)


def _random(block: Block, outputs: Batch, again: Batch) -> str | None:
    """Return what gives different outputs for the same samples, if something does."""
    if not _are_alike(parts(outputs.inputs), parts(again.inputs)):
        return f"two passes through the module {type(block.module).__name__}"
    own = [[block.scores(outputs)] for _ in range(2)] if block.objective.has_scores else [[], []]
    if not _are_alike(*own):
        return f"two calls of {type(block.objective).__name__}.scores"
    return None


def _are_alike(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    pairs = [(a.double(), b.double()) for a, b in zip(first, second, strict=True)]
    # NaN is no sign of chance.
    return not any(bool((a - b).abs().max() > ALIKE * a.abs().max()) for a, b in pairs)


def _learned(block: Block, number: int, passed: Mapping[str, Passed], seed: int) -> Iterator[Sign]:
    """Yield what is wrong with a step of a block."""
    step, name = AutogradStep(block), type(block.objective).__name__
    outputs = step.learned({view: each.outputs for view, each in passed.items()})
    before = versions(outputs)
    with suppress(Exception), torch.no_grad(), block.autocast():
        block.objective.metrics(outputs)
    if versions(outputs) != before:
        yield Sign(True, f"{name}.metrics, of block {number}, changes outputs {IN_PLACE}")
    views = step.learned({view: block.prepared(each.read) for view, each in passed.items()})
    before = versions(views)
    found = step.gradients(views, seed=seed)
    if versions(views) != before:
        yield Sign(True, f"The loss of {name}, of block {number}, changes its inputs {IN_PLACE}")
    left = [parameter for parameter in step.trained if parameter not in found.named]
    if left:
        yield Sign(
            False,
            f"No loss reaches {_named(left)} of block {number} in a first step on a few samples, "
            f"so nothing is learned there, unless other samples choose it. Does the loss read a "
            f"detached tensor, or another head than the scores? Where several losses have groups, "
            f"is it in one? If it is meant, call requires_grad_(False).",
        )
    odd = [n for n, gradient in found.named.items() if not math.isfinite(float(gradient.sum()))]
    if odd and math.isfinite(found.report.loss):
        yield Sign(
            False,
            f"The gradient of {_named(odd)} of block {number} is not finite in a first step on a "
            f"few samples, though the loss is {found.report.loss:.4g}. The square root or norm of "
            f"0 may be the cause, also where it is multiplied by 0: add a small number first.",
        )


IN_PLACE = "in place, which other blocks read too. Let the first operation make a new tensor."


def versions(views: Mapping[str, Batch]) -> list[int]:
    """Return how often each tensor of some batches was changed."""
    tensors = [tensor for view in views.values() for tensor in view.tensors().values()]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
