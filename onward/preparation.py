"""All that a run is made of before it starts: network, plan, placement."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from onward import memory
from onward.checkpoint import PRECISIONS
from onward.config import RunConfig
from onward.data import Dataset
from onward.dealing import (
    Shape,
    agree,
    describe,
    hold,
    is_private,
    load_data,
    with_private_shards,
)
from onward.errors import PlacementError, SettingError
from onward.layers import Dense
from onward.networks import Network, build
from onward.placement import Placement, place
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import Plan
from onward.runtime.workers import Arithmetic, Rows
from onward.sliced import check_cut
from onward.steps import has_closed_form
from onward.views import LabelEmbedding


class Preview(NamedTuple):
    """A run that has not been started."""

    plan: Plan
    placement: Placement
    network: Network
    """The network, with its first weights or with released ones."""
    rows: Rows
    """The rows of one shard."""
    arithmetic: Arithmetic
    shares: list[int]
    """What each block of the line costs of a pass through it, see `block_costs`."""
    memory: list[int]
    """Bytes that each rank holds at its peak, about; see `onward.memory.estimate`."""


def preview(
    config: RunConfig, num_ranks: int, *, with_weights: bool = False, keeps: bool = False
) -> Preview:
    """Make all of a run that is there before it starts, to look at or to find mistakes.

    Args:
        config: The run.
        num_ranks: Ranks it is meant for.
        with_weights: Whether the network has its first weights, for which there may be no room.
        keeps: Whether states are kept to go on from, for which there must be room.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.
    """
    config.check()
    if config.placement.directory is not None and num_ranks == 1:
        raise SettingError(
            f"placement.directory is {config.placement.directory}, and this is one process, with "
            f"nobody to share a folder with. Set the variables RANK and WORLD_SIZE on each "
            f"machine, or use --nodes."
        )
    config = with_private_shards(config, num_ranks)
    ranks = range(num_ranks if is_private(config) else 1)
    parts = [load_data(config, rank) for rank in ranks]
    held = [hold(config, part, rank) for rank, part in zip(ranks, parts, strict=True)]
    notes = [describe(own, part) for own, part in zip(held, parts, strict=True)]
    dataset, shape = parts[0], agree(config, notes)
    before = memory.resident()
    network = build_network(config, dataset, shape, held=None if with_weights else ())
    plan, placement, shares = arrange(config, network, dataset, shape, num_ranks)
    arithmetic = make_arithmetic(config)
    shape_of_row = dataset.input_shape
    needed = memory.estimate(plan, placement, network, shape_of_row, arithmetic, keeps=keeps)
    peaks = [before + more for more in needed]
    return Preview(plan, placement, network, held[0][0], arithmetic, shares, peaks)


def arrange(
    config: RunConfig, network: Network, dataset: Dataset, shape: Shape, num_ranks: int
) -> tuple[Plan, Placement, list[int]]:
    """Return plan and placement of a run, and what each block of the line costs.

    The network takes on the precision of the run; its weights may be released.
    """
    network.set_precision(PRECISIONS[resolve_precision(config.training.precision)])
    plan = make_plan(config, network, shape)
    shares = block_costs(network, dataset.input_shape)
    return plan, place_plan(config, plan, num_ranks, shares), shares


def can_run(config: RunConfig, network: Network, plan: Plan, placement: Placement) -> bool:
    """Return whether blocks and data allow another plan and placement than those of a run."""
    has_teams = max(placement.teams) > 1
    if is_private(config) and (placement.name != "federated" or has_teams):
        return False
    if config.placement.directory is not None and has_teams:
        return False
    if not isinstance(plan, ChapterPlan):
        return True
    if config.training.gradients == "shared-pass" and plan.slices > 1:
        return False
    closed_form = config.training.gradients != "autograd"
    try:
        for block in network.all_blocks:
            check_cut(block, closed_form=closed_form, slices=plan.slices, cut=plan.cut)
    except SettingError:
        return False
    return True


def resolve_precision(name: str) -> str:
    """Return the arithmetic that `auto` stands for on this machine."""
    if name != "auto":
        return name
    known = torch.cpu.get_capabilities()
    return "bf16" if known.get("avx512_bf16") or known.get("amx_bf16") else "fp32"


def make_arithmetic(config: RunConfig) -> Arithmetic:
    """Return the settings of a run that decide weights beside the plan."""
    return Arithmetic(
        seed=config.training.seed,
        schedule=config.training.schedule,
        closed_form=config.training.gradients != "autograd",
        shared_pass=config.training.gradients == "shared-pass",
        bf16_wire=config.plan.wire == "bf16",
        shift=config.data.shift,
    )


def build_network(
    config: RunConfig, dataset: Dataset, shape: Shape, held: Collection[int] | None = None
) -> Network:
    """Build the network of a run, with its first weights, or those of some blocks."""
    return build(
        config.network,
        config.optimizer,
        input_shape=dataset.input_shape,
        num_classes=shape.num_classes,
        is_image=dataset.is_image,
        seed=config.training.seed,
        held=held,
    )


@torch.no_grad()
def block_costs(network: Network, input_shape: tuple[int, ...]) -> list[int]:
    """Return what passing a row through each block of the line costs, in FLOPs, head included.

    Args:
        network: The blocks.
        input_shape: Shape of a row of the data.

    Raises:
        SettingError: Rows do not fit a block, or a head scores another number of classes.
    """
    activities = torch.zeros(1, *network.sampler.width(input_shape))
    costs = []
    for number, block in enumerate(network.line):
        shape = tuple(activities.shape[1:])
        with FlopCounterMode(display=False) as counter:
            try:
                activities = block.infer(activities)
                scores = block.scores(activities)
            except (RuntimeError, IndexError) as error:
                raise SettingError(
                    f"Block {number} cannot take rows of shape {shape}: {error}. The rows of the "
                    f"data have shape {input_shape}."
                ) from error
        if scores.ndim == 2 and scores.shape[1] != network.num_classes:
            raise SettingError(
                f"Block {number} scores {scores.shape[1]} classes, and the network was built for "
                f"{network.num_classes}. Give its head {network.num_classes} outputs."
            )
        costs.append(max(counter.get_total_flops(), 1))
    return costs


def make_plan(config: RunConfig, network: Network, shape: Shape) -> Plan:
    """Make the plan of a run.

    Args:
        config: Settings of the run.
        network: Says how many blocks there are, and whether they use hints.
        shape: Rows of each shard.

    Raises:
        SettingError: Settings do not fit together.
    """
    plan, training = config.plan, config.training
    head, is_stream = network.head, plan.kind == "stream"
    negatives = network.sampler.negatives
    hint_age: int | None = None
    if negatives is not None and negatives.needs_hints and plan.hint_age != "never":
        usual = 0 if is_stream else len(network.line)
        if len(shape.rows) > 1:
            usual = len(shape.rows)
        hint_age = usual if plan.hint_age is None else plan.hint_age
    if is_stream and hint_age is not None and head is None:
        raise SettingError(
            "In a stream plan, hints come from a softmax head, and this network has none. Use "
            "--negatives hard, --readout softmax, or --plan chapters."
        )
    if training.gradients == "shared-pass":
        _check_shared_pass(network, plan.slices)
    shared: dict[str, Any] = {
        "num_blocks": len(network.line),
        "head_reads": head.reads if head is not None and head.reads else (),
        "epochs": training.epochs,
        "chapters": plan.chapters or training.epochs,
        "batch_size": training.batch_size,
        "rows": shape.rows,
        "hint_age": hint_age,
        "validate_every": plan.validate_every,
        "has_validation": any(shape.validation_rows),
    }
    if is_stream:
        if plan.optimizer_state != "travel":
            raise SettingError(
                f"plan.optimizer_state is {plan.optimizer_state}, but in a stream plan blocks "
                f"stay where they are and keep their moments. It goes with --plan chapters."
            )
        return StreamPlan(**shared)
    for block in network.all_blocks:
        closed_form = training.gradients != "autograd"
        check_cut(block, closed_form=closed_form, slices=plan.slices, cut=plan.cut)
    return ChapterPlan(
        **shared,
        moments_age=moments_age(plan.optimizer_state),
        slices=plan.slices,
        cut=plan.cut,
    )


def _check_shared_pass(network: Network, slices: int) -> None:
    """Refuse a first block whose positives and negatives differ in more than the label."""
    first = network.line[0]
    dropout = first.module.dropout if isinstance(first.module, Dense) else 0.0
    is_label = type(network.sampler) is LabelEmbedding
    if not is_label or not has_closed_form(first) or dropout or slices > 1:
        raise SettingError(
            'training.gradients = "shared-pass" multiplies once what positives and negatives have '
            f"in common. It needs labels in the input (here: {type(network.sampler).__name__}), a "
            f"dense first block with a threshold, no dropout (here: {dropout}) and no slices "
            f'(here: {slices}). Use "closed-form".'
        )


def moments_age(optimizer_state: str) -> int | None:
    """Return the age in chapters of the moments a chapter starts with; None for none.

    Example:
        >>> moments_age("travel"), moments_age("restart"), moments_age("aged:4")
        (1, None, 4)
    """
    name, _, age = optimizer_state.partition(":")
    if name == "aged" and age.isdecimal() and int(age) > 0:
        return int(age)
    if optimizer_state not in ("travel", "restart"):
        raise SettingError(
            f"plan.optimizer_state must be travel, restart or aged:N with N of at least 1; got "
            f"{optimizer_state}."
        )
    return 1 if optimizer_state == "travel" else None


def place_plan(config: RunConfig, plan: Plan, num_ranks: int, shares: Sequence[int]) -> Placement:
    """Place the tasks of a run.

    Args:
        config: The run.
        plan: Its tasks.
        num_ranks: Number of ranks.
        shares: What each block of the line costs, see `block_costs`.

    Raises:
        PlacementError: The placement asked for does not fit the plan, the ranks or the data.
    """
    placement = place(plan, config.placement.name, num_ranks, shares, config.placement.replicas)
    if config.placement.directory is not None and max(placement.teams) > 1:
        raise PlacementError(
            "Ranks that share a folder work alone, and here several would share a task. Use no "
            "more ranks than blocks, plan.slices = 1, or a network instead of placement.directory."
        )
    if is_private(config) and max(placement.teams) > 1:
        raise PlacementError(
            "Each rank has a shard of its own, which replicas would have to share. Set "
            "placement.replicas to 1."
        )
    if is_private(config) and placement.name != "federated":
        raise PlacementError(
            f"Each rank has a shard of its own, and the placement {placement.name} needs all rows "
            f"everywhere. Use --placement federated, on two ranks or more."
        )
    return placement
