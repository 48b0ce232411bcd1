"""Early stopping of a block by itself, within the chapter in which it learns."""

from collections.abc import Callable

import torch
from torch import Tensor

from onward.batch import Batch, in_chunks
from onward.errors import SettingError
from onward.evaluation import merit, ordered
from onward.network.blocks import Block, gathered
from onward.network.networks import Forward, Network
from onward.settings import Monitor


class BlockStopping:
    """Validates the network up to a block while the block learns, and keeps its best weights.

    Blocks below stay as they are: validation samples pass through them once.

    Args:
        network: The network.
        number: The block that learns.
        validation: Validation samples.
        monitor: What is compared.
        every: Epochs between validations.
        patience: Validations in a row without a better one, after which the block is done.
    """

    def __init__(
        self,
        network: Network,
        number: int,
        validation: Batch,
        *,
        monitor: Monitor,
        every: int,
        patience: int,
    ) -> None:
        self.block: Block = network.all_blocks[number]
        self.monitor, self.every, self.patience = monitor, every, patience
        self.epochs = self.since = 0
        self.merit = -1
        self.best: list[Tensor] = []
        self.label = validation.counted.label
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
        merit = self._merit()
        if merit > self.merit:
            self.merit, self.since = merit, 0
            self.best = [weights.detach().clone() for weights in self.block.weights()]
            return False
        self.since += 1
        return self.since >= self.patience

    def _merit(self) -> int:
        """Return how good the network up to the block is now, see `Evaluation.merit`."""
        every = [(ask().cpu(), counted.index) for ask, counted in self.asked]
        each = [scores if index is None else scores[index] for scores, index in every]
        scores = torch.cat(each)
        correct = int((scores.argmax(dim=1) == self.label).sum())
        order = ordered(scores, self.label) if self.monitor == "roc-auc" else None
        return merit(correct, order, self.monitor)

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
        if shares:
            outputs = forward.passed(number, forward.source, forward.seen)
        else:
            block.eval()
            with block.autocast():
                outputs = read.replace(inputs=block(read), context={})
        _, scores = forward.fold.step(forward.total, forward.exit, forward.read(number, outputs))
        return scores

    return ask


def check_own_scores(network: Network) -> None:
    """Refuse blocks that are to stop by scores that are not their own, or have none.

    Raises:
        SettingError: There are some.
    """
    fold, learning = network.fold(), [b for b in network.line if not b.is_frozen]
    scored = [network.all_blocks[visit % len(network.all_blocks)] for visit in fold.exits]
    if not fold.is_own or len(network.line) < len(network.all_blocks):
        raise SettingError(
            f"plan.block_patience stops a block by its own class scores, and the readout "
            f"{type(network.readout).__name__} has those of a head over several blocks, which "
            f"learns later. Leave it out, or use another readout."
        )
    if any(block not in scored for block in learning):
        raise SettingError(
            "plan.block_patience stops a block by its own class scores, and not all blocks have "
            "some. Leave it out."
        )
    if any(all(e.source != n for e in own) for n, own in enumerate(network.edges[1:])):
        raise SettingError(
            "plan.block_patience stops a block by what the blocks up to it get right, and here one "
            "does not read the block before it. Leave it out."
        )
