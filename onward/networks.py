"""Stacks of blocks with a sampler and a readout."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onward import seeds
from onward.blocks import Block
from onward.config import NetworkConfig, OptimizerConfig
from onward.errors import SettingError
from onward.layers import Dense, ReadoutLayer
from onward.objectives import CrossEntropy, Objective, Threshold
from onward.optimizers import SGD, Adam, Optimizer
from onward.readouts import GoodnessSweep, Readout, Scores, SoftmaxHead, SumOfHeads
from onward.trained_on import TrainedOn
from onward.views import LabelEmbedding, Negatives, Plain, Sampler

CHUNK_ROWS = 500
"""Rows of a forward pass that does not train. Rounding depends on it, so it is the same wherever
a pass is made."""


@dataclass(frozen=True)
class Blueprint:
    """What a network of dense blocks is built from, its optimizer aside."""

    config: NetworkConfig
    """What is trained."""

    input_shape: tuple[int, ...]
    """Shape of one row."""

    num_classes: int
    """Number of classes."""

    is_image: bool
    """Whether an embedded label overwrites inputs, or comes before them."""


class Network(nn.Module):
    """Blocks in a line, what they see, and how classes are read off them.

    Args:
        blocks: Each block reads the one before it. The last may instead read several (see
            `Block.reads`), as a softmax head does.
        sampler: Makes the views of a batch.
        readout: Turns the blocks' scores into class scores.
        num_classes: Number of classes.
        blueprint: What the network was built from, if from settings; it makes saved models
            self-contained.

    Example:
        >>> import onward as ow
        >>> network = ow.mlp((4,), num_classes=3, widths=(8, 8))
        >>> network.predict(torch.zeros(2, 4)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        sampler: Sampler,
        readout: Readout,
        *,
        num_classes: int,
        blueprint: Blueprint | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.sampler = sampler
        self.readout = readout
        self.num_classes = num_classes
        self.blueprint = blueprint
        self.trained_on: TrainedOn | None = None
        for number, block in enumerate(self.all_blocks):
            is_last = number == len(blocks) - 1
            if block.reads is not None and not is_last:
                raise ValueError(
                    f"Block {number} of {len(blocks)} reads several blocks, and only the last may."
                )
            if block.reads is not None and block.reads != tuple(
                read for read in range(number) if read in block.reads
            ):
                raise ValueError(
                    f"Block {number} reads {block.reads}. It may read the blocks 0 to "
                    f"{number - 1}, each once and in ascending order."
                )
            unknown = set(block.objective.views) - set(sampler.names)
            if block.reads is None and unknown:
                raise ValueError(
                    f"Block {number} learns from the views {block.objective.views}, but the "
                    f"sampler {type(sampler).__name__} makes {sampler.names}."
                )

        owners: dict[int, int] = {}
        for number, block in enumerate(self.all_blocks):
            for name, parameter in block.named_parameters():
                owner = owners.setdefault(id(parameter), number)
                if owner != number:
                    raise ValueError(
                        f"Blocks {owner} and {number} share the parameter {name}. Each block "
                        f"learns on its own, maybe on another machine: give it its own."
                    )

    @property
    def all_blocks(self) -> list[Block]:
        """The blocks, a head that reads several at the end included."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def line(self) -> list[Block]:
        """The blocks that read the one before them."""
        return [block for block in self.all_blocks if block.reads is None]

    @property
    def head(self) -> Block | None:
        """The block that reads several others, if there is one."""
        last = self.all_blocks[-1]
        return last if last.reads is not None else None

    def set_precision(self, precision: torch.dtype) -> None:
        """Choose the arithmetic of matrix products: `torch.float32` or `torch.bfloat16`."""
        for block in self.all_blocks:
            block.precision = precision

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "rows ..."], readout: Readout | None = None) -> Scores:
        """Return the class scores of rows, in chunks of `CHUNK_ROWS`.

        Args:
            x: Rows of the shape the network was built for.
            readout: Another readout than the network's own.
        """
        readout = readout or self.readout
        blocks = self.all_blocks if isinstance(readout, SoftmaxHead) else self.line
        chunks = [readout.scores(blocks, self.sampler, part) for part in x.split(CHUNK_ROWS)]
        each = zip(*(chunk.blocks for chunk in chunks), strict=True)
        return Scores(
            torch.cat([chunk.network for chunk in chunks]), tuple(torch.cat(b) for b in each)
        )

    def predict(self, x: Tensor | np.ndarray) -> Int[Tensor, " rows"]:
        """Return the most likely class of each row.

        Args:
            x: Rows of the shape and scale the network was trained on, of any number type.
        """
        return self.scores(torch.as_tensor(x, dtype=torch.float32)).network.argmax(dim=1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How many rows a network gets right."""

    rows: int
    """Rows that were looked at."""

    correct: int
    """Rows whose class the network names."""

    correct_blocks: tuple[int, ...]
    """Rows whose class each block names on its own, where the readout has its scores."""

    @property
    def accuracy(self) -> float | None:
        """Share of the rows that are right; None without rows."""
        return self.correct / self.rows if self.rows else None

    @property
    def block_accuracy(self) -> list[float]:
        """The same for each block on its own."""
        return [correct / self.rows for correct in self.correct_blocks] if self.rows else []


def evaluate(
    network: Network,
    x: Float[Tensor, "rows ..."],
    y: Int[Tensor, " rows"],
    readout: Readout | None = None,
) -> Evaluation:
    """Count the rows that a network gets right.

    Args:
        network: What is asked.
        x: Rows.
        y: Their true classes.
        readout: Another readout than the network's own.
    """
    if not len(y):
        return Evaluation(0, 0, ())
    scores = network.scores(x, readout)
    correct, *each = (int((s.argmax(dim=1) == y).sum()) for s in (scores.network, *scores.blocks))
    return Evaluation(len(y), correct, tuple(each))


def build(
    config: NetworkConfig,
    optimizer: OptimizerConfig,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    is_image: bool,
    seed: int,
    held: Collection[int] | None = None,
) -> Network:
    """Build a network of dense blocks from its settings.

    Args:
        config: What is trained.
        optimizer: How weights follow their gradients.
        input_shape: Shape of one row.
        num_classes: Number of classes.
        is_image: Whether an embedded label overwrites inputs, or comes before them.
        seed: Decides the first weights, block by block.
        held: Blocks that get weights, which others do not need; None for all.

    Raises:
        SettingError: Settings do not fit the data or each other.
    """
    check_network(config, input_shape=input_shape, num_classes=num_classes, is_image=is_image)
    blueprint = Blueprint(config, input_shape, num_classes, is_image)
    sampler: Sampler = Plain()
    if config.negatives is not None:
        sampler = LabelEmbedding(
            num_classes, is_image, Negatives(config.negatives), config.label_strength
        )
    inputs = torch.Size(sampler.width(input_shape)).numel()
    widths = (inputs, *config.widths)

    def is_held(block: int) -> bool:
        return held is None or block in held

    def layer(number: int) -> Dense:
        block = 0 if config.one_block else number
        try:
            return Dense(
                *widths[number : number + 2],
                generator=seeds.generator(seed, "weights", number) if is_held(block) else None,
                dropout=config.dropout,
                gain=config.gain,
            )
        except RuntimeError as error:
            gigabytes = 4e-9 * sum(n * m for n, m in pairwise(widths))
            raise SettingError(
                f"network.widths = {list(config.widths)} with {inputs} inputs needs "
                f"{gigabytes:,.0f} GB for its weights alone, and this machine has no room for them."
            ) from error

    rule, head_rule = _rules(optimizer)

    def objective(number: int) -> Objective:
        width = widths[number + 1]
        if config.objective == "threshold":
            slope = config.slope if config.slope is not None else float(width)
            return Threshold(width, threshold=config.threshold, slope=slope, peer=config.peer)
        # Without its own first weights, which torch's global generator would draw.
        head = nn.utils.skip_init(nn.Linear, width, num_classes, bias=False)
        draw = seeds.generator(seed, "head", number)
        nn.init.normal_(head.weight, std=width**-0.5, generator=draw)
        return CrossEntropy(head)

    readout: Readout
    depth = len(config.widths)
    blocks: list[Block] = []

    def add(block: Block) -> None:
        if not is_held(len(blocks)):
            block.release()
        blocks.append(block)

    if config.one_block:
        add(Block(nn.Sequential(*map(layer, range(depth))), objective(depth - 1), rule))
    else:
        for number in range(depth):
            add(Block(layer(number), objective(number), rule))
    if config.negatives is not None and (config.readout == "softmax" or config.negatives == "hard"):
        first = 1 if config.skip_first and depth > 1 else 0
        head = ReadoutLayer(tuple(config.widths[first:]), num_classes)
        reads = tuple(range(first, depth))
        add(Block(head, CrossEntropy(nn.Identity()), head_rule, reads=reads))
    match config.readout:
        case "heads":
            readout = SumOfHeads(config.heads)
        case "goodness":
            readout = GoodnessSweep(config.skip_first)
        case "softmax":
            readout = SoftmaxHead()
    return Network(blocks, sampler, readout, num_classes=num_classes, blueprint=blueprint)


def check_network(
    config: NetworkConfig, *, input_shape: tuple[int, ...], num_classes: int, is_image: bool
) -> None:
    """Raise a `SettingError` where network settings do not fit the data or each other."""
    if not config.widths or min(config.widths) < 1:
        raise SettingError(
            f"network.widths lists the units of each block and needs one at least; got "
            f"{list(config.widths)}."
        )
    if not 0 <= config.dropout < 1:
        raise SettingError(
            f"network.dropout is a share of the inputs, from 0 to below 1; got {config.dropout}."
        )
    if (config.objective == "threshold") is (config.negatives is None):
        raise SettingError(
            f"network.objective = {config.objective} and network.negatives = {config.negatives} "
            f"do not fit: a threshold needs negatives, and cross-entropy has none."
        )
    if (config.readout == "heads") is (config.objective == "threshold"):
        raise SettingError(
            f"network.readout = {config.readout} does not fit network.objective = "
            f"{config.objective}: blocks with cross-entropy have heads to read, blocks with a "
            f"threshold are read by goodness or softmax."
        )
    if config.one_block and config.objective == "threshold":
        raise SettingError("network.one_block is backpropagation, and goes with cross-entropy.")
    inputs = torch.Size(input_shape).numel()
    if config.negatives is not None and is_image and num_classes > inputs:
        raise SettingError(
            f"{num_classes} labels cannot overwrite the first inputs of an image with {inputs}. "
            f"Give the rows as vectors, and the label comes before them."
        )


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

    Args:
        input_shape: Shape of one row.
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
    config = NetworkConfig(widths=widths, objective=objective, **settings)  # type: ignore[arg-type]
    return build(
        config,
        optimizer or OptimizerConfig(),
        input_shape=input_shape,
        num_classes=num_classes,
        is_image=is_image,
        seed=seed,
    )


def _rules(config: OptimizerConfig) -> tuple[Optimizer, Optimizer]:
    """Return the update rules of the blocks, and of a head that reads several."""
    if config.name == "adam":
        return (
            Adam(lr=config.lr, weight_decay=config.weight_decay),
            Adam(lr=config.head_lr, weight_decay=config.head_weight_decay),
        )
    return (
        SGD(lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay),
        SGD(lr=config.head_lr, momentum=config.momentum, weight_decay=config.head_weight_decay),
    )
