"""How the class of a sample is read off a network: a fold over the scores of its blocks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from onward.batch import Batch
from onward.errors import SettingError
from onward.network.blocks import Block, Edge
from onward.network.samplers import NEUTRAL


@dataclass(frozen=True, slots=True)
class Scores:
    """Class scores of some samples."""

    network: Float[Tensor, "samples classes"]
    """Scores of the whole network; the largest names the class."""

    blocks: tuple[Float[Tensor, "samples classes"], ...]
    """Scores of each block on its own, where the readout has them."""

    def __repr__(self) -> str:
        """Return it in a line."""
        samples, classes = self.network.shape
        own = f", and of {len(self.blocks)} blocks on their own" if self.blocks else ""
        return f"<Scores: {samples:,} samples, {classes} classes{own}>"


@dataclass(frozen=True)
class Fold:
    """How scores of blocks become class scores, one exit after the other.

    What is found at an exit is added to the total of those before, and is itself added to that
    total where `adds` says so. As data, so that files for other machines hold it as well.
    """

    exits: tuple[int, ...]
    """Visits after which there are class scores: number of the block, plus the number of blocks for
    each tick before."""

    adds: tuple[bool, ...]
    """For each exit, whether those after it count what was found there."""

    is_softmax: bool = False
    """Whether class scores are the log-softmax of the sum; else they are the sum."""

    is_own: bool = True
    """Whether what is found at an exit is the class scores of that block on its own."""

    def step(self, total: Tensor, exit_: int, found: Tensor) -> tuple[Tensor, Tensor]:
        """Go on to an exit.

        Args:
            total: What the exits before add up to, zeros at first, shape (samples, classes).
            exit_: Number of the exit.
            found: Scores of the block there; -inf where a label is no longer tried.

        Returns:
            The total for the exits after it, and the class scores.
        """
        scores = total + found
        total = scores if self.adds[exit_] else total
        return total, scores.log_softmax(dim=1) if self.is_softmax else scores


class Readout(ABC):
    """Turns the scores of blocks into class scores. It never sees a label."""

    sweeps: bool = False
    """Whether every label is tried, each sample once for each of the sampler's candidates."""

    @abstractmethod
    def fold(self, blocks: Sequence[Block], edges: Sequence[tuple[Edge, ...]], ticks: int) -> Fold:
        """Return the fold over the visits of a network.

        Args:
            blocks: All of its blocks.
            edges: What each of them reads.
            ticks: How often each is visited.

        Raises:
            SettingError: The network cannot be read so.
        """

    def scores(
        self,
        blocks: Sequence[Block],
        edges: Sequence[tuple[Edge, ...]],
        number: int,
        outputs: Batch,
    ) -> Tensor:
        """Return what is found at an exit: class scores, or of a sweep one goodness per sample."""
        return blocks[number].scores(outputs)

    def weights(
        self, blocks: Sequence[Block], edges: Sequence[tuple[Edge, ...]], number: int
    ) -> list[Tensor]:
        """Return the weights that `scores` reads, beside those of the blocks on the way there."""
        return list(blocks[number].objective.shipped().values())


@dataclass(frozen=True)
class SumOfHeads(Readout):
    """Adds the scores of the blocks' own heads, or takes those of the last block.

    For `CrossEntropy` these are log-probabilities.

    Source:
        Aktemur et al. 2024, arXiv:2404.08573, section 4.4 ("using all layers", "only last
        layer"); the paper does not say how heads are combined; here log-probabilities are summed.
    """

    heads: Literal["all", "last"] = "all"
    """Whose heads count."""

    ticks: tuple[int, ...] | None = None
    """Ticks whose scores are added, from 0; None: all. Others are no exits, and inference ends with
    the last of these."""

    def fold(self, blocks: Sequence[Block], edges: Sequence[tuple[Edge, ...]], ticks: int) -> Fold:
        exits = _visits(self, _scored(blocks), len(blocks), ticks, self.ticks)
        return Fold(exits, (self.heads == "all",) * len(exits))


