"""The batch: what travels from the data file to the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onward.devices import brought
from onward.errors import SettingError

CHUNK_SAMPLES = 500
"""Samples of a forward pass that does not train. Rounding depends on it, so it is the same wherever
a pass is made."""

Tensors = Tensor | dict[str, Tensor]
"""One tensor, or several by name; samples first."""


def parts(tensors: Tensors) -> list[Tensor]:
    """Return the tensors of one or several, in order."""
    return [tensors] if isinstance(tensors, Tensor) else list(tensors.values())


def mapped(work: Callable[[Tensor], Tensor], tensors: Tensors) -> Tensors:
    """Do something with one tensor, or with each of several."""
    if isinstance(tensors, Tensor):
        return work(tensors)
    return {name: work(tensor) for name, tensor in tensors.items()}


def laid_out(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return a tensor as it lies in memory in a format: images channels last, all else row by row.

    Example:
        >>> laid_out(torch.zeros(2, 3, 4, 5), torch.channels_last).stride()
        (60, 1, 15, 3)
    """
    if tensor.ndim != 4:
        return tensor.contiguous()
    tensor = tensor.contiguous(memory_format=memory_format)
    _, channels, height, width = tensor.shape
    places = height * width
    strides = (channels * places, places, width, 1)
    if memory_format is torch.channels_last:
        strides = (channels * places, 1, width * channels, channels)
    # An axis of one may have any stride, and torch takes it for a sign of the format.
    return tensor if tensor.stride() == strides else tensor.as_strided(tensor.shape, strides)


