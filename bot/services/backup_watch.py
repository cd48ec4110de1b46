"""Watches the backups and tells the on-call channel, once for each change, what is wrong and when it is right again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime, timedelta

import structlog

from actions.backup.physical import BackupKind
from actions.errors import DrError
from actions.ports import Ports
from actions.steps.alarms import UPGRADED, alarms, subjects
from actions.steps.health import Health, health
from actions.steps.restore_kit import place_kits
from bot.services.alarms import end_alarm, raise_alarm
from bot.services.standbys import STANDBY
from storage import alarms as stored
from storage.session import Database

log = structlog.get_logger()

EVERY = timedelta(minutes=1)
BESIDE_EVERY = timedelta(hours=1)
"""What is made once a day need not be read every minute."""

REPLICAS_EVERY = timedelta(minutes=5)
"""The whole bucket is listed on both sides."""

TURN = "backups"


class BackupWatch:
    """One in each worker; they take turns."""

    def __init__(self, database: Database, ports: Ports, *, on_call: str) -> None:
        self._database = database
        self._ports = ports
        self._on_call = on_call
        self._looked_beside: datetime | None = None
        self._looked_replicas: datetime | None = None
        self._fulls: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                async with self._database.session() as session:
                    mine = await stored.turn(session, TURN, every=EVERY * 0.9)
                if mine:
                    await self.note(await self.look())
            except DrError as error:
                log.warning("backups_not_watched", error=str(error))
            await asyncio.sleep(EVERY.total_seconds())

    async def look(self) -> Health:
        """How everything stands; once an hour also what is made beside the backups of databases, every few minutes what
        the store replicates. Before the first, and after
        every full backup, the way back without the bot is put beside them."""
        now = self._ports.clock.now()
        beside = self._looked_beside is None or now - self._looked_beside >= BESIDE_EVERY
        copied = self._looked_replicas is None or now - self._looked_replicas >= REPLICAS_EVERY
        if beside:
            await self._place_kits()
        try:
            seen = await health(self._ports, beside=beside, replicas=copied)
        except DrError as error:
            log.warning("backups_not_read", error=str(error))
            return Health(at=now, problem=str(error))
        fulls = frozenset(
            entry.manifest.id
            for bases in seen.bases
            for entry in bases.entries
            if entry.manifest.kind is BackupKind.FULL and not bases.problem
        )
        if not beside and fulls - self._fulls:
            await self._place_kits()
        self._fulls |= fulls
        self._looked_beside = now if beside else self._looked_beside
        self._looked_replicas = now if copied else self._looked_replicas
        return seen

    async def _place_kits(self) -> None:
        """Without it the watch goes on: a kit that is not there is an alarm of its own."""
        try:
            for folder in await place_kits(self._ports):
                log.info("restore_kit_placed", folder=folder)
        except DrError as error:
            log.warning("restore_kit_not_placed", error=str(error))

    async def note(self, seen: Health) -> list[str]:
        """Record what stands now; the sentences that were told, which is each change once over all processes."""
        wrong = {alarm.key: alarm for alarm in alarms(seen)}
        told: list[str | None] = []
        async with self._database.session() as session:
            for _, alarm in sorted(wrong.items()):
                told.append(await raise_alarm(session, alarm, seen.at, channel=self._on_call))
            ended = [row.key for row in await stored.standing(session) if over(row.key, wrong, seen)]
            told += [await end_alarm(session, key, seen.at, channel=self._on_call) for key in ended]
        return [text for text in told if text is not None]


def over(key: str, wrong: Collection[str], seen: Health) -> bool:
    """Whether an alarm that stood is right now. What did not answer keeps its alarms, since nobody knows; what is no
    longer in the plan file has none. Standbys are watched where they are. An upgrade stands until something is proven
    with it: of workers on several machines each sees tools of its own."""
    if seen.problem or key.startswith(STANDBY):
        return False
    subject = key.partition("/")[2]
    if any(part.problem and subject.startswith(part.covers) for part in seen.beside):
        return False  # nobody knows what is in that part
    if key.startswith(UPGRADED) and key == f"{UPGRADED}{seen.proven(subject)}/{subject}":
        return False  # another worker may see other tools, or a server that is away here: a test ends it
    named = {dumps.key for dumps in seen.dumps} | {bases.subject for bases in seen.bases}
    named |= {mirror.subject for mirror in seen.mirrors} | {copies.subject for copies in seen.beside}
    return key not in wrong and (subject in subjects(seen) or subject not in named)
