"""Activities: what the blocks of a chapter put out for the samples of a segment.

Samples go through frozen blocks in portions. Where epochs see the same samples, there is one
portion: all samples of the segment in ascending order, of which mini-batches take any. Where
samples are augmented, a portion is some mini-batches in the order in which they are learned from.
The plan alone decides the portions, so that rounding does not depend on who passes them.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from onward.batch import Batch, mapped, parts
from onward.blocks import gathered
from onward.plan.tasks import INPUT
from onward.runtime.workers import Worker, pass_through
from onward.samplers import Views
from onward.team import Alone, Team


class Activities:
    """The samples of a segment on their way through the blocks, for all blocks of a chapter.

    Args:
        worker: Has the blocks.
        chapter: The chapter.
        portions: Number of portions.
        first: Returns a portion as the network begins with it, by view.
        is_neutral: Whether heads learn from these samples, and not the blocks of the line.
    """

    def __init__(
        self,
        worker: Worker,
        chapter: int,
        portions: int,
        first: Callable[[int], Views],
        *,
        is_neutral: bool,
    ) -> None:
        self.worker, self.chapter, self.is_neutral = worker, chapter, is_neutral
        self.portions, self.first = portions, first
        # Ranks of a team do not share what a head reads: it is small.
        self.team = Alone() if is_neutral else worker.team
        self.known: dict[int, list[Views]] = {}
        """What each block puts out, by portion."""

    def pass_to(self, block: int) -> None:
        """Pass all samples through the blocks below, to `read` what they put out."""
        self._pass_to(block, block)

    def _pass_to(self, block: int, goal: int) -> None:
        for source in self.worker.plan.sources(block):
            if source not in self.known:
                self._pass_to(source, goal)
                with self.worker.recorder.span("forward", f"{source}P{self.chapter}"):
                    self.known[source] = list(self._passed(source))
                self._forget(goal)

    def read(self, block: int, portion: int) -> Views:
        """Return a portion as a block reads it, by view."""
        edges = self.worker.network.edges[block]
        outputs = {e.source: self._output(e.source, portion) for e in edges}
        like = outputs[edges[0].source]
        return {
            name: gathered([(e, outputs[e.source][name].inputs) for e in edges], like[name])
            for name in like
        }

    def _output(self, source: int | str, portion: int) -> Views:
        number = INPUT if isinstance(source, str) else source
        if number in self.known:
            return self.known[number][portion]
        assert number == INPUT
        views = self.first(portion)
        if self.portions == 1:
            self.known[INPUT] = [views]
        return views

    def _passed(self, number: int) -> Iterator[Views]:
        """Yield what a block puts out, by portion."""
        if self.portions == 1:
            views = self.read(number, 0)
            yield self.worker.handed_on(views, self._through(number, views, self.team))
            return
        for start in range(0, self.portions, self.team.size):
            # One portion for each rank of the team.
            numbers = range(start, min(start + self.team.size, self.portions))
            several = [self.read(number, portion) for portion in numbers]
            for views, outputs in zip(several, self._shared(number, several), strict=True):
                yield self.worker.handed_on(views, outputs)

    def _shared(self, number: int, several: Sequence[Views]) -> list[dict[str, Batch]]:
        """Pass several portions through a block, each on another rank of the team."""
        team, has_own = self.team, self.team.index < len(several)
        # A rank without a portion passes another's, to know what they will send.
        found = self._through(number, several[team.index if has_own else 0], Alone())
        own = [t if has_own else t[:0] for out in found.values() for t in parts(out.inputs)]
        rows = [len(next(iter(views.values()))) for views in several]
        rows += [0] * (team.size - len(several))
        layouts = [[t.new_empty(n, *t.shape[1:]) for t in own] for n in rows]
        every = team.all_gather(own, layouts)[: len(several)]
        return [_like(found, tensors) for tensors in every]

    def _through(self, number: int, views: Views, team: Team) -> dict[str, Batch]:
        """Pass the views that go on through a block."""
        # In their order, which ranks that share the work agree on.
        passing = dict.fromkeys(map(self.worker.continued, views))
        block = self.worker.blocks[number]
        return {name: pass_through(block, views[name], team) for name in passing}

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


def _like(found: dict[str, Batch], tensors: Sequence[Tensor]) -> dict[str, Batch]:
    """Return tensors as the inputs of batches like these."""
    rest = iter(tensors)
    return {n: Batch(mapped(lambda _: next(rest), out.inputs)) for n, out in found.items()}
