"""What a pinned base backup needs, in every bucket: the objects of its chain, and the WAL that makes it consistent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from actions.backup import holds
from actions.backup.chain import chain
from actions.backup.native_catalogue import BaseFolder
from actions.backup.physical import Lsn, PhysicalEntry
from actions.backup.segments import Segment
from actions.backup.wal import WalArchive
from actions.buckets import Hold
from actions.ports import ObjectStore
from actions.site import PhysicalPolicy


class BaseHolds:
    """Puts the store's holds on them, and takes them off."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def put_on(self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], entry: PhysicalEntry) -> None:
        await holds.put_on(self._objects, self._needed(policy, entries, entry))

    async def take_off(self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], entry: PhysicalEntry) -> None:
        """But for what another pin needs."""
        others = [each for each in entries if each.pinned and each.manifest.id != entry.manifest.id]
        needed = [self._needed(policy, entries, each) for each in others]
        free = {
            bucket: keys.difference(*(other.get(bucket, ()) for other in needed))
            for bucket, keys in self._needed(policy, entries, entry).items()
        }
        await holds.take_off(self._objects, free)

    async def look(
        self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], entry: PhysicalEntry
    ) -> Sequence[Hold]:
        return await holds.look(self._objects, self._needed(policy, entries, entry))

    def _needed(
        self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], entry: PhysicalEntry
    ) -> Mapping[str, set[str]]:
        """Keys by bucket. Of a chain that is broken, what there is of it."""
        needed: dict[str, set[str]] = defaultdict(set)
        archive = WalArchive(self._objects, policy)
        for member in chain(entries, entry) or [entry]:
            folder = BaseFolder(policy, member.manifest.id)
            members = [folder.base, folder.manifest, *([folder.files] if member.manifest.files is not None else [])]
            for bucket in policy.base_buckets:
                needed[bucket].update(members)
            # A span that nobody of ours has signed may be as long as its writer likes.
            segments = [archive.key(str(each)) for each in _span(member)] if member.trusted else []
            for bucket in policy.wal_buckets:
                needed[bucket].update(segments)
        return needed


def _span(entry: PhysicalEntry) -> Iterator[Segment]:
    """The WAL from its beginning to its end."""
    found = entry.manifest
    segment = Segment.holding(Lsn.parse(found.start_lsn), found.timeline_id, found.segment_bytes)
    while segment.start <= Lsn.parse(found.stop_lsn):
        yield segment
        segment = segment.next()
