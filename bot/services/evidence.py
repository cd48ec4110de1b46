"""Evidence as people record it: taken up, handed on, looked at. The bot neither releases nor destroys any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Code
from actions.errors import RefusedError, UserError
from actions.ports import Clock
from bot.ports import Who
from bot.router import Command
from bot.services.approvals import Policy
from bot.services.custody import Act, collect, follow, known_chain, label, said
from bot.services.incidents import Incidents
from storage import incidents, outbox
from storage.custody import Event
from storage.session import Database
from storage.tables import CustodyEvent

RECORDED = (Act.VIEWED, Act.COPIED, Act.EXPORTED, Act.SEALED)
"""What one person may say that he did to an item."""

NOT_RECORDED = (
    "`{item}` is not {action} by the bot or on the word of one person. Whoever leads the case decides it outside the "
    "bot; then record who took it with `/dr-evidence hand {item} PERSON WHY`, or, of what no longer exists, who "
    "decided and who saw it with `/dr-incident note`. The chain stays."
)
AT_A_TERMINAL = (
    "Slack does not bring files here. Where the file is, say `drbot evidence add TITLE --file FILE --incident NUMBER`; "
    "of what stays elsewhere say `--where` and, if you know it, `--sha256`."
)
VERIFY_AT_A_TERMINAL = "Stored evidence is read again where its bucket can be reached: `drbot evidence verify`."


class Evidence:
    """The `evidence.*` commands that write."""

    def __init__(self, database: Database, policy: Policy, all_incidents: Incidents, clock: Clock) -> None:
        self._database = database
        self._policy = policy
        self._incidents = all_incidents
        self._clock = clock

    async def handle(self, who: Who, person: str, command: Command, *, key: str) -> None:
        """Carry out one command, once for a `key`. Raises UserError for the person who asked."""
        match command.name.removeprefix("evidence."):
            case "add":
                if command.params.get("file"):
                    raise UserError(AT_A_TERMINAL)
                await self.add(who, person, command.params, key=key)
            case "hand":
                await self._hand(who, person, command.params, key)
            case "record":
                await self._record(who, person, command.params, key)
            case _:
                raise UserError(VERIFY_AT_A_TERMINAL)

    async def add(
        self,
        who: Who,
        person: str,
        params: Mapping[str, Any],
        *,
        key: str,
        content: Mapping[str, Any] | None = None,
        stored: Event | None = None,
    ) -> CustodyEvent:
        """A new item. `content` is what was found of a file (`sha256`, `bytes`, `file`, `location`, `method`), `stored`
        the event of its copy. Raises UserError when there is no incident to add it to."""
        found = dict(content or {})
        event = Event(
            action=Act.COLLECTED,
            actor=self._policy.name(person),
            holder=self._policy.name(person),
            occurred_at=self._clock.now(),
            location=", ".join(str(part) for part in (found.pop("location", ""), params.get("where")) if part),
            sha256=str(found.pop("sha256", "") or params.get("sha256") or ""),
            data={
                "title": str(params["title"]),
                "class": str(params.get("classification") or "normal"),
                "source": str(params.get("source") or ""),
                "method": str(found.pop("method", "held elsewhere, as its holder says")),
                **_by(who, person),
                **found,
            },
        )
        async with self._database.session() as session:
            incident = await self._incidents.pick(session, who, params)
            row, new = await collect(session, incident.id, event, key=f"evidence/{key}")
            if new and stored is not None:
                await follow(session, row.item, replace(stored, actor=event.actor))
            if new:
                await self._tell(session, incident.channel, person, said(row, str(params["title"])))
            return row

    async def viewed(self, who: Who, person: str, item: int, finding: str) -> None:
        """Somebody has had the stored copy of an item read and compared."""
        async with self._database.session() as session:
            await follow(session, item, self._event(Act.VIEWED, who, person, reason=finding))

    async def _hand(self, who: Who, person: str, params: Mapping[str, Any], key: str) -> None:
        item, to = int(params["item"]), self._receiver(str(params["person"]))
        event = self._event(Act.HANDED, who, person, holder=to, reason=str(params["why"]))
        await self._follow(item, event, person, key)

    async def _record(self, who: Who, person: str, params: Mapping[str, Any], key: str) -> None:
        item, action = int(params["item"]), str(params["action"]).casefold()
        if action in (Act.RELEASED, "destroyed"):
            raise RefusedError(NOT_RECORDED.format(item=label(item), action=action), code=Code.NO_RULE)
        if action not in RECORDED:
            known = ", ".join(f"`{act}`" for act in RECORDED)
            raise UserError(f"An item is not recorded as `{action}`. There are {known}; `hand` is a word of its own.")
        sha256, reason = str(params.get("sha256") or ""), str(params.get("why") or "")
        async with self._database.session() as session:
            known_hash = (await known_chain(session, item))[0].sha256
        if sha256 and known_hash and sha256 != known_hash:
            reason = f"{reason}; " if reason else ""
            reason += "its SHA-256 is not the one it was collected with"
        where = str(params.get("where") or "")
        event = self._event(Act(action), who, person, reason=reason, location=where, sha256=sha256)
        await self._follow(item, event, person, key)

    async def _follow(self, item: int, event: Event, person: str, key: str) -> None:
        async with self._database.session() as session:
            row = await follow(session, item, event, key=f"evidence/{key}")
            incident = None if row is None else await incidents.get(session, row.incident_id)
            if row is not None and incident is not None:
                await self._tell(session, incident.channel, person, said(row))

    def _event(self, act: Act, who: Who, person: str, **about: str) -> Event:
        return Event(
            action=act,
            actor=self._policy.name(person),
            occurred_at=self._clock.now(),
            data=_by(who, person),
            **about,
        )

    def _receiver(self, words: str) -> str:
        """A person of the roster by account, short name or name; anybody else as he was named."""
        words = words.removeprefix("@")
        person = self._policy.accounts.get(words, words.casefold())
        if person in self._policy.roster:
            return self._policy.name(person)
        if len(words) > 7 and words.isascii() and words.isalnum() and words[0] in "UW" and words.isupper():
            raise UserError(f"The account `{words}` is on no roster; write the person's name in quotes instead.")
        return words

    async def _tell(self, session: AsyncSession, channel: str, person: str, sentence: str) -> None:
        text = f"{self._policy.name(person)} recorded about evidence:"
        await outbox.add(session, "text", channel, payload={"text": text, "said": sentence})


def _by(who: Who, person: str) -> dict[str, str]:
    """Which person, and by which account or way it was said."""
    return {"person": person, "account": who.slack_user or who.source}
