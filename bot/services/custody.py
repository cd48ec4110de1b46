"""What happens to evidence: each event is a row of its chain and a line on the timeline of its incident, in one
transaction. Here is also how a chain is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from actions.contract import JournalState, Kept, Report, Step
from actions.errors import UserError
from actions.steps.phrases import moment
from bot.services.cards import CustodyLine, EvidenceItem
from bot.services.export import deed, facts_of
from bot.services.record.export import Proven
from storage import custody, incidents, timeline
from storage.custody import COLLECTED, Event
from storage.tables import CustodyEvent, PlanRow

KIND = "evidence"
LIST, SHOW = "evidence.list", "evidence.show"
QUERIES = (LIST, SHOW)
NEWEST = 50
"""Items that are listed where no incident is named and the channel has none."""
BOT = "drbot"
"""Who acts when a run does; no login but the worker's may write in this name."""


class Act(StrEnum):
    """What can happen to an item. STORED: a copy is kept where `location` says."""

    COLLECTED = COLLECTED
    STORED = "stored"
    VIEWED = "viewed"
    COPIED = "copied"
    EXPORTED = "exported"
    SEALED = "sealed"
    HANDED = "handed"
    RELEASED = "released"


async def collect(session: AsyncSession, incident_id: str, event: Event, *, key: str) -> tuple[CustodyEvent, bool]:
    """A new item, once for a `key`; whether it is new. Sentences go on the timeline as `said` makes them."""
    await custody.hold(session)
    known = await custody.from_source(session, key)
    if known is not None:
        return known, False
    row = await custody.collect(session, incident_id, event, source_key=key)
    await _tell(session, row, str(event.data.get("title", "")))
    return row, True


async def follow(session: AsyncSession, item: int, event: Event, *, key: str | None = None) -> CustodyEvent | None:
    """The next event of an item, once for a `key`; None when it was there before. Raises UserError when there is no
    such item."""
    await custody.hold(session)
    if key is not None and await custody.from_source(session, key) is not None:
        return None
    row = await custody.append(session, (await known_chain(session, item))[-1], event, source_key=key)
    await _tell(session, row, "")
    return row


async def known_chain(session: AsyncSession, item: int) -> Sequence[CustodyEvent]:
    """The events of an item. Raises UserError when there is none."""
    rows = await custody.chain(session, item)
    if not rows:
        raise UserError(f"There is no evidence {label(item)}; see `/dr-evidence list`.")
    return rows


async def _tell(session: AsyncSession, row: CustodyEvent, title: str) -> None:
    await timeline.add(
        session,
        incident_id=row.incident_id,
        kind=KIND,
        actor=row.actor,
        occurred_at=row.occurred_at,
        text=said(row, title),
        data={"item": row.item, "seq": row.seq, "action": row.action},
        source_key=f"evidence/{row.item}/{row.seq}",
    )


def said(row: CustodyEvent, title: str = "") -> str:
    """The event as a sentence: `E-3 handed to Sam Sato: for the laboratory`."""
    what = f"{label(row.item)} {row.action}"
    what += f" to {row.holder}" if row.action == Act.HANDED else ""
    about = "; ".join(part for part in (title, row.reason) if part)
    where = f" ({row.location})" if row.location else ""
    return f"{what}{f': {about}' if about else ''}{where}"


def label(item: int) -> str:
    """How people call an item."""
    return f"E-{item}"


# ---------------------------------------------------------------- what runs set aside


async def note_step(session: AsyncSession, row: PlanRow, step: Step, state: JournalState, at: datetime) -> None:
    """What a step has set aside is evidence of the incident of its run, once, whoever takes the run over; put back
    into use by any run, it is no longer."""
    if state is JournalState.VERIFIED:
        if step.keeps is not None:
            await _kept(session, row, step.keeps, at)
        if step.gives_back is not None:
            await _given_back(session, row, step.gives_back, at)
    elif state is JournalState.UNDONE and step.keeps is not None:
        await _given_back(session, row, step.keeps, at)


