"""WAL out of a pgBackRest archive, as files that `restore_command = cp` and `pg_waldump` find."""

from __future__ import annotations

import asyncio
import logging
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from actions.backup.dead_ends import dead_ends, living_way
from actions.backup.finder import WalRecords
from actions.backup.native_window import start_of
from actions.backup.patience import AwayError, patiently
from actions.backup.pgbackrest_archive import place_of
from actions.backup.pgbackrest_info import Archive, Stanza
from actions.backup.pgbackrest_tools import ArchivePlace, PgBackRest
from actions.backup.physical import DeadEnd, Lsn, PhysicalEntry, RecoveryTarget
from actions.backup.segments import Segment, Timelines, history_name
from actions.backup.together import together
from actions.backup.wal import FORGED, WalListing, WalStart
from actions.backup.wal_coming import Coming
from actions.errors import PermanentError, UserError, VerificationError

log = logging.getLogger(__name__)

AT_ONCE = 4
FIRST, BATCH = 2, 16
"""Segments that one process brings: few at first, since replay waits for them."""
CLOCKS_APART = timedelta(seconds=30)
"""The object store's clock dates files, the server's clock dates commits."""
BACK = 8
"""Segments that are searched, from the newest back, for the last commit."""
FURTHER = 16
"""Segments that are sampled before those, when none has a commit: a bulk load or an index build fills thousands."""
_FIRST_PAGE = struct.Struct("<HHIQI4xQI")
"""Of the head of a segment's first page (`XLogLongPageHeaderData`): magic, flags, timeline id, where it begins, what is
left of a record, system id, size of a segment."""

_COMMIT = re.compile(r"desc: COMMIT\w* (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) UTC")


@dataclass(frozen=True)
class NeededWal:
    """What a replay to a target reads."""

    way: Timelines
    segments: tuple[Segment, ...]
    reaches: bool  # by the archive's own dates it holds the target; False: replay may end before it
    bytes: int  # as stored
    passed_over: tuple[str, ...] = ()  # what lies behind its end and is no WAL of this server

    @property
    def end(self) -> Lsn:
        """Where this WAL ends."""
        return self.segments[-1].end

    @property
    def plain_bytes(self) -> int:
        """Once it is fetched."""
        return sum(segment.size for segment in self.segments)


