"""From the bucket to a server that rests at its target: every member checked before anything is built on it."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from actions.backup.chain import base_for, chain
from actions.backup.dead_ends import dead_in
from actions.backup.native_catalogue import NativeCatalogue
from actions.backup.native_fetch import BaseFetch
from actions.backup.patience import PATIENCE, patiently
from actions.backup.physical import (
    Lsn,
    Phase,
    PhysicalEntry,
    RecoveryTarget,
    ScratchRequest,
    ScratchRestored,
)
from actions.backup.physical_tools import PhysicalTools, Replay, ScratchServers
from actions.backup.progress import Shown
from actions.backup.scratch_budget import RESERVE, claim
from actions.backup.scratch_place import ScratchPlace
from actions.backup.scratch_restore import (
    Seconds,
    check_span,
    claim_of,
    in_place,
    nothing_before,
    replayed,
    timeline_at,
)
from actions.backup.segments import Segment
from actions.backup.standby import Brought, feed
from actions.backup.together import together
from actions.backup.wal import WalArchive, WalStart
from actions.backup.wal_coming import copying_from
from actions.backup.wal_fetch import FetchedWal, WalFetch
from actions.backup.wal_status import read_status
from actions.errors import DrError, VerificationError
from actions.ports import Clock, ObjectStore, Progress, ProgressReport, Secrets, no_progress
from actions.site import PhysicalPolicy, ScratchBudget

log = logging.getLogger(__name__)

MEMBERS = "members"
AT_ONCE = 2  # members that are fetched at the same time
STORED_WITHIN = timedelta(hours=1)  # a segment may close and arrive that long after the commits in it


class Restoring:
    """`directory` holds the scratch instances; `reserve` are bytes of its disk that stay free."""

    def __init__(
        self,
        *,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
        tools: PhysicalTools,
        servers: ScratchServers,
        catalogue: NativeCatalogue,
        fetch: BaseFetch,
        budget: ScratchBudget,
        directory: Path,
        reserve: int = RESERVE,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._objects, self._secrets, self._clock, self._patience = objects, secrets, clock, patience
        self._tools, self._servers, self._catalogue = tools, servers, catalogue
        self._budget, self._directory, self._reserve = budget, directory, reserve
        self._fetch = fetch

    async def restore(self, policy: PhysicalPolicy, request: ScratchRequest, progress: Progress) -> ScratchRestored:
        place = ScratchPlace(self._directory, request.id)
        return await in_place(place, request, lambda: self._restored(policy, request, place, progress))

    async def feed(self, policy: PhysicalPolicy, scratch: str) -> None:
        place = ScratchPlace(self._directory, scratch)
        archive = WalFetch(self._objects, self._secrets, policy)

        async def fetch(start: WalStart) -> Brought:
            wal = await archive.fetch(start, RecoveryTarget(latest=True), place.wal, no_progress)
            end = wal.end_lsn if wal.last else ""
            return Brought(
                way=wal.timeline_id,
                newest_way=wal.newest_timeline_id,
                closed=wal.closed,
                end_lsn=end,
                newest_at=wal.newest_at,
            )

        await feed(place, fetch, self._clock.now(), reserve=self._reserve)

    async def _restored(
        self, policy: PhysicalPolicy, request: ScratchRequest, place: ScratchPlace, progress: Progress
    ) -> ScratchRestored:
        seconds = Seconds()
        members = await self._members(policy, request)
        base = members[-1].manifest
        covered = await self._covered(policy, request.target, base.system_id)  # before the WAL is listed
        identity = await self._fetch.identity(policy)
        for member in members:
            identity.check_opens(member.manifest.id, member.manifest.recipients)
        wal_bytes = await self._wal_bytes(policy, request.target, members)
        plain = sum(member.manifest.plain_bytes for member in members)
        wanted = claim_of(request, base, self._clock.now(), self._budget, plain=plain, wal=wal_bytes)
        await asyncio.to_thread(claim, self._directory, place, wanted, self._budget, self._reserve)
        with seconds.of(Phase.FETCH):
            wal, passed_over = await self._fetched(policy, request.target, place, members, progress)
        check_span(base.stop_lsn, base.id, wal.end_lsn, wal.last)
        with seconds.of(Phase.COMBINE):
            await self._combine(policy.server, place, members, progress)
        order = Replay(
            target=request.target,
            timeline_id=wal.timeline_id,
            start_lsn=base.start_lsn,
            end_lsn=wal.end_lsn,
            restore_command=copying_from(place.wal),
            amcheck=request.amcheck,
        )
        with seconds.of(Phase.REPLAY):
            reached = await replayed(self._servers, place, order, progress, reaches=wal.reaches)
        with seconds.of(Phase.CHECK):
            progress(ProgressReport(phase="check", total=base.server_bytes or None))
            checked = await self._tools.check_pages(policy.server, place.data)
        restored = ScratchRestored(
            id=request.id,
            backup=base.id,
            target=request.target,
            reached_lsn=reached.lsn,
            reached_at=reached.at,
            timeline_id=await asyncio.to_thread(timeline_at, reached.place, wal.timeline_id, place.wal),
            checked_pages=checked,
            without_checksums=not checked,
            checked_indexes=reached.checked_indexes,
            seconds=seconds.spent,
            bytes=sum(member.manifest.stored.bytes for member in members) + wal.bytes,
            plain_bytes=plain,
            wal_bytes=max(0, reached.place - Lsn.parse(base.start_lsn)),
            passed_over=passed_over,
            tools=await self._tools.versions(policy.server),
            covered_until=covered,
        )
        await asyncio.to_thread(place.write_restored, restored)
        return restored

    async def _covered(self, policy: PhysicalPolicy, target: RecoveryTarget, system_id: str) -> datetime | None:
        """Up to when everything committed is in the copy that survives the region, by the archiver's own word; so also
        where nobody has committed anything for a while. None where nobody says it: that fails no restore."""
        if not target.latest or not policy.wal_buckets:
            return None
        try:
            said = await read_status(self._objects, policy)
        except DrError as error:
            log.warning("archiver_not_heard: %s: %s", policy.server, error)
            return None
        return None if said is None or said.system_id != system_id else said.covered(policy.wal_buckets[-1])

    async def _members(self, policy: PhysicalPolicy, request: ScratchRequest) -> list[PhysicalEntry]:
        """The full backup first. Raises UserError when none fits, VerificationError when one must not be used."""
        entries = await self._catalogue.entries(policy)
        if request.backup is None:
            base = base_for(entries, request.target, await dead_in(WalArchive(self._objects, policy), entries))
            if base is None:
                raise nothing_before(policy.server, entries, request.target)
        else:
            base = await self._catalogue.known(policy, request.backup)
            if base.problem is not None:
                raise VerificationError(base.problem)
        members = chain(entries, base)
        if members is None:
            raise VerificationError(f"The chain of base backup `{base.manifest.id}` is broken. Use another backup.")
        return members

    async def _wal_bytes(self, policy: PhysicalPolicy, target: RecoveryTarget, members: Sequence[PhysicalEntry]) -> int:
        """Plain bytes of the WAL that will be fetched, by a listing; for a time of what was stored until soon after."""
        base = members[-1].manifest
        first = Segment.holding(Lsn.parse(base.start_lsn), base.timeline_id, base.segment_bytes)
        names = {
            name
            for listing in await WalArchive(self._objects, policy).listings()
            for name, facts in listing.segments.items()
            if target.time is None or facts.modified_at <= target.time + STORED_WITHIN
        }
        return base.segment_bytes * sum(name[8:] >= str(first)[8:] for name in names)

    async def _fetched(
        self,
        policy: PhysicalPolicy,
        target: RecoveryTarget,
        place: ScratchPlace,
        members: Sequence[PhysicalEntry],
        progress: Progress,
    ) -> tuple[FetchedWal, tuple[str, ...]]:
        """Members and WAL side by side; and which copies of a member were passed over, each with why."""
        base = members[-1].manifest
        start = WalStart(base.system_id, base.timeline_id, Lsn.parse(base.start_lsn), base.segment_bytes)
        identity = await self._fetch.identity(policy)
        done = dict.fromkeys(range(len(members)), 0)
        passed: list[str] = []
        wal_done = 0
        shown = Shown(progress, "fetch", sum(member.manifest.stored.bytes for member in members))
        room = asyncio.Semaphore(AT_ONCE)

        def of_member(number: int) -> Callable[[int], None]:
            def count(stored: int) -> None:
                done[number] = stored
                shown.bytes(sum(done.values()) + wal_done)

            return count

        def of_wal(report: ProgressReport, /) -> None:
            nonlocal wal_done
            wal_done = report.done
            shown.bytes(sum(done.values()) + wal_done)

        async def member(number: int, entry: PhysicalEntry) -> None:
            into = place.folder / MEMBERS / f"{number}"

            async def fetched() -> Sequence[str]:
                await asyncio.to_thread(shutil.rmtree, into, ignore_errors=True)
                return await self._fetch.fetch(policy, entry, identity, into, of_member(number))

            async with room:
                passed.extend(await patiently(fetched, self._patience))

        archive = WalFetch(self._objects, self._secrets, policy, patience=self._patience)
        async with together() as group:
            wal = group.create_task(archive.fetch(start, target, place.wal, of_wal))
            for number, entry in enumerate(members):
                group.create_task(member(number, entry))
        return wal.result(), tuple(passed)

    async def _combine(
        self, server: str, place: ScratchPlace, members: Sequence[PhysicalEntry], progress: Progress
    ) -> None:
        progress(ProgressReport(phase="combine", unit="steps", total=len(members)))
        folders = [place.folder / MEMBERS / f"{number}" for number in range(len(members))]
        if len(folders) == 1:
            await asyncio.to_thread(folders[0].rename, place.data)
        else:
            await self._tools.combine(server, folders, place.data)
        await asyncio.to_thread(shutil.rmtree, place.folder / MEMBERS)
