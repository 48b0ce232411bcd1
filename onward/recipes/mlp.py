"""Networks of dense blocks for scripts, without a run."""

from onward.arguments import check_arguments
from onward.data import DataInfo
from onward.network.networks import Network
from onward.recipes.blueprint import Blueprint, build
from onward.recipes.dense import dense
from onward.settings import NetworkConfig, OptimizerConfig


def mlp(
    input_shape: tuple[int, ...],
    *,
    num_classes: int,
    widths: tuple[int, ...] = (500, 500, 500, 500),
    objective: str = "cross-entropy",
    is_image: bool = False,
    optimizer: OptimizerConfig | None = None,
    seed: int = 0,
    **settings: object,
) -> Network:
    """Build a network of dense blocks.

    With the defaults of `NetworkConfig`: the recipe `one-pass` has dropout 0.2 and gain sqrt(2)
    besides.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of classes.
        widths: Units of each block.
        objective: `cross-entropy`, or `threshold` (which needs `negatives` and a `readout`).
        is_image: Whether an embedded label overwrites inputs, or comes before them.
        optimizer: How weights follow their gradients; Adam by default.
        seed: Decides the first weights.
        settings: Further fields of `NetworkConfig`.

    Raises:
        SettingError: Settings do not fit each other.

    Example:
        >>> import onward as ow
        >>> len(ow.mlp((1, 8, 8), num_classes=10, widths=(32, 32, 32)).blocks)
        3
    """
    check_arguments(mlp, {"input_shape": input_shape, "num_classes": num_classes})
    config = NetworkConfig(widths=widths, objective=objective, **settings)  # type: ignore[arg-type]
    data = DataInfo(input_shape=input_shape, num_classes=num_classes, is_image=is_image)
    return build(Blueprint(dense, config, data), optimizer=optimizer, seed=seed)
