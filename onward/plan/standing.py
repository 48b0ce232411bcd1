"""Which chapter was the best so far on validation samples, and where training ends."""

from collections.abc import Sequence
from typing import NamedTuple

NEVER = 1 << 40
"""A chapter that no run reaches."""


class Standing(NamedTuple):
    """What the validations so far have shown."""

    best: int
    """Chapter that validated best, the first of several; -1 before any."""

    merit: int
    """How well: see `Evaluation.merit`."""

    since: int
    """Validations after that."""

    end: int
    """The first chapter that is not trained, and leaves all weights as they are; `NEVER` until a
    validation has decided on one."""

    @classmethod
    def of(cls, counts: Sequence[float]) -> "Standing":
        """Return the standing that counts of validation samples end with."""
        return cls(*(int(figure) for figure in counts[-len(cls._fields) :]))

    def after(self, chapter: int, merit: int, patience: int | None, age: int) -> "Standing":
        """Return the standing after another validation.

        Args:
            chapter: The chapter whose weights were validated.
            merit: How well they did.
            patience: Validations without a better one after which training stops. None: it does
                not.
            age: Chapters from that validation to the first that is not trained.

        Example:
            >>> first = Standing(best=-1, merit=-1, since=0, end=NEVER)
            >>> first.after(0, 90, patience=1, age=1).after(1, 88, patience=1, age=1)
            Standing(best=0, merit=90, since=1, end=2)
        """
        if merit > self.merit:
            return Standing(chapter, merit, 0, self.end)
        since = self.since + 1
        stops = patience is not None and since >= patience
        return self._replace(since=since, end=min(self.end, chapter + age) if stops else self.end)
