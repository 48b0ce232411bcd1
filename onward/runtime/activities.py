"""Activities: what the blocks of a chapter put out for the samples of a segment.

Samples go through frozen blocks in portions. Where epochs see the same samples, there is one
portion: all samples of the segment in ascending order, of which mini-batches take any. Where
samples are augmented, a portion is some mini-batches in the order in which they are learned from.
The plan alone decides the portions, so that rounding does not depend on who passes them.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from onward.batch import Batch, mapped, parts
from onward.engine.team import Alone, Team
from onward.network.blocks import gathered
from onward.network.samplers import Views
from onward.plan.tasks import INPUT
from onward.runtime.holding import HOLDS, Hold, in_memory
from onward.runtime.passing import pass_through
from onward.runtime.workers import Worker


class Activities:
    """The samples of a segment on their way through the blocks, for all blocks of a chapter.

    Args:
        worker: Has the blocks.
        chapter: The chapter.
        samples: Samples of each portion.
        first: Returns a portion as the network begins with it, by view.
        is_neutral: Whether heads learn from these samples, and not the blocks of the line.
    """

    def __init__(
        self,
        worker: Worker,
        chapter: int,
        samples: Sequence[int],
        first: Callable[[int], Views],
        *,
        is_neutral: bool,
    ) -> None:
        self.worker, self.chapter, self.is_neutral = worker, chapter, is_neutral
        self.samples, self.portions, self.first = samples, len(samples), first
        # Ranks of a team do not share what a head reads: it is small.
        self.team = Alone() if is_neutral else worker.team
        self.known: dict[int, list[Views]] = {}
        """What each block puts out, by portion."""

    def pass_to(self, block: int) -> None:
        """Pass all samples through the blocks below, where what they put out is held.

        Parts of a structure are not: each has a size of its own.
        """
        if self.worker.takes_parts:
            return
        if self.worker.way != "again" or self.portions == 1:
            self._pass_to(block, block)

    def _pass_to(self, block: int, goal: int) -> None:
        for source in self.worker.plan.sources(block):
            if source not in self.known:
                self._pass_to(source, goal)
                with self.worker.recorder.span("forward", f"{source}P{self.chapter}"):
                    self.known[source] = self._passed(source)
                self._forget(goal)

    def read(self, block: int, portion: int) -> Views:
        """Return a portion as a block reads it, by view."""
        return self._read(block, portion, {n: each[portion] for n, each in self.known.items()})

    def _read(self, block: int, portion: int, found: dict[int, Views]) -> Views:
        """See `read`; what is found of this portion on the way is added to what is known."""
        reads = []
        for edge in self.worker.network.edges[block]:
            source = INPUT if isinstance(edge.source, str) else edge.source
            if source not in found and source == INPUT:
                found[INPUT] = self.first(portion)
                if self.portions == 1 and not self.worker.takes_parts:
                    self.known[INPUT] = [found[INPUT]]
            elif source not in found:
                views = self._read(source, portion, found)
                outputs = self._through(source, views, Alone(), in_memory)
                found[source] = self.worker.handed_on(views, outputs)
            reads.append((edge, found[source]))
        like = reads[0][1]
        return {
            name: gathered([(edge, views[name].inputs) for edge, views in reads], like[name])
            for name in like
        }

    def _passed(self, number: int) -> list[Views]:
        """Return what a block puts out, by portion, held as it is to be."""
        hold = HOLDS.get(self.worker.way, in_memory)
        if self.portions == 1:
            views = self.read(number, 0)
            outputs = self._through(number, views, self.team, hold)
            return [self.worker.handed_on(views, outputs)]
        held: list[list[Tensor]] = []
        found: list[Views] = []
        for start in range(0, self.portions, self.team.size):
            # One portion for each rank of the team.
            numbers = range(start, min(start + self.team.size, self.portions))
            several = [self.read(number, portion) for portion in numbers]
            for portion, views, outputs in zip(
                numbers, several, self._shared(number, several), strict=True
            ):
                tensors = _tensors(outputs)
                held = held or [hold(self.samples, tensor) for tensor in tensors]
                places = [places[portion].copy_(t) for places, t in zip(held, tensors, strict=True)]
                found.append(self.worker.handed_on(views, _like(outputs, places)))
        return found

    def _shared(self, number: int, several: Sequence[Views]) -> list[dict[str, Batch]]:
        """Pass several portions through a block, each on another rank of the team."""
        team, has_own = self.team, self.team.index < len(several)
        # A rank without a portion passes another's, to know what they will send.
        found = self._through(number, several[team.index if has_own else 0], Alone(), in_memory)
        own = [t if has_own else t[:0] for t in _tensors(found)]
        samples = [len(next(iter(views.values()))) for views in several]
        samples += [0] * (team.size - len(several))
        layouts = [[t.new_empty(n, *t.shape[1:]) for t in own] for n in samples]
        every = team.all_gather(own, layouts)[: len(several)]
        return [_like(found, tensors) for tensors in every]

    def _through(self, number: int, views: Views, team: Team, hold: Hold) -> dict[str, Batch]:
        """Pass the views that go on through a block."""
        # In their order, which ranks that share the work agree on.
        passing = dict.fromkeys(map(self.worker.continued, views))
        block = self.worker.blocks[number]
        return {name: pass_through(block, views[name], team, hold) for name in passing}

    def _forget(self, goal: int) -> None:
        """Let go of outputs that neither a block of the chapter reads nor one on the way to it."""
        plan, known = self.worker.plan, self.known
        # Heads read neutral samples, and others what the sampler makes.
        line = range(plan.num_blocks)
        reading = {*plan.heads, *plan.below_heads} if self.is_neutral else set(line)
        below = plan.below[goal]
        for source in list(known):
            readers = [b for b in reading if (source, 0) in plan.nodes[b].reads]
            if not any(b >= goal or (b in below and b not in known) for b in readers):
                del known[source]


def _tensors(found: dict[str, Batch]) -> list[Tensor]:
    """Return the inputs of batches."""
    return [tensor for out in found.values() for tensor in parts(out.inputs)]


def _like(found: dict[str, Batch], tensors: Sequence[Tensor]) -> dict[str, Batch]:
    """Return tensors as the inputs of batches like these."""
    rest = iter(tensors)
    return {n: Batch(mapped(lambda _: next(rest), out.inputs)) for n, out in found.items()}
