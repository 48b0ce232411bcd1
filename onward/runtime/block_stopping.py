"""Early stopping of a block by itself, within the chapter in which it learns."""

from collections.abc import Callable

import torch
from torch import Tensor

from onward.batch import Batch
from onward.blocks import Block, gathered
from onward.networks import Forward, Network, in_chunks


class BlockStopping:
    """Counts what the network up to a block gets right while the block learns; keeps its best.

    Blocks below stay as they are: validation samples pass through them once.

    Args:
        network: The network.
        number: The block that learns.
        validation: Validation samples.
        every: Epochs between validations.
        patience: Validations in a row without a better one, after which the block is done.
    """

    def __init__(
        self, network: Network, number: int, validation: Batch, *, every: int, patience: int
    ) -> None:
        self.block: Block = network.all_blocks[number]
        self.every, self.patience = every, patience
        self.epochs = self.since = 0
        self.correct = -1
        self.best: list[Tensor] = []
        self.asked = []
        for chunk in in_chunks(validation):
            forward = Forward(network, chunk)
            while forward.visit < number:
                forward.step()
            self.asked.append((asker(forward), chunk))

    def is_done(self) -> bool:
        """Take note of one more epoch; return whether the block stops here."""
        self.epochs += 1
        if self.epochs % self.every:
            return False
        correct = sum(self._correct(ask(), chunk) for ask, chunk in self.asked)
        if correct > self.correct:
            self.correct, self.since = correct, 0
            self.best = [weights.detach().clone() for weights in self.block.weights()]
            return False
        self.since += 1
        return self.since >= self.patience

    def _correct(self, scores: Tensor, samples: Batch) -> int:
        index = slice(None) if samples.index is None else samples.index
        return int((scores[index].argmax(dim=1) == samples.label[index]).sum())

    @torch.no_grad()
    def restore(self) -> None:
        """Give the block the weights that were best, if there was a validation."""
        for weights, best in zip(self.block.weights(), self.best, strict=False):
            weights.copy_(best)


def asker(forward: Forward) -> Callable[[], Tensor]:
    """Return a function that asks the next block for class scores, while it goes on to learn.

    What the block reads is passed and prepared once.

    Args:
        forward: Samples that have gone as far as the block, which is an exit; they stay there.
    """
    number = forward.visit % len(forward.blocks)
    block, shares = forward.blocks[number], number == 0 and forward.first is not None
    reads = [] if shares else [(edge, forward.source(edge)) for edge in forward.reads[number]]
    read = forward.seen if shares else block.prepared(gathered(reads, forward.seen))

    @torch.no_grad()
    def ask() -> Tensor:
        before = forward.total, forward.exit, list(forward.found)
        if shares:
            outputs = forward.passed(number, forward.source, forward.seen)
        else:
            block.eval()
            with block.autocast():
                outputs = read.replace(inputs=block(read), context={})
        scores = forward.read(number, outputs)
        forward.total, forward.exit, forward.found = before
        return scores

    return ask
