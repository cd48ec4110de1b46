"""Incidents: opened, noted, shown, closed; their timeline as text, Markdown, JSON and one HTML page."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Code
from actions.contract import Report
from actions.errors import RefusedError, UserError
from actions.ports import Clock
from bot.plan_file import DrPlan
from bot.ports import ChannelWish, ReplyTo, TimelinePage, Who
from bot.router import Command
from bot.services.approvals import Policy
from bot.services.cards import EvidenceItem, IncidentCard, TimelineLine
from bot.services.custody import items
from bot.services.export import facts, html_page, json_text, markdown
from bot.services.record.export import Proven, json_lines, prove
from bot.services.suspicion import HOW_TO_CLEAR, NOT_BY_SLACK, Suspicion
from storage import custody, incidents, outbox, plans, runs, timeline
from storage.session import Database
from storage.tables import Incident, TimelineEntry

PAGE = 25
"""Lines of the timeline on one page in Slack."""


class Incidents:
    """The incident commands. Every one is allowed to every person of the roster."""

    def __init__(self, database: Database, plan: DrPlan, policy: Policy, clock: Clock) -> None:
        self._database = database
        self._plan = plan
        self._policy = policy
        self._clock = clock
        self.suspicion = Suspicion(database, policy, clock, on_call=plan.channels.on_call)

    async def handle(self, who: Who, person: str, command: Command, reply: ReplyTo, *, key: str | None = None) -> None:
        """Carry out one `incident.*` command. Raises UserError for the person who asked. What goes on the timeline goes
        there once for a `key`."""
        match command.name.removeprefix("incident."):
            case "open":
                await self._open(who, person, command.params)
            case "close":
                await self._close(who, person, command.params)
            case "note":
                await self._note(who, person, command.params, key)
            case "amend":
                await self._amend(who, person, command.params, key)
            case "suspect_slack":
                async with self._database.session() as session:
                    row = await self.pick(session, who, command.params)
                    await self.suspicion.raise_(session, row, person, str(command.params.get("text") or ""))
            case "clear_suspect_slack":
                raise RefusedError(NOT_BY_SLACK, code=Code.SLACK_SUSPECT)
            case "list":
                await self._answer(reply, await self._list())
            case "show":
                await self._show(who, command.params)
            case "timeline":
                await self._timeline(who, command.params, reply)
            case other:
                raise UserError(f"There is no incident command `{other}`; see `/dr help`.")

    async def _open(self, who: Who, person: str, params: Mapping[str, Any]) -> None:
        now = self._clock.now()
        scenario = str(params.get("scenario") or "")
        rto = self._plan.scenario(scenario).rto if scenario else self._plan.objectives.rto
        async with self._database.session() as session:
            wish = str(params.get("channel") or "")
            channel = who.channel if wish in ("", "new") else wish
            held = None if wish == "new" else await incidents.open_in(session, channel)
            if held is not None:
                # Of two in one channel everything said there would be about the newer one.
                where = "this channel" if channel == who.channel else f"channel `{channel}`"
                raise UserError(
                    f"Incident {held.number} `{held.title}` is already open in {where}; "
                    "close it first, or add `--channel new`."
                )
            row = Incident(
                id=secrets.token_hex(6),
                title=str(params["title"]),
                severity=str(params.get("severity") or "SEV1"),
                scenario=scenario,
                commander=str(params.get("commander") or person),
                channel=channel,
                impact_started_at=impact_start(params.get("impact"), now),
                declared_at=now,
                rto_s=int(rto.total_seconds()),
            )
            session.add(row)
            await session.flush()
            await self._record(
                session,
                row,
                "incident",
                self._policy.name(person),
                f"Incident {row.number} opened: {row.title} ({row.severity}); commander "
                f"{self._policy.name(row.commander)}; impact since {utc(row.impact_started_at)}",
            )
            payload: dict[str, Any] = {}
            if wish == "new":
                wanted = ChannelWish(
                    name=f"{self._plan.channels.incident_prefix}{now:%Y%m%d}-{row.number}",
                    topic=f"Incident {row.number}: {row.title}"[:250],
                    invite=self._invited(who),
                )
                payload["create"] = wanted.model_dump(mode="json")
            await outbox.add(session, "incident", row.channel, ref=row.id, payload=payload)

    def _invited(self, who: Who) -> tuple[str, ...]:
        """Everybody of the roster with a Slack account, the one who opened it first."""
        accounts = [account for person in self._plan.roster for account in person.slack_ids[:1]]
        return tuple(dict.fromkeys([*([who.slack_user] if who.slack_user else []), *accounts]))

    async def move(self, session: AsyncSession, incident_id: str, channel: str) -> None:
        """The incident lives in the channel that was made for it."""
        row = await incidents.get(session, incident_id)
        if row is not None:
            row.channel = channel
            session.add(row)

    async def _close(self, who: Who, person: str, params: Mapping[str, Any]) -> None:
        async with self._database.session() as session:
            row = await self.pick(session, who, params)
            if await self.suspicion.here(session, row) is not None:
                # Who holds an account in wrong hands would have the suspicion forgotten.
                how = HOW_TO_CLEAR.format(number=row.number)
                text = f"Incident {row.number} stays open while Slack is under suspicion in it; to end that, {how}."
                raise RefusedError(text, code=Code.SLACK_SUSPECT)
            if row.closed_at is not None:
                raise UserError(
                    f"Incident {row.number} is already closed, since {utc(row.closed_at)}. "
                    "Open a new one with `/dr-incident open TITLE`."
                )
            busy = await self._running(session, row)
            if busy:
                raise UserError(f"Incident {row.number} still has a run: {busy[0]}. Wait for it, then close.")
            row.closed_at = self._clock.now()
            session.add(row)
            summary = str(params.get("summary") or params.get("text") or "no summary given")
            await self._record(session, row, "incident", self._policy.name(person), f"Incident closed: {summary}")
            await outbox.add(session, "incident", row.channel, ref=row.id)

    async def _note(self, who: Who, person: str, params: Mapping[str, Any], key: str | None) -> None:
        async with self._database.session() as session:
            row = await self.pick(session, who, params)
            text = str(params["text"])
            at = impact_start(params.get("at"), self._clock.now())
            if not await self._record(session, row, "note", self._policy.name(person), text, at=at, key=key):
                return
            await outbox.add(
                session,
                "text",
                row.channel,
                payload={"text": f"{self._policy.name(person)} noted on the timeline:", "said": text},
            )

    async def _amend(self, who: Who, person: str, params: Mapping[str, Any], key: str | None) -> None:
        """An entry is never changed: what corrects it is another entry, shown beside it."""
        async with self._database.session() as session:
            row = await self.pick(session, who, params)
            entry = await timeline.entry(session, row.id, int(params["entry"]))
            if entry is None:
                number = f"{row.number} has no entry {params['entry']}"
                raise UserError(f"The timeline of incident {number}; see `/dr-incident timeline`.")
            if AMENDS in entry.data:
                raise UserError(f"Entry {entry.seq} is an amendment itself; amend entry {entry.data[AMENDS]} again.")
            name, text = self._policy.name(person), str(params["text"])
            await self._record(session, row, "amendment", name, text, key=key, data={AMENDS: entry.seq})
            told = f"{name} put beside entry {entry.seq} of the timeline:"
            await outbox.add(session, "text", row.channel, payload={"text": told, "said": text})

    async def _list(self) -> Report:
        async with self._database.session() as session:
            rows = await incidents.newest(session)
        return Report(
            title="Incidents",
            lines=() if rows else ("No incident has been opened yet.",),
            columns=("No.", "Title", "Severity", "State", "Impact since"),
            rows=tuple(
                (
                    str(row.number),
                    row.title,
                    row.severity,
                    "open" if row.closed_at is None else "closed",
                    utc(row.impact_started_at),
                )
                for row in rows
            ),
        )

    async def _show(self, who: Who, params: Mapping[str, Any]) -> None:
        async with self._database.session() as session:
            row = await self.pick(session, who, params)
            # A card that already stands in this channel is posted again at the bottom, where people look.
            await outbox.add(session, "incident", who.channel, ref=row.id, payload={"again": True})

    async def _timeline(self, who: Who, params: Mapping[str, Any], reply: ReplyTo) -> None:
        async with self._database.session() as session:
            row = await self.pick(session, who, params)
            card = await self.card(session, row)
            lines = timeline_lines(await timeline.of_incident(session, row.id))
            form = str(params.get("format") or "text")
            proven = None if form in ("text", "channel") else await prove(session, row.id)
            evidence = [] if proven is None else items(await custody.of_incident(session, row.id), proven)
        payload: dict[str, Any]
        if proven is None:
            kind = "report"
            pages = max(1, -(-len(lines) // PAGE))
            number = min(int(params.get("page") or pages), pages)
            page = TimelinePage(
                incident=card.title,
                number=card.number,
                page=number,
                pages=pages,
                lines=tuple(lines[(number - 1) * PAGE : number * PAGE]),
            )
            payload = {"timeline": page.model_dump(mode="json")}
        else:
            kind = "file"
            content, suffix = export(card, lines, form, proven, evidence)
            title = f"Timeline of incident {card.number}"
            payload = {"filename": f"incident-{card.number}.{suffix}", "title": title, "content": content}
        async with self._database.session() as session:
            await outbox.add(session, kind, reply.channel or who.channel, payload=payload)

    async def pin(
        self, who: Who, *, channel: str, ts: str, text: str, author: str, permalink: str | None, occurred_at: datetime
    ) -> bool:
        """Put a message of the channel on the timeline, once. False when it is already there.

        Raises UserError for strangers and for channels without an open incident.
        """
        person = self._policy.person(who)
        if person is None:
            raise UserError("You are not on the roster of the plan file, so nothing was added. Ask a person who is.")
        async with self._database.session() as session:
            row = await incidents.open_in(session, channel)
            if row is None:
                raise UserError("This channel has no open incident; open one with `/dr-incident open TITLE`.")
            return await timeline.add(
                session,
                incident_id=row.id,
                kind="message",
                actor=author,
                occurred_at=occurred_at,
                text=text,
                data={"added_by": person.id, "channel": channel, "ts": ts},
                permalink=permalink,
                source_key=f"slack:{channel}:{ts}",
            )

    async def card(self, session: AsyncSession, row: Incident) -> IncidentCard:
        """The incident as of now."""
        running = await self._running(session, row)
        suspect_since = await self.suspicion.since(session) if row.closed_at is None else None
        return IncidentCard(
            id=row.id,
            number=row.number or 0,
            title=row.title,
            severity=row.severity,
            commander=self._policy.name(row.commander),
            open=row.closed_at is None,
            scenario=row.scenario,
            impact_started_at=row.impact_started_at,
            declared_at=row.declared_at,
            closed_at=row.closed_at,
            recovered_at=row.recovered_at,
            rto=timedelta(seconds=row.rto_s),
            running=running,
            next_step=self._next(row, running),
            slack_suspect_since=suspect_since,
        )

    async def exported(self, incident_number: int, form: str) -> str:
        """The timeline and the evidence as `md`, `json`, `jsonl` or `html`, with their proofs."""
        async with self._database.session() as session:
            row = await incidents.by_number(session, incident_number)
            if row is None:
                raise UserError(f"There is no incident {incident_number}; see `/dr-incident list`.")
            card = await self.card(session, row)
            lines = timeline_lines(await timeline.of_incident(session, row.id))
            proven = await prove(session, row.id)
            evidence = items(await custody.of_incident(session, row.id), proven)
        return export(card, lines, form, proven, evidence)[0]

    async def read(self, who: Who, command: Command) -> Report | str:
        """The answer of an `incident.*` query for whoever reads it here and not in a channel; an export as its text."""
        if command.name == "incident.list":
            return await self._list()
        async with self._database.session() as session:
            row = await self.pick(session, who, command.params)
            card = await self.card(session, row)
            lines = timeline_lines(await timeline.of_incident(session, row.id))
        if command.name == "incident.show":
            said = [*facts(card), *(("Runs now", run) for run in card.running), ("Next", card.next_step)]
            title = f"Incident {card.number}: {card.title}"
            return Report(title=title, lines=tuple(f"{name}: {value}" for name, value in said if value))
        form = str(command.params.get("format") or "channel")
        if form != "channel":
            return await self.exported(card.number, form)
        return Report(
            title=f"Timeline of incident {card.number}: {card.title}",
            columns=("No.", "Occurred", "Recorded", "Who", "What"),
            rows=tuple(
                (str(line.seq), utc(line.occurred_at), utc(line.recorded_at), line.actor, " ".join(line.text.split()))
                for line in lines
            ),
        )

    async def _running(self, session: AsyncSession, row: Incident) -> tuple[str, ...]:
        busy: list[str] = []
        for plan in await plans.of_incident(session, row.id):
            run = await runs.get(session, plan.id)
            if run is not None and run.state in runs.HELD:
                busy.append(f"{plan.document.get('summary', plan.action)} ({run.state})")
        return tuple(busy)

    def _next(self, row: Incident, running: Sequence[str]) -> str:
        if row.closed_at is not None:
            return ""
        if running:
            return "wait for the run, or follow its message"
        if row.recovered_at is not None:
            return "check the application, then `/dr-incident close`"
        if row.scenario:
            return self._plan.scenario(row.scenario).steps[0].text
        return "`/dr-restore` for a database, `/dr-incident note TEXT` for the record"

    async def pick(self, session: AsyncSession, who: Who, params: Mapping[str, Any]) -> Incident:
        """The incident that is named, else the channel's open one. Raises UserError when there is none."""
        number = params.get("incident")
        if number is not None:
            row = await incidents.by_number(session, int(number))
            if row is None:
                raise UserError(f"There is no incident {number}; see `/dr-incident list`.")
            return row
        row = await incidents.open_in(session, who.channel)
        if row is None:
            if who.source in ("cli", "key"):
                raise UserError(
                    "No incident is open in the on-call channel, which stands for a terminal; add `--incident NUMBER` "
                    "(`/dr-incident list`), or open one with `/dr-incident open TITLE`."
                )
            raise UserError("This channel has no open incident; give its number, or open one with `/dr-incident open`.")
        return row

    async def _record(
        self,
        session: AsyncSession,
        row: Incident,
        kind: str,
        actor: str,
        text: str,
        *,
        at: datetime | None = None,
        key: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> bool:
        moment = at or self._clock.now()
        return await timeline.add(
            session,
            incident_id=row.id,
            kind=kind,
            actor=actor,
            occurred_at=moment,
            text=text,
            data=data,
            source_key=key,
        )

    async def _answer(self, reply: ReplyTo, report: Report) -> None:
        async with self._database.session() as session:
            payload = {"report": report.model_dump(mode="json"), "user": reply.user}
            await outbox.add(session, "report", reply.channel, payload=payload)


def export(
    card: IncidentCard, lines: Sequence[TimelineLine], form: str, proven: Proven, evidence: Sequence[EvidenceItem]
) -> tuple[str, str]:
    """The text and the file suffix. Raises UserError for a form that does not exist."""
    match form:
        case "md" | "markdown":
            return markdown(card, lines, proven, evidence), "md"
        case "json":
            return json_text(card, lines, proven, evidence), "json"
        case "jsonl":
            return json_lines(proven, incident=card.number), "jsonl"
        case "html":
            return html_page(card, lines, proven, evidence), "html"
        case _:
            raise UserError(f"There is no export `{form}`; choose `md`, `json`, `jsonl` or `html`.")


def impact_start(text: object, now: datetime) -> datetime:
    """When the impact began: nothing (now), "10m", "2h ago", "10:30" (UTC, today or yesterday) or an ISO moment."""
    if text is None or not str(text).strip():
        return now
    words = str(text).strip()
    ago = re.fullmatch(r"(\d{1,4})\s*(s|m|h|d)(?:\s+ago)?", words)
    if ago:
        units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
        return now - timedelta(**{units[ago[2]]: int(ago[1])})
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})(?:\s*(?:UTC|Z))?", words)
    try:
        if clock:
            moment = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
            return moment if moment <= now else moment - timedelta(days=1)
        moment = datetime.fromisoformat(words.replace(" UTC", "+00:00"))
    except ValueError as error:
        raise UserError(f"`{words}` is no moment; write `10m`, `10:30` (UTC) or `2026-02-26 10:30:00 UTC`.") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > now:
        raise UserError(f"`{words}` lies in the future; the impact must have begun before now, {utc(now)}.")
    return moment


def utc(moment: datetime) -> str:
    """ "2026-02-26 10:30:00 UTC"."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


AMENDS = "amends"
"""In the data of an amendment: the number of the entry it belongs to."""


def timeline_lines(entries: Sequence[TimelineEntry]) -> list[TimelineLine]:
    """The entries as people read them, each amendment also beside what it amends."""
    beside: dict[int, list[str]] = {}
    for item in entries:
        if AMENDS in item.data:
            said = f"No. {item.seq}, {item.actor}, {utc(item.recorded_at or item.occurred_at)}: {item.text}"
            beside.setdefault(int(item.data[AMENDS]), []).append(said)
    return [_line(item, tuple(beside.get(item.seq or 0, ()))) for item in entries]


def _line(item: TimelineEntry, amendments: tuple[str, ...]) -> TimelineLine:
    text = f"Amends No. {item.data[AMENDS]}: {item.text}" if AMENDS in item.data else item.text
    return TimelineLine(
        seq=item.seq or 0,
        kind=item.kind,
        actor=item.actor,
        occurred_at=item.occurred_at,
        recorded_at=item.recorded_at or item.occurred_at,
        text=text,
        permalink=item.permalink,
        amendments=amendments,
    )
