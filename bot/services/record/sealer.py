"""The sealer: gives every leaf its place, signs checkpoints and brings them to the witnesses.

Any number may run; one at a time seals. It keeps the tree's peaks in memory and builds them anew from the leaves when
they are not those of the newest checkpoint, so a database that was changed behind its back is not signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from actions.errors import DrError, PermanentError, TemporaryError
from actions.merkle import CompactRange
from actions.ports import Clock
from bot.services.record.adoption import begin
from bot.services.record.checkpoint import Checkpoint, Consumed, Signed, Signer
from bot.services.record.epochs import BEGUN, starts
from bot.services.record.heads import Heads, sentence
from bot.services.record.watch import NEXT, Watch
from bot.services.record.witness import PATIENCE, Witness, bounded, newest_of
from bot.services.wake import Wake
from storage import incidents, outbox, record, timeline
from storage.session import Database
from storage.tables import CheckpointRow, LogEpoch

log = structlog.get_logger()

EVERY = timedelta(seconds=1)
"""How long a leaf waits for its place when nobody asks for it."""

COMPARED_EVERY = 30.0
"""Seconds between two comparisons with the witnesses."""

MEANWHILE = timedelta(minutes=1)
"""How far the clocks of two processes may differ. What was closed so shortly before is told once more: no harm."""

BATCH = 20_000
"""Leaves of one checkpoint, and leaves read at once."""

BUNDLE = 50
"""Checkpoints brought to a witness at once after it was away."""

AGAIN_AT_MOST = timedelta(seconds=30)


class Sealer:
    """One sealer of the clock role."""

    def __init__(
        self,
        database: Database,
        signer: Signer,
        watch: Watch,
        clock: Clock,
        wake: Wake,
        *,
        channel: str = "",
        every: timedelta = EVERY,
    ) -> None:
        self._database = database
        self._signer = signer
        self._watch = watch
        self._clock = clock
        self._wake = wake
        self._heads = Heads(channel, every=watch.max_age)
        self._every = every
        self._grown = CompactRange()
        self._compared = -COMPARED_EVERY
        self._news = {witness.name: asyncio.Event() for witness in watch.witnesses}

    async def run(self) -> None:
        """Seal and publish until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._seal_on())
            for witness in self._watch.witnesses:
                tasks.create_task(self._publish_on(witness))

    # ------------------------------------------------------------ sealing

    async def _seal_on(self) -> None:
        while True:
            more = False
            try:
                if await self.agrees():
                    more = await self.seal() >= BATCH
                else:
                    more = await begin(self._database, self._watch, self._clock)
            except DrError as error:
                log.warning("sealing_failed", error=str(error))
            if not more:
                await self._pause(self._wake.wait(record.WANTED), self._every)

    async def _pause(self, news: Coroutine[Any, Any, object], at_most: timedelta) -> None:
        try:
            async with asyncio.timeout(at_most.total_seconds()):
                await news
        except TimeoutError:
            return

    async def agrees(self) -> bool:
        """Whether the witnesses know no other past; looked at again after a while."""
        now = asyncio.get_running_loop().time()
        if now - self._compared >= COMPARED_EVERY:
            why = await self._watch.disagreement()
            if why:
                log.error("record_disagrees", why=why)
                return False
            self._compared = now
        return True

    async def seal(self) -> int:
        """Place what waits and sign it; how many leaves that were. Raises PermanentError when the sealed leaves are not
        those that were signed."""
        await self._catch_up()
        given_up = await self._given_up()
        async with self._database.session() as session:
            if not await record.hold(session):
                return 0
            epoch, last = await record.epoch(session), await record.newest(session)
            if self._grown.size != (0 if last is None else last.size):
                return 0  # another sealer was quicker; caught up with at the next try
            if await record.count(session) != self._grown.size:
                raise PermanentError(f"Entries have places that no checkpoint covers. {NEXT}")
            if given_up is not None:
                await record.consume(session, given_up, number=epoch.number)
            incidents_open = await incidents.open_channels(session)  # before: the entry that closes one is then covered
            if not self._heads.begun and last is not None:
                self._heads.begin(await incidents.open_channels_since(session, last.at - MEANWHILE))
            added = await record.place(session, size=self._grown.size, limit=BATCH)
            started = await record.started(session)
            if not (added or started or self._due(epoch, last)):
                return 0
            grown = self._grown.copy()
            grown.extend(added)
            await self._keep_subtrees(session, self._grown.size, grown.size)
            checkpoint = self._checkpoint(epoch, last, grown, started)
            await record.consume(session, started, number=checkpoint.number)
            row = self._row(checkpoint)
            await record.add(session, row)
            channels = self._heads.due(checkpoint, incidents_open)
            signed = Signed(body=row.body, signature=row.signature)
            for channel in channels:
                await outbox.add(session, "text", channel, payload={"text": sentence(checkpoint, signed)})
        self._grown = grown
        self._heads.told(channels, checkpoint, incidents_open)
        for event in self._news.values():
            event.set()
        return len(added)

    async def _keep_subtrees(self, session: AsyncSession, before: int, after: int) -> None:
        """The blocks that have become whole."""
        for number in range(before // record.BLOCK, after // record.BLOCK):
            block = CompactRange()
            block.extend(await record.hashes(session, number * record.BLOCK, (number + 1) * record.BLOCK))
            await record.add_subtree(session, number, block.root)

    def _due(self, epoch: LogEpoch, last: CheckpointRow | None) -> bool:
        """A checkpoint is due without news: a new epoch's first one, or to show that the log is alive."""
        if last is None or last.epoch != epoch.epoch:
            return True
        return self._clock.now() - last.at > self._watch.max_age / 2

    def _checkpoint(
        self, epoch: LogEpoch, last: CheckpointRow | None, grown: CompactRange, started: Sequence[tuple[str, str]]
    ) -> Checkpoint:
        base = epoch.base if last is None or last.epoch != epoch.epoch else last.size
        return Checkpoint(
            number=max(0 if last is None else last.number, epoch.number) + 1,
            epoch=epoch.epoch,
            base=base,
            size=grown.size,
            root=grown.root.hex(),
            at=self._clock.now(),
            key=self._signer.id,
            consumed=tuple(Consumed(plan=plan, digest=digest) for plan, digest in started),
        )

    def _row(self, checkpoint: Checkpoint) -> CheckpointRow:
        return CheckpointRow(
            number=checkpoint.number,
            epoch=checkpoint.epoch,
            base=checkpoint.base,
            size=checkpoint.size,
            root=bytes.fromhex(checkpoint.root),
            at=checkpoint.at,
            body=checkpoint.body(),
            signature=self._signer.sign(checkpoint),
        )

    async def _catch_up(self) -> None:
        """Build the peaks of the newest checkpoint from the leaves, unless they are known."""
        async with self._database.session() as session:
            last = await record.newest(session)
        size, root = (0, CompactRange().root) if last is None else (last.size, last.root)
        if self._grown.size == size and self._grown.root == root:
            return
        grown = self._grown.copy() if self._grown.size < size else CompactRange()
        while grown.size < size:
            async with self._database.session() as session:
                leaves = await record.hashes(session, grown.size, min(size, grown.size + BATCH))
            if not leaves:
                break
            await asyncio.to_thread(grown.extend, leaves)
        if grown.size != size or grown.root != root:
            self._grown = CompactRange()
            raise PermanentError(
                f"The {size} sealed entries of the record are not those that were signed. Nothing is sealed; "
                "name the first bad one with `drbot timeline verify`."
            )
        self._grown = grown

    async def _given_up(self) -> list[tuple[str, str]] | None:
        """Plans that the witnesses know as used up, when a new epoch begins; None otherwise. Raises TemporaryError
        while none of them answers."""
        async with self._database.session() as session:
            epoch, last = await record.epoch(session), await record.newest(session)
        if epoch.epoch == 0 or (last is not None and last.epoch == epoch.epoch):
            return None
        return [(item.plan, item.digest) for item in (await self._watch.past()).consumed]

    # ------------------------------------------------------------ publishing

    async def _publish_on(self, witness: Witness) -> None:
        """Bring every checkpoint to one witness, in order. One that is away holds up no other."""
        held: int | None = None
        wait = timedelta(seconds=1)
        while True:
            self._news[witness.name].clear()
            try:
                if held is None:
                    held = await self._held(witness)
                held = await self.publish(witness, after=held)
                wait = timedelta(seconds=1)
                await self._pause(self._news[witness.name].wait(), timedelta(seconds=5))
            except DrError as error:
                log.warning("witness_away", witness=witness.name, error=str(error))
                held = None
                await asyncio.sleep(wait.total_seconds())
                wait = min(wait * 2, AGAIN_AT_MOST)

    async def _held(self, witness: Witness) -> int:
        """The number of the newest checkpoint at the witness. Raises PermanentError when it knows another past."""
        why = await self._watch.disagreement()
        if why:
            raise PermanentError(why)
        withheld = await self._watch.withheld(witness.name)
        if withheld:
            raise TemporaryError(withheld)
        newest = await newest_of(witness, self._watch.trust)
        return 0 if newest is None else newest.number

    async def publish(self, witness: Witness, *, after: int) -> int:
        """Bring the checkpoints that follow `after`; the number of the last one. Raises DrError."""
        while True:
            async with self._database.session() as session:
                rows = await record.after(session, after, limit=BUNDLE)
                lines = [await self._line(session, row) for row in rows]
            if not rows:
                return after
            await bounded(witness.publish(rows[-1].number, lines), witness.name, 4 * PATIENCE)
            after = rows[-1].number

    async def _line(self, session: AsyncSession, row: CheckpointRow) -> str:
        """A checkpoint for a witness; the first one of an epoch with what was signed for it."""
        leaves = b"".join(await record.hashes(session, row.base, row.size))
        signed = Signed(body=row.body, signature=row.signature, leaves=leaves)
        epoch = await record.started_with(session, row.number)
        if epoch is not None and epoch.epoch == row.epoch:
            found = starts(await timeline.of_kinds(session, None, (BEGUN,)), epoch)
            # Anybody may add to the timeline: the note that holds, or after a change of keys the first one.
            found.sort(key=lambda start: not start.holds(self._watch.keys))
            if found:
                signed = signed.model_copy(update={"facts": found[0].facts.text, "proofs": found[0].proofs})
        return signed.line()
