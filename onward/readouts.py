"""How the class of a row is read off a network: class scores from the blocks' scores."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from onward.blocks import Block
from onward.views import LabelEmbedding, Sampler


@dataclass(frozen=True, slots=True)
class Scores:
    """Class scores of some rows."""

    network: Float[Tensor, "rows classes"]
    """Scores of the whole network; the largest names the class."""

    blocks: tuple[Float[Tensor, "rows classes"], ...]
    """Scores of each block on its own, where the readout has them."""


class Readout(ABC):
    """Turns rows into class scores. It never sees a label."""

    @abstractmethod
    def scores(self, blocks: Sequence[Block], sampler: Sampler, x: Tensor) -> Scores:
        """Return the class scores of rows, shape (rows, inputs...)."""


@dataclass(frozen=True)
class SumOfHeads(Readout):
    """Adds the log-probabilities of the blocks' own heads, or takes those of the last block.

    Source:
        Aktemur et al. 2024, arXiv:2404.08573, section 4.4 ("using all layers", "only last
        layer"); the paper does not say how heads are joined, we sum log-probabilities.
    """

    heads: Literal["all", "last"] = "all"
    """Whose heads count."""

    def scores(self, blocks: Sequence[Block], sampler: Sampler, x: Tensor) -> Scores:
        each = []
        for block in blocks:
            x = block.infer(x)
            each.append(block.scores(x))
        return Scores(
            torch.stack(each).sum(dim=0) if self.heads == "all" else each[-1], tuple(each)
        )


@dataclass(frozen=True)
class GoodnessSweep(Readout):
    """Tries every label and takes the one that gathers most goodness.

    Costs one pass a class.

    Source:
        Hinton 2022, arXiv:2212.13345, section 3.3.
    """

    skip_first: bool = True
    """Whether the first block is left out, as Hinton does it, if there are others."""

    def scores(self, blocks: Sequence[Block], sampler: Sampler, x: Tensor) -> Scores:
        assert isinstance(sampler, LabelEmbedding)
        labels = torch.arange(sampler.num_classes)
        activities = sampler.with_label(
            x.repeat_interleave(sampler.num_classes, dim=0), labels.repeat(len(x))
        )
        each = []
        for block in blocks:
            activities = block.infer(activities)
            each.append(block.scores(activities).view(len(x), sampler.num_classes))
        counted = each[1:] if self.skip_first and len(each) > 1 else each
        return Scores(torch.stack(counted).sum(dim=0), tuple(each))


@dataclass(frozen=True)
class SoftmaxHead(Readout):
    """Asks the head that reads several blocks, on the neutral label: one pass.

    Source:
        Hinton 2022, arXiv:2212.13345, section 3.3.
    """

    def scores(self, blocks: Sequence[Block], sampler: Sampler, x: Tensor) -> Scores:
        *line, head = blocks
        activities = read_activities(line, head, sampler.neutral(x))
        return Scores(head.scores(head.infer(activities)), ())


def read_activities(line: Sequence[Block], head: Block, x: Tensor) -> tuple[Tensor, ...]:
    """Pass rows through the blocks and return the activities that a head reads."""
    assert head.reads is not None
    read = []
    for number, block in enumerate(line):
        x = block.infer(x)
        if number in head.reads:
            read.append(x)
    return tuple(read)
