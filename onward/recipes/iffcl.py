"""Improved Forward-Forward contrastive learning: two towers, and nothing but local losses."""

from dataclasses import dataclass
from typing import Any, Literal

from onward.recipes.recipe import recipe
from onward.settings import Counts, OptimizerConfig, Section


@dataclass(frozen=True, kw_only=True)
class IFFCLConfig(Section):
    """Two networks of dense layers, and what their layers learn from each other."""

    widths: Counts = (64, 64)
    """Units of each layer of a tower; a layer that predicts the class comes last."""

    loss: Literal["cosine", "classifier"] = "cosine"
    """What pairs of layers learn: to point the same way for samples of a class and not for others;
    or to let a linear classifier tell whether the classes agree."""


@recipe(
    source="Gananath 2024, arXiv:2405.03432 (IFFCL), by its abstract and a review: experimental. "
    "Inferred: that pairs are drawn as often from one class as from two, that activities are "
    "normalized in length between layers, what the classifier of a pair reads, that the last "
    "layers learn by cross-entropy, and that both towers answer. Adam, its learning rate, "
    "epochs and schedule are ours",
    defaults={"training.epochs": 20, "training.schedule": "warmup", "plan.kind": "stream"},
    is_twin_alike=False,
)
def iffcl(config: IFFCLConfig, data: Any, *, optimizer: OptimizerConfig) -> Any:
    """Experimental. Two networks see a pair of samples; each pair of layers has a loss of its own.

    The last layers predict the class, and both towers answer together.
    """
    # Lists of recipes and the help of the command do without torch.
    from itertools import pairwise

    from onward.network.blocks import Block
    from onward.network.networks import Network
    from onward.network.readouts import SumOfHeads
    from onward.recipes.blocks import rules
    from onward.recipes.towers import Agreement, EachItsOwnClass, PairOfInputs, Towers

    (rule, _), widths = rules(optimizer), (data.num_inputs, *config.widths)
    blocks = [
        Block(Towers(before, units), Agreement(units, config.loss), rule)
        for before, units in pairwise(widths)
    ]
    last = Block(Towers(widths[-1], data.num_classes, is_last=True), EachItsOwnClass(), rule)
    return Network(
        [*blocks, last], PairOfInputs(), SumOfHeads("last"), num_classes=data.num_classes
    )
