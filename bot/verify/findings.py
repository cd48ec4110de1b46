"""What a verification says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class Tampering(StrEnum):
    """What was done to the record, as far as it can be told apart."""

    EDITED = "edited entry"
    REORDERED = "reordered entries"
    DELETED = "deleted entry"
    INSERTED = "inserted entry"
    TRUNCATED = "truncated tail"
    REBUILT = "rebuilt log"
    REWRITTEN = "rewritten part"  # a witness has only the root of that part
    FORGED = "forged checkpoint"
    GIVEN_UP = "given up past"  # an epoch began with another past, and nobody here says that this is right
    MISSING = "missing entry"  # something happened, or is stored, that the log does not have


@dataclass(frozen=True, order=True)
class Bad:
    """One thing that is wrong. `position` is that of the first bad entry, from 0; -1 where there is none."""

    position: int
    kind: Tampering
    text: str


@dataclass
class Verdict:
    """All that was found, and what a reader should know besides."""

    entries: int = 0
    witnessed: int = 0  # entries that a checkpoint of a witness covers
    bad: list[Bad] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.bad

    @property
    def first(self) -> Bad | None:
        """The first bad entry; what concerns none comes last."""
        return min(self.bad, key=lambda item: (item.position < 0, item), default=None)

    def found(self, kind: Tampering, text: str, *, position: int = -1) -> None:
        """Add something wrong, once for each position."""
        if position < 0 or all(item.position != position for item in self.bad):
            self.bad.append(Bad(position, kind, text))

    def lines(self) -> Iterable[str]:
        """The verdict for people, the first bad entry first."""
        yield f"{self.entries} entries; witnesses cover {self.witnessed}."
        yield from self.notes
        if self.good:
            yield "GOOD: nothing was edited, reordered, removed or added."
            return
        first = self.first
        if first is not None:
            yield f"BAD: {first.kind}: {first.text}"
        rest = [item for item in self.bad if item is not first]
        for item in sorted(rest)[:20]:
            yield f"  also {item.kind}: {item.text}"
        if len(rest) > 20:
            yield f"  and {len(rest) - 20} more"
