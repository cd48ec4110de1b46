"""`drbot wal`: follows one server's WAL and brings it into the buckets, through everything that may end under it.

The slot advances with the archiver's disk, not with the buckets, so nothing leaves the disk before every bucket has
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime, timedelta

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.backup.native_catalogue import NativeCatalogue
from actions.backup.physical import Lsn
from actions.backup.sealed import Sealer
from actions.backup.segments import Segment
from actions.backup.standby_slots import EVERY as STANDBYS_EVERY
from actions.backup.standby_slots import StandbySlots
from actions.backup.wal import WalArchive
from actions.backup.wal_alarms import BucketSeen, Seen, alarms
from actions.backup.wal_disk import disk_problem
from actions.backup.wal_owed import OwedWal
from actions.backup.wal_receiving import WalReceiving
from actions.backup.wal_shipping import Lane, OpenShipping, WalShipping
from actions.backup.wal_source import AlarmKind, WalSource
from actions.backup.wal_spool import WalSpool
from actions.backup.wal_status import Durable, WalAlarm, WalStatus, sign_status, status_place
from actions.errors import DrError, PermanentError, UserError
from actions.ports import Clock, ObjectStore
from actions.site import PhysicalPolicy

log = structlog.get_logger(__name__)

ABSORB_EVERY = timedelta(seconds=0.2)
LOOK_EVERY = timedelta(seconds=2)
SAY_EVERY = timedelta(seconds=5)
BASE_EVERY = timedelta(minutes=1)


class Archiver:
    """One server. `run` works until it is cancelled."""

    def __init__(
        self,
        source: WalSource,
        objects: ObjectStore,
        policy: PhysicalPolicy,
        spool: WalSpool,
        key: Ed25519PrivateKey,
        clock: Clock,
        *,
        standbys: Mapping[str, WalSource] | None = None,
        open_every: timedelta,
        look_every: timedelta = LOOK_EVERY,
        say_every: timedelta = SAY_EVERY,
        standbys_every: timedelta = STANDBYS_EVERY,
        base_every: timedelta = BASE_EVERY,
    ) -> None:
        self._objects, self._policy, self._spool, self._key, self._clock = objects, policy, spool, key, clock
        self._look_every, self._say_every, self._base_every = look_every, say_every, base_every
        self._bases = NativeCatalogue(objects)
        archive, sealer = WalArchive(objects, policy), Sealer(policy.recipients, key)
        if sealer.signer not in policy.trusted_signers:
            raise UserError(
                f"The public half of `{policy.signing_key}` is not among the plan's signers: no restore would take "
                "this WAL. Add it, or use the right key."
            )
        self._receiving = WalReceiving(source, archive, spool, clock)
        self._shipping = WalShipping(archive, spool, sealer, clock)
        self._owed = OwedWal(archive, spool, clock)
        self._standbys = StandbySlots(
            standbys or {}, clock, primary=lambda: self._receiving.facts, stored=self._stored, every=standbys_every
        )
        self._open: OpenShipping | None = None
        if policy.open_bucket:
            self._open = OpenShipping(
                archive,
                spool,
                sealer,
                clock,
                every=open_every,
                written=self._receiving.written,
                behind=self._shipping.behind,
            )
        self._alarms: dict[AlarmKind, WalAlarm] = {}
        self._refused: tuple[AlarmKind, str] | None = None  # why what was received is not taken over

    async def run(self) -> None:
        """Receive, store, watch, say. Waits for a disk that takes nothing, and tells of it. Raises UserError when
        another archiver works on the same disk."""
        if self._policy.synchronous:
            log.info("wal_synchronous", server=self._policy.server, synchronous_standby_names=self._policy.slot)
        async with self._disk():
            works = [self._receiving.run(), self._absorb(), self._shipping.run(), self._watch(), self._say()]
            works += [self._await_base(), self._standbys.run(), self._owed.run()]
            if self._open is not None:
                works.append(self._open.run())
            async with asyncio.TaskGroup() as group:
                for work in works:
                    group.create_task(work)

    @asynccontextmanager
    async def _disk(self) -> AsyncIterator[None]:
        """The spool for us alone."""
        with ExitStack() as stack:
            since = None
            while True:
                try:
                    stack.enter_context(self._spool.alone())
                    break
                except OSError as error:
                    since = since or self._clock.now()
                    kind, text = disk_problem(error, self._policy, self._spool.directory)
                    log.error("wal_disk_unusable", server=self._policy.server, error=str(error))  # noqa: TRY400
                    alarm = WalAlarm(kind=kind, text=text, since=since)
                    await self._store_status(
                        WalStatus(
                            server=self._policy.server,
                            at=self._clock.now(),
                            synchronous=self._policy.synchronous,
                            alarms=(alarm,),
                        )
                    )
                await self._clock.sleep(self._say_every)
            yield

    async def _absorb(self) -> None:
        while True:
            if self._spool.state is not None:
                try:
                    for name in await asyncio.to_thread(self._spool.absorb):
                        log.info("wal_segment_closed", segment=name)
                    await asyncio.to_thread(self._spool.save)
                    self._refused = None
                except (PermanentError, OSError) as error:
                    self._refused = AlarmKind.OTHER_SERVER, str(error)
                    if isinstance(error, OSError):
                        self._refused = disk_problem(error, self._policy, self._spool.directory)
                    log.error("wal_refused", error=str(error))  # noqa: TRY400 - no trace: the sentence says it all
                    await self._clock.sleep(LOOK_EVERY)
            await self._clock.sleep(ABSORB_EVERY)

    # ------------------------------------------------------------ watching

    async def _watch(self) -> None:
        while True:
            try:
                await self._receiving.look()
            except (DrError, OSError) as error:
                log.info("wal_server_silent", server=self._policy.server, error=str(error))
            await self._clock.sleep(self._look_every)

    async def _await_base(self) -> None:
        """Forget that a base backup is wanted once there is one. Without the right to read them, who reads the status
        decides it alone."""
        while True:
            state = self._spool.state
            wanted = state.base_wanted if state else None
            if state is not None and wanted is not None:
                try:
                    if wanted.answered_by(await self._bases.entries(self._policy), state.system_id):
                        await asyncio.to_thread(self._spool.change, base_wanted=None)
                        log.info("wal_base_made", server=self._policy.server, after_lsn=wanted.after_lsn)
                except (DrError, OSError) as error:
                    log.info("wal_bases_not_seen", server=self._policy.server, error=str(error))
            await self._clock.sleep(self._base_every)

    async def _say(self) -> None:
        while True:
            try:
                await self._store_status(await asyncio.to_thread(self.status))
            except OSError as error:
                log.warning("wal_status_not_known", error=str(error))
            await self._clock.sleep(self._say_every)

    async def _store_status(self, status: WalStatus) -> None:
        """Whatever becomes of its words, the WAL goes on."""
        bucket, key = status_place(self._policy)
        try:
            await self._objects.put(bucket, key, sign_status(status, self._key))
        except DrError as error:
            log.warning("wal_status_not_stored", bucket=bucket, error=str(error))

    def status(self) -> WalStatus:
        """Everything as it is now; alarms that begin or end are logged. Blocking."""
        state, facts, now = self._spool.state, self._receiving.facts, self._clock.now()
        received = Segment.parse(state.newest, state.segment_bytes).end if state and state.newest else None
        return WalStatus(
            server=self._policy.server,
            at=now,
            system_id=state.system_id if state else "",
            timeline_id=facts.timeline_id if facts else 0,
            received_lsn=str(received or ""),
            server_lsn=facts.flush_lsn if facts else "",
            buckets={
                lane.bucket: self._durable(lane, self._shipping.durable(lane), self._shipping.lacking(lane))
                for lane in self._shipping.lanes
            },
            open=self._durable(self._open.lane, self._open_until(self._open)) if self._open else None,
            backlog_bytes=self._spool.waiting_bytes(),
            free_bytes=self._spool.free_bytes(),
            slot=facts.slot if facts else None,
            synchronous=self._policy.synchronous,
            alarms=self._judge(),
            base_wanted=state.base_wanted if state else None,
        )

    def _stored(self) -> Lsn:
        """Every bucket lacks nothing that was closed before this place. Blocking."""
        return min(map(self._shipping.durable, self._shipping.lanes))

    def _open_until(self, opened: OpenShipping) -> Lsn:
        """The open segment counts only where nothing is missing before it."""
        closed = max(map(self._shipping.durable, self._shipping.lanes))
        first = self._spool.state is not None and not self._spool.state.newest  # nothing comes before it
        return max(closed, opened.lsn) if first or opened.begins <= closed else closed

    def _durable(self, lane: Lane, lsn: Lsn, lacking: int = 0) -> Durable:
        return Durable(
            lsn=str(lsn) if lsn else "",
            at=self._receiving.durable_at(lsn),
            waiting=lacking,
            problem=lane.problem,
        )

    def _judge(self) -> tuple[WalAlarm, ...]:
        now, lanes, state = self._clock.now(), self._shipping.lanes, self._spool.state
        buckets = [
            _seen(lane, self._shipping.lacking(lane), owed=self._owed.problems.get(lane.bucket)) for lane in lanes
        ]
        if self._open is not None:
            buckets.append(_seen(self._open.lane, 0, opened=True))
        seen = Seen(
            now=now,
            policy=self._policy,
            facts=self._receiving.facts,
            problem=self._refused or self._receiving.problem,
            free_bytes=self._spool.free_bytes(),
            total_bytes=self._spool.total_bytes(),
            rate=self._receiving.rate(),
            buckets=tuple(buckets),
            base_wanted=state.base_wanted if state else None,
            standbys=dict(self._standbys.problems),
            disk_lost=state.disk_lost if state else None,
            received_lsn=Segment.parse(state.newest, state.segment_bytes).end if state and state.newest else None,
        )
        found = dict(alarms(seen))
        for kind, text in found.items():
            before = self._alarms.get(kind)
            if before is None:
                log.error("wal_alarm", server=self._policy.server, kind=kind, text=text)
            self._alarms[kind] = WalAlarm(kind=kind, text=text, since=before.since if before else now)
        for kind in self._alarms.keys() - found.keys():
            log.info("wal_alarm_over", server=self._policy.server, kind=kind)
            del self._alarms[kind]
        return tuple(self._alarms.values())


def _seen(lane: Lane, lacking: int, *, opened: bool = False, owed: tuple[str, datetime] | None = None) -> BucketSeen:
    problem, since = owed or (lane.problem, lane.since)
    return BucketSeen(
        name=lane.bucket,
        problem=problem,
        since=since,
        lacking=lacking,
        conflict=lane.conflict,
        owed=owed is not None,
        open=opened,
    )
