"""From the bucket to a server that rests at its target: every member checked before anything is built on it."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from actions.backup.chain import base_for, chain, usable
from actions.backup.native_catalogue import NativeCatalogue
from actions.backup.native_fetch import BaseFetch
from actions.backup.physical import (
    Lsn,
    Phase,
    PhysicalEntry,
    RecoveryTarget,
    ScratchRequest,
    ScratchRestored,
)
from actions.backup.physical_tools import EndsEarlyError, PhysicalTools, Reached, Replay, ScratchServers
from actions.backup.progress import Shown
from actions.backup.scratch_budget import RESERVE, claim
from actions.backup.scratch_place import Claim, ScratchPlace
from actions.backup.segments import Timelines, history_name
from actions.backup.together import together
from actions.backup.wal import WalStart
from actions.backup.wal_fetch import FetchedWal, WalFetch
from actions.errors import UserError, VerificationError
from actions.ports import Clock, ObjectStore, Progress, ProgressReport, Secrets
from actions.site import PhysicalPolicy, ScratchBudget

MEMBERS = "members"
AT_ONCE = 2  # members that are fetched at the same time
SPARE = 1.05  # of the plain bytes: file systems need room for what they are not told of


@dataclass
class Seconds:
    """How long each phase took."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, phase: Phase) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent[phase] = round(self.spent.get(phase, 0.0) + time.monotonic() - begun, 3)


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
        budget: ScratchBudget,
        directory: Path,
        reserve: int = RESERVE,
    ) -> None:
        self._objects, self._secrets, self._clock = objects, secrets, clock
        self._tools, self._servers, self._catalogue = tools, servers, catalogue
        self._budget, self._directory, self._reserve = budget, directory, reserve
        self._fetch = BaseFetch(objects, secrets, tools)

    async def restore(self, policy: PhysicalPolicy, request: ScratchRequest, progress: Progress) -> ScratchRestored:
        place = ScratchPlace(self._directory, request.id)
        with place.held():
            there = await asyncio.to_thread(_there, place, request)
            if there is not None:
                return there
            await asyncio.to_thread(place.clear)
            try:
                return await self._restored(policy, request, place, progress)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(place.remove))
                raise

    async def _restored(
        self, policy: PhysicalPolicy, request: ScratchRequest, place: ScratchPlace, progress: Progress
    ) -> ScratchRestored:
        seconds = Seconds()
        members = await self._members(policy, request)
        base = members[-1].manifest
        identity = await self._fetch.identity(policy)
        for member in members:
            identity.check_opens(member.manifest.id, member.manifest.recipients)
        await asyncio.to_thread(self._claim, policy, request, place, members)
        with seconds.of(Phase.FETCH):
            wal = await self._fetched(policy, request.target, place, members, progress)
        _check_span(base.stop_lsn, base.id, wal)
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
            reached = await self._replayed(place, order, wal, progress)
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
            checked_indexes=reached.checked_indexes,
            seconds=seconds.spent,
            bytes=sum(member.manifest.stored.bytes for member in members) + wal.bytes,
        )
        await asyncio.to_thread(place.write_restored, restored)
        return restored

    async def _members(self, policy: PhysicalPolicy, request: ScratchRequest) -> list[PhysicalEntry]:
        """The full backup first. Raises UserError when none fits, VerificationError when one must not be used."""
        entries = await self._catalogue.entries(policy)
        if request.backup is None:
            base = base_for(entries, request.target)
            if base is None:
                raise _nothing_before(policy.server, entries, request.target)
        else:
            base = await self._catalogue.known(policy, request.backup)
            if base.problem is not None:
                raise VerificationError(base.problem)
        members = chain(entries, base)
        if members is None:
            raise VerificationError(f"The chain of base backup `{base.manifest.id}` is broken. Use another backup.")
        return members

    def _claim(
        self, policy: PhysicalPolicy, request: ScratchRequest, place: ScratchPlace, members: Sequence[PhysicalEntry]
    ) -> None:
        now = self._clock.now()
        plain = sum(member.manifest.plain_bytes for member in members)
        wanted = Claim(
            id=request.id,
            server=policy.server,
            mark=request.mark,
            made_at=now,
            expires_at=now + self._budget.lifetime,
            wanted_bytes=int(plain * SPARE),
            superuser=members[-1].manifest.superuser,
            system_id=members[-1].manifest.system_id,
        )
        claim(self._directory, place, wanted, self._budget, self._reserve)

    async def _fetched(
        self,
        policy: PhysicalPolicy,
        target: RecoveryTarget,
        place: ScratchPlace,
        members: Sequence[PhysicalEntry],
        progress: Progress,
    ) -> FetchedWal:
        """Members and WAL side by side."""
        base = members[-1].manifest
        start = WalStart(base.system_id, base.timeline_id, Lsn.parse(base.start_lsn), base.segment_bytes)
        identity = await self._fetch.identity(policy)
        done = dict.fromkeys(range(len(members)), 0)
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
            async with room:
                into = place.folder / MEMBERS / f"{number}"
                await self._fetch.fetch(policy, entry.manifest, identity, into, of_member(number))

        async with together() as group:
            wal = group.create_task(
                WalFetch(self._objects, self._secrets, policy).fetch(start, target, place.wal, of_wal)
            )
            for number, entry in enumerate(members):
                group.create_task(member(number, entry))
        return wal.result()

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

    async def _replayed(self, place: ScratchPlace, order: Replay, wal: FetchedWal, progress: Progress) -> Reached:
        try:
            return await self._servers.replay(place, order, progress)
        except EndsEarlyError as error:
            time_wanted = order.target.time
            if time_wanted is None or not wal.reaches:
                raise UserError(str(error)) from error
            # The archive goes on beyond that moment, and nobody committed anything between: PostgreSQL, which stops
            # at a commit, finds none to stop at. What is there is exactly what was wanted.
            whole = order.model_copy(update={"target": RecoveryTarget(latest=True)})
            reached = await self._servers.replay(place, whole, progress)
            if reached.at is not None and reached.at > time_wanted:
                raise UserError(str(error)) from error
            return reached


