"""Inference in stages: block by block, with class scores after each, and nothing done twice."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from onward.blocks import Block
from onward.errors import SettingError
from onward.exits.policies import ExitPolicy
from onward.layers import TINY, Dense, ReadoutLayer, normalize_length
from onward.networks import CHUNK_ROWS, Network
from onward.objectives import CrossEntropy
from onward.readouts import GoodnessSweep, SoftmaxHead, SumOfHeads
from onward.views import LabelEmbedding


class Stages(ABC):
    """Some rows on their way through a network.

    Args:
        network: The network.
        x: The rows.
    """

    def __init__(self, network: Network, x: Tensor) -> None:
        self.network = network
        self.line = network.line
        self.block = 0
        self.num_rows = len(x)

    @property
    def exits(self) -> list[int]:
        """The blocks after which there are class scores."""
        return list(range(len(self.line)))

    def step(self) -> Float[Tensor, "rows classes"] | None:
        """Pass the rows through the next block; return their scores where it is an exit."""
        block = self.line[self.block]
        scores = self._pass(block)
        self.block += 1
        return scores

    @abstractmethod
    def _pass(self, block: Block) -> Tensor | None: ...

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with some of the rows."""
        self.num_rows = len(rows)
        self._keep(rows)

    @abstractmethod
    def _keep(self, rows: Tensor) -> None: ...


class HeadStages(Stages):
    """For blocks with heads of their own: one pass, log-probabilities added up."""

    def __init__(self, network: Network, x: Tensor) -> None:
        super().__init__(network, x)
        assert isinstance(network.readout, SumOfHeads)
        self.adds = network.readout.heads == "all"
        self.activities = x
        self.total = torch.zeros(())

    def _pass(self, block: Block) -> Tensor:
        self.activities = block.infer(self.activities)
        scores = block.scores(self.activities)
        self.total = self.total + scores if self.adds else scores
        return self.total

    def _keep(self, rows: Tensor) -> None:
        self.activities, self.total = self.activities[rows], self.total[rows]


class SoftmaxStages(Stages):
    """For a head that reads several blocks: one pass, what each block adds to the logits."""

    def __init__(self, network: Network, x: Tensor) -> None:
        super().__init__(network, x)
        self.weights = head_weights(network)
        self.activities = network.sampler.neutral(x)
        self.logits: Tensor | None = None

    @property
    def exits(self) -> list[int]:
        return list(self.weights)

    def _pass(self, block: Block) -> Tensor | None:
        self.activities = block.infer(self.activities)
        if self.block not in self.weights:
            return None
        with torch.no_grad(), block.autocast():
            weight = self.weights[self.block]
            logits = torch.nn.functional.linear(normalize_length(self.activities), weight).float()
        self.logits = logits if self.logits is None else self.logits + logits
        return self.logits.log_softmax(dim=1)

    def _keep(self, rows: Tensor) -> None:
        self.activities = self.activities[rows]
        self.logits = self.logits[rows] if self.logits is not None else None


class SweepStages(Stages):
    """For a goodness sweep: a pass a label, of which the first block's products are shared.

    With a one-hot label c of strength s in front of the rest r of a row, the length is the same for
    all labels, and so is all of W [s e_c, r] but s times a column of W: C passes of the first block
    cost one product, and C additions of a vector. Equal to plain passes up to rounding.
    """

    def __init__(self, network: Network, x: Tensor) -> None:
        super().__init__(network, x)
        assert isinstance(network.readout, GoodnessSweep)
        assert isinstance(network.sampler, LabelEmbedding)
        self.skips_first = network.readout.skip_first and len(self.line) > 1
        self.sampler = network.sampler
        self.x = x
        classes = self.sampler.num_classes
        # A pass is a row with a label; they stay in order of rows.
        self.rows = torch.arange(len(x)).repeat_interleave(classes)
        self.labels = torch.arange(classes).repeat(len(x))
        self.activities: Tensor | None = None
        self.total = torch.zeros(len(x), classes)

    def _pass(self, block: Block) -> Tensor:
        if self.activities is None:
            self.activities = self._first(block)
        else:
            self.activities = block.infer(self.activities)
        goodness = block.scores(self.activities)
        scores = torch.full((self.num_rows, self.sampler.num_classes), -torch.inf)
        counted = goodness + self.total[self.rows, self.labels]
        scores[self.rows, self.labels] = counted
        if self.block > 0 or not self.skips_first:
            self.total = scores
        return scores

    def _first(self, block: Block) -> Tensor:
        if type(block.module) is not Dense:
            return block.infer(self.sampler.with_label(self.x[self.rows], self.labels))
        block.eval()
        with torch.no_grad(), block.autocast():
            return shared_pass(block.module, self.sampler, self.x)

    def _keep(self, rows: Tensor) -> None:
        place = torch.full((len(self.total),), -1)
        place[rows] = torch.arange(len(rows))
        self._go_on_with(place[self.rows] >= 0)
        self.rows = place[self.rows]
        self.total = self.total[rows]

    def drop(self, stays: Bool[Tensor, "rows classes"]) -> None:
        """Go on with some of the labels."""
        self._go_on_with(stays[self.rows, self.labels])

    def _go_on_with(self, passes: Tensor) -> None:
        assert self.activities is not None
        if not bool(passes.all()):
            self.activities = self.activities[passes]
            self.rows, self.labels = self.rows[passes], self.labels[passes]


