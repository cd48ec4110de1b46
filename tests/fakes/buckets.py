"""Buckets in memory, with settings and versions."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from actions.bucket_ports import Buckets
from actions.buckets import BucketFacts, ObjectAttributes, ObjectVersion, OpenedObject, Trial
from actions.errors import UserError
from actions.ports import Clock, ObjectFacts
from tests.fakes.s3 import CHUNK, MemoryObject, MemoryObjects


@dataclass(frozen=True)
class MemoryVersion:
    """One version; `body` is None for a delete marker."""

    id: str
    at: datetime
    body: bytes | None
    attributes: ObjectAttributes


class MemoryBuckets(MemoryObjects, Buckets):
    """`settings` are what a bucket says of itself; one whose settings say `versioning` keeps versions. `broken` are the
    trials that go wrong: bucket -> what -> problem."""

    def __init__(self, *buckets: str, clock: Clock | None = None) -> None:
        super().__init__(*buckets, clock=clock)
        self.settings: dict[str, BucketFacts] = {}
        self.broken: dict[str, dict[str, str]] = {}
        self.history: dict[tuple[str, str], list[MemoryVersion]] = {}  # newest last
        self._number = 0

    # ------------------------------------------------------------ the store below

    async def put(self, bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        await super().put(bucket, key, body, only_if_absent=only_if_absent)
        self._remember(bucket, key, bytes(body), ObjectAttributes())

    async def delete(self, bucket: str, key: str) -> None:
        there = key in self._bucket(bucket)
        await super().delete(bucket, key)
        if self._versioned(bucket):
            if there:
                self._remember(bucket, key, None, ObjectAttributes())
        else:
            self.history.pop((bucket, key), None)

    async def head(self, bucket: str, key: str) -> ObjectFacts | None:
        found = await super().head(bucket, key)
        if found is None:
            return None
        newest = self._of(bucket, key)[-1]
        return found.model_copy(update={"version": newest.id, "metadata": newest.attributes.metadata})

    # ------------------------------------------------------------ buckets

    async def facts(self, bucket: str) -> BucketFacts:
        self._bucket(bucket)
        return self.settings.get(bucket, BucketFacts(versioning=False, lifecycle=(), replicates_to=(), encryption=""))

    async def trials(self, bucket: str, prefix: str) -> Sequence[Trial]:
        self._bucket(bucket)
        problems = self.broken.get(bucket, {})
        names = ("store and read", "store in parts and read", "refuse to overwrite")
        return tuple(Trial(what=name, problem=problems.get(name, "")) for name in names)

    async def versions(self, bucket: str, prefix: str) -> Sequence[ObjectVersion]:
        keys = {key for name, key in self.history if name == bucket} | self._bucket(bucket).keys()
        return [
            ObjectVersion(
                key=key,
                version=version.id,
                modified_at=version.at,
                bytes=len(version.body or b""),
                etag="" if version.body is None else hashlib.md5(version.body).hexdigest(),
                marker=version.body is None,
                latest=number == 0,
            )
            for key in sorted(keys)
            if key.startswith(prefix)
            for number, version in enumerate(reversed(self._of(bucket, key)))
        ]

    async def open(self, bucket: str, key: str, version: str) -> OpenedObject:
        found = self._find(bucket, key, version)
        if found is None or found.body is None:
            raise UserError(f"Bucket `{bucket}` has no version `{version}` of `{key}`.")
        return OpenedObject(bytes=len(found.body), attributes=found.attributes, chunks=_chunks(found.body))

    async def store(self, bucket: str, key: str, chunks: AsyncIterator[bytes], attributes: ObjectAttributes) -> int:
        self._bucket(bucket)
        body = b"".join([chunk async for chunk in chunks])
        await self.put(bucket, key, body)
        newest = self.history[bucket, key]
        newest[-1] = replace(newest[-1], attributes=attributes)
        return len(body)

    async def put_on_top(self, bucket: str, key: str, version: str, *, note: str) -> None:
        opened = await self.open(bucket, key, version)
        await self.store(bucket, key, opened.chunks, opened.attributes.noted(note))

    # ------------------------------------------------------------ inside

    def keep_versions(self, *buckets: str) -> None:
        """From now on these buckets keep versions."""
        for bucket in buckets:
            told = self.settings.get(bucket, BucketFacts(lifecycle=(), replicates_to=(), encryption=""))
            self.settings[bucket] = told.model_copy(update={"versioning": True})

    def arrange(self, bucket: str, key: str, body: bytes | None, *, at: datetime) -> None:
        """Something that happened before the test; None deletes."""
        self._number += 1
        version = MemoryVersion(f"v{self._number:06}", at, body, ObjectAttributes(headers={"content-type": "text/x"}))
        self.history.setdefault((bucket, key), []).append(version)
        if body is None:
            self._bucket(bucket).pop(key, None)
        else:
            self._bucket(bucket)[key] = MemoryObject(body, at)

    def _versioned(self, bucket: str) -> bool:
        return bucket in self.settings and self.settings[bucket].versioning is True

    def _remember(self, bucket: str, key: str, body: bytes | None, attributes: ObjectAttributes) -> None:
        self._number += 1
        versioned = self._versioned(bucket)
        version = MemoryVersion(f"v{self._number:06}" if versioned else "null", self._clock.now(), body, attributes)
        kept = self.history.get((bucket, key), []) if versioned else []
        self.history[bucket, key] = [*kept, version]

    def _of(self, bucket: str, key: str) -> list[MemoryVersion]:
        known = self.history.get((bucket, key))
        if known is None:  # put there behind our back
            found = self._bucket(bucket)[key]
            known = self.history[bucket, key] = [
                MemoryVersion("null", found.modified_at, found.body, ObjectAttributes())
            ]
        return known

    def _find(self, bucket: str, key: str, version: str) -> MemoryVersion | None:
        if (bucket, key) not in self.history and key not in self._bucket(bucket):
            return None
        return next((item for item in self._of(bucket, key) if item.id == version), None)


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for place in range(0, len(body), CHUNK):
        yield body[place : place + CHUNK]