def _there(place: ScratchPlace, request: ScratchRequest) -> ScratchRestored | None:
    """What an earlier try of this very restore has made."""
    restored, found = place.restored(), place.claim()
    if restored is None or found is None:
        return None
    if found.mark != request.mark or restored.target != request.target:
        raise UserError(f"Scratch instance `{request.id}` is there, made for something else. Choose another id.")
    return restored


def _check_span(stop_lsn: str, backup: str, wal: FetchedWal) -> None:
    if Lsn.parse(wal.end_lsn) < Lsn.parse(stop_lsn):
        raise VerificationError(
            f"Base backup `{backup}` is consistent from {stop_lsn} on, and the archived WAL ends at {wal.end_lsn} "
            f"(after `{wal.last or 'nothing'}`): nothing can be restored from it. Use an earlier backup."
        )


def _nothing_before(server: str, entries: Sequence[PhysicalEntry], target: RecoveryTarget) -> UserError:
    good = usable(entries)
    if not good:
        return UserError(f"`{server}` has no base backup that can be used. Restore a dump instead.")
    oldest = min(entry.manifest.finished_at for entry in good)
    return UserError(
        f"No base backup of `{server}` ends before {target}; the oldest that can be used ends at "
        f"{oldest:%Y-%m-%d %H:%M:%S} UTC. Choose a later moment, or restore a dump."
    )


def copying_from(wal: Path) -> str:
    """A `restore_command` that finds the segments in this folder."""
    folder = shlex.quote(str(wal.absolute())).replace("%", "%%")
    return f"cp {folder}/%f %p"


def timeline_at(place: Lsn, timeline_id: int, wal: Path) -> int:
    """The timeline that this place of the WAL was written on, by the history beside the segments. Blocking."""
    history = wal / history_name(timeline_id)
    way = Timelines.parse(timeline_id, history.read_text()) if history.exists() else Timelines.alone(timeline_id)
    return next(each.timeline_id for each in way.stretches if each.end is None or place <= each.end)
