"""The native engine: base backups and incrementals through the replication protocol, WAL from `drbot wal`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from actions.backup.chain import as_in
from actions.backup.dead_ends import dead_ends, dead_in, leading, living_way
from actions.backup.finder import WalRecords
from actions.backup.native_catalogue import BaseFolder, Catalogued, NativeCatalogue, named
from actions.backup.native_check import Checking
from actions.backup.native_copy import BaseCopying, in_order
from actions.backup.native_fetch import BaseFetch
from actions.backup.native_find import NativeFinder
from actions.backup.native_holds import BaseHolds
from actions.backup.native_lacks import lacks_of
from actions.backup.native_newest import Newest, OpenEnd, newest_closed
from actions.backup.native_records import BaseRecords
from actions.backup.native_restore import Restoring
from actions.backup.native_retention import Deletable, deletable, segment_size, stored_segments, within
from actions.backup.native_take import Taking
from actions.backup.native_window import begin, start_of, window
from actions.backup.patience import PATIENCE
from actions.backup.physical import (
    BaseRequest,
    Expiry,
    FindRequest,
    Lack,
    Moment,
    NamedPoint,
    PhysicalEntry,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryWindow,
    ScratchRequest,
    ScratchRestored,
    Uncopied,
)
from actions.backup.physical_tools import PhysicalTools, ScratchServers
from actions.backup.retention import old, why_it_stays
from actions.backup.scratch_budget import RESERVE
from actions.backup.segments import Segment, Timelines
from actions.backup.wal import WalArchive, WalListing
from actions.buckets import Hold
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import Clock, ObjectStore, PhysicalBackups, Progress, Secrets
from actions.site import PhysicalPolicy, Site

log = logging.getLogger(__name__)

DELETERS = 16  # objects that are deleted at the same time


class NativeEngine(PhysicalBackups):
    """`scratch_directory` takes the instances, `work_directory` what is read to be checked; `reserve` are bytes of the
    disk that stay free; `patience` is how long what has begun waits for a store that went away."""

    def __init__(
        self,
        site: Site,
        *,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
        tools: PhysicalTools,
        servers: ScratchServers,
        records: Callable[[str], WalRecords],
        scratch_directory: Path,
        work_directory: Path,
        reserve: int = RESERVE,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._site, self._objects, self._clock, self._tools = site, objects, clock, tools
        self._catalogue = NativeCatalogue(objects)
        self._records = BaseRecords(objects, secrets, clock)
        fetch = BaseFetch(objects, secrets, tools, self._records)
        self._checking = Checking(fetch, self._records, tools, work_directory)
        self._holds = BaseHolds(objects)
        self._copying = BaseCopying(objects, clock, self._catalogue, self._records, self._holds)
        self._finder = NativeFinder(objects, secrets, records, work_directory)
        self._taking = Taking(
            objects=objects,
            secrets=secrets,
            clock=clock,
            tools=tools,
            catalogue=self._catalogue,
            records=self._records,
            work_directory=work_directory,
            patience=patience,
        )
        self._restoring = Restoring(
            objects=objects,
            secrets=secrets,
            clock=clock,
            tools=tools,
            servers=servers,
            catalogue=self._catalogue,
            fetch=fetch,
            budget=site.scratch,
            directory=scratch_directory,
            reserve=reserve,
            patience=patience,
        )

    async def catalogue(self, server: str) -> Sequence[PhysicalEntry]:
        return await self._catalogue.entries(self._site.physical_of(server))

    async def take(self, request: BaseRequest, progress: Progress) -> PhysicalEntry:
        return await self._taking.take(self._site.physical_of(request.server), request, progress)

    async def restore(self, request: ScratchRequest, progress: Progress) -> ScratchRestored:
        return await self._restoring.restore(self._site.physical_of(request.server), request, progress)

    async def versions(self, server: str) -> Mapping[str, str]:
        return await self._tools.versions(server)

    async def feed(self, server: str, scratch: str) -> None:
        await self._restoring.feed(self._site.physical_of(server), scratch)

    async def verify(self, server: str, backup: str, progress: Progress) -> PhysicalEntry:
        policy = self._site.physical_of(server)
        return await self._checking.verify(policy, await self._catalogue.known(policy, backup), progress)

    async def copy(self, server: str, backup: str, progress: Progress) -> Sequence[str]:
        policy, wanted = self._site.physical_of(server), (await self.uncopied(server)).backups
        return await self._copying.copy(policy, backup, tuple(wanted), progress)

    async def uncopied(self, server: str) -> Uncopied:
        policy = self._site.physical_of(server)
        if not policy.copy_bucket:
            return Uncopied()
        found = await self._catalogue.read(policy)
        behind = [entry for entry in in_order(found.entries) if entry.behind]
        # What the policy lets go anyway is not copied any more. Mostly nothing is that old.
        if any(old(entry, policy, self._clock.now()) for entry in behind):
            with contextlib.suppress(DrError):  # where nobody can tell what goes, all of it is copied
                gone = set((await self._deletable(policy)).expiry.backups)
                behind = [entry for entry in behind if entry.manifest.id not in gone]
        return Uncopied(
            backups={entry.manifest.id: entry.behind for entry in behind},
            spoiled={entry.manifest.id: entry.spoiled for entry in found.entries if entry.spoiled},
            silent=found.silent,
        )

    async def find(self, request: FindRequest, progress: Progress) -> Sequence[Moment]:
        policy = self._site.physical_of(request.server)
        return await self._finder.find(policy, await self._leading(policy), request, progress)

    async def find_points(self, request: PointRequest, progress: Progress) -> Sequence[NamedPoint]:
        policy = self._site.physical_of(request.server)
        return await self._finder.find_points(policy, await self._leading(policy), request, progress)

    async def find_places(self, request: PlaceRequest, progress: Progress) -> Sequence[Place]:
        policy = self._site.physical_of(request.server)
        return await self._finder.find_places(policy, await self._leading(policy), request, progress)

    async def _leading(self, policy: PhysicalPolicy) -> Sequence[PhysicalEntry]:
        """What happened on a branch that the server has left is no part of its past."""
        entries = await self._catalogue.entries(policy)
        return leading(entries, await dead_in(WalArchive(self._objects, policy), entries))

    # ------------------------------------------------------------ what can be reached

    async def windows(self, server: str) -> Sequence[RecoveryWindow]:
        policy = self._site.physical_of(server)
        found = await self._catalogue.read(policy)
        archive = WalArchive(self._objects, policy)
        asked = await archive.asked()
        errors = [each for each in asked.values() if isinstance(each, DrError)]
        if len(errors) == len(asked):
            raise errors[0]
        # The last one named is the one in the other region.
        return [
            await self._told(policy, archive, found, bucket, listing) for bucket, listing in reversed([*asked.items()])
        ]

    async def _told(
        self,
        policy: PhysicalPolicy,
        archive: WalArchive,
        found: Catalogued,
        bucket: str,
        listing: WalListing | DrError,
    ) -> RecoveryWindow:
        if isinstance(listing, DrError):  # a bucket that is silent is not an empty one
            return RecoveryWindow(server=policy.server, bucket=bucket, problem=str(listing))
        beside = self._bases_beside(policy, bucket)
        if beside in found.silent:
            return RecoveryWindow(
                server=policy.server, bucket=bucket, wal_bytes=listing.bytes, problem=found.silent[beside]
            )
        try:
            return await self._window(policy, archive, found.entries, listing)
        except VerificationError as error:
            problem = (
                f"{error} Restart the archiver (`drbot wal`), which stores it again from its own disk, or copy it from "
                "another bucket."
            )
            return RecoveryWindow(server=policy.server, bucket=listing.bucket, wal_bytes=listing.bytes, problem=problem)

    async def _window(
        self, policy: PhysicalPolicy, archive: WalArchive, entries: Sequence[PhysicalEntry], listing: WalListing
    ) -> RecoveryWindow:
        good = [entry for entry in entries if entry.problem is None]
        if not good:
            return RecoveryWindow(server=policy.server, bucket=listing.bucket, wal_bytes=listing.bytes)
        ours = [entry for entry in good if entry.manifest.system_id == good[0].manifest.system_id]
        start = start_of(ours[0])
        way = await living_way(lambda newest: archive.history(newest, start, [listing]), ours, [listing])
        dead = dead_ends(ours, way, [listing])
        if way is None:
            way = await archive.timelines(start, None, [listing])
        listing = await archive.genuine(start, way, listing)
        newest, lsn = await self._newest(policy, archive, good[0], listing, way)
        beside = self._bases_beside(policy, listing.bucket)
        here = as_in(entries, beside) if beside else entries
        if (first := begin(here, listing, way)) is not None:
            listing = await archive.dated(first, way, listing)
        found = window(policy, here, listing, way, newest=newest, newest_lsn=lsn, now=self._clock.now())
        kept = {entry.manifest.id for entry in here if entry.problem is None}
        elsewhere = tuple(entry.manifest.id for entry in good if entry.manifest.id not in kept)
        return found.model_copy(update={"dead_ends": dead, "elsewhere": elsewhere})

    def _bases_beside(self, policy: PhysicalPolicy, wal: str) -> str:
        """A loss of the other region leaves the WAL of this bucket, and of the base backups what is in the one beside
        it; empty where all of them are left."""
        beside = [bucket for bucket in policy.base_buckets if self._together(bucket, wal)]
        return beside[0] if policy.copy_bucket and len(beside) == 1 else ""

    async def _newest(
        self, policy: PhysicalPolicy, archive: WalArchive, entry: PhysicalEntry, listing: WalListing, way: Timelines
    ) -> Newest:
        """When the archiver had the last of the WAL that this bucket would give back, and where that ends."""
        system_id = entry.manifest.system_id
        closed, newest = await newest_closed(archive, listing, way, entry.manifest.segment_bytes, system_id)
        if closed is None or not self._beside(policy, listing.bucket):
            return newest
        return await OpenEnd(self._objects, archive, way, system_id).after(closed, newest)

    def _beside(self, policy: PhysicalPolicy, bucket: str) -> bool:
        """Whether the ranges of the open segment would survive together with this bucket."""
        return self._together(policy.open_bucket, bucket)

    def _together(self, one: str, other: str) -> bool:
        """Whether they are lost together."""
        known = self._site.buckets
        if one not in known or other not in known:
            return False
        return (known[one].region, known[one].endpoint) == (known[other].region, known[other].endpoint)

    # ------------------------------------------------------------ retention

    async def pin(self, server: str, backup: str, *, reason: str) -> None:
        policy = self._site.physical_of(server)
        entries = await self._catalogue.entries(policy)
        entry = named(entries, policy, backup)
        # Before the document: what is not pinned as it should be is found so, and asked for again.
        await (self._holds.put_on if reason else self._holds.take_off)(policy, entries, entry)
        if entry.pinned != reason:
            await self._records.pin(policy, backup, reason)

    async def holds(self, server: str, backup: str) -> Sequence[Hold]:
        policy = self._site.physical_of(server)
        entries = await self._catalogue.entries(policy)
        return await self._holds.look(policy, entries, named(entries, policy, backup))

    async def expiry(self, server: str) -> Expiry:
        return (await self._deletable(self._site.physical_of(server))).expiry

    async def _deletable(self, policy: PhysicalPolicy) -> Deletable:
        found = await self._catalogue.read(policy)
        found.refuse_silence(policy.server)
        entries = found.entries
        archived = await self._archived(policy, entries)
        dead = await dead_in(WalArchive(self._objects, policy), entries)
        return deletable(entries, archived, policy, self._clock.now(), dead)

    async def _archived(self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry]) -> Mapping[Segment, int]:
        return stored_segments(await WalArchive(self._objects, policy).listings(), segment_size(entries))

    async def expire(self, server: str, expiry: Expiry) -> None:
        policy = self._site.physical_of(server)
        # Looked at anew: what has become needed meanwhile stays, and nothing goes that was not shown.
        now = await self._deletable(policy)
        refused = [
            f"`{backup}`"
            for backup in now.expiry.backups
            if backup in expiry.backups and await self._refused(policy, backup)
        ]
        segments = within(now.segments, expiry.wal)
        archive = WalArchive(self._objects, policy)
        wal = [(bucket, archive.key(str(each))) for each in segments for bucket in policy.wal_buckets]
        if not refused and not await self._delete(wal):
            refused.append("WAL segments")
        if refused:
            raise PermanentError(
                f"The bucket refused to delete {', '.join(refused)} of `{server}`: Object Lock or a right of the key. "
                "They stay, and are tried again with the next expiry."
            )

    async def remove(self, server: str, backup: str) -> None:
        policy = self._site.physical_of(server)
        found = await self._catalogue.read(policy)
        found.refuse_silence(server)
        entries = found.entries
        if backup not in {entry.manifest.id for entry in entries}:
            return
        if why := why_it_stays(entries, backup, policy, await dead_in(WalArchive(self._objects, policy), entries)):
            raise UserError(why)
        if refused := await self._refused(policy, backup):
            raise PermanentError(
                f"Bucket `{refused}` refused to delete `{backup}` of `{server}`: Object Lock or a right of the key. "
                "It stays. Look until when it is locked."
            )

    async def lacks(self, server: str) -> Sequence[Lack]:
        return await lacks_of(self._tools, self._site.physical_of(server))

    async def _refused(self, policy: PhysicalPolicy, backup: str) -> str:
        """Delete it everywhere, the copy first; the bucket that refused, after which nothing else of it is touched."""
        for bucket in reversed(policy.base_buckets):
            if not await self._delete(await self._keys_of(policy, bucket, backup)):
                return bucket
        return ""

    async def _keys_of(self, policy: PhysicalPolicy, bucket: str, backup: str) -> list[tuple[str, str]]:
        """Its manifest last: while something of it is left, it is still listed, and the next expiry goes on."""
        folder = BaseFolder(policy, backup)
        listed = [facts.key for facts in await self._objects.list(bucket, folder.prefix)]
        return [(bucket, key) for key in sorted(listed, key=lambda key: key == folder.manifest)]

    async def _delete(self, keys: Sequence[tuple[str, str]]) -> bool:
        """Delete in order, several at a time; the last one alone, once the others are gone. False when refused."""
        room = asyncio.Semaphore(DELETERS)

        async def one(bucket: str, key: str) -> DrError | None:
            async with room:
                try:
                    await self._objects.delete(bucket, key)
                except TemporaryError:
                    raise
                except DrError as error:
                    log.warning("not_deleted: %s in %s: %s", key, bucket, error)
                    return error
                return None

        first = await asyncio.gather(*(one(bucket, key) for bucket, key in keys[:-1]))
        if any(first):
            return False
        return not any([await one(bucket, key) for bucket, key in keys[-1:]])
