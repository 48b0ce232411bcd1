"""Networks: blocks, what each reads, what they see, and how classes are read off them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from onward.arguments import check_arguments
from onward.batch import Batch, Tensors, in_chunks, laid_out, mapped
from onward.data.inputs import InputTransformation
from onward.data.numbers import Numbers
from onward.data.preprocessing import Preprocessing
from onward.errors import SettingError
from onward.network.blocks import Block, Edge, device_of, gathered
from onward.network.readouts import Fold, Readout, Scores, is_head
from onward.network.samplers import Sampler
from onward.network.sweep import FirstPass, first_pass
from onward.network.trained_on import TrainedOn
from onward.network.wiring import (
    check_edges,
    check_parameters,
    check_readout,
    check_views,
    edges_of,
)


class Network(nn.Module):
    """Blocks, what they see, and how classes are read off them.

    Args:
        blocks: Each reads the one before it, unless it says otherwise (see `Block`).
        sampler: Makes the views of a batch.
        readout: Turns the blocks' scores into class scores; None for a network without classes.
        num_classes: Number of classes; 0 without.
        ticks: How often a mini-batch visits every block; more than once for recurrent networks.
        readouts: Other ways to read it, by name, which are reported beside the readout.
        preprocessing: What is done to samples after the input transformation, such as whitening.
        blueprint: What the network was built from, if by a recipe; it makes saved models
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
        readout: Readout | None,
        *,
        num_classes: int,
        ticks: int = 1,
        readouts: Mapping[str, Readout] | None = None,
        preprocessing: Preprocessing | None = None,
        blueprint: Any = None,
    ) -> None:
        super().__init__()
        check_arguments(Network.__init__, locals())
        if not len(blocks):
            raise SettingError("A network has one block or more; got none.")
        if ticks < 1:
            raise SettingError(f"A mini-batch visits the blocks once or more; got ticks={ticks}.")
        self.blocks = nn.ModuleList(blocks)
        self.sampler = sampler
        self.readout = readout
        self.num_classes = num_classes
        self.ticks = ticks
        self.readouts = dict(readouts or {})
        self.blueprint = blueprint
        self.class_names: tuple[str, ...] | None = None
        """Name of each class, from the data that it was trained on; None: classes are numbers."""
        self.trained_on: TrainedOn | None = None
        self.inputs = InputTransformation()
        self.preprocessing = preprocessing
        self.edges = tuple(edges_of(number, block) for number, block in enumerate(blocks))
        check_edges(self.all_blocks, self.edges)
        check_views(self.all_blocks, sampler)
        check_parameters(self.all_blocks)
        for each in (readout, *self.readouts.values()):
            if each is not None:
                check_readout(self.all_blocks, self.edges, ticks, sampler, each, num_classes)

    @property
    def all_blocks(self) -> list[Block]:
        """The blocks, heads included."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def line(self) -> list[Block]:
        """The blocks that learn from the sampler's views."""
        return [block for block in self.all_blocks if not is_head(block)]

    @property
    def head(self) -> Block | None:
        """The last block, where it is a head that learns from what inference sees."""
        last = self.all_blocks[-1]
        return last if is_head(last) else None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return device_of(self)

    def fold(self, readout: Readout | None = None) -> Fold:
        """Return how the scores of blocks become class scores, by its readout or another one.

        Raises:
            SettingError: There is none.
        """
        readout = readout or self.readout
        if readout is None:
            raise SettingError(
                "This network has no readout, and so names no classes. Give ow.Network a readout, "
                "or ask its blocks one by one."
            )
        return readout.fold(self.all_blocks, self.edges, self.ticks)

    @property
    def num_exits(self) -> int:
        """After how many visits of a block there are class scores; 0 without a readout."""
        return 0 if self.readout is None else len(self.fold().exits)

    @property
    def is_sweep(self) -> bool:
        """Whether its readout tries every label."""
        return self.readout is not None and self.readout.sweeps

    def transformed(self, batch: Batch, augment: Callable[[Batch], Batch] | None = None) -> Batch:
        """Return samples as samplers and blocks see them: scaled, standardized, preprocessed.

        Args:
            batch: The samples.
            augment: Changes those of a training mini-batch, before they are preprocessed.

        Returns:
            The samples, on the device of the network.
        """
        batch = batch.to(self.device)
        if isinstance(batch.inputs, Tensor):
            # Laid out before numbers take more bytes.
            batch = batch.replace(inputs=self.inputs(self._laid_out(batch.inputs)))
        if augment is not None:
            batch = augment(batch)
        if self.preprocessing is None or not isinstance(batch.inputs, Tensor):
            return batch
        inputs = self._laid_out(batch.inputs)
        version = None if inputs.is_inference() else inputs._version
        with torch.no_grad():
            found = self.preprocessing(inputs)
        if version is not None and inputs._version != version:
            raise SettingError(
                f"The preprocessing {type(self.preprocessing).__name__} changes samples in place, "
                f"which may be those of the data set. Let its first operation make a new tensor."
            )
        return batch.replace(inputs=found)

    def _laid_out(self, inputs: Tensor) -> Tensor:
        is_plain = self.memory_format is torch.contiguous_format
        return inputs if is_plain else laid_out(inputs, self.memory_format)

    def checked(self, x: Numbers | Batch, what: str = "x") -> Batch:
        """Return samples that a user asks about as a batch, see `InputTransformation.checked`."""
        built = None if self.blueprint is None else self.blueprint.data.input_shape
        return self.inputs.checked(x, what, is_exact=built is not None, built_for=built)

    def set_precision(self, precision: torch.dtype) -> None:
        """Choose the arithmetic of matrix products: `torch.float32` or `torch.bfloat16`."""
        for block in self.all_blocks:
            block.precision = precision

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and filters lie in memory."""
        return self.all_blocks[0].memory_format

    def set_memory_format(self, memory_format: torch.memory_format) -> None:
        """Choose how images and filters lie in memory, on which rounding depends.

        Args:
            memory_format: `torch.contiguous_format`, or `torch.channels_last`, which is faster for
                convolutions.
        """
        for block in self.all_blocks:
            block.set_memory_format(memory_format)

    def forward(self, x: Numbers | Batch) -> Float[Tensor, "samples classes"]:
        """Return the class scores of samples, those of `scores`; the largest names the class.

        This is inference: blocks are in eval mode, and no gradient flows, whether or not autograd
        is on. `torch.onnx.export` and `torch.export` take the network for this function, in fp32.

        Args:
            x: See `predict`.
        """
        if torch.compiler.is_exporting():
            with in_fp32(self):
                # In one chunk, since the number of samples may be left open.
                *_, scores = Forward(self, x if isinstance(x, Batch) else Batch(x))
            return scores
        return self.scores(x).network

    def predict_proba(self, x: Numbers | Batch) -> Float[Tensor, "samples classes"]:
        """Return probabilities of the classes: the softmax of the scores.

        How reliable they are depends on the readout:

        - `SoftmaxHead`: the probabilities that the head has learned to give.
        - `SumOfHeads` of `CrossEntropy`: the product of the heads' probabilities, normalized. This
          takes the heads for independent, which they are not, so several are overconfident.
        - `GoodnessSweep`: with the default slope (the number of units), the odds of positive
          against negative that each label's goodness stands for, multiplied over blocks, and
          normalized; overconfident for the same reason.

        The order of the classes is that of the scores. Look at held-out samples before you rely on
        the numbers.

        Args:
            x: See `predict`.
        """
        return self.forward(x).softmax(dim=1)

    @torch.no_grad()
    def scores(self, x: Numbers | Batch, readout: Readout | None = None) -> Scores:
        """Return the class scores of samples, in chunks of `CHUNK_SAMPLES`.

        Args:
            x: See `predict`.
            readout: Another readout than the network's own.
        """
        return self.scores_of(self.checked(x), readout)

    @torch.no_grad()
    def scores_of(self, batch: Batch, readout: Readout | None = None) -> Scores:
        """Return the class scores of samples that were checked before, see `scores`."""
        chunks = []
        for chunk in in_chunks(batch):
            forward = Forward(self, chunk, readout)
            *_, scores = forward
            own = tuple(forward.found) if forward.fold.is_own else ()
            chunks.append(Scores(scores, own))
        each = zip(*(chunk.blocks for chunk in chunks), strict=True)
        return Scores(
            torch.cat([chunk.network for chunk in chunks]), tuple(torch.cat(b) for b in each)
        )

    def predict(self, x: Numbers | Batch) -> Int[Tensor, " samples"] | NDArray[Any]:
        """Return the most likely class of each sample.

        Integers, or names if the network was trained on names (`class_names`).

        Args:
            x: Samples like those of the training: an array, a tensor or a batch; one sample alone
                counts as one. A network trained on uint8 takes uint8, or floats from 0 to 1.

        Raises:
            DataError: They have another shape, or values that are not finite.
        """
        return self.named(self.scores(x).network.argmax(dim=1))

    def named(self, labels: Int[Tensor, " samples"]) -> Int[Tensor, " samples"] | NDArray[Any]:
        """Return the names of classes, where the network knows some, else their numbers."""
        if self.class_names is None:
            return labels
        found: NDArray[Any] = np.array(self.class_names)[labels.cpu().numpy()]
        return found


@contextmanager
def in_fp32(network: Network) -> Iterator[None]:
    """Have a network compute in fp32 for a while, on images as they lie in memory."""
    before = [(block.precision, block.memory_format) for block in network.all_blocks]
    for block in network.all_blocks:
        block.precision, block.memory_format = torch.float32, torch.contiguous_format
    try:
        yield
    finally:
        for block, kept in zip(network.all_blocks, before, strict=True):
            block.precision, block.memory_format = kept


class Forward:
    """Samples on their way through a network, block by block, with class scores at each exit.

    Iterating goes to the end and yields the scores at each exit. `step`, `keep` and `drop` are for
    early exit. Blocks are shown inputs and structure alone: no target enters inference.

    Args:
        network: The network.
        batch: The samples, not transformed yet.
        readout: How it is read; None: by the network's own readout.
        shares: Whether a sweep computes what its labels have in common once, where it can.

    Raises:
        SettingError: There is no readout, or the sampler makes another number of candidates.
    """

    first: FirstPass | None = None
    """The first block of a sweep for all labels at once, where it has a product to share."""

    outputs: Batch | None = None
    """What the block of the last step has put out; None where no exit needs it."""

    def __init__(
        self, network: Network, batch: Batch, readout: Readout | None = None, *, shares: bool = True
    ) -> None:
        readout = readout or network.readout
        self.fold = network.fold(readout)
        assert readout is not None
        self.network, self.readout = network, readout
        self.blocks = network.all_blocks
        # What an objective alone reads is for its loss.
        self.reads = [[e for e in own if e.to == "module"] for own in network.edges]
        self.needed = _needed(self.fold, self.reads)
        # The last block that reads each source; over a delay, one that never comes.
        end, needed = len(self.blocks), self.needed
        readers = [(end if e.delay else n, e.source) for n in needed for e in self.reads[n]]
        self._last = {source: n for n, source in sorted(readers, key=lambda reader: reader[0])}
        # Not `len`, which an export would take for a constant.
        self.num_samples, self.visit, self.exit = batch.__len__(), 0, 0
        self.found: list[Tensor] = []
        batch = network.transformed(Batch(batch.inputs, structure=batch.structure))
        device = batch.device
        self.total = torch.zeros(self.num_samples, network.num_classes, device=device)
        if shares and readout.sweeps:
            self.first = self._shared(batch)
        self.seen = batch if self.first is not None else self.view(batch)
        # A pass is a sample, or a sample with a label; they stay in order of samples.
        each = network.sampler.num_candidates if readout.sweeps else 1
        more = self.seen.__len__() - self.num_samples * each
        # What passes through a structure, such as the nodes of a graph, may be other than samples.
        if self.first is None and more and not self.seen.structure:
            raise SettingError(
                f"The sampler {type(network.sampler).__name__} makes {len(self.seen)} candidates "
                f"of {self.num_samples} samples, and its num_candidates is {each}."
            )
        self.samples = torch.arange(self.num_samples, device=device).repeat_interleave(each)
        self.labels = torch.arange(each, device=device).repeat(self.num_samples)
        # Where these passes are among all that are passed along.
        self._places = torch.arange(self.samples.shape[0], device=device)
        self._now: dict[int, Tensors] = {}
        self._before: dict[int, Tensors] = {}

    def view(self, batch: Batch) -> Batch:
        """Return transformed samples as inference sees them: with every label, or with none."""
        sampler = self.network.sampler
        return sampler.candidates(batch) if self.readout.sweeps else sampler.neutral(batch)

    def _shared(self, batch: Batch) -> FirstPass | None:
        """Return the shared pass of the first block, where it alone reads the input, once."""
        readers = [n for n in self.needed if any(e.source == "input" for e in self.reads[n])]
        is_line = self.network.ticks == 1 and not any(e.delay for own in self.reads for e in own)
        if readers != [0] or len(self.reads[0]) > 1 or not is_line or not batch.is_plain:
            return None
        shape = tuple(batch.tensor.shape[1:])
        return first_pass(self.blocks[0], self.network.sampler, shape)

    @property
    def num_visits(self) -> int:
        """How many steps there are."""
        return self.fold.exits[-1] + 1

    def __iter__(self) -> Iterator[Tensor]:
        """Go to the end, and yield the class scores at each exit."""
        while self.visit < self.num_visits:
            scores = self.step()
            if scores is not None:
                yield scores

    @torch.no_grad()
    def step(self) -> Float[Tensor, "samples classes"] | None:
        """Go on to the next block; return the class scores where it is an exit."""
        number = self.visit % len(self.blocks)
        self.outputs = scores = None
        if number in self.needed:
            self.outputs = self.passed(number, self.source, self.seen)
            self._now[number] = self.outputs.inputs
            if self.visit in self.fold.exits:
                self.found.append(self.read(number, self.outputs))
                self.total, scores = self.fold.step(self.total, self.exit, self.found[-1])
                self.exit += 1
        self._forget(number)
        self.visit += 1
        if self.visit % len(self.blocks) == 0:
            self._before, self._now = self._now, {}
        return scores

    def passed(self, number: int, source: Callable[[Edge], Tensors], seen: Batch) -> Batch:
        """Return what a block puts out.

        Args:
            number: The block.
            source: Returns what comes over an edge.
            seen: What inference sees of the samples, see `view`; where `first` is shared, they
                themselves.
        """
        if number == 0 and self.first is not None:
            return Batch(self.first(seen))
        reads = [(edge, source(edge)) for edge in self.reads[number]]
        return self.blocks[number].infer(gathered(reads, seen))

    def source(self, edge: Edge) -> Tensors:
        """Return what comes over an edge; zeros where that is from before the first visit."""
        if edge.source == "input":
            return self.seen.inputs
        if edge.delay == 0:
            return self._now[edge.source]
        before = self._before.get(edge.source)
        return edge.zeros(self.seen) if before is None else before

    def read(self, number: int, outputs: Batch) -> Tensor:
        """Return what is found where a block is an exit, see `Fold.step`."""
        found = self.readout.scores(self.blocks, self.network.edges, number, outputs)
        wanted = () if self.readout.sweeps else (self.network.num_classes,)
        if tuple(found.shape[1:]) != wanted:
            raise SettingError(
                f"Block {number} scores samples with shape {tuple(found.shape[1:])}, and the "
                f"readout {type(self.readout).__name__} reads {wanted}: "
                + ("one goodness per sample." if self.readout.sweeps else "one score per class.")
            )
        if self.seen.structure:
            if len(found) < len(self._places):
                each = f"{len(found)} of {len(self._places)} samples and labels"
                raise SettingError(f"Block {number} scores {each}, and all need scores.")
            # Samples come before all others that have scores.
            found = found[self._places]
        if self.readout.sweeps:
            full = found.new_full((self.num_samples, self.network.num_classes), -torch.inf)
            full[self.samples, self.labels] = found
            found = full
        return found

    def _forget(self, number: int) -> None:
        """Let go of what no later block reads."""
        self._now = {n: t for n, t in self._now.items() if self._last.get(n, -1) > number}

    def keep(self, samples: Int[Tensor, " kept"]) -> None:
        """Go on with some of the samples, in ascending order."""
        place = torch.full((self.num_samples,), -1, device=samples.device)
        place[samples] = torch.arange(len(samples), device=samples.device)
        self._go_on_with(place[self.samples] >= 0)
        self.samples = place[self.samples]
        self.total, self.num_samples = self.total[samples], len(samples)

    def drop(self, stays: Bool[Tensor, "samples classes"]) -> None:
        """Go on with some of the labels of a sweep."""
        self._go_on_with(stays[self.samples, self.labels])

    def _go_on_with(self, passes: Bool[Tensor, " passes"]) -> None:
        if bool(passes.all()):
            return
        self.samples, self.labels = self.samples[passes], self.labels[passes]
        self._places = self._places[passes]
        if self.seen.structure:
            # Those that leave are still passed along, as neighbors of others.
            return
        for kept in (self._now, self._before):
            for number, tensors in kept.items():
                kept[number] = mapped(lambda tensor: tensor[passes], tensors)
        if self.first is None:
            self.seen = self.seen.take(passes.nonzero().squeeze(1))


def _needed(fold: Fold, edges: Sequence[Sequence[Edge]]) -> list[int]:
    """Return the blocks that exits ask, and those that these read."""
    needed: set[int] = set()
    wanted = [visit % len(edges) for visit in fold.exits]
    while wanted:
        number = wanted.pop()
        if number not in needed:
            needed.add(number)
            wanted += [e.source for e in edges[number] if isinstance(e.source, int)]
    return sorted(needed)
