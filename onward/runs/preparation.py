"""All that a run is made of before it starts: network, plan, placement."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from onward.batch import Batch
from onward.checkpoint import MEMORY_FORMATS, PRECISIONS, load
from onward.config import RunConfig
from onward.costs import budget, memory
from onward.data import DataInfo, Dataset
from onward.data.augmentation import of_data
from onward.devices import find_device, resolve_precision
from onward.engine.kernels.closed_form import has_closed_form
from onward.engine.slices import check_cut
from onward.errors import MisfitError, PlacementError, SettingError
from onward.network.networks import Network
from onward.network.readouts import is_head
from onward.network.stages import Stage
from onward.placement import BALANCED, Placement, check_placement, place
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import INPUT, Node, Plan
from onward.recipes.blueprint import Blueprint, build_stages
from onward.runs.sharding import (
    DataSummary,
    Known,
    agree,
    is_private,
    read,
    seen,
    with_data,
)
from onward.runs.trial import (
    block_costs,
    check_augmentation,
    check_parts,
    check_sampler,
    check_samples,
    check_single_samples,
    check_weights,
)
from onward.runtime.block_stopping import check_own_scores
from onward.runtime.workers import Settings, Shard, bytes_there
from onward.settings import Cut

VALIDATION_SHARE = 0.05
"""Operations of a validation, as a share of those of a chapter, below which each is validated."""


class Preview(NamedTuple):
    """A stage of a run that has not been started; mostly there is one."""

    plan: Plan
    placement: Placement
    network: Network
    """The network, with its first weights or with released ones."""
    dataset: Dataset
    """The data, see `onward.runs.sharding.split`; where each rank has its own, those of rank 0."""
    shard: Shard
    """The samples of one shard."""
    settings: Settings
    costs: list[int]
    """What each block of the line costs of a pass through it, see `block_costs`."""
    memory: list[int]
    """Bytes that each rank holds at its peak, about, on its device; see `memory.estimate`."""
    held: list[budget.Held]
    """Outputs of frozen blocks on each rank, were all of them on this machine."""
    config: RunConfig
    """The run, with the settings of the stage."""


def preview(
    config: RunConfig,
    num_ranks: int,
    *,
    with_weights: bool = False,
    keeps: bool = False,
    known: Known | None = None,
) -> list[Preview]:
    """Make all of a run that is there before it starts, to look at or to find mistakes.

    A run has several stages where its recipe returns them.

    Args:
        config: The run.
        num_ranks: Ranks it is meant for.
        with_weights: Whether the network has its first weights, for which there may be no room.
        keeps: Whether states are kept to go on from, for which there must be room.
        known: What `read` has returned for the same settings of data and shards. None: they are
            read.

    Raises:
        OnwardError: Settings or data cannot be used; the message says why.
    """
    config.check()
    datasets, shards, notes = known or read(config, num_ranks)
    config = with_data(config, datasets[0], num_ranks)
    dataset, whole = datasets[0], agree(config, notes)
    stages = make_stages(config, dataset, whole, None if with_weights else ())
    # Before any block is passed, which leaves memory behind that is in use no more.
    held = [memory.beside(stage.network) for stage in stages]
    found = []
    for stage, before in zip(stages, held, strict=True):
        own, network = of_stage(config, stage), stage.network
        (shard,) = seen(own, {0: shards[0][0]}, whole, sees_labels=stage.sees_labels).values()
        summary = whole.of(sees_labels=stage.sees_labels)
        plan, placement = arrange(own, network, shard.training, summary, num_ranks)
        costs = block_costs(network, shard.training)
        settings = make_settings(own)
        device = find_device(own.training.device)
        places = [budget.place(own.placement.memory, device)] * num_ranks
        put_out, needed = budget.estimate(
            plan, placement, network, shard.training, settings, places, keeps=keeps
        )
        if device.type != "cpu":
            before = bytes_there(shard.training, device, plan)
        peaks = [before + more for more in needed]
        found.append(
            Preview(plan, placement, network, dataset, shard, settings, costs, peaks, put_out, own)
        )
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

    The network takes on the arithmetic of the run; its weights may be released.
    """
    check_weights(network)
    set_arithmetic(network, config)
    plan = make_plan(config, network, summary)
    check_parts(network, training, plan)
    check_samples(network, training, config)
    check_augmentation(network, training, make_settings(config), plan.batch_size)
    check_sampler(network, training)
    is_balanced = num_ranks > 1 and (config.placement.name or plan.usual_placement) in BALANCED
    costs = block_costs(network, training, is_counted=is_balanced)
    check_single_samples(network, training, plan)
    if given is None:
        return plan, place_plan(config, plan, num_ranks, costs)
    placement = replace(given, shards=len(plan.samples))
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
        if block.is_frozen:
            continue
        check_cut(block, closed_form=closed_form, slices=slices, cut=cut)


