"""Settings that have no effect."""

from collections.abc import Iterator

from onward.config import RunConfig
from onward.network.networks import Network
from onward.plan.tasks import Plan


def idle(config: RunConfig, network: Network, plan: Plan, num_ranks: int) -> list[str]:
    """Return which settings have no effect, and why, a sentence each.

    They are those that differ from the recipe's, and negatives that never get their hints.

    Args:
        config: The run.
        network: Its blocks.
        plan: What is computed.
        num_ranks: Number of ranks.
    """
    usual = RunConfig(recipe=config.recipe, method=config.method)

    def value(of: RunConfig, full: str) -> object:
        section, _, name = full.partition(".")
        return getattr(getattr(of, section), name)

    found = [
        f"{name} = {value(config, name)} has no effect: {reason}."
        for name, reason in _without_effect(config, network, plan, num_ranks)
        if value(config, name) != value(usual, name)
    ]
    # Also where the recipe has chosen its negatives itself.
    age = plan.hint_age or 0
    if config.plan.kind == "chapters" and age >= plan.chapters:
        lower = ", or lower plan.hint_age" if age > len(plan.samples) else ""
        found.append(
            f"All negatives are drawn without scores of the network: the first come after {age} "
            f"chapters (plan.hint_age), and there are {plan.chapters}. Train for more epochs, in "
            f"more chapters{lower}."
        )
    return found


def _without_effect(
    config: RunConfig, network: Network, plan: Plan, num_ranks: int
) -> Iterator[tuple[str, str]]:
    """Yield the settings that have no effect here, chosen or not, each with the reason."""
    if config.method is not None and config.method.takes("optimizer"):
        if config.optimizer.name != "sgd":
            yield "optimizer.momentum", f"{config.optimizer.name} has none"
        if network.head is None:
            for name in ("head_lr", "head_weight_decay"):
                yield f"optimizer.{name}", "the network has no softmax head"
    # Settings of a recipe may know themselves which of them are idle.
    own = getattr(config.network, "without_effect", dict)
    for name, reason in own().items():
        yield name if "." in name else f"network.{name}", reason
    if all(block.schedule is not None for block in network.all_blocks):
        yield "training.schedule", "all blocks have schedules of their own"
    if not config.data.name.endswith(".txt"):
        yield "data.context", "the data are no text"
    if not config.data.shift:
        yield "data.shift_fill", "nothing is shifted (data.shift)"
    if plan.hint_age is None and config.plan.hint_age != "never":
        yield "plan.hint_age", "negatives are drawn without hints"
    if len(plan.samples) == 1:
        yield "plan.shard_by", "there is one shard (plan.shards)"
    if config.plan.shard_by != "dirichlet":
        yield "plan.shard_alpha", "shards are not drawn (plan.shard_by)"
    if config.plan.slices == 1:
        yield "plan.cut", "mini-batches are not cut (plan.slices)"
    if network.num_classes == 0:
        for name in ("patience", "keep_best", "block_patience"):
            yield (
                f"plan.{name}",
                "these blocks predict no class, so there is no accuracy to compare",
            )
    if not plan.has_validation:
        yield "plan.validate_every", "there are no validation samples"
    if config.plan.block_patience is None:
        yield "plan.block_validate_every", "no block stops by itself (plan.block_patience)"
    elif plan.epochs / plan.chapters < 2 * config.plan.block_validate_every:
        reason = "blocks learn for too few epochs a chapter to be validated twice (plan.chapters)"
        yield "plan.block_patience", reason
    if not plan.is_judged and config.plan.block_patience is None:
        yield "plan.monitor", "no validation decides anything (plan.patience, plan.keep_best)"
    if plan.patience is None:
        yield "plan.stop_age", "nothing ends training early (plan.patience)"
    schedules = {block.schedule or config.training.schedule for block in network.all_blocks}
    if schedules != {"constant"}:
        reason = "more epochs need a constant learning rate (training.schedule=constant)"
        yield "placement.keep_state", reason
    if config.plan.kind == "stream":
        yield "placement.memory", "a stream holds no samples of a chapter"
    if num_ranks == 1:
        for name in ("iface", "peer_timeout", "replicas", "restarts"):
            yield f"placement.{name}", "there is one rank"
