"""The block: layers, a local objective and an optimiser; the unit of placement."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onward.objectives import Objective
from onward.optimizers import Moments, Optimizer


class Block(nn.Module):
    """One or more layers that learn from an objective of their own.

    A block hands on detached activities; nothing ever flows back into the block before it. With
    many layers inside, those learn together by backpropagation: a whole network in one block is
    ordinary backpropagation.

    Args:
        module: Any module from inputs to activities, rows first.
        objective: What the block learns; its parameters are trained along with the module's.
        optimizer: How parameters follow their gradients.
        reads: Blocks whose activities this one reads, by number, as a tuple of tensors. None for
            the usual way: the block before, or the input. A block that reads several comes last.

    Example:
        >>> import onward as ow
        >>> block = ow.Block(
        ...     nn.Linear(4, 8), ow.CrossEntropy(nn.Linear(8, 3, bias=False)), ow.Adam(lr=0.01)
        ... )
        >>> block.infer(torch.zeros(2, 4)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        *,
        reads: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.objective = objective
        self.optimizer = optimizer
        self.reads = reads
        self.precision = torch.float32
        self.moments: dict[str, Moments] = {}
        self.forget()

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the activities of the module, for training or not, as it was set.

        Raises:
            ValueError: The module changed its input, which others still read.
        """
        parts = x if isinstance(x, tuple) else (x,)
        # Tensors of torch.inference_mode do not count their changes.
        counted = [part for part in parts if not part.is_inference()]
        versions = [part._version for part in counted]
        activities: Tensor = self.module(x)
        if [part._version for part in counted] != versions:
            raise ValueError(
                f"The module {type(self.module).__name__} changes its input in place, which other "
                f"blocks and later epochs read too. Let its first operation make a new tensor "
                f"(inplace=False)."
            )
        return activities

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that learn, by name; frozen ones are left out."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def forget(self) -> None:
        """Put the optimiser back to its state before the first step.

        Until a step begins, that state is shapes in no memory.
        """
        self.moments = {
            name: {
                part: tensor.to("meta")
                for part, tensor in self.optimizer.moments(p.detach().to("meta")).items()
            }
            for name, p in self.trained()
        }

    def begin(self) -> None:
        """Have the optimiser's state, that before the first step where there is none."""
        if any(tensor.is_meta for parts in self.moments.values() for tensor in parts.values()):
            self.moments = {name: self.optimizer.moments(p.detach()) for name, p in self.trained()}

    @property
    def is_released(self) -> bool:
        """Whether the weights are in no memory, see `release`."""
        arrays = [t for t in self.state_dict().values() if t.numel() > 1]
        return bool(arrays) and not any(any(t.stride()) for t in arrays)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and buffers."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def release(self) -> None:
        """Let go of weights that come from elsewhere before they are needed: NaN, in no memory."""
        # First, while the weights have strides that the moments follow.
        self.forget()
        for tensor in self.state_dict(keep_vars=True).values():
            nothing = math.nan if tensor.is_floating_point() else 0
            tensor.data = tensor.detach().new_full((), nothing).expand(tensor.shape)

    def autocast(self) -> torch.autocast:
        """Return the context in which the block computes: bf16 products where it is set so."""
        device = next((p.device.type for p in self.parameters()), "cpu")
        return torch.autocast(device, torch.bfloat16, enabled=self.precision is torch.bfloat16)

    @torch.no_grad()
    def infer(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Pass rows through without training: running statistics and weights stay as they are."""
        self.eval()
        with self.autocast():
            return self(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def scores(self, activities: Tensor) -> Tensor:
        """Return the objective's scores: a row of class scores a row, or one goodness a row."""
        self.eval()
        with self.autocast():
            scores: Tensor = self.objective.scores(activities)
        return scores

    def shipped(self) -> dict[str, Tensor]:
        """Return what inference needs, by name: weights, buffers, and the head if there is one."""
        state = self.state_dict()
        if self.objective.ships:
            return state
        return {name: t for name, t in state.items() if not name.startswith("objective.")}


@dataclass(slots=True)
class StepReport:
    """What one step, or several added up, told about a block."""

    rows: int
    """Number of rows in the sums, of all views that were learned from."""

    sums: Tensor
    """Sums over the rows of loss, accuracy and goodness gap."""

    active: Tensor
    """Units that were active in at least one row."""

    def add(self, other: "StepReport") -> "StepReport":
        """Add the figures of another step, in place, and return the sum."""
        self.rows += other.rows
        self.sums += other.sums
        self.active |= other.active
        return self
