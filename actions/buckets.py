"""What a bucket is and what is in it: its settings as the store tells them, versions, copies of files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from pydantic import AwareDatetime, Field

from actions.site import Frozen, LockMode

# ---------------------------------------------------------------- settings


class LifecycleRule(Frozen):
    """What the store does by itself to objects under a prefix. None: it does not."""

    name: str
    prefix: str = ""
    narrowed: bool = False  # by tags or sizes too, so it concerns some objects under the prefix only
    deletes_after: timedelta | None = None
    deletes_versions_after: timedelta | None = None  # once they are replaced or deleted
    archives_after: timedelta | None = None  # into a class that takes hours to read


class BucketFacts(Frozen):
    """A bucket's settings as the store tells them. What is None is not known, and `unseen` says why."""

    versioning: bool | None = None
    lockable: bool | None = None  # Object Lock is on, so a version can be locked
    object_lock: LockMode | None = None  # what a new version gets that asks for nothing
    locked_for: timedelta | None = None  # what a new version gets by default; None: nothing
    encryption: str | None = None  # of new objects that ask for none; empty: none
    lifecycle: tuple[LifecycleRule, ...] | None = None
    replicates_to: tuple[str, ...] | None = None  # buckets; those of rules that are switched off are left out
    replicates_deletes: bool | None = None
    unseen: Mapping[str, str] = {}  # setting -> why it cannot be seen


class Hold(Frozen):
    """How a store itself keeps objects in one bucket: a legal hold lets nobody delete a version, whoever has the keys,
    until it is taken off."""

    bucket: str
    objects: int = 0
    held: int = 0
    lockable: bool = True  # False: the bucket has no Object Lock, so nothing in it can be held
    problem: str = ""  # why nobody knows

    @property
    def whole(self) -> bool:
        """Whether all of them are held, as far as the bucket can."""
        return not self.problem and (not self.lockable or self.held == self.objects)


class Trial(Frozen):
    """One thing that was tried on a bucket: `problem` is empty when it went as it must."""

    what: str
    problem: str = ""


# ---------------------------------------------------------------- versions


class ObjectVersion(Frozen):
    """One version of an object, or a marker that says it was deleted. Where a bucket keeps no versions there is one
    version, called `null`."""

    key: str
    version: str
    modified_at: AwareDatetime
    bytes: int = 0
    etag: str = ""
    marker: bool = False
    latest: bool = True


NOTE = "drbot-restored"
"""Metadata of what the bot has brought back: which version it was made from, and by which job."""

META_BYTES = 2000
"""Metadata of an object; stores refuse a little more."""


class ObjectAttributes(Frozen):
    """What an object is stored with beside its bytes."""

    headers: Mapping[str, str] = {}  # lower case: content-type, cache-control, ...
    metadata: Mapping[str, str] = {}

    def noted(self, note: str) -> ObjectAttributes:
        """With our note, where there is room for it."""
        both = {**self.metadata, NOTE: note}
        fits = sum(len(name) + len(value) for name, value in both.items()) <= META_BYTES
        return self.model_copy(update={"metadata": both}) if fits else self


def _nothing_to_close() -> None:
    """Where nothing is held open."""


@dataclass(frozen=True)
class OpenedObject:
    """An object being read; leaving the context ends the reading, whether it was begun or not."""

    attributes: ObjectAttributes
    chunks: AsyncIterator[bytes]
    bytes: int
    close: Callable[[], object] = _nothing_to_close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# ---------------------------------------------------------------- copies of files


class FileEntry(Frozen):
    """One file of a copy: which version of it, and where its bytes are in the copy's bucket."""

    key: str
    version: str
    modified_at: AwareDatetime
    bytes: int
    etag: str
    sha256: str
    stored: str  # key in the copy's bucket
    attributes: ObjectAttributes = ObjectAttributes()


class Tombstone(Frozen):
    """A file that the copy before has and this one has not, because it was deleted."""

    key: str
    marker: str = ""  # version of the delete marker, where there is one
    deleted_at: AwareDatetime | None = None


class Comparison(Frozen):
    """A copy held against its source after it was made."""

    compared_at: AwareDatetime
    source_objects: int
    copy_objects: int
    source_newest: AwareDatetime | None = None
    copy_newest: AwareDatetime | None = None
    source_markers: int = 0  # files that are deleted there now
    copied_markers: int = 0  # of those, how many were deleted when the copy was made
    sampled: int = 0  # files whose bytes were read again on both sides
    meanwhile: int = 0  # files that changed at the source while it was copied
    refused: int = 0  # files that are there and were not given out
    first_refused: str = ""  # the key of one of them

    @property
    def unlike(self) -> str:
        """How the copy differs from its source beyond what changed while it was made; empty when it does not."""
        if self.refused:
            return (
                f"{self.refused} files of its source, `{self.first_refused}` among them, are there and could not be "
                "read: look at the keys of the bucket and at their policy"
            )
        if abs(self.source_objects - self.copy_objects) > self.meanwhile:
            return (
                f"it has {self.copy_objects} files, its source {self.source_objects}, and {self.meanwhile} changed "
                "while it was made"
            )
        if self.source_newest != self.copy_newest and not self.meanwhile:
            return "its newest file is not the newest one of its source, and nothing changed while it was made"
        return ""


class FilesManifest(Frozen):
    """The signed description of a copy of files; written last, so a copy without one does not count."""

    format: int = 1
    id: str
    name: str  # of the policy
    bucket: str
    prefix: str
    copy_bucket: str
    state_of: AwareDatetime  # when the source was listed
    finished_at: AwareDatetime
    objects: int
    bytes: int
    copied: int  # files whose bytes were not there from an earlier copy
    copied_bytes: int
    tombstones: int
    parts: Mapping[str, str]  # key of a part -> SHA-256 of the object
    comparison: Comparison
    requested_by: str = ""


class FilesCopy(Frozen):
    """One copy of the catalogue."""

    manifest: FilesManifest
    manifest_sha256: str
    problem: str | None = None  # why it must not be used


class FilesCopyRequest(Frozen):
    """One copy to be made. `id` is chosen by the plan, so a rerun finds it."""

    id: str
    name: str
    requested_by: str = ""


class FilesSource(Frozen):
    """Files as they were: in a copy, or at a moment in a bucket that keeps versions."""

    name: str
    prefix: str = ""
    copy_id: str | None = None
    as_of: AwareDatetime | None = None
    into: str | None = None  # another bucket of the plan; None: their own


class BringBack(Frozen):
    """Bring files back. What is in the bucket now and was not then is never touched."""

    source: FilesSource
    replace: bool = False  # also where there is another version now; that one stays, under the old one
    job: str = ""  # noted on what it stores, so that `take_back` knows it again
    undo: bool = False  # `take_back` is meant


class FilesDifference(Frozen):
    """What lies between files as they were and the bucket as it is."""

    state_of: AwareDatetime
    wanted: int = 0
    same: int = 0
    missing: int = 0  # deleted, or never there
    missing_bytes: int = 0
    changed: int = 0  # there is another version now
    changed_bytes: int = 0
    later: int = 0  # there now and not then
    examples: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)  # "missing", "changed", ... -> keys
    versioned: bool | None = None  # whether the bucket keeps what is replaced; None: it does not tell


class CopiesExpiry(Frozen):
    """The copies whose time is over, and the objects only they need."""

    name: str
    copies: tuple[str, ...] = ()
    objects: int = 0
    bytes: int = 0