def shared_pass(layer: Dense, sampler: LabelEmbedding, x: Tensor) -> Tensor:
    """Pass rows through the first layer of a sweep, with each label, all labels of a row in order.

    The labels' columns are added in the precision of the weights.

    Args:
        layer: The layer.
        sampler: Puts labels in front of rows.
        x: The rows.

    Returns:
        Activities, shape (rows times classes, units).
    """
    classes, strength = sampler.num_classes, sampler.strength
    # `x.shape[0]` and not `len(x)`, which an export would take for a constant.
    rest = sampler.embed(x, x.new_zeros(x.shape[0], classes))[:, classes:]
    length = (rest.square().sum(dim=1, keepdim=True) + strength**2).sqrt()
    scale = (classes + rest.shape[1]) ** 0.5 / (length + TINY)
    shared = torch.nn.functional.linear(rest * scale, layer.weight[:, classes:])
    columns = (strength * scale)[:, :, None] * layer.weight[:, :classes].T
    every: Tensor = (columns + (shared + layer.bias)[:, None]).relu()
    return every.flatten(0, 1).to(shared.dtype)


def head_weights(network: Network) -> dict[int, Tensor]:
    """Return the weights with which a softmax head reads each block that it reads."""
    head = network.head
    assert head is not None
    assert head.reads is not None
    is_plain = isinstance(head.module, ReadoutLayer) and isinstance(head.objective, CrossEntropy)
    if not is_plain or type(getattr(head.objective, "head", None)) is not nn.Identity:
        raise SettingError(
            "Early exit with a softmax head needs one that is a ReadoutLayer and nothing else."
        )
    assert isinstance(head.module, ReadoutLayer)
    widths = [block_width(network.line[number]) for number in head.reads]
    return dict(zip(head.reads, head.module.weight.split(widths, dim=1), strict=True))


def block_width(block: Block) -> int:
    """Return the units of a dense block."""
    if not isinstance(block.module, Dense):
        raise SettingError("Early exit with a softmax head needs dense blocks.")
    return block.module.weight.shape[0]


def stages(network: Network, x: Tensor) -> Stages:
    """Return rows at the beginning of a network, for the way in which it is read.

    Raises:
        SettingError: It is read in a way of one's own, which has no exits.
    """
    match network.readout:
        case SumOfHeads():
            return HeadStages(network, x)
        case SoftmaxHead():
            return SoftmaxStages(network, x)
        case GoodnessSweep():
            return SweepStages(network, x)
    raise SettingError(
        f"Early exit knows SumOfHeads, SoftmaxHead and GoodnessSweep, and not "
        f"{type(network.readout).__name__}."
    )


@dataclass(frozen=True, slots=True)
class Answers:
    """What inference with early exit says of some rows."""

    labels: Int[Tensor, " rows"]
    """The class of each row."""

    exits: Int[Tensor, " rows"]
    """The exit at which each row left, from 0."""

    scores: Float[Tensor, "rows classes"]
    """The class scores there; -inf for labels that were dropped before."""

    passes: Int[Tensor, "exits rows"]
    """Passes of each row through the blocks up to each exit since the last: 0 after it has left;
    1, or one for each label that is left."""


@torch.no_grad()
def answer(
    network: Network,
    x: Float[Tensor, "rows ..."] | np.ndarray,
    policy: ExitPolicy,
    *,
    batch_size: int = CHUNK_ROWS,
) -> Answers:
    """Predict the classes of rows, each no deeper than it has to go.

    Rows that have left are taken out of the batch. The same rows in batches of other sizes get the
    same answers, but where a score is within rounding of a threshold.

    Args:
        network: A trained network.
        x: Rows of the shape and scale the network was trained on.
        policy: When they leave.
        batch_size: Rows at once.

    Example:
        >>> import onward as ow
        >>> network = ow.mlp((4,), num_classes=3, widths=(8, 8))
        >>> answer(network, torch.ones(2, 4), ow.ExitPolicy("margin", (0.0,))).exits
        tensor([0, 0])
    """
    rows = torch.as_tensor(x, dtype=torch.float32)
    found = [_answer(network, part, policy) for part in rows.split(batch_size)]
    return Answers(
        torch.cat([part.labels for part in found]),
        torch.cat([part.exits for part in found]),
        torch.cat([part.scores for part in found]),
        torch.cat([part.passes for part in found], dim=1),
    )


def _answer(network: Network, x: Tensor, policy: ExitPolicy) -> Answers:
    going = stages(network, x)
    num_exits = len(going.exits)
    if num_exits != len(policy.thresholds) + 1:
        raise SettingError(
            f"The policy has {len(policy.thresholds)} thresholds, and the network {num_exits} "
            f"exits: one fewer is needed."
        )
    exits = torch.zeros(len(x), dtype=torch.int64)
    scores = torch.zeros(len(x), network.num_classes)
    passes = torch.zeros(num_exits, len(x), dtype=torch.int64)
    each = torch.full((len(x),), network.num_classes if isinstance(going, SweepStages) else 1)
    left, history = torch.arange(len(x)), torch.zeros(0, len(x), network.num_classes)
    number = 0
    while len(left):
        found = going.step()
        if found is None:
            continue
        passes[number, left] = each[left]
        history = torch.cat([history, found[None].to(history.dtype)])
        leaves = policy.leaves(history)
        exits[left[leaves]], scores[left[leaves]] = number, history[-1, leaves]
        number += 1
        if bool(leaves.all()):
            break
        if bool(leaves.any()):
            stays = (~leaves).nonzero().squeeze(1)
            going.keep(stays)
            left, history = left[stays], history[:, stays]
        if isinstance(going, SweepStages) and policy.drops:
            alive = policy.stays(history)
            going.drop(alive)
            each[left] = alive.sum(dim=1)
    return Answers(scores.argmax(dim=1), exits, scores, passes)
