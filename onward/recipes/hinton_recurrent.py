"""Recurrent Forward-Forward: a still image as a video, the label at the top of the network."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from onward.errors import SettingError
from onward.recipes.recipe import recipe
from onward.settings import Counts, NotNegative, OptimizerConfig, Positive, Section, Share, Whole
from onward.values import Range


@dataclass(frozen=True, kw_only=True)
class HintonRecurrentConfig(Section):
    """Layers that see those below and above them as they were a tick before."""

    layers: Literal["dense", "local-fields"] = "dense"
    """Dense layers; or, for square images, maps of the size of the image, with weights of their own
    at each place and fields of 11 pixels."""

    widths: Counts = (2000, 2000, 2000)
    """Units of each dense layer."""

    maps: Counts = (3, 3)
    """Units at each pixel, of layers of local fields."""

    ticks: Annotated[int, Range(2)] = 8
    """How often all layers are updated, and learn, from the same mini-batch."""

    damping: Share = 0.3
    """Share of its state before that a layer keeps at each tick."""

    updates: Literal["synchronous", "alternating"] = "synchronous"
    """Whether all layers see their neighbours as they were a tick before; or every other layer sees
    those that were updated just now. Blocks are then numbered in the order in which layers are
    updated: the first, the third, and so on, then the second."""

    counted: tuple[Whole, ...] = (3, 4, 5)
    """Ticks, from 0, whose goodness counts for the label that is tried. The paper's iterations 3 to
    5, if it counts from 1, are the ticks 2, 3 and 4."""

    threshold: NotNegative = 1.0
    """Mean square of the activities at which a sample is a coin toss."""

    slope: Positive | None = None
    """Steepness of the threshold, per mean square. None: the number of units."""

    peer: NotNegative = 0.0
    """Strength of peer normalization; 0 turns it off."""

    def without_effect(self) -> dict[str, str]:
        """Return which of these settings have no effect beside the others, with the reason."""
        name = "maps" if self.layers == "dense" else "widths"
        return {name: f"layers are {self.layers} (network.layers)"}

    def __post_init__(self) -> None:
        """Refuse ticks that never come, or that count twice.

        Raises:
            SettingError: There are some.
        """
        super().__post_init__()
        repeated = len(set(self.counted)) < len(self.counted)
        if not self.counted or max(self.counted) >= self.ticks or repeated:
            raise SettingError(
                f"network.counted lists ticks from 0 to {self.ticks - 1} (network.ticks is "
                f"{self.ticks}), each once; got {list(self.counted)}."
            )


@recipe(
    name="hinton-recurrent",
    source="Hinton 2022, arXiv:2212.13345, sections 3.3 and 3.4. Negatives have any wrong label, "
    "where the paper draws likely ones; states start from zero, where it makes a pass from below "
    "first; the fourth to the sixth tick count, where its iterations 3 to 5 do; what a layer reads "
    "from below and from above has a bias each; 20 epochs, where it has 60; learning rate and "
    "optimizer are ours",
    defaults={
        "training.epochs": 20,
        "training.schedule": "cooldown",
        "plan.kind": "stream",
    },
    is_twin_alike=False,
)
def hinton_recurrent(
    config: HintonRecurrentConfig, data: Any, *, optimizer: OptimizerConfig
) -> Any:
    """Forward-Forward with feedback: layers see those below and above, the top one the label.

    An image is shown for some ticks. At each, every layer makes a new state and learns from its
    goodness. The label whose goodness is largest, over ticks in the middle, is the prediction.
    """
    # Lists of recipes and the help of the command do without torch.
    import math

    from torch import nn

    from onward.network.blocks import Block, Edge
    from onward.network.networks import Network
    from onward.network.objectives import Threshold
    from onward.network.readouts import GoodnessSweep
    from onward.recipes.blocks import rules
    from onward.recipes.local_fields import LocalLinear
    from onward.recipes.settling import LabelAtTheTop, Settling, tick_order

    is_dense = config.layers == "dense"
    if is_dense:
        widths = config.widths
        channels, side = (0,), 0
    else:
        shape = data.input_shape
        if len(shape) != 3 or shape[1] != shape[2]:
            raise SettingError(
                f"Local fields are for square images; these samples have shape {shape}, channels "
                f"first. Use --set network.layers=dense."
            )
        channels, side = (shape[0], *config.maps), shape[1]
        widths = tuple(units * side**2 for units in config.maps)
    depth, inputs = len(widths), math.prod(data.input_shape)
    layers, seen = tick_order(widths, alternates=config.updates == "alternating")

    def linear(source: int, layer: int) -> nn.Module:
        """Return the map to a layer from another one, or from the image or the label."""
        if is_dense or source == depth:
            size = data.num_classes if source == depth else inputs if source < 0 else widths[source]
            made = nn.Linear(size, widths[layer])
            nn.init.normal_(made.weight, std=size**-0.5)
            nn.init.zeros_(made.bias)
            return made
        field = min(11, 2 * ((side - 1) // 2) + 1)
        return LocalLinear(
            channels[source + 1],
            side,
            field=field,
            stride=1,
            units=config.maps[layer],
            padding=field // 2,
        )

    rule, _ = rules(optimizer)
    blocks = []
    for layer in layers:
        is_first, is_last = layer == 0, layer == depth - 1
        names = (
            "input.image" if is_first else "below",
            "input.label" if is_last else "above",
        )
        reads = [] if is_first else [seen(layer - 1, layer, "below")]
        reads += [] if is_last else [seen(layer + 1, layer, "above")]
        reads += [Edge("input")] if is_first or is_last else []
        reads += [seen(layer, layer, "before")]
        module = Settling(
            linear(layer - 1, layer), linear(layer + 1, layer), damping=config.damping, reads=names
        )
        slope = config.slope or float(widths[layer])
        objective = Threshold(
            widths[layer], threshold=config.threshold, slope=slope, peer=config.peer
        )
        blocks.append(Block(module, objective, rule, reads=tuple(reads)))
    return Network(
        blocks,
        LabelAtTheTop(data.num_classes),
        GoodnessSweep(skip_first=False, ticks=config.counted),
        num_classes=data.num_classes,
        ticks=config.ticks,
    )