def resolve_memory_format(name: str, network: Network) -> str:
    """Return the memory format that `auto` stands for with a network."""
    if name != "auto":
        return name
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    is_of_images = any(isinstance(module, convolutions) for module in network.modules())
    return "channels-last" if is_of_images else "contiguous"


def set_arithmetic(network: Network, config: RunConfig) -> None:
    """Have a network compute as a run says."""
    training = config.training
    device = find_device(training.device)
    network.set_precision(PRECISIONS[resolve_precision(training.precision, device)])
    layout = resolve_memory_format(config.plan.memory_format, network)
    network.set_memory_format(MEMORY_FORMATS[layout])


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
        augment=(*of_data(config.data), *config.augment),
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
        structure={n: tuple(t.shape) for n, t in dataset.training.structure.items()},
    )
    blueprint = Blueprint(config.method, config.network, data)
    init = config.training.init
    stages = build_stages(
        blueprint,
        optimizer=config.optimizer,
        training=config.training,
        plan=config.plan,
        held=held if init is None else None,
    )
    if init is not None:
        _begin_with(Path(init).expanduser(), stages, config.recipe, held)
    for number, stage in enumerate(stages):
        if init is None:
            stage.network.inputs = summary.inputs
            if stage.network.num_classes:
                stage.network.class_names = summary.class_names
        own = of_stage(config, stage)
        own.check()
        for name, (here, wanted) in {
            "training.seed": (own.training.seed, config.training.seed),
            "plan.shards": (own.plan.shards, config.plan.shards),
            "plan.shard_by": (own.plan.shard_by, config.plan.shard_by),
            "plan.shard_alpha": (own.plan.shard_alpha, config.plan.shard_alpha),
        }.items():
            if here != wanted:
                raise SettingError(
                    f"Stage {number} of the recipe {config.recipe} has {name} = {here}, and the "
                    f"run {wanted}. By it samples are cut into shards, once for all stages: make "
                    f"the settings of a stage of those of the run, with dataclasses.replace."
                )
    return stages


def _begin_with(
    path: Path, stages: Sequence[Stage], recipe: str, held: Collection[int] | None
) -> None:
    """Give a network the weights of another one, and release the blocks that are not held.

    Raises:
        SettingError: There are several stages.
        FileError: The file cannot be read, or its network is another one.
    """
    if len(stages) > 1:
        raise SettingError(
            f"training.init = {path} is for recipes of one network, and {recipe} trains "
            f"{len(stages)} stages. Leave it out."
        )
    network = stages[0].network
    try:
        load(path, network)
    except MisfitError as error:
        data = network.blueprint.data
        raise MisfitError(
            f"training.init = {path} is for the same network, and that of this run is another one: "
            f"{recipe}, for samples of shape {data.input_shape} and {data.num_classes} classes. "
            f"Give a run with the same recipe, settings and kind of data. {error}"
        ) from error
    for number, block in enumerate(network.all_blocks):
        if held is not None and number not in held:
            block.release()


def of_stage(config: RunConfig, stage: Stage) -> RunConfig:
    """Return the settings of a run with those of a stage, where samples may have no classes."""
    data = config.data if stage.sees_labels else replace(config.data, class_weights=None)
    return replace(config, data=data, training=stage.training, plan=stage.plan)


