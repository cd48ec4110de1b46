"""How often one person may ask. Generous: it stops a stuck key and a stolen account, never a busy operator.

Signatures are not counted: nothing may keep a person from approving or denying a plan that waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta

TURNS = 60
WITHIN = timedelta(minutes=1)
REMEMBERED = 10_000
"""Accounts held in memory. Whoever was longest silent is forgotten first."""


@dataclass(frozen=True)
class Wait:
    """No turn before `until`. `first` in a row, so that a flood is told once and not a thousand times."""

    until: datetime
    first: bool


@dataclass
class _Visits:
    at: deque[datetime] = field(default_factory=deque)
    refused: bool = False


class RateLimits:
    """The turns of every account in the last while, in the memory of one process. Those of the roster are counted over
    all processes as well (`storage.visits`)."""

    def __init__(self, *, turns: int = TURNS, within: timedelta = WITHIN) -> None:
        self.turns = turns
        self.within = within
        self._visits: OrderedDict[str, _Visits] = OrderedDict()

    def take(self, account: str, now: datetime) -> Wait | None:
        """Take a turn. None when it is granted."""
        visits = self._visits.setdefault(account, _Visits())
        self._visits.move_to_end(account)
        while len(self._visits) > REMEMBERED:
            self._visits.popitem(last=False)
        while visits.at and visits.at[0] <= now - self.within:
            visits.at.popleft()
        if len(visits.at) < self.turns:
            visits.at.append(now)
            visits.refused = False
            return None
        first, visits.refused = not visits.refused, True
        return Wait(until=visits.at[0] + self.within, first=first)