class PgBackRestWal:
    """The archive of one cluster by its listing. `patience`: how long a segment waits for a store that went away;
    `judged`: by archive and name, whether segments that were looked at are WAL of this server."""

    def __init__(
        self,
        program: PgBackRest,
        place: ArchivePlace,
        listing: WalListing,
        *,
        patience: timedelta = timedelta(),
        judged: MutableMapping[tuple[ArchivePlace, str], bool] | None = None,
    ) -> None:
        self._program, self.place, self.listing, self._patience = program, place, listing, patience
        self._judged = {} if judged is None else judged

    @classmethod
    async def of(
        cls,
        program: PgBackRest,
        place: ArchivePlace,
        *,
        patience: timedelta = timedelta(),
        judged: MutableMapping[tuple[ArchivePlace, str], bool] | None = None,
    ) -> PgBackRestWal:
        return cls(program, place, await program.archived(place), patience=patience, judged=judged)

    async def way(self, start: WalStart, wanted: int | None) -> Timelines:
        """From `start` to the timeline `wanted`; None: the newest that `start` is part of. Raises UserError when
        `start` is no part of it, VerificationError when its history is not in the archive."""
        known = [wanted] if wanted is not None else sorted(self.listing.histories, reverse=True)
        for timeline_id in known:
            if timeline_id <= start.timeline_id:
                continue
            way = await self.history(timeline_id)
            if way.reaches(start.timeline_id, start.lsn):
                return way
            if wanted is not None:
                raise UserError(
                    f"Timeline id {wanted} of `{self.place.server}` does not come from timeline id "
                    f"{start.timeline_id} at {start.lsn}, where the backup begins. Take a backup of that way."
                )
        return Timelines.alone(start.timeline_id)

    async def branches(self, entries: Sequence[PhysicalEntry]) -> tuple[Timelines | None, Mapping[str, DeadEnd]]:
        """The way on which the server of these backups went on, None when nobody can tell, and the backups that do not
        lead there."""
        way = await living_way(self.history, entries, [self.listing])
        return way, dead_ends(entries, way, [self.listing])

    async def needed(self, start: WalStart, target: RecoveryTarget) -> NeededWal:
        """Everything from `start` on that a replay to `target` needs, and its history; by the listing alone.

        A file comes into the archive no earlier than the commits in it. So for a time all segments are needed up to
        the first that came later, and one more; for an LSN up to the one that holds it, and one more; else all of them.
        Raises VerificationError naming the segment when one is missing, and what comes next; UserError when there is
        none at all.
        """
        way = await self.way(start, target.timeline_id)
        wanted, reaches, missing = self._wanted(way, start, target)
        passed_over: tuple[str, ...] = ()
        if missing is not None:
            ours = await self.ours(way)
            self._refuse_gap(way, missing, ours)
            passed_over = tuple(sorted(set(self.listing.segments) - set(ours.listing.segments)))
        if not wanted:
            raise UserError(
                f"The archive of `{self.place.server}` has no WAL from {start.segment} on. Archive it first."
            )
        stored = sum(self.listing.segments[str(segment)].bytes for segment in wanted)
        whole = reaches or (target.time is None and target.lsn is None)
        return NeededWal(way, tuple(wanted), whole, stored, passed_over)

    async def fetch(self, needed: NeededWal, into: Path, shown: Callable[[int], None]) -> None:
        """History and segments."""
        await self.fetch_history(needed.way, into)
        await self.fetch_segments(needed.segments, into, shown)

    async def fetch_history(self, way: Timelines, into: Path) -> None:
        """Where the timelines of this way branch off, if they do."""
        if way.timeline_id in self.listing.histories:
            await self._one(history_name(way.timeline_id), into)

    async def bring(self, needed: NeededWal, coming: Coming, shown: Callable[[int], None]) -> None:
        """Segments for a server that waits for each of those which were announced."""
        try:
            await self.fetch_segments(needed.segments, coming.folder, shown, arrived=coming.arrived)
        finally:
            await asyncio.shield(asyncio.to_thread(coming.end))

    async def fetch_segments(
        self,
        wanted: Sequence[Segment],
        into: Path,
        shown: Callable[[int], None],
        *,
        arrived: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Several at a time. Raises VerificationError naming the first that the archive does not have."""
        room, fetched = asyncio.Semaphore(AT_ONCE), 0

        async def one(segment: Segment) -> None:
            nonlocal fetched
            async with room:
                if not await asyncio.to_thread((into / str(segment)).exists):
                    await patiently(lambda: self._one(str(segment), into), self._patience, AwayError)
            arrived(str(segment))
            fetched += segment.size
            shown(fetched)

        for batch in _batches(wanted):
            # A process for each would take longer to start and to log in than to bring its segment.
            await self._program.fetch_ahead(self.place, [str(segment) for segment in batch], into)
            async with together() as group:
                for segment in batch:
                    group.create_task(one(segment))

    def _wanted(
        self, way: Timelines, start: WalStart, target: RecoveryTarget
    ) -> tuple[list[Segment], bool, int | None]:
        """The segments, whether they hold the target, and the number of the one that is missing where they do not."""
        size, newest = start.segment_bytes, self.newest(way)
        wanted: list[Segment] = []
        over = 0  # segments after the one that holds the target
        for number in range(start.lsn // size, newest.number + 1 if newest else 0):
            segment = self._choice(way, number)
            if segment is None:
                return wanted, over > 0, None if over else number
            wanted.append(segment)
            over += self._holds(segment, target)
            if over > 1:
                break
        return wanted, over > 0, None

    def _refuse_gap(self, way: Timelines, missing: int, ours: PgBackRestWal) -> None:
        """Raise VerificationError where the archive goes on behind the missing number with WAL of this server."""
        size = self.place.segment_bytes
        later = sorted({number for number in way.numbers(list(ours.listing.segments), size) if number > missing})
        if not later:
            return
        following = self._choice(way, later[0])
        stored = self.listing.segments[str(following)]
        raise VerificationError(
            f"WAL segment `{way.choices(missing, size)[0]}` of `{self.place.server}` is missing in the archive, and "
            f"`{following}`, stored {stored.modified_at:%Y-%m-%d %H:%M} UTC, comes next: nothing between them can be "
            "reached from this backup, nor what comes after. Take an earlier moment with `--at`, or a later backup. "
            f"Where `{following}` is left over, or was put there by somebody, take `{self.place.archive}/{stored.key}` "
            "out of the repository's archive, then ask again."
        )

    async def ours(self, way: Timelines) -> PgBackRestWal:
        """The same without what lies at the end of this way, behind a gap, and is no WAL of this server: damaged, or
        put there by whoever can write the repository, it makes no gap and is not the newest."""
        size = self.place.segment_bytes
        numbers = sorted(set(way.numbers(list(self.listing.segments), size)))
        gone: list[str] = []
        while numbers and numbers[-1] - numbers[0] >= len(numbers) and len(gone) < FORGED:
            segment = self._choice(way, numbers.pop())
            if segment is None or await self._is_ours(segment):
                break
            log.warning("wal_at_the_end_not_usable: %s of %s", segment, self.place.server)
            gone.append(str(segment))
        kept = {name: facts for name, facts in self.listing.segments.items() if name not in gone}
        return PgBackRestWal(
            self._program,
            self.place,
            replace(self.listing, segments=kept),
            patience=self._patience,
            judged=self._judged,
        )

    async def _is_ours(self, segment: Segment) -> bool:
        key = self.place, str(segment)
        if key not in self._judged:
            with tempfile.TemporaryDirectory(prefix="drbot-wal-") as folder:
                await self._program.own(Path(folder))
                try:
                    await self._one(str(segment), Path(folder))
                except (PermanentError, UserError) as error:  # the repository answers, so it is this file
                    log.warning("wal_at_the_end_does_not_open: %s: %s", segment, error)
                    self._judged[key] = False
                else:
                    self._judged[key] = await asyncio.to_thread(
                        _is_of, Path(folder) / str(segment), segment, self.place.system_id
                    )
        return self._judged[key]

    def _holds(self, segment: Segment, target: RecoveryTarget) -> bool:
        """Whether the target lies in it or before it."""
        if target.time is not None:
            return self.listing.segments[str(segment)].modified_at > target.time + CLOCKS_APART
        return target.lsn is not None and Lsn.parse(target.lsn) < segment.end

    def newest(self, way: Timelines) -> Segment | None:
        """The last segment along a way; None when the archive has none of it."""
        size = self.place.segment_bytes
        numbers = list(way.numbers(list(self.listing.segments), size))
        return self._choice(way, max(numbers)) if numbers else None

    def _choice(self, way: Timelines, number: int) -> Segment | None:
        return next((each for each in way.choices(number, self.place.segment_bytes) if each in self.listing), None)

    async def newest_moment(
        self, way: Timelines, records: WalRecords, entries: Sequence[PhysicalEntry]
    ) -> datetime | None:
        """The newest moment that is known to be in reach: that of the last commit, or the end of the newest of these
        base backups where no later commit is found. None when there is neither."""
        base = max(entries, key=lambda entry: entry.manifest.finished_at, default=None)
        if base is None:
            return await self.last_commit(way, records)
        found, newest = await self.last_commit(way, records, since=start_of(base).lsn), self.newest(way)
        if newest is None or newest.end < Lsn.parse(base.manifest.stop_lsn):
            return found  # it is not consistent by this archive
        return base.manifest.finished_at if found is None else max(found, base.manifest.finished_at)

    async def last_commit(self, way: Timelines, records: WalRecords, *, since: int = 0) -> datetime | None:
        """When the newest transaction was committed that the archive holds from the LSN `since` on; None when those
        segments which are looked at have none. Where the last ones have none, an earlier commit than the newest may be
        told, never a later one.

        The archive's own dates do not tell: a segment that was archived late is full of old commits.
        """
        size = self.place.segment_bytes
        numbers = sorted(set(way.numbers(list(self.listing.segments), size)), reverse=True)
        numbers = [number for number in numbers if number >= since // size]
        for number in numbers[:BACK]:
            if (found := await self._commit_in(way, number, records)) is not None:
                return found
        return await self._sampled(way, numbers, records)

    async def _sampled(self, way: Timelines, numbers: Sequence[int], records: WalRecords) -> datetime | None:
        """Twice as far back each time until a segment has a commit; then between it and the last that had none."""
        none, some, found = BACK - 1, None, None
        for _ in range(FURTHER):
            place = min(2 * (none + 1), len(numbers) - 1) if some is None else (none + some) // 2
            if place <= none:
                break
            commit = await self._commit_in(way, numbers[place], records)
            if commit is None:
                none = place
            else:
                some, found = place, commit
        return found

    async def _commit_in(self, way: Timelines, number: int, records: WalRecords) -> datetime | None:
        segment = self._choice(way, number)
        with tempfile.TemporaryDirectory(prefix="drbot-wal-") as folder:
            await self._program.own(Path(folder))
            await self._one(str(segment), Path(folder))
            return await asyncio.to_thread(_last_commit, records, Path(folder), str(segment))

    async def _one(self, name: str, into: Path) -> None:
        if not await self._program.fetch(self.place, name, into):
            raise VerificationError(f"The archive of `{self.place.server}` lists `{name}` and does not give it out.")

    async def history(self, timeline_id: int) -> Timelines:
        """The way to this timeline. Raises VerificationError when the archive does not have it whole."""
        name = history_name(timeline_id)
        if timeline_id not in self.listing.histories:
            raise VerificationError(f"The archive of `{self.place.server}` does not have `{name}`.")
        with tempfile.TemporaryDirectory(prefix="drbot-wal-") as folder:
            await self._program.own(Path(folder))
            try:
                await self._one(name, Path(folder))
                return Timelines.parse(timeline_id, (Path(folder) / name).read_text())
            except (PermanentError, UserError, UnicodeDecodeError) as error:
                # The repository answers, so it is this file that does not open.
                raise VerificationError(
                    f"`{name}` of the archive of `{self.place.server}` is damaged: {error}"
                ) from error


def _batches(segments: Sequence[Segment]) -> Iterator[Sequence[Segment]]:
    size, begin = FIRST, 0
    while begin < len(segments):
        yield segments[begin : begin + size]
        begin, size = begin + size, min(2 * size, BATCH)


async def dead_in(
    program: PgBackRest, stanza: Stanza, entries: Sequence[PhysicalEntry], *, server: str
) -> Mapping[str, DeadEnd]:
    """Backups that lead to the end of a branch which the server has left, by the archive of every repository."""
    buckets, found = program.buckets(server), dict[str, DeadEnd]()
    for key in {facts.key for facts in stanza.repo}:
        archive = stanza.present(key)
        if archive is not None:
            place = place_of(stanza, archive, server=server, bucket=buckets.get(key, f"repo{key}"))
            wal = await PgBackRestWal.of(program, place)
            found |= (await wal.branches(usable_in(stanza, archive, entries)))[1]
    return found


def usable_in(stanza: Stanza, archive: Archive, entries: Sequence[PhysicalEntry]) -> list[PhysicalEntry]:
    """Those of the cluster whose WAL this archive holds."""
    mine = {backup.id for backup in stanza.of(archive.database)}
    return [entry for entry in entries if entry.manifest.id in mine and entry.problem is None]


def _is_of(path: Path, segment: Segment, system_id: str) -> bool:
    """Whether its first page says that it is this segment of this server. Blocking."""
    with path.open("rb") as stream:
        head = stream.read(_FIRST_PAGE.size)
    if len(head) < _FIRST_PAGE.size or path.stat().st_size != segment.size:
        return False
    *_, begin, _, system, size = _FIRST_PAGE.unpack(head)
    return (begin, str(system), size) == (segment.start, system_id, segment.size)


def _last_commit(records: WalRecords, folder: Path, segment: str) -> datetime | None:
    found = None
    for line in records.lines(folder, segment, segment, resources=("Transaction",)):
        if match := _COMMIT.search(line):
            found = datetime.fromisoformat(f"{match[1]}+00:00")
    return found