def empty(samples: int, like: Tensor) -> Tensor:
    """Return room for samples, laid out in memory as others are."""
    is_last = like.ndim == 4 and like.stride()[1] == 1 and not like.is_contiguous()
    memory_format = torch.channels_last if is_last else torch.contiguous_format
    shape = (samples, *like.shape[1:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def named(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return tensors by name: the prefix, or the prefix and the name of each.

    Example:
        >>> list(named({"left": torch.zeros(1), "right": torch.zeros(1)}, "2"))
        ['2.left', '2.right']
    """
    if isinstance(tensors, Tensor):
        return {prefix: tensors}
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, and all that is known of them.

    Inputs keep the type of the file: token ids stay integers. A batch with a `structure` (the edges
    of a graph) is one whole: taking samples of it moves `index` and leaves the rest as it is.

    Example:
        >>> batch = Batch(torch.eye(3), {"label": torch.tensor([0, 1, 2])})
        >>> batch.take(torch.tensor([2, 0])).label
        tensor([2, 0])
    """

    inputs: Tensors
    """What a network sees: a tensor, or several by name, of any type, samples first."""

    targets: Mapping[str, Tensor] = field(default_factory=dict)
    """What objectives compare with, by name, samples first. The class of a sample is `label`."""

    ids: Int[Tensor, " samples"] | None = None
    """Number of each sample in the data set."""

    weights: Float[Tensor, " samples"] | None = None
    """How much each sample counts in a loss; None where all count the same."""

    structure: Mapping[str, Tensor] = field(default_factory=dict)
    """What belongs to the batch as a whole, by name, such as the edges of a graph."""

    index: Int[Tensor, " counted"] | None = None
    """Numbers of the samples that count in losses and accuracies; None: all."""

    context: Mapping[str, Tensor] = field(default_factory=dict)
    """Outputs of other blocks that the objective alone sees, by name, samples first."""

    def __post_init__(self) -> None:
        """Refuse what does not belong to the same samples.

        Raises:
            ValueError: A target, ids or weights are of another number of samples, or ids or weights
                are no vector.
        """
        if not isinstance(self.inputs, Tensor | dict):
            raise TypeError(
                f"The inputs of a batch are a tensor, or a dict of tensors by name; got "
                f"{type(self.inputs).__name__}."
            )
        for name, tensor in (("ids", self.ids), ("weights", self.weights)):
            if tensor is not None and tensor.ndim != 1:
                raise ValueError(
                    f"The {name} of a batch are one number a sample, of shape ({len(self)},); got "
                    f"shape {tuple(tensor.shape)}. Give {name}.reshape(-1)."
                )
        beside = {**self.targets, "ids": self.ids, "weights": self.weights}
        for name, tensor in beside.items():
            if tensor is not None and tensor.shape[0] != len(self):
                raise ValueError(
                    f"The batch has {len(self)} samples, and {name} is of {tensor.shape[0]}."
                )

    def __len__(self) -> int:
        """Return the number of samples."""
        first = parts(self.inputs)[0]
        # Not `len`, which an export would take for a constant.
        return first.shape[0]

    @property
    def num_counted(self) -> int:
        """The number of samples that count."""
        return len(self) if self.index is None else len(self.index)

    @property
    def label(self) -> Int[Tensor, " samples"]:
        """The class of each sample.

        Raises:
            SettingError: They have none.
        """
        if "label" not in self.targets:
            others = f", but {', '.join(self.targets)}" if self.targets else ""
            raise SettingError(
                f"The classes of samples are asked for (batch.label), and these have none{others}: "
                f"the data have no target called `label`, or a stage does not see it "
                f"(ow.Stage(sees_labels=False))."
            )
        return self.targets["label"]

    @property
    def tensor(self) -> Tensor:
        """The inputs, of a batch that has one tensor.

        Raises:
            TypeError: It has several.
        """
        if isinstance(self.inputs, Tensor):
            return self.inputs
        raise TypeError(f"The inputs are {', '.join(self.inputs)}, and one tensor is needed here.")

    @property
    def counted(self) -> "Batch":
        """The samples that count, without the structure of the whole."""
        if self.index is None:
            return self
        return replace(self, structure={}, index=None).take(self.index)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return parts(self.inputs)[0].device

    @property
    def is_plain(self) -> bool:
        """Whether it is one tensor whose samples all count, and count the same."""
        has_more = self.structure or self.context or self.index is not None
        return isinstance(self.inputs, Tensor) and self.weights is None and not has_more

    def take(self, samples: Int[Tensor, " chosen"] | slice) -> "Batch":
        """Return some samples; of a batch with a structure, all of it, where only these count."""
        if self.structure:
            chosen = torch.arange(len(self), device=self.device)[samples]
            counts = torch.isin(chosen, self.index) if self.index is not None else slice(None)
            return replace(self, index=chosen[counts])
        index = None
        if self.index is not None:
            counts = torch.zeros(len(self), dtype=torch.bool, device=self.device)
            counts[self.index] = True
            index = counts[samples].nonzero().squeeze(1)
        return Batch(
            mapped(lambda tensor: tensor[samples], self.inputs),
            {name: target[samples] for name, target in self.targets.items()},
            None if self.ids is None else self.ids[samples],
            None if self.weights is None else self.weights[samples],
            index=index,
            context={name: tensor[samples] for name, tensor in self.context.items()},
        )

    def replace(self, **changes: object) -> "Batch":
        """Return a copy with other inputs, targets and so on."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def with_targets(self, **targets: Tensor) -> "Batch":
        """Return a copy with more targets."""
        return replace(self, targets={**self.targets, **targets})

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device, itself where it lies there."""
        before = self.tensors()
        moved = {name: brought(tensor, device) for name, tensor in before.items()}
        is_there = all(moved[name] is tensor for name, tensor in before.items())
        return self if is_there else Batch.from_tensors(moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it as named tensors, for `from_tensors`."""
        found = named(self.inputs, "inputs")
        for name in ("ids", "weights", "index"):
            tensor = getattr(self, name)
            if tensor is not None:
                found[name] = tensor
        for name in ("targets", "structure", "context"):
            found |= {f"{name}.{key}": tensor for key, tensor in getattr(self, name).items()}
        return found

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "Batch":
        """Return the batch that `tensors` has taken apart.

        Example:
            >>> batch = Batch({"a": torch.ones(2, 1)}, {"label": torch.tensor([0, 1])})
            >>> Batch.from_tensors(batch.tensors()).inputs
            {'a': tensor([[1.],
                    [1.]])}
        """

        def inside(group: str) -> dict[str, Tensor]:
            prefix = f"{group}."
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        return Batch(
            tensors["inputs"] if "inputs" in tensors else inside("inputs"),
            inside("targets"),
            tensors.get("ids"),
            tensors.get("weights"),
            inside("structure"),
            tensors.get("index"),
            inside("context"),
        )


def joined(batches: Sequence[Batch]) -> Batch:
    """Return batches without a structure as one, one after the other.

    Example:
        >>> batch = Batch(torch.eye(2), {"label": torch.tensor([0, 1])})
        >>> joined([batch, batch]).label
        tensor([0, 1, 0, 1])
    """
    if len(batches) == 1:
        return batches[0]
    each = [batch.tensors() for batch in batches]
    for tensors in each:
        tensors.pop("index", None)
    if any(tensors.keys() != each[0].keys() for tensors in each):
        names = sorted({", ".join(tensors) for tensors in each})
        raise SettingError(f"Mini-batches hold different tensors: {'; '.join(names)}.")
    found = Batch.from_tensors({n: torch.cat([tensors[n] for tensors in each]) for n in each[0]})
    if all(batch.index is None for batch in batches):
        return found
    counts, first = [], 0
    for batch in batches:
        own = batch.index
        own = torch.arange(len(batch), device=batch.device) if own is None else own
        counts.append(own + first)
        first += len(batch)
    return found.replace(index=torch.cat(counts))


def concatenated(several: list[Tensors]) -> Tensors:
    """Return tensors of several batches one after the other, without a copy where there is one."""
    first = several[0]
    if len(several) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat([tensor for tensor in several if isinstance(tensor, Tensor)])
    return {name: torch.cat([dict(t)[name] for t in several]) for name in first}


def in_chunks(batch: Batch, size: int | None = None) -> list[Batch]:
    """Return a batch in parts of `CHUNK_SAMPLES` or another size; one with a structure as one."""
    if batch.structure:
        return [batch]
    size = size or CHUNK_SAMPLES
    starts = range(0, max(len(batch), 1), size)
    return [batch.take(slice(start, start + size)) for start in starts]