@dataclass(frozen=True)
class GoodnessSweep(Readout):
    """Tries every label and takes the one that gathers most goodness.

    Takes one pass per class.

    Source:
        Hinton 2022, arXiv:2212.13345, section 3.3; over ticks: section 3.4.
    """

    skip_first: bool = True
    """Whether the first block is left out, as Hinton does it, if there are others."""

    ticks: tuple[int, ...] | None = None
    """Ticks whose scores are added, from 0; None: all. Others are no exits, and inference ends with
    the last of these."""

    sweeps = True

    def fold(self, blocks: Sequence[Block], edges: Sequence[tuple[Edge, ...]], ticks: int) -> Fold:
        scored = _scored(blocks)
        exits = _visits(self, scored, len(blocks), ticks, self.ticks)
        left_out = scored[0] if self.skip_first and len(scored) > 1 else None
        return Fold(exits, tuple(visit % len(blocks) != left_out for visit in exits))


@runtime_checkable
class Sum(Protocol):
    """A module of a head that adds up what it makes of each block, as `ow.ReadoutLayer` does."""

    def part(self, place: int, activities: Tensor, /) -> Float[Tensor, "samples classes"]:
        """Return what one of the blocks adds to the scores.

        Args:
            place: Which of those that are read, from 0.
            activities: What that block puts out.
        """
        ...

    def weights_of(self, place: int, /) -> list[Tensor]:
        """Return the weights with which one of the blocks is read."""
        ...


@dataclass(frozen=True)
class SoftmaxHead(Readout):
    """Reads the class from the last block, a head that learns from the neutral view: one pass.

    A head whose module is a `Sum` over the blocks it reads is read block by block; any other at its
    end.

    Source:
        Hinton 2022, arXiv:2212.13345, section 3.3.
    """

    def fold(self, blocks: Sequence[Block], edges: Sequence[tuple[Edge, ...]], ticks: int) -> Fold:
        head = blocks[-1]
        if not head.objective.has_scores:
            raise SettingError(
                f"The readout SoftmaxHead asks the last block, whose objective "
                f"{type(head.objective).__name__} has no scores."
            )
        if ticks == 1 and _is_sum(head, edges[-1]):
            exits = tuple(sorted(_sources(edges[-1])))
            return Fold(exits, (True,) * len(exits), is_softmax=True, is_own=False)
        return Fold((len(blocks) * ticks - 1,), (False,), is_own=False)

    def scores(
        self,
        blocks: Sequence[Block],
        edges: Sequence[tuple[Edge, ...]],
        number: int,
        outputs: Batch,
    ) -> Tensor:
        head = blocks[-1]
        if number == len(blocks) - 1:
            return head.scores(outputs)
        assert isinstance(head.module, Sum)
        place = _sources(edges[-1]).index(number)
        with head.autocast():
            return head.module.part(place, outputs.tensor).float()

    def weights(
        self, blocks: Sequence[Block], edges: Sequence[tuple[Edge, ...]], number: int
    ) -> list[Tensor]:
        head = blocks[-1]
        if number == len(blocks) - 1:
            return super().weights(blocks, edges, number)
        assert isinstance(head.module, Sum)
        return head.module.weights_of(_sources(edges[-1]).index(number))


def is_head(block: Block) -> bool:
    """Return whether a block learns from what inference sees, and so is read off and not on."""
    return block.objective.views == (NEUTRAL,)


def _scored(blocks: Sequence[Block]) -> list[int]:
    """Return the blocks with scores of their own, heads left out."""
    return [n for n, b in enumerate(blocks) if b.objective.has_scores and not is_head(b)]


def _visits(
    readout: Readout,
    numbers: Sequence[int],
    num_blocks: int,
    ticks: int,
    counted: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """Return the visits of blocks, by their numbers, in the ticks that count."""
    named = range(ticks) if counted is None else sorted(counted)
    is_repeated = len(set(named)) < len(named)
    if not named or is_repeated or not set(named) <= set(range(ticks)):
        raise SettingError(
            f"The readout {type(readout).__name__} counts the ticks {list(named)}. Name ticks of "
            f"the network, which has {ticks}, counted from 0; at least one, and each once."
        )
    if not numbers:
        raise SettingError(
            "No block of this network has scores of its own that could be read. Add a head that "
            "learns from the view neutral, and read it with SoftmaxHead."
        )
    return tuple(tick * num_blocks + number for tick in named for number in numbers)


def _sources(edges: tuple[Edge, ...]) -> list[int]:
    return [edge.source for edge in edges if isinstance(edge.source, int)]


def _is_sum(head: Block, edges: tuple[Edge, ...]) -> bool:
    """Return whether a head is a sum over the blocks that it reads, all in this tick."""
    is_usual = all(e.delay == 0 and e.to == "module" and e.source != "input" for e in edges)
    return isinstance(head.module, Sum) and head.objective.scores_are_logits and is_usual
