"""Passes samples through blocks in chunks, which the ranks of a team share."""

from collections.abc import Callable, Sequence

from torch import Tensor

from onward.batch import CHUNK_SAMPLES, Batch, Tensors, mapped, parts
from onward.engine.team import Alone, Team
from onward.network.blocks import Block
from onward.runtime.holding import Hold, in_memory


def pass_through(
    block: Block, batch: Batch, team: Team | None = None, hold: Hold = in_memory
) -> Batch:
    """Pass samples through a block in chunks, without training it."""
    if batch.structure:
        return block.infer(batch)
    outputs = in_chunks(
        len(batch), lambda part: block.infer(batch.take(part)).inputs, team or Alone(), hold
    )
    return batch.replace(inputs=outputs, context={})


def in_chunks(
    samples: int, work: Callable[[slice], Tensors], team: Team, hold: Hold = in_memory
) -> Tensors:
    """Do something with samples, chunk by chunk, and join what it yields.

    Chunks of `CHUNK_SAMPLES` are assigned to the ranks of a team, each of which gets all results.

    Args:
        samples: Number of samples.
        work: Returns a row for each sample of a chunk.
        team: Who shares the work.
        hold: Makes room for the results.
    """
    firsts = range(0, samples, CHUNK_SAMPLES)

    def bounds(member: int) -> range:
        chunks = firsts[member * len(firsts) // team.size : (member + 1) * len(firsts) // team.size]
        return range(chunks[0], min(chunks[-1] + CHUNK_SAMPLES, samples)) if chunks else range(0)

    own = bounds(team.index)
    # A rank without a chunk looks at a sample, to know what others will send.
    first = work(slice(own.start, min(own.start + CHUNK_SAMPLES, own.stop)) if own else slice(0, 1))
    found = mapped(lambda tensor: hold([samples], tensor)[0], first)

    def put(start: int, tensors: Tensors) -> None:
        for target, tensor in zip(parts(found), parts(tensors), strict=True):
            target[start : start + len(tensor)] = tensor

    if own:
        put(own.start, first)
    for start in own[CHUNK_SAMPLES::CHUNK_SAMPLES]:
        put(start, work(slice(start, min(start + CHUNK_SAMPLES, own.stop))))
    if team.size > 1:
        every = [bounds(member) for member in range(team.size)]
        layouts: list[Sequence[Tensor]] = [
            [tensor[r.start : r.stop] for tensor in parts(found)] for r in every
        ]
        sent = team.all_gather(layouts[team.index], layouts)
        for tensors, theirs in zip(sent, every, strict=True):
            if theirs != own:
                for target, tensor in zip(parts(found), tensors, strict=True):
                    target[theirs.start : theirs.stop] = tensor
    return found
