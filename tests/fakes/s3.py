"""S3 in memory."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from actions.errors import DrError, TemporaryError, UserError
from actions.ports import Clock, ObjectFacts, ObjectStore
from tests.fakes.clock import MemoryClock

CHUNK = 64 * 1024


@dataclass(frozen=True)
class MemoryObject:
    """One stored object."""

    body: bytes
    modified_at: datetime


class MemoryObjects(ObjectStore):
    """Buckets that were named at the start. `down` makes every call fail as an unreachable store does, `refusal` as one
    does that answers with this error."""

    def __init__(self, *buckets: str, clock: Clock | None = None) -> None:
        self.buckets: dict[str, dict[str, MemoryObject]] = {name: {} for name in buckets}
        self.uploads: dict[str, list[tuple[str, datetime]]] = defaultdict(list)  # half-done: key, begun
        self.down = False
        self.refusal: DrError | None = None
        self.lockable: set[str] = set()  # buckets with Object Lock
        self.legal_holds: set[tuple[str, str]] = set()
        self.replication: dict[tuple[str, str], str] = {}  # what the store says of its own copies
        self._clock = clock or MemoryClock()

    async def put(self, bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        objects = self._bucket(bucket)
        if only_if_absent and key in objects:
            raise UserError(f"`{key}` exists already in bucket `{bucket}` and is not overwritten.")
        objects[key] = MemoryObject(bytes(body), self._clock.now())
        self.legal_holds.discard((bucket, key))  # of a new version none is held

    async def put_stream(self, bucket: str, key: str, chunks: AsyncIterator[bytes]) -> int:
        self._bucket(bucket)
        body = b"".join([chunk async for chunk in chunks])
        await self.put(bucket, key, body)
        return len(body)

    async def get(self, bucket: str, key: str) -> bytes:
        objects = self._bucket(bucket)
        if key not in objects:
            raise UserError(f"Bucket `{bucket}` has no object `{key}`.")
        return objects[key].body

    async def get_first(self, bucket: str, key: str, count: int) -> bytes:
        return (await self.get(bucket, key))[:count]

    async def get_stream(self, bucket: str, key: str) -> AsyncIterator[bytes]:
        body = await self.get(bucket, key)
        for place in range(0, len(body), CHUNK):
            self._bucket(bucket)
            yield body[place : place + CHUNK]

    async def head(self, bucket: str, key: str) -> ObjectFacts | None:
        found = self._bucket(bucket).get(key)
        if found is None:
            return None
        status = self.replication.get((bucket, key), "")
        return ObjectFacts(
            key=key,
            bytes=len(found.body),
            modified_at=found.modified_at,
            etag=_etag(found.body),
            replication=status,
        )

    async def list(self, bucket: str, prefix: str) -> Sequence[ObjectFacts]:
        return [
            ObjectFacts(key=key, bytes=len(found.body), modified_at=found.modified_at, etag=_etag(found.body))
            for key, found in sorted(self._bucket(bucket).items())
            if key.startswith(prefix)
        ]

    async def delete(self, bucket: str, key: str) -> None:
        self._bucket(bucket).pop(key, None)

    async def hold(self, bucket: str, key: str, *, on: bool) -> bool:
        if await self.head(bucket, key) is None:
            raise UserError(f"Bucket `{bucket}` has no object `{key}`.")
        if bucket in self.lockable:
            (self.legal_holds.add if on else self.legal_holds.discard)((bucket, key))
        return bucket in self.lockable

    async def held(self, bucket: str, key: str) -> bool | None:
        objects = self._bucket(bucket)
        if bucket not in self.lockable:
            return None
        if key not in objects:
            raise UserError(f"Bucket `{bucket}` has no object `{key}`.")
        return (bucket, key) in self.legal_holds

    async def sweep_uploads(self, bucket: str, prefix: str, *, older_than: timedelta) -> int:
        self._bucket(bucket)
        limit = self._clock.now() - older_than
        kept = [(key, at) for key, at in self.uploads[bucket] if not key.startswith(prefix) or at > limit]
        swept = len(self.uploads[bucket]) - len(kept)
        self.uploads[bucket] = kept
        return swept

    def _bucket(self, name: str) -> dict[str, MemoryObject]:
        if self.down:
            raise TemporaryError(f"Bucket `{name}` does not answer.")
        if self.refusal is not None:
            raise self.refusal
        if name not in self.buckets:
            raise UserError(f"There is no bucket `{name}`. Create it or correct the plan file.")
        return self.buckets[name]


def _etag(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()
