"""Going on after the bot's own database was restored from a backup.

The database has forgotten what the witnesses know. A person starts a new epoch of its log: every plan signed before is
void, and what the witnesses know as used up stays so. Nothing of the past is thrown away, here or there.
"""

from __future__ import annotations

from actions.errors import UserError
from actions.merkle import CompactRange
from actions.ports import Clock
from bot.services.record.checkpoint import Checkpoint
from bot.services.record.watch import Past, Watch
from storage import record, timeline
from storage.session import Database
from storage.tables import LogEpoch


class Adoption:
    """`drbot record adopt`."""

    def __init__(self, database: Database, watch: Watch, clock: Clock) -> None:
        self._database = database
        self._watch = watch
        self._clock = clock

    async def adopt(self, person: str, name: str, reason: str) -> str:
        """Start a new epoch; the sentence for the person. Raises UserError when there is nothing to adopt."""
        if not reason.strip():
            raise UserError('Say why, for the record: `drbot record adopt --reason "restored after the disk failed"`.')
        why = await self._watch.disagreement()
        if not why:
            raise UserError("The witnesses and the database know the same past; there is nothing to adopt.")
        past = await self._watch.past()
        base = await self._common(past)
        newest = past.newest
        async with self._database.session() as session:
            epoch, own = await record.epoch(session), await record.newest(session)
            row = LogEpoch(
                epoch=max(epoch.epoch, 0 if newest is None else newest.epoch) + 1,
                base=base,
                number=max(0 if newest is None else newest.number, 0 if own is None else own.number),
                person=person,
                reason=reason,
            )
            lost = 0 if newest is None else newest.size - base
            text = (
                f"{name} started epoch {row.epoch} of the record: {reason}. The witnesses and this database agree on "
                f"{base} entries; {lost} more that the witnesses know are not in it. Every plan signed before is void."
            )
            await record.begin_epoch(session, row)
            await timeline.add(
                session,
                incident_id=None,
                kind="record",
                actor=name,
                occurred_at=self._clock.now(),
                text=text,
                data={"epoch": row.epoch, "base": base, "why": why},
            )
        return text

    async def _common(self, past: Past) -> int:
        """How many leaves the newest line of checkpoints and this database agree on."""
        agreed, grown = 0, CompactRange()
        for checkpoint in _line(past):
            if checkpoint.size > grown.size:
                async with self._database.session() as session:
                    grown.extend(await record.hashes(session, grown.size, checkpoint.size))
            if grown.size != checkpoint.size or grown.root.hex() != checkpoint.root:
                break
            agreed = checkpoint.size
        return agreed


def _line(past: Past) -> list[Checkpoint]:
    """The checkpoints that the newest one grew from, smallest first: of an earlier epoch only those up to the base of
    the next."""
    line: list[Checkpoint] = []
    for checkpoint in past.checkpoints:
        if line and checkpoint.epoch != line[-1].epoch:
            line = [item for item in line if item.size <= checkpoint.base]
        line.append(checkpoint)
    return line