def nodes_of(network: Network) -> tuple[Node, ...]:
    """Return what a plan knows of the blocks of a network."""
    return tuple(
        Node(
            tuple(
                (edge.source if isinstance(edge.source, int) else INPUT, edge.delay)
                for edge in network.edges[number]
            ),
            is_head(block),
            block.is_frozen,
        )
        for number, block in enumerate(network.all_blocks)
    )


def _usual_validations(config: RunConfig, network: Network, summary: DataSummary) -> int | None:
    """Return how often is validated where nothing is said: after each chapter, or (None) once."""
    plan = config.plan
    if network.readout is None:
        return None
    if plan.is_judged:
        return 1
    labels = network.sampler.num_candidates if network.is_sweep else 1
    asked = sum(summary.validation_samples) * labels
    # Every view takes a pass and the gradient of the weights each time; a chapter passes all
    # samples once more, to the next block.
    samples, epochs = sum(summary.samples), config.training.epochs
    learned = 2 * samples * epochs / (plan.chapters or epochs)
    passed = samples if plan.kind == "chapters" and len(network.all_blocks) > 1 else 0
    trained = (learned + passed) * len(network.sampler.names)
    return 1 if asked < VALIDATION_SHARE * trained else None


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
    if network.num_classes == 0:
        # A stage before the one that names classes: no accuracy says where to stop.
        plan = replace(
            plan, patience=None, keep_best=False, block_patience=None, monitor="accuracy"
        )
    head, is_stream = network.head, plan.kind == "stream"
    hint_age: int | None = None
    if network.sampler.needs_hints and plan.hint_age != "never":
        usual = 0 if is_stream else len(network.line)
        if len(summary.samples) > 1:
            usual = len(summary.samples)
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
    if plan.monitor == "roc-auc" and network.num_classes != 2:
        text = f"plan.monitor = roc-auc is for two classes, and there are {network.num_classes}."
        raise SettingError(f"{text} Use accuracy.")
    shared: dict[str, Any] = {
        "nodes": nodes_of(network),
        "epochs": training.epochs,
        "chapters": plan.chapters or training.epochs,
        "batch_size": training.batch_size,
        "drop_last": training.drop_last,
        "samples": summary.samples,
        "hint_age": hint_age,
        "validate_every": plan.validate_every or _usual_validations(config, network, summary),
        "patience": plan.patience,
        "stop_age": plan.stop_age,
        "monitor": plan.monitor,
        "keep_best": plan.keep_best,
        "has_validation": any(summary.validation_samples) and network.readout is not None,
    }
    if is_stream:
        if plan.optimizer_state != "travel":
            raise SettingError(
                f"plan.optimizer_state is {plan.optimizer_state}, but in a stream plan blocks "
                f"stay where they are and keep their optimizer state. It goes with --plan chapters."
            )
        if plan.block_patience is not None:
            raise SettingError(
                f"plan.block_patience is {plan.block_patience}, but in a stream plan all blocks "
                f"learn from each mini-batch, and none stops by itself. Use plan.patience."
            )
        return StreamPlan(**shared, ticks=network.ticks)
    _check_cuts(config, network, plan.slices, plan.cut)
    if plan.block_patience is not None and network.readout is not None:
        check_own_scores(network)
    made = ChapterPlan(
        **shared,
        optimizer_state_age=state_age(plan.optimizer_state),
        is_augmented=bool(make_settings(config).augment),
        block_patience=plan.block_patience,
        block_validate_every=plan.block_validate_every,
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


def _check_shared_pass(network: Network, slices: int, class_weights: float | str | None) -> None:
    """Refuse a first block whose positives and negatives differ in more than the label."""
    first, sampler = network.line[0], network.sampler
    dropout = getattr(first.module, "dropout", 0.0)
    shape = () if network.blueprint is None else network.blueprint.data.input_shape
    is_label = bool(shape) and sampler.label_inputs(shape) > 0
    if sampler.mixes_labels:
        raise SettingError(
            'training.gradients = "shared-pass" takes positives and negatives that differ in one '
            'label each, and mixed ones differ in two. Use "closed-form".'
        )
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
            f"Each rank has a shard of its own, and the placement {placement.name} needs all "
            f"samples everywhere. Use --placement federated, on two ranks or more."
        )
    return placement
