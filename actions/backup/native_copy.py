"""Base backups brought into the bucket that lacks them: object by object, each held against the signed manifest on its
way, the manifest last. Nothing is opened for it, so no key that opens backups is needed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime, timedelta
from typing import cast

from actions.backup.chain import chain
from actions.backup.manifest import StoredObject
from actions.backup.native_catalogue import PROVEN, BaseFolder, Catalogued, NativeCatalogue, named, server_prefix
from actions.backup.native_holds import BaseHolds
from actions.backup.native_records import BaseRecords
from actions.backup.physical import PhysicalEntry
from actions.backup.pins import PIN
from actions.backup.progress import Shown
from actions.backup.proofs import proofs_prefix
from actions.backup.uploads import sweep_uploads
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.ports import Clock, ObjectStore, Progress
from actions.site import PhysicalPolicy

log = logging.getLogger(__name__)

CATCH_UP = timedelta(minutes=20)
"""After that no other backup is begun with: the next run goes on, and no incremental waits for hours."""


class BaseCopying:
    """Between the buckets of one policy."""

    def __init__(
        self,
        objects: ObjectStore,
        clock: Clock,
        catalogue: NativeCatalogue,
        records: BaseRecords,
        holds: BaseHolds,
    ) -> None:
        self._objects, self._clock, self._catalogue = objects, clock, catalogue
        self._records, self._holds = records, holds

    async def copy(
        self, policy: PhysicalPolicy, backup: str, wanted: Sequence[str], progress: Progress
    ) -> Sequence[str]:
        """Bring this backup, and what it rests on, into the buckets that lack it; then what else of `wanted` lacks
        anywhere, as far as the time allows. Which were brought. Safe to repeat.

        Raises TemporaryError while a bucket is silent, VerificationError when the only copy of this one is damaged.
        Trouble with the others is left to the next run: the catalogue goes on telling what lacks.
        """
        found = await self._catalogue.read(policy)
        mine = named(found.entries, policy, backup)
        if mine.problem is not None:
            raise VerificationError(mine.problem)
        _refuse_silence(found, mine)
        first = [entry for entry in chain(found.entries, mine) or [mine] if entry.behind]
        left = set(wanted) - {entry.manifest.id for entry in first}
        others = [entry for entry in in_order(found.entries) if entry.manifest.id in left and entry.behind]
        shown = _Sum(Shown(progress, "copy", sum(entry.manifest.stored.bytes for entry in first) or None))
        copied = [entry.manifest.id for entry in first]
        for entry in first:
            try:
                await self._brought(policy, found.entries, entry, shown)
            except DrError as error:
                raise _not_copied(mine, entry, error) from error
        await self._proofs(policy)
        begun = self._clock.now()
        for entry in others:
            if self._clock.now() - begun >= CATCH_UP:
                break
            try:
                await self._brought(policy, found.entries, entry, shown)
            except TemporaryError as error:
                log.warning("base_copy_left: %s: %s", entry.manifest.id, error)
                break
            except DrError as error:
                log.warning("base_copy_left: %s: %s", entry.manifest.id, error)
                continue
            copied.append(entry.manifest.id)
        await self._held(policy)
        return copied

    async def _held(self, policy: PhysicalPolicy) -> None:
        """What is pinned, by the store as well, where it now is. No backup waits for that: the doctor tells."""
        try:
            entries = await self._catalogue.entries(policy)
            for entry in entries:
                if entry.pinned:
                    await self._holds.put_on(policy, entries, entry)
        except DrError as error:
            log.warning("legal_holds_not_set: %s", error)

    async def _brought(
        self, policy: PhysicalPolicy, entries: Sequence[PhysicalEntry], entry: PhysicalEntry, shown: _Sum
    ) -> None:
        source = entry.whole_in[0]
        if not entry.pinned and set(entry.behind) <= set(entry.whole_in):
            # All that lacks is the document that takes a pin off: the store lets go before that is brought.
            await self._holds.take_off(policy, entries, entry)
        for target in entry.behind:
            # A bucket that has it whole and lacks a pin alone may be the first one.
            other = next((bucket for bucket in entry.whole_in if bucket != target), source)
            await self._across(policy, entry, other, target, shown)

    async def _across(
        self, policy: PhysicalPolicy, entry: PhysicalEntry, source: str, target: str, shown: _Sum
    ) -> None:
        folder, manifest = BaseFolder(policy, entry.manifest.id), entry.manifest
        await sweep_uploads(self._objects, target, own=folder.prefix, everything=server_prefix(policy))
        there = {facts.key: facts.bytes for facts in await self._objects.list(target, folder.prefix)}
        whole, published = target in entry.whole_in, folder.manifest in there
        if published and not whole:
            # What was damaged there was removed: nothing of it counts once there is something else.
            await self._records.verified(policy, entry, target, renewed=True)
        for key, wanted in ((folder.base, manifest.stored), (folder.files, manifest.files)):
            if wanted is None or whole:
                continue
            if there.get(key) == wanted.bytes and await self._same(target, key, wanted):
                shown.add(wanted.bytes)
            elif key in there and published:
                raise await self._odd(policy, entry, target, key)
            else:
                await self._member(policy, entry, source, target, key, wanted, shown)
        await self._records_of(policy, folder, target, there)
        if whole:
            return
        body = await self._objects.get(source, folder.manifest)
        if hashlib.sha256(body).hexdigest() != entry.manifest_sha256:
            raise TemporaryError(f"The manifest of base backup `{manifest.id}` was changed in `{source}` meanwhile.")
        await self._publish(target, folder.manifest, body)

    async def _member(
        self,
        policy: PhysicalPolicy,
        entry: PhysicalEntry,
        source: str,
        target: str,
        key: str,
        wanted: StoredObject,
        shown: _Sum,
    ) -> None:
        chunks = self._checked(source, key, wanted, shown.add)
        try:
            await self._objects.put_stream(target, key, chunks)
        except VerificationError as error:
            await self._records.damaged(policy, entry, source, str(error))
            raise
        finally:
            await chunks.aclose()
        found = await self._objects.head(target, key)
        if found is None or found.bytes != wanted.bytes:
            raise TemporaryError(f"Bucket `{target}` did not keep `{key}` as it was sent.")

    async def _odd(self, policy: PhysicalPolicy, entry: PhysicalEntry, target: str, key: str) -> VerificationError:
        problem = (
            f"`{key}` in bucket `{target}` is not what its signed manifest says, and is left as it is. Find out who "
            "has changed it, remove it, and the next base backup brings it anew."
        )
        await self._records.damaged(policy, entry, target, problem)
        return VerificationError(problem)

    async def _same(self, bucket: str, key: str, wanted: StoredObject) -> bool:
        """Whether what an earlier try has left is what is to be there."""
        try:
            async for _ in self._checked(bucket, key, wanted, lambda _: None):
                pass
        except VerificationError:
            return False
        return True

    async def _checked(
        self, bucket: str, key: str, wanted: StoredObject, passed: Callable[[int], None]
    ) -> AsyncGenerator[bytes]:
        """The stored bytes; VerificationError at their end unless they are what the manifest says, so that no upload of
        other ones is ever completed."""
        hashed, total = hashlib.sha256(), 0
        chunks = self._objects.get_stream(bucket, key)
        try:
            async for chunk in chunks:
                await asyncio.to_thread(hashed.update, chunk)
                total += len(chunk)
                passed(len(chunk))
                yield chunk
        finally:
            await cast("AsyncGenerator[bytes]", chunks).aclose()
        if (total, hashed.hexdigest()) != (wanted.bytes, wanted.sha256):
            raise VerificationError(
                f"`{key}` in bucket `{bucket}` does not have the size and SHA-256 of its signed manifest: it was "
                "changed."
            )

    async def _records_of(self, policy: PhysicalPolicy, folder: BaseFolder, target: str, there: dict[str, int]) -> None:
        """Pins and proofs that the target lacks. Each is signed and tells itself what it is about; of readings only
        those that were made there count."""
        for bucket in policy.base_buckets:
            if bucket == target:
                continue
            for facts in await self._objects.list(bucket, folder.prefix):
                if facts.key.removeprefix(folder.prefix).startswith((PIN, PROVEN)) and facts.key not in there:
                    await self._objects.put(target, facts.key, await self._objects.get(bucket, facts.key))

    async def _proofs(self, policy: PhysicalPolicy) -> None:
        """Restore tests that one bucket lacks, since it did not answer then. No backup waits for them."""
        try:
            listed = {
                bucket: {facts.key for facts in await self._objects.list(bucket, proofs_prefix(policy))}
                for bucket in policy.base_buckets
            }
            for source, target in (policy.base_buckets, policy.base_buckets[::-1]):
                for key in sorted(listed[source] - listed[target]):
                    await self._objects.put(target, key, await self._objects.get(source, key))
        except DrError as error:
            log.warning("proofs_not_copied: %s", error)

    async def _publish(self, target: str, key: str, body: bytes) -> None:
        try:
            await self._objects.put(target, key, body, only_if_absent=True)
        except UserError:
            if await self._objects.head(target, key) is None:
                raise
            if await self._objects.get(target, key) != body:
                raise VerificationError(
                    f"Bucket `{target}` has another manifest under `{key}`. Look which one is true, and remove "
                    "the other."
                ) from None


class _Sum:
    """Bytes of several objects, shown as one number."""

    def __init__(self, shown: Shown) -> None:
        self._shown, self._done = shown, 0

    def add(self, more: int) -> None:
        self._done += more
        self._shown.bytes(self._done)


def in_order(entries: Sequence[PhysicalEntry]) -> list[PhysicalEntry]:
    """Those that can be used: parents before what rests on them, the chains of the newest full backup first."""
    known = {entry.manifest.id: entry for entry in entries}

    def root(entry: PhysicalEntry) -> datetime:
        seen: set[str] = set()
        while entry.manifest.parent in known and entry.manifest.id not in seen:
            seen.add(entry.manifest.id)
            entry = known[entry.manifest.parent]
        return entry.manifest.finished_at

    fit = sorted((entry for entry in entries if entry.problem is None), key=lambda entry: entry.manifest.finished_at)
    return sorted(fit, key=root, reverse=True)


def _refuse_silence(found: Catalogued, entry: PhysicalEntry) -> None:
    for bucket, why in found.silent.items():
        raise _not_copied(entry, entry, TemporaryError(f"Bucket `{bucket}` cannot be looked at. {why}"))


def _not_copied(entry: PhysicalEntry, which: PhysicalEntry, error: DrError) -> DrError:
    """First that the backup is there: nobody must take it for lost."""
    rests = "" if which is entry else f" `{which.manifest.id}`, which it rests on, could not be copied."
    text = (
        f"Base backup `{entry.manifest.id}` is whole in {' and '.join(f'`{each}`' for each in entry.whole_in)}, but "
        f"not yet in every bucket of the plan file.{rests} {error} The next base backup of the server tries again."
    )
    if isinstance(error, TemporaryError):
        return TemporaryError(text, retry_after=error.retry_after)
    return VerificationError(text) if isinstance(error, VerificationError) else UserError(text)
