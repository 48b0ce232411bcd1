"""Stages: several trainings, one after the other, of the same modules."""

from dataclasses import dataclass, field, replace

from onward.arguments import check_arguments
from onward.network.networks import Network
from onward.settings import PlanConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of several trainings of the same modules, which may be regrouped into other blocks.

    Example:
        >>> import onward as ow
        >>> from torch import nn
        >>> layer = nn.Linear(4, 8)
        >>> def network(*modules):
        ...     heads = [ow.CrossEntropy(nn.Linear(8, 2)) for _ in modules]
        ...     blocks = [ow.Block(m, h, ow.Adam()) for m, h in zip(modules, heads)]
        ...     return ow.Network(blocks, ow.Plain(), ow.SumOfHeads(), num_classes=2)
        >>> stages = [Stage(network=network(layer)), Stage(network=network(layer, nn.Linear(8, 8)))]
    """

    network: Network
    """What is trained: blocks over modules that other stages may have as well."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Epochs, batch size, seed, arithmetic."""

    plan: PlanConfig = field(default_factory=PlanConfig)
    """What is computed."""

    sees_labels: bool = True
    """Whether training samples have their labels. Otherwise they have no target `label`, and the
    stage also learns from those whose labels `data.labelled` drops."""

    def __post_init__(self) -> None:
        check_arguments(Stage, vars(self))

    def lasting(self, epochs: int | None) -> "Stage":
        """Return the stage with other epochs, a chapter each; None: as it is."""
        if epochs is None:
            return self
        training = replace(self.training, epochs=epochs)
        return replace(self, training=training, plan=replace(self.plan, chapters=None))