async def _kept(session: AsyncSession, row: PlanRow, kept: Kept, at: datetime) -> None:
    await custody.hold(session)
    first = await custody.from_source(session, _source(kept))
    if first is None:
        if row.incident_id is not None:
            await _taken_up(session, row, row.incident_id, kept, at)
        return
    rows = await custody.chain(session, first.item)
    again = rows[-1].action == Act.RELEASED  # undone, and done again by a retry
    if again or all(each.location != kept.location for each in rows):
        reason = f"set aside {'again ' if again else ''}by run {row.id}"
        event = Event(action=Act.STORED, actor=BOT, holder=BOT, occurred_at=at, location=kept.location, reason=reason)
        await follow(session, first.item, event)


async def _taken_up(session: AsyncSession, row: PlanRow, incident_id: str, kept: Kept, at: datetime) -> None:
    data = {"title": kept.title, "class": "normal", "source": f"run {row.id}", "method": "set aside by the bot"}
    event = Event(
        action=Act.COLLECTED,
        actor=BOT,
        holder=BOT,
        occurred_at=at,
        location=kept.location,
        reason=f"set aside by run {row.id}",
        data=data,
    )
    await collect(session, incident_id, event, key=_source(kept))


async def _given_back(session: AsyncSession, row: PlanRow, kept: Kept, at: datetime) -> None:
    await custody.hold(session)
    first = await custody.from_source(session, _source(kept))
    if first is None or (await custody.chain(session, first.item))[-1].action == Act.RELEASED:
        return
    reason = f"put back into use by run {row.id}; what is written there now is no evidence"
    await follow(session, first.item, Event(action=Act.RELEASED, actor=BOT, occurred_at=at, reason=reason))


def _source(kept: Kept) -> str:
    return f"kept/{kept.key}"


# ---------------------------------------------------------------- shown


def items(events: Iterable[CustodyEvent], proven: Proven | None = None) -> list[EvidenceItem]:
    """The items of these events, each with its chain, and where each event stands in the proven log."""
    return [_item(list(rows), proven) for _, rows in groupby(events, key=lambda row: row.item)]


def _item(rows: Sequence[CustodyEvent], proven: Proven | None) -> EvidenceItem:
    about = rows[0].data
    return EvidenceItem(
        label=label(rows[0].item),
        title=str(about.get("title", "")),
        classification=str(about.get("class", "")),
        source=str(about.get("source", "")),
        method=str(about.get("method", "")),
        holder=next((row.holder for row in reversed(rows) if row.holder), ""),
        location=next((row.location for row in reversed(rows) if row.location), ""),
        sha256=rows[0].sha256,
        events=tuple(
            CustodyLine(
                seq=row.seq,
                action=row.action,
                actor=row.actor,
                holder=row.holder,
                occurred_at=row.occurred_at,
                recorded_at=row.recorded_at or row.occurred_at,
                reason=row.reason,
                location=row.location,
                sha256=row.sha256,
                position=None if proven is None else proven.position("custody_event", row.id or 0),
            )
            for row in rows
        ),
    )


async def report(session: AsyncSession, query: str, params: Mapping[str, Any], channel: str) -> Report:
    """`evidence.list` or `evidence.show`."""
    if query == SHOW:
        return _shown(items(await known_chain(session, int(params["item"])))[0])
    number, incident = params.get("incident"), None
    if number is not None:
        incident = await incidents.by_number(session, int(number))
        if incident is None:
            raise UserError(f"There is no incident {number}; see `/dr-incident list`.")
    elif channel:
        incident = await incidents.open_in(session, channel)
    if incident is None:
        found = items(await custody.newest(session, NEWEST))
    else:
        found = items(await custody.of_incident(session, incident.id))
    return Report(
        title=f"Evidence, the newest {NEWEST} items" if incident is None else f"Evidence of incident {incident.number}",
        lines=() if found else ("Nothing is on record. Add what is held elsewhere with `/dr-evidence add TITLE`.",),
        columns=("item", "title", "class", "last", "held by", "where") if found else (),
        rows=tuple(
            (item.label, item.title, item.classification, item.events[-1].action, item.holder, item.location)
            for item in found
        ),
    )


def _shown(item: EvidenceItem) -> Report:
    return Report(
        title=f"{item.label}: {item.title}",
        lines=tuple(f"{name}: {value}" for name, value in facts_of(item)),
        columns=("no.", "when", "recorded", "who", "what", "SHA-256"),
        rows=tuple(
            (str(line.seq), moment(line.occurred_at), moment(line.recorded_at), line.actor, deed(line), line.sha256)
            for line in item.events
        ),
    )
