"""Files brought back: out of a copy, or out of the versions of their own bucket.

Nothing is ever deleted, no delete marker either: a version comes back as a copy on top of what hides it, which tells
everybody who looks later what had happened. What is replaced stays in the bucket as an older version. A file that is
there now and was not then is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, islice
from typing import TypeVar

from actions.backup.file_catalogue import FileCatalogue, identity
from actions.backup.together import together
from actions.bucket_ports import Buckets
from actions.buckets import NOTE, BringBack, FileEntry, FilesDifference, FilesSource, ObjectVersion
from actions.errors import UserError, VerificationError
from actions.ports import ObjectStore, Progress, ProgressReport
from actions.site import FilesPolicy

AT_ONCE = 16
EXAMPLES = 5
JOB = "."  # in the note, before the job that has put it there

T = TypeVar("T")


@dataclass(frozen=True)
class Need:
    """One file that is not as it was. `entry` is where its bytes come from: a copy, or a version of the bucket."""

    key: str
    entry: FileEntry | ObjectVersion
    changed: bool  # there is another version now

    @property
    def note(self) -> str:
        """What tells, on the object, which version it was made from."""
        return _identity(self.entry)


@dataclass
class Findings:
    """How the files differ, with what would have to be done."""

    state_of: datetime
    wanted: int = 0
    same: int = 0
    later: list[str] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)


class Returning:
    """Compares and brings back for one policy."""

    def __init__(self, policy: FilesPolicy, objects: ObjectStore, buckets: Buckets, catalogue: FileCatalogue) -> None:
        self._policy, self._objects, self._buckets, self._catalogue = policy, objects, buckets, catalogue

    async def difference(self, source: FilesSource) -> FilesDifference:
        found = await self._findings(source)
        missing = [need for need in found.needs if not need.changed]
        changed = [need for need in found.needs if need.changed]
        examples = {
            "missing": [need.key for need in missing],
            "changed": [need.key for need in changed],
            "later": found.later,
        }
        return FilesDifference(
            state_of=found.state_of,
            wanted=found.wanted,
            same=found.same,
            missing=len(missing),
            missing_bytes=sum(need.entry.bytes for need in missing),
            changed=len(changed),
            changed_bytes=sum(need.entry.bytes for need in changed),
            later=len(found.later),
            examples={name: tuple(keys[:EXAMPLES]) for name, keys in examples.items() if keys},
            versioned=(await self._buckets.facts(self._target(source))).versioning,
        )

    async def bring_back(self, request: BringBack, progress: Progress) -> FilesDifference:
        target = self._target(request.source)
        found = await self._findings(request.source)
        needs = [need for need in found.needs if request.replace or not need.changed]
        versioned = (await self._buckets.facts(target)).versioning is True
        if any(need.changed for need in needs) and not versioned:
            raise UserError(
                f"Bucket `{target}` keeps no versions, so what is replaced would be lost. Turn versioning on, or bring "
                "back only what is missing."
            )
        replace = request.replace and versioned
        done, total = 0, sum(need.entry.bytes for need in needs)
        for batch in _batches(needs):
            async with together() as group:
                for need in batch:
                    group.create_task(self._one(target, need, request.job, replace=replace))
            done += sum(need.entry.bytes for need in batch)
            progress(ProgressReport(done=done, total=total, phase="bring back"))
        return await self.difference(request.source)

    async def take_back(self, request: BringBack, progress: Progress) -> FilesDifference:
        target, prefix = self._target(request.source), self._policy.prefix + request.source.prefix
        beneath: list[ObjectVersion] = []  # the newest
        for _, group in groupby(await self._buckets.versions(target, prefix), key=lambda item: item.key):
            first_two = list(islice(group, 2))
            if len(first_two) == 2 and not any(item.marker for item in first_two):
                beneath.append(first_two[1])
        done = 0
        for batch in _batches(beneath):
            async with together() as tasks:
                for version in batch:
                    tasks.create_task(self._back(target, version, request.job))
            done += len(batch)
            progress(ProgressReport(done=done, total=len(beneath), unit="steps", phase="take back"))
        return await self.difference(request.source)

    async def _back(self, target: str, before: ObjectVersion, job: str) -> None:
        """Unless what lies on it is not what that job has put there."""
        facts = await self._objects.head(target, before.key)
        if facts is not None and facts.metadata.get(NOTE, "").endswith(f"{JOB}{job}"):
            await self._buckets.put_on_top(target, before.key, before.version, note=_identity(before))

    # ------------------------------------------------------------ looking

    def _target(self, source: FilesSource) -> str:
        return source.into or self._policy.bucket

    async def _findings(self, source: FilesSource) -> Findings:
        prefix = self._policy.prefix + source.prefix
        now = await self._buckets.versions(self._target(source), prefix)
        if source.copy_id is not None:
            return await self._from_copy(source.copy_id, prefix, self._target(source), now)
        if source.as_of is None:
            raise UserError("Say what the files are brought back from: a copy, or a moment.")
        if source.into not in (None, self._policy.bucket):
            raise UserError("Versions are brought back in their own bucket alone; use a copy for another one.")
        return await self._from_versions(source.as_of, now)

    async def _from_copy(self, copy: str, prefix: str, target: str, now: Sequence[ObjectVersion]) -> Findings:
        manifest = await self._catalogue.usable(self._policy, copy)
        current = {item.key: item for item in now if item.latest and not item.marker}
        found = Findings(manifest.state_of)
        wanted = {
            entry.key: entry
            for part in await self._catalogue.parts(self._policy, manifest)
            for entry in part.entries
            if entry.key.startswith(prefix)
        }
        found.wanted = len(wanted)
        found.later = sorted(current.keys() - wanted.keys())
        for key, entry in sorted(wanted.items()):
            await self._sort_in(found, Need(key, entry, changed=key in current), current.get(key), target)
        return found

    async def _from_versions(self, as_of: datetime, now: Iterable[ObjectVersion]) -> Findings:
        found = Findings(as_of)
        for key, group in groupby(now, key=lambda item: item.key):
            versions = list(group)  # newest first
            then = next((item for item in versions if item.modified_at <= as_of), None)
            current = versions[0] if not versions[0].marker else None
            if then is None or then.marker:
                if current is not None:
                    found.later.append(key)
                continue
            found.wanted += 1
            need = Need(key, then, changed=current is not None)
            await self._sort_in(found, need, current, self._policy.bucket)
        return found

    async def _sort_in(self, found: Findings, need: Need, current: ObjectVersion | None, target: str) -> None:
        if current is not None and await self._same(need, current, target):
            found.same += 1
        else:
            found.needs.append(need)

    async def _same(self, need: Need, current: ObjectVersion, target: str) -> bool:
        if current.bytes != need.entry.bytes:
            return False
        if isinstance(need.entry, ObjectVersion) and current.version == need.entry.version:
            return True
        if current.etag == need.entry.etag:
            return True
        # The same bytes, stored in other parts or encrypted anew, have another tag: what we wrote ourselves says so.
        facts = await self._objects.head(target, need.key)
        return facts is not None and facts.metadata.get(NOTE, "").partition(JOB)[0] == need.note

    # ------------------------------------------------------------ bringing back

    async def _one(self, target: str, need: Need, job: str, *, replace: bool) -> None:
        # They were listed hours ago, perhaps: one that was missing then, and that somebody has stored since, is theirs.
        if not need.changed and not replace and await self._objects.head(target, need.key) is not None:
            return
        note = f"{need.note}{JOB}{job}" if job else need.note
        if isinstance(need.entry, FileEntry):
            await self._from_stored(target, need, need.entry, note)
        else:
            await self._buckets.put_on_top(target, need.key, need.entry.version, note=note)

    async def _from_stored(self, target: str, need: Need, entry: FileEntry, note: str) -> None:
        """Out of the copy, the bytes checked on the way: the last part is not sent when they are wrong."""

        async def chunks() -> AsyncIterator[bytes]:
            hashed = hashlib.sha256()
            held = b""
            async for chunk in self._objects.get_stream(self._policy.copy_bucket, entry.stored):
                if held:
                    yield held
                hashed.update(chunk)
                held = chunk
            if hashed.hexdigest() != entry.sha256:
                raise VerificationError(
                    f"The copy of `{entry.key}` (`{entry.stored}`) is damaged: its SHA-256 is not that of the list. "
                    "It was not brought back; use another copy for it."
                )
            yield held

        await self._buckets.store(target, need.key, chunks(), entry.attributes.noted(note))


def _identity(entry: FileEntry | ObjectVersion) -> str:
    return identity(entry)[:32]


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[place : place + AT_ONCE] for place in range(0, len(items), AT_ONCE))
