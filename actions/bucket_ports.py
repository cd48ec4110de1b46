"""The ports of buckets and of copies of files; part of the bundle of `actions.ports`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol

from actions.buckets import (
    BringBack,
    BucketFacts,
    CopiesExpiry,
    FilesCopy,
    FilesCopyRequest,
    FilesDifference,
    FilesSource,
    ObjectAttributes,
    ObjectVersion,
    OpenedObject,
    Trial,
)

if TYPE_CHECKING:
    from actions.ports import Progress


class Buckets(Protocol):
    """What the store says of a bucket, and the versions in it; by bucket name of the site."""

    async def facts(self, bucket: str) -> BucketFacts:
        """Its settings. What the store does not answer is in `unseen`, never taken as fine."""

    async def trials(self, bucket: str, prefix: str) -> Sequence[Trial]:
        """Store, read, store in parts, and store under a condition, as the bot does every day; a few bytes under
        `prefix`, removed again. This finds stores that do not bear the client's checksums or ignore conditions."""

    async def versions(self, bucket: str, prefix: str) -> Sequence[ObjectVersion]:
        """Every version and delete marker, by key, the newest of a key first."""

    async def open(self, bucket: str, key: str, version: str) -> OpenedObject:
        """Read one version. Raises UserError when there is no such version."""

    async def store(self, bucket: str, key: str, chunks: AsyncIterator[bytes], attributes: ObjectAttributes) -> int:
        """Multipart upload; returns bytes stored. On any error or cancellation the upload is aborted."""

    async def put_on_top(self, bucket: str, key: str, version: str, *, note: str) -> None:
        """Copy an old version on top of the others, inside the store, with its attributes and our note."""


class Files(Protocol):
    """Copies of files in another region. Heavy calls are made inside `drbot job`, through the Executor."""

    async def copies(self, name: str) -> Sequence[FilesCopy]:
        """Newest first. A manifest that fails its check is listed with `problem`, never hidden."""

    async def copy(self, request: FilesCopyRequest, progress: Progress) -> FilesCopy:
        """Copy what earlier copies do not have, compare, then write the manifest. A rerun goes on where the last one
        broke off. Raises VerificationError when the copy does not hold what the source held."""

    async def difference(self, source: FilesSource) -> FilesDifference:
        """What `bring_back` would do now. Changes nothing."""

    async def bring_back(self, request: BringBack, progress: Progress) -> FilesDifference:
        """Every byte is checked on its way where its hash is known. Returns the difference that is left."""

    async def take_back(self, request: BringBack, progress: Progress) -> FilesDifference:
        """Put on top again what stood there before `bring_back` of the same job replaced it. What was missing then
        stays, and so does what somebody has written since. Deletes nothing; safe to repeat."""

    async def expiry(self, name: str) -> CopiesExpiry:
        """The copies older than the policy's retention, never the newest usable one, and the objects that no other
        copy lists. Changes nothing."""

    async def expire(self, expiry: CopiesExpiry, progress: Progress) -> None:
        """Delete exactly these copies, and then what no other copy needs."""
