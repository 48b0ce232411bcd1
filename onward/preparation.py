"""All that a run is made of before it starts: network, plan, placement."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from onward import memory
from onward.batch import Batch, parts
from onward.blocks import Block
from onward.checkpoint import PRECISIONS
from onward.config import RunConfig
from onward.data import DataInfo, Dataset
from onward.errors import OnwardError, PlacementError, SettingError, line_of_user, told
from onward.kernels.closed_form import has_closed_form
from onward.networks import Network, passes
from onward.placement import BALANCED, Placement, check_placement, place
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import INPUT, Node, Plan
from onward.readouts import is_head
from onward.recipes.blueprint import Blueprint, build_stages
from onward.runtime.workers import Settings, Shard
from onward.settings import Cut
from onward.sharding import (
    DataSummary,
    agree,
    describe,
    is_private,
    load_data,
    local_shards,
    split,
    weighted,
    with_private_shards,
)
from onward.slices import check_cut
from onward.stages import Stage


class Preview(NamedTuple):
    """A stage of a run that has not been started; mostly there is one."""

    plan: Plan
    placement: Placement
    network: Network
    """The network, with its first weights or with released ones."""
    dataset: Dataset
    """The data, see `onward.sharding.split`; where each rank has its own, those of rank 0."""
    shard: Shard
    """The samples of one shard."""
    settings: Settings
    costs: list[int]
    """What each block of the line costs of a pass through it, see `block_costs`."""
    memory: list[int]
    """Bytes that each rank holds at its peak, about; see `onward.memory.estimate`."""
    config: RunConfig
    """The run, with the settings of the stage."""


def preview(
    config: RunConfig, num_ranks: int, *, with_weights: bool = False, keeps: bool = False
) -> list[Preview]:
    """Make all of a run that is there before it starts, to look at or to find mistakes.

    A run has several stages where its recipe returns them.

    Args:
        config: The run.
        num_ranks: Ranks it is meant for.
        with_weights: Whether the network has its first weights, for which there may be no room.
        keeps: Whether states are kept to go on from, for which there must be room.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.
    """
    config.check()
    config = with_private_shards(config, num_ranks)
    ranks = range(num_ranks if is_private(config) else 1)
    datasets = [split(config, load_data(config, rank)) for rank in ranks]
    shards = [local_shards(config, own, rank) for rank, own in zip(ranks, datasets, strict=True)]
    notes = [describe(config, *each) for each in zip(shards, datasets, strict=True)]
    dataset, shape = datasets[0], agree(config, notes)
    stages = make_stages(config, dataset, shape, None if with_weights else ())
    shard = weighted(config, shards[0][0], shape)
    found = []
    for stage in stages:
        own, network = of_stage(config, stage), stage.network
        before = memory.beside(network)
        plan, placement = arrange(own, network, dataset.training, shape, num_ranks)
        costs = block_costs(network, dataset.training)
        settings = make_settings(own)
        needed = memory.estimate(plan, placement, network, shard.training, settings, keeps=keeps)
        peaks = [before + more for more in needed]
        found.append(Preview(plan, placement, network, dataset, shard, settings, costs, peaks, own))
    return found


def arrange(
    config: RunConfig,
    network: Network,
    training: Batch,
    summary: DataSummary,
    num_ranks: int,
    given: Placement | None = None,
) -> tuple[Plan, Placement]:
    """Return plan and placement of a run.

    The network takes on the precision of the run; its weights may be released.
    """
    network.set_precision(PRECISIONS[resolve_precision(config.training.precision)])
    plan = make_plan(config, network, summary)
    if training.structure and plan.batch_size != len(training):
        raise SettingError(
            f"The samples belong together ({', '.join(training.structure)}), so one mini-batch is "
            f"all of them. Set training.batch_size to {len(training)}; it is {plan.batch_size}."
        )
    is_weighted = training.weights is not None or config.data.class_weights is not None
    for number, block in enumerate(network.all_blocks):
        if is_weighted and not block.objective.uses_weights:
            raise SettingError(
                f"The training samples have weights, and the objective "
                f"{type(block.objective).__name__} of block {number} does not use them. Multiply "
                f"the losses by the weights of the batch and set uses_weights = True, or leave "
                f"out the weights."
            )
    is_balanced = num_ranks > 1 and (config.placement.name or plan.usual_placement) in BALANCED
    costs = block_costs(network, training, is_counted=is_balanced)
    _check_batch_norm(network, training, plan)
    if given is None:
        return plan, place_plan(config, plan, num_ranks, costs)
    placement = replace(given, shards=len(plan.rows))
    check_placement(plan, placement, num_ranks)
    return plan, placement


def can_run(config: RunConfig, network: Network, plan: Plan, placement: Placement) -> bool:
    """Return whether blocks and data allow another plan and placement than those of a run."""
    has_teams = max(placement.teams) > 1
    if is_private(config) and (placement.name != "federated" or has_teams):
        return False
    if config.placement.directory is not None and has_teams:
        return False
    if config.training.gradients == "shared-pass" and plan.slices > 1:
        return False
    try:
        _check_cuts(config, network, plan.slices, plan.cut)
    except SettingError:
        return False
    return True


def _check_cuts(config: RunConfig, network: Network, slices: int, cut: Cut) -> None:
    closed_form = uses_closed_forms(config)
    for block in network.all_blocks:
        check_cut(block, closed_form=closed_form, slices=slices, cut=cut, is_head=is_head(block))


def resolve_precision(name: str) -> str:
    """Return the arithmetic that `auto` stands for on this machine."""
    if name != "auto":
        return name
    known = torch.cpu.get_capabilities()
    return "bf16" if known.get("avx512_bf16") or known.get("amx_bf16") else "fp32"


def uses_closed_forms(config: RunConfig) -> bool:
    """Return whether derivatives are found in closed form where one is known."""
    # They take all samples to count the same.
    return config.training.gradients != "autograd" and config.data.class_weights is None


def make_settings(config: RunConfig) -> Settings:
    """Return the settings of a run that decide weights beside the plan."""
    return Settings(
        seed=config.training.seed,
        schedule=config.training.schedule,
        closed_form=uses_closed_forms(config),
        shared_pass=config.training.gradients == "shared-pass",
        bf16_wire=config.plan.wire == "bf16",
        shift=config.data.shift,
    )


def make_stages(
    config: RunConfig, dataset: Dataset, summary: DataSummary, held: Collection[int] | None = None
) -> list[Stage]:
    """Build all that a run trains, with its first weights, or those of some blocks.

    Raises:
        SettingError: The recipe fails, or would have samples cut otherwise for one of its stages.
    """
    assert config.method is not None, "A network of one's own is given, not built."
    data = DataInfo(
        input_shape=dataset.input_shape,
        num_classes=summary.num_classes,
        is_image=dataset.is_image,
    )
    blueprint = Blueprint(config.method, config.network, data)
    stages = build_stages(
        blueprint,
        optimizer=config.optimizer,
        training=config.training,
        plan=config.plan,
        held=held,
    )
    for number, stage in enumerate(stages):
        stage.network.inputs = summary.inputs
        own = of_stage(config, stage)
        own.check()
        for name, (here, wanted) in {
            "training.seed": (own.training.seed, config.training.seed),
            "plan.shards": (own.plan.shards, config.plan.shards),
            "plan.shard_by": (own.plan.shard_by, config.plan.shard_by),
        }.items():
            if here != wanted:
                raise SettingError(
                    f"Stage {number} of the recipe {config.recipe} has {name} = {here}, and the "
                    f"run {wanted}. By it samples are cut into shards, once for all stages: make "
                    f"the settings of a stage of those of the run, with dataclasses.replace."
                )
    return stages


def of_stage(config: RunConfig, stage: Stage) -> RunConfig:
    """Return the settings of a run with those of a stage."""
    return replace(config, training=stage.training, plan=stage.plan)


@torch.no_grad()
def block_costs(network: Network, training: Batch, *, is_counted: bool = True) -> list[int]:
    """Return what passing a sample through each block that is no head costs, in FLOPs.

    The head of its objective is included.

    Args:
        network: The blocks.
        training: Samples like those of the data.
        is_counted: Whether anybody asks. To count, torch imports its compiler, most of a second;
            without, each block costs 1.

    Raises:
        SettingError: Samples do not fit a block, or a head scores another number of classes.
    """
    first = network.transformed(training.take(slice(0, 1)))
    blocks = passes(network, network.sampler.neutral(first))
    costs: list[int] = []
    for block in network.line:
        number, scores = len(costs), None
        counter = FlopCounterMode(display=False)
        with counter if is_counted else nullcontext():
            try:
                outputs = next(blocks).outputs
            except Exception as error:
                if not _is_of_module(error):
                    raise
                raise SettingError(
                    f"Block {number} cannot take what it reads: {told(error)} The samples of the "
                    f"data have shape {tuple(parts(training.inputs)[0].shape[1:])}."
                ) from error
            try:
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
        costs.append(max(counter.get_total_flops(), 1))
    return costs


@torch.no_grad()
def _check_batch_norm(network: Network, training: Batch, plan: Plan) -> None:
    """Refuse mini-batches of one sample where batch normalisation would see one number a channel.

    Raises:
        SettingError: There are some.
    """

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(module)

    def smallest(batch_size: int) -> int:
        return min(rows % batch_size or batch_size for rows in plan.rows)

    size, single = plan.batch_size, []  # type: int, list[nn.Module]
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    if not norms or smallest(size) > 1:
        return
    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        block_costs(network, training)
    finally:
        for hook in hooks:
            hook.remove()
    if single:
        others = (*range(size + 1, min(plan.rows) + 1), *range(size - 1, 1, -1))
        fits = next((other for other in others if smallest(other) > 1), None)
        raise SettingError(
            f"{type(single[0]).__name__} takes means over a mini-batch, and of "
            f"{', '.join(map(str, plan.rows))} samples in mini-batches of {size} the last one has "
            f"one sample. "
            + (f"Set training.batch_size to {fits}." if fits else "It takes more samples.")
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


def nodes_of(network: Network) -> tuple[Node, ...]:
    """Return what a plan knows of the blocks of a network."""
    return tuple(
        Node(
            tuple(
                (edge.source if isinstance(edge.source, int) else INPUT, edge.delay)
                for edge in network.edges[number]
            ),
            is_head(block),
        )
        for number, block in enumerate(network.all_blocks)
    )


def make_plan(config: RunConfig, network: Network, summary: DataSummary) -> Plan:
    """Make the plan of a run.

    Args:
        config: Settings of the run.
        network: Says how many blocks there are, and whether they use hints.
        summary: Samples of each shard.

    Raises:
        SettingError: Settings do not fit together.
    """
    plan, training = config.plan, config.training
    head, is_stream = network.head, plan.kind == "stream"
    hint_age: int | None = None
    if network.sampler.needs_hints and plan.hint_age != "never":
        usual = 0 if is_stream else len(network.line)
        if len(summary.rows) > 1:
            usual = len(summary.rows)
        hint_age = usual if plan.hint_age is None else plan.hint_age
    if hint_age is not None:
        _check_hints(network)
    if is_stream and hint_age is not None and head is None:
        raise SettingError(
            "In a stream plan, hints come from a softmax head, and this network has none. Use "
            "--negatives hard, --readout softmax, or --plan chapters."
        )
    if training.gradients == "shared-pass":
        _check_shared_pass(network, plan.slices, config.data.class_weights)
    shared: dict[str, Any] = {
        "nodes": nodes_of(network),
        "epochs": training.epochs,
        "chapters": plan.chapters or training.epochs,
        "batch_size": training.batch_size,
        "rows": summary.rows,
        "hint_age": hint_age,
        "validate_every": plan.validate_every,
        "has_validation": any(summary.validation_rows) and network.readout is not None,
    }
    if is_stream:
        if plan.optimizer_state != "travel":
            raise SettingError(
                f"plan.optimizer_state is {plan.optimizer_state}, but in a stream plan blocks "
                f"stay where they are and keep their optimizer state. It goes with --plan chapters."
            )
        return StreamPlan(**shared, ticks=network.ticks)
    _check_cuts(config, network, plan.slices, plan.cut)
    made = ChapterPlan(
        **shared,
        optimizer_state_age=state_age(plan.optimizer_state),
        slices=plan.slices,
        cut=plan.cut,
    )
    if network.ticks > 1:
        raise SettingError(
            f"The network visits a mini-batch {network.ticks} times, and in a chapter plan blocks "
            f"are not visited in turn. Use --plan stream."
        )
    return made


def _check_hints(network: Network) -> None:
    """Refuse a sampler that needs hints where nothing scores classes."""
    head = network.head
    is_scored = network.readout is not None if head is None else head.objective.has_scores
    if not is_scored:
        raise SettingError(
            f"The sampler {type(network.sampler).__name__} draws with class scores of an earlier "
            f"network, and this one has none. Give ow.Network a readout, or set plan.hint_age to "
            f"never."
        )


def _check_shared_pass(network: Network, slices: int, class_weights: str | None) -> None:
    """Refuse a first block whose positives and negatives differ in more than the label."""
    first, sampler = network.line[0], network.sampler
    dropout = getattr(first.module, "dropout", 0.0)
    shape = () if network.blueprint is None else network.blueprint.data.input_shape
    is_label = bool(shape) and sampler.label_inputs(shape) > 0
    if not is_label or not has_closed_form(first) or dropout or slices > 1 or class_weights:
        raise SettingError(
            'training.gradients = "shared-pass" multiplies once what positives and negatives have '
            f"in common. It needs labels in the first inputs (here: {type(sampler).__name__}), a "
            f"dense first block with a threshold, no dropout (here: {dropout}), no slices (here: "
            f'{slices}) and no class weights (here: {class_weights}). Use "closed-form".'
        )


def state_age(optimizer_state: str) -> int | None:
    """Return the age in chapters of the optimizer state a chapter starts with; None for none.

    Example:
        >>> state_age("travel"), state_age("restart"), state_age("aged:4")
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


def place_plan(config: RunConfig, plan: Plan, num_ranks: int, costs: Sequence[int]) -> Placement:
    """Place the tasks of a run.

    Args:
        config: The run.
        plan: Its tasks.
        num_ranks: Number of ranks.
        costs: What each block of the line costs, see `block_costs`.

    Raises:
        PlacementError: The placement asked for does not fit the plan, the ranks or the data.
    """
    placement = place(plan, config.placement.name, num_ranks, costs, config.placement.replicas)
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
