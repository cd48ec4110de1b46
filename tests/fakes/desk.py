"""A desk and an outbox in memory, for the Slack layer alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from actions.approval import Act, Code, Refusal
from actions.errors import UserError
from bot.ports import Kind, Outgoing, ReplyTo, Watched, Who
from bot.router import Command
from bot.services.cards import IncidentCard, PlanCard


@dataclass
class MemoryDesk:
    """Records what arrives; `problem` is raised by the next calls, `slow` delays storing."""

    cards: dict[str, PlanCard] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    payloads: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    asked: list[tuple[Who, Command, ReplyTo]] = field(default_factory=list)
    signed: list[dict[str, Any]] = field(default_factory=list)
    turned_away: list[tuple[str, str]] = field(default_factory=list)
    recommended: list[tuple[str | None, str, bool]] = field(default_factory=list)
    impacts: list[str | None] = field(default_factory=list)  # what each recommendation was to be from before
    pinned: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    turns: list[Who] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    watching: Watched = field(default_factory=Watched)
    noted: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    limit: int | None = None
    requester: str = "U0ANA"
    problem: Exception | None = None
    store_problem: Exception | None = None

    async def until(self, happened: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait until a call made it true."""
        async with asyncio.timeout(seconds):
            while not happened():
                self._news.clear()
                await self._news.wait()

    def __post_init__(self) -> None:
        self._news = asyncio.Event()

    async def store(self, key: str, kind: str, payload: Mapping[str, Any]) -> bool:
        if self.store_problem is not None:
            raise self.store_problem
        fresh = key not in self.stored
        self.stored.setdefault(key, kind)
        self.payloads.setdefault(key, payload)
        return fresh

    async def replayed(self, key: str) -> bool:
        return not await self.store(key, "http", {}) and key in self.finished

    async def take_turn(self, who: Who) -> None:
        self.turns.append(who)
        if self.limit is not None and len(self.turns) > self.limit:
            await self.turn_away(who, "rate_limited", "You have asked too often. Try again at 12:00:00 UTC.")

    async def turn_away(self, who: Who, code: str, text: str) -> None:
        self.refusals.append((who.slack_user, code))
        self._news.set()
        raise UserError(text)

    async def finish(self, key: str) -> None:
        self.finished.add(key)

    async def unfinished(self, kind: str) -> Sequence[tuple[str, Mapping[str, Any]]]:
        open_ones = [key for key, stored in self.stored.items() if stored == kind and key not in self.finished]
        return [(key, self.payloads[key]) for key in open_ones]

    async def ask(self, who: Who, command: Command, *, reply: ReplyTo, key: str | None = None) -> int | None:
        self._raise()
        self.asked.append((who, command, reply))
        self._news.set()
        return len(self.asked)

    async def sign(
        self,
        who: Who,
        token: str,
        *,
        act: Act,
        digest: str,
        typed: str,
        reason: str,
        channel: str,
        ts: str,
        key: str | None = None,
    ) -> str:
        self._raise()
        if key is None or key not in self.stored:
            raise AssertionError("signed without a stored click")
        self.signed.append(
            {"user": who.slack_user, "token": token, "act": act, "digest": digest, "typed": typed, "reason": reason}
            | {"channel": channel, "ts": ts}
        )
        return "Your signature is recorded."

    async def may_sign(self, who: Who, token: str) -> None:
        if who.slack_user == self.requester:
            text = "Your request is already your signature."
            await self.refuse_account(who, token, Refusal(code=Code.SELF_APPROVAL, text=text))

    async def refuse_account(self, who: Who, token: str, refusal: Refusal) -> None:
        self.turned_away.append((who.slack_user, token))
        raise UserError(refusal.text)

    async def watched(self) -> Watched:
        return self.watching

    async def note_account(self, account: str, *, problem: str, groups: Sequence[str]) -> None:
        self.noted[account] = (problem, tuple(groups))
        self._news.set()

    async def plan_card(self, token: str, who: Who | None = None) -> PlanCard:
        if token not in self.cards:
            raise UserError("This button belongs to no plan.")
        return self.cards[token]

    async def pressed(self, who: Who, token: str, *, channel: str, ts: str) -> PlanCard:
        return await self.plan_card(token, who)

    async def recommend(
        self, who: Who, database: str | None, view_id: str, *, alternatives: bool = False, before: str | None = None
    ) -> None:
        self._raise()
        self.recommended.append((database, view_id, alternatives))
        self.impacts.append(before)
        self._news.set()

    async def pin(
        self, who: Who, *, channel: str, ts: str, text: str, author: str, permalink: str | None, occurred_at: datetime
    ) -> None:
        self._raise()
        values = {"text": text, "author": author, "permalink": permalink, "occurred_at": occurred_at}
        self.pinned.setdefault((channel, ts), values)
        self._news.set()

    def _raise(self) -> None:
        if self.problem is not None:
            raise self.problem


@dataclass
class MemoryOutbox:
    """Rows in memory; lends each until it is settled, as the real one does."""

    cards: dict[tuple[str, str], PlanCard | IncidentCard] = field(default_factory=dict)
    rows: dict[int, Outgoing] = field(default_factory=dict)
    settled: dict[int, str | None] = field(default_factory=dict)
    dead: dict[int, str] = field(default_factory=dict)
    delays: list[tuple[int, timedelta]] = field(default_factory=list)
    places: dict[tuple[str, str, str], str] = field(default_factory=dict)
    refusals: list[tuple[int, str]] = field(default_factory=list)
    reads: int = 0

    def __post_init__(self) -> None:
        self._lent: set[int] = set()
        self._news = asyncio.Event()

    def add(self, kind: Kind, channel: str, *, ref: str = "", **payload: Any) -> int:
        number = len(self.rows) + 1
        self.rows[number] = Outgoing(id=number, kind=kind, channel=channel, ref=ref, payload=payload)
        self._news.set()
        return number

    def retry(self) -> None:
        """Make every row that was given back due at once."""
        self._lent.clear()
        self._news.set()

    async def due(self, limit: int) -> Sequence[Outgoing]:
        over = {*self._lent, *self.settled, *self.dead}
        found = [row for number, row in self.rows.items() if number not in over][:limit]
        self._lent |= {row.id for row in found}
        return found

    async def sent(self, row: int, ts: str | None, *, channel: str | None = None) -> None:
        assert row not in self.settled, f"row {row} was sent twice"
        self.settled[row] = ts
        held = self.rows[row]
        if ts is not None and held.kind in (Kind.PLAN, Kind.INCIDENT):
            self.places[held.kind, held.ref, channel or held.channel] = ts

    async def failed(self, row: int, error: str, retry_after: timedelta | None) -> None:
        if retry_after is None:
            self.dead[row] = error
            return
        held = self.rows[row]
        self.rows[row] = held.model_copy(update={"attempts": held.attempts + 1})
        self.delays.append((row, retry_after))

    async def refused(self, row: Outgoing, refusal: Refusal) -> None:
        self.dead[row.id] = refusal.text
        self.refusals.append((row.id, refusal.code))

    async def card(self, kind: Kind, ref: str) -> PlanCard | IncidentCard:
        self.reads += 1
        if (kind, ref) not in self.cards:
            raise UserError(f"There is no {kind} `{ref}`.")
        return self.cards[kind, ref]

    async def message_ts(self, kind: Kind, ref: str, channel: str) -> str | None:
        return self.places.get((kind, ref, channel))

    async def wait(self, timeout: float) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            return
