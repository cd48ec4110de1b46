"""Pages: what people must hear even when Slack is away.

A page is a row of the outbox without a channel, written in the same transaction as what it tells; a worker hands it to
the pager. Nothing waits for it.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from actions.errors import DrError, TemporaryError
from actions.ports import Pager
from storage import outbox
from storage.session import Database

log = structlog.get_logger()

LOOK_EVERY = timedelta(seconds=2)
HELD = timedelta(seconds=30)
"""How long a worker that takes a page may be silent before another one tries."""

TRIES = 240
"""An hour of a pager that is away; then the row is set aside for `drbot doctor`."""


async def page(session: AsyncSession, text: str, *, key: str) -> None:
    """Queue one page. `key` names what it is about, so that the receiver can drop a second one."""
    await outbox.add(session, "page", "", payload={"text": text, "key": key})


class Paging:
    """Hands pages to the pager, oldest first. Without a pager they are only logged."""

    def __init__(self, database: Database, pager: Pager | None) -> None:
        self._database = database
        self._pager = pager

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                worked = await self.once()
            except DrError as error:
                log.warning("pages_not_readable", error=str(error))
                worked = False
            if not worked:
                await asyncio.sleep(LOOK_EVERY.total_seconds())

    async def once(self) -> bool:
        """Try the oldest page that is due; False when there is none."""
        async with self._database.session() as session:
            row = await outbox.claim_page(session, hold=HELD)
        if row is None:
            return False
        number, text, key = row.id or 0, str(row.payload["text"]), str(row.payload["key"])
        if self._pager is None:
            log.warning("page_without_pager", key=key, text=text)
            await self._settle(number, state="skipped", error="The plan file names no pager.")
            return True
        try:
            await self._pager.page(text, key=key)
        except TemporaryError as error:
            log.warning("page_not_delivered", key=key, error=str(error))
            state = "pending" if row.attempts < TRIES else "dead"
            await self._settle(number, state=state, error=str(error), retry=error.retry_after)
        except DrError as error:
            log.error("page_refused", key=key, error=str(error))  # noqa: TRY400 - the sentence says it all
            await self._settle(number, state="dead", error=str(error))
        else:
            await self._settle(number, state="sent")
        return True

    async def _settle(self, row: int, *, state: str, error: str = "", retry: timedelta | None = None) -> None:
        async with self._database.session() as session:
            await outbox.settle(session, row, state=state, error=error, retry=retry)
