"""Floating-point operations of a run, counted over real steps, and what its ranks would send."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from onward.batch import Batch
from onward.costs.times import BlockCosts, first, measure
from onward.errors import PlacementError
from onward.exits.macs import stage_costs
from onward.flop_counter import FlopCounter
from onward.network.networks import Network
from onward.placement import Placement, place
from onward.plan.tasks import Plan
from onward.runtime.workers import Settings, Shard
from onward.simulation import simulate


def count(work: Callable[..., object], *given: Any, **named: Any) -> float:
    """Return the floating-point operations of a call, as torch counts them.

    These are matrix products and convolutions, forward and for gradients, a multiplication and an
    addition apart. Everything else is left out, as is usual.

    Example:
        >>> import torch
        >>> count(torch.mm, torch.zeros(2, 3), torch.zeros(3, 4))
        48.0
    """
    with FlopCounter() as counter:
        work(*given, **named)
    return float(counter.total)


def count_steps(plan: Plan, network: Network, shard: Shard, settings: Settings) -> BlockCosts:
    """Return what the tasks of a plan take, in operations in place of seconds.

    A mini-batch goes through a real step of each block, with its heads, its helpers and what its
    optimizer multiplies. Validations count nothing.
    """
    found = measure(network, shard, plan.batch_size, settings, count)
    train = list(found.train)
    # Every mini-batch is transformed before the first block; some plans keep what comes out, and
    # others make it again.
    train[0] += count(network.transformed, first(network, shard.training, plan.batch_size))
    if plan.kind == "stream" and plan.hint_age is not None and plan.hinting is not None:
        # There hints are no task of their own.
        train[plan.hinting] += found.score
    return replace(found, train=tuple(train), validate=0.0)


def of_training(plan: Plan, costs: BlockCosts) -> float:
    """Return the operations of all tasks of a plan, done by one rank.

    Args:
        plan: What is computed.
        costs: What `count_steps` has found.
    """
    placement = Placement("sequential", shards=len(plan.samples))
    return _of_epochs(plan, lambda part: simulate(part, placement, costs).busy[0])


class Traffic(NamedTuple):
    """What ranks would send each other."""

    ranks: int
    """Ranks."""

    placement: str
    """How tasks are dealt to them."""

    num_bytes: int
    """Bytes that all ranks send together."""


def traffic(plan: Plan, costs: BlockCosts, block_costs: Sequence[int], most: int) -> Traffic | None:
    """Return what some ranks would send, as they are placed where nothing is said.

    Args:
        plan: What is computed.
        costs: What `count_steps` has found.
        block_costs: What each block of the line costs, by which `place` balances them.
        most: Ranks, where the plan has work for so many.

    Returns:
        Ranks and bytes; None where one block is all there is, or several ranks have no work.
    """
    if plan.num_blocks == 1:
        return None
    for ranks in range(most, 1, -1):
        try:
            placement = place(plan, None, ranks, block_costs)
        except PlacementError:
            continue
        sent = _of_epochs(plan, partial(_sent, placement, costs))
        return Traffic(ranks, placement.name, round(sent))
    return None


def _sent(placement: Placement, costs: BlockCosts, plan: Plan) -> float:
    return float(sum(simulate(plan, placement, costs).bytes_by_link.values()))


def of_inference(network: Network, like: Batch | None = None) -> int:
    """Return the operations to classify a sample; a sweep passes it once for each label.

    Args:
        network: What is asked.
        like: Samples as it is asked about. None: those that it knows.
    """
    labels = network.sampler.num_candidates if network.is_sweep else 1
    return 2 * sum(cost.row + cost.each * labels for cost in stage_costs(network, like))


def _of_epochs(plan: Plan, found: Callable[[Plan], float]) -> float:
    """Return something of a plan; of a long stream, whose epochs are alike, from two of them."""
    if plan.kind != "stream" or plan.epochs < 3:
        return found(plan)
    alike = replace(plan, validate_every=None, patience=None, keep_best=False)
    one, two = (found(replace(alike, epochs=e, chapters=e)) for e in (1, 2))
    return one + (two - one) * (plan.epochs - 1)
