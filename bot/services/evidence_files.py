"""Evidence that is a file, at the command line: taken up, kept in the bucket of the plan, read again and compared."""

from __future__ import annotations

import os
import socket

from actions.backup.evidence import Condition, Copy, Source, UnsafeFileError, Vault, opened, printable, sha256_of
from actions.contract import Report
from actions.errors import UserError
from actions.ports import Clock
from bot.ports import Who
from bot.router import Command
from bot.services.custody import Act, label
from bot.services.desk import Desk
from bot.services.incidents import Incidents
from bot.services.refusals import Door
from storage import custody, incidents
from storage.custody import Event
from storage.session import Database
from storage.tables import CustodyEvent

NOT_KEPT = "The plan file names no bucket for evidence (`evidence`), so nothing but its hash and place is on record."
NOTHING_READ = (
    "Nothing could be verified: the bot holds no copy of any of these items. Ask who holds them, or let the plan file "
    "name `evidence.bucket` and add the files again."
)
BAD = (Condition.ALTERED, Condition.MISSING)


class EvidenceFiles:
    """One person at a terminal; `vault` is None where the plan names no bucket."""

    def __init__(
        self, database: Database, desk: Desk, all_incidents: Incidents, vault: Vault | None, clock: Clock
    ) -> None:
        self._database = database
        self._desk = desk
        self._incidents = all_incidents
        self._vault = vault
        self._clock = clock

    async def add(self, who: Who, command: Command) -> str:
        """Take up the file that the command names; the sentence for the person. Raises UserError, once recorded."""
        person = await self._desk.admit(who, command)
        async with self._desk.refusals.on_record(who, command.name):
            return await self._add(who, person, command)

    async def _add(self, who: Who, person: str, command: Command) -> str:
        async with self._database.session() as session:
            incident = await self._incidents.pick(session, who, command.params)
        path = str(command.params["file"])
        begun = self._clock.now()
        try:
            with opened(path) as source:
                await self._compare(who, source, command.params.get("sha256"))
                kept = None if self._vault is None else await self._vault.keep(source, str(incident.number))
                sha256 = await sha256_of(source) if kept is None else kept.packed.plain_sha256
                content = self._content(path, source) | {"sha256": sha256, "begun_at": begun.isoformat()}
        except UnsafeFileError as error:
            await self._desk.turn_away(who, Door.UNSAFE_FILE, str(error))
        key = await self._desk.keep(who, {"kind": "ask", "command": command.model_dump(mode="json")})
        stored = None if kept is None else self._stored(kept)
        params = {**command.params, "incident": incident.number}
        row = await self._desk.evidence.add(who, person, params, key=key, content=content, stored=stored)
        where = NOT_KEPT if stored is None else f"Stored as `{stored.location}`, read back and compared."
        return f"{label(row.item)} of incident {incident.number}: SHA-256 {row.sha256}. {where}"

    async def _compare(self, who: Who, source: Source, said: object) -> None:
        """Raise UserError, before anything is stored and after recording it, when the file is not the one whose hash
        was named."""
        if said is None:
            return
        found = await sha256_of(source)
        if found != said:
            text = (
                f"The SHA-256 of this file is {found}, not {said}, so it was not taken up. Find out which of the two "
                "is right, then name the file without `--sha256`, or with the right one."
            )
            await self._desk.turn_away(who, Door.OTHER_CONTENT, text)
        source.file.seek(0)

    def _content(self, path: str, source: Source) -> dict[str, object]:
        whole = printable(os.path.abspath(path))  # noqa: PTH100 - `Path.absolute` keeps `..`
        return {
            "location": f"{whole} on {socket.gethostname()}",
            "bytes": source.bytes,
            "method": "read without following links, `drbot evidence add`",
        }

    def _stored(self, kept: Copy) -> Event:
        return Event(
            action=Act.STORED,
            actor="",  # whoever adds it
            occurred_at=self._clock.now(),
            location=f"s3://{kept.bucket}/{kept.key}",
            sha256=kept.packed.plain_sha256,
            data={
                "bucket": kept.bucket,
                "key": kept.key,
                "bytes": kept.packed.stored_bytes,
                "stored_sha256": kept.packed.stored_sha256,
            },
        )

    async def verify(self, who: Who, command: Command) -> tuple[Report, bool]:
        """Read every stored copy again; whether some could be, and none is altered or missing. What was read, or sought
        in vain, is an event of its item."""
        person = await self._desk.admit(who, command)
        number = command.params.get("incident")
        async with self._desk.refusals.on_record(who, command.name), self._database.session() as session:
            row = None if number is None else await incidents.by_number(session, int(number))
            if number is not None and row is None:
                raise UserError(f"There is no incident {number}; see `/dr-incident list`.")
            events = await custody.of_incident(session, None if row is None else row.id)
        good, read, rows = True, False, []
        chains: dict[int, list[CustodyEvent]] = {}
        for event in events:
            chains.setdefault(event.item, []).append(event)
        for item, chain in chains.items():
            condition, why = await self._look(chain)
            good = good and condition not in BAD
            if condition is not Condition.UNVERIFIABLE:
                read = True
                finding = f"its stored copy was read again: {condition}"
                await self._desk.evidence.viewed(who, person, item, finding)
            rows.append((label(item), str(chain[0].data.get("title", "")), str(condition), why))
        lines = () if read else (NOTHING_READ if rows else "There is no evidence on record.",)
        columns = ("item", "title", "found", "why") if rows else ()
        good = good and (read or not rows)
        return Report(title="Stored evidence", lines=lines, columns=columns, rows=tuple(rows)), good

    async def _look(self, chain: list[CustodyEvent]) -> tuple[Condition, str]:
        copies = [event.data for event in chain if "stored_sha256" in event.data]
        if not copies:
            return Condition.UNVERIFIABLE, "the bot holds no copy; ask who holds it"
        if self._vault is None:
            return Condition.UNVERIFIABLE, NOT_KEPT
        copy = copies[0]  # whoever adds an event later does not choose what is compared with what
        return await self._vault.look(str(copy["bucket"]), str(copy["key"]), str(copy["stored_sha256"]))
