"""A recovery point: what belongs together, so that a site can be brought back as it was at one moment."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import AwareDatetime, Field

from actions.buckets import Hold
from actions.secret_copies import HeldSecret
from actions.site import Frozen, WorkloadRef


class DatabasePart(Frozen):
    """The moment of a database, and what it can be brought back from."""

    database: str
    server: str
    moment: AwareDatetime
    by_wal: bool  # else the dump alone
    backup: str = ""  # the newest usable dump
    bucket: str = ""


class FilesPart(Frozen):
    """The moment of files: by the bucket's own versions, by a copy, or both."""

    name: str
    bucket: str
    as_of: AwareDatetime | None = None  # the bucket keeps versions, so this moment can be had
    copy_id: str = ""
    copy_of: AwareDatetime | None = None


class ImagePart(Frozen):
    """An image that runs, or that mirrored manifests name."""

    image: str  # as the cluster names it
    repository: str = ""  # in the registry of the recovery region
    digest: str = ""  # empty: only a tag is known, and that may be moved
    held: bool = False  # the registry has all of it
    problem: str = ""
    unread: bool = Field(default=False, exclude=True)  # nobody could look: the registry or the mirror did not answer


class ContainerImage(Frozen):
    """What a container of a workload asked for, and what ran under that name."""

    name: str
    image: str
    digest: str = ""  # empty: only a tag is known, and that may be moved

    @property
    def exact(self) -> str:
        """By digest where that is known, else as it was asked for."""
        if not self.digest:
            return self.image
        bare = self.image.partition("@")[0]
        folder, slash, last = bare.rpartition("/")
        return f"{folder}{slash}{last.partition(':')[0]}@{self.digest}"


class WorkloadPart(Frozen):
    """The images of one workload of a service."""

    ref: WorkloadRef
    containers: tuple[ContainerImage, ...]


class ManifestsPart(Frozen):
    """The commit that a GitOps controller had applied."""

    cluster: str
    controller: str  # "argocd Application argocd/shop"
    revision: str


class SecretsPart(Frozen):
    """The escrow that opens what is sealed at this commit; never a value."""

    cluster: str
    escrow: str
    keys: tuple[str, ...]  # fingerprints


class SecretVersion(Frozen):
    """Which version of a secret belonged to the point; never its value.

    Of an object of a cluster it is the server's own (`resourceVersion` of `uid`), of a key that the plan file points to
    a fingerprint under a key of the bot.
    """

    name: str  # "Secret main/shop/database", "env:S3_SECRET"
    version: str


class SealedPart(Frozen):
    """The sealed copy of the Secrets of a cluster that nothing else brings back; never a value."""

    cluster: str
    copy_id: str  # empty: there was nothing to seal
    sha256: str  # of the encrypted object
    secrets: tuple[HeldSecret, ...]
    brought: Mapping[str, str] = {}  # of the other Secrets: what writes each anew


class RecoveryPoint(Frozen):
    """The tuple, recorded and signed. `missing` says in one sentence each what it lacks."""

    format: int = 1
    id: str
    taken_at: AwareDatetime
    moment: AwareDatetime  # the one that all its databases can be brought back to
    databases: tuple[DatabasePart, ...] = ()
    files: tuple[FilesPart, ...] = ()
    images: tuple[ImagePart, ...] = ()
    workloads: tuple[WorkloadPart, ...] = ()
    manifests: tuple[ManifestsPart, ...] = ()
    secrets: tuple[SecretsPart, ...] = ()
    versions: tuple[SecretVersion, ...] = ()
    # Left out where there is none: a point that was signed before there were any still checks.
    sealed: tuple[SealedPart, ...] = Field(default=(), exclude_if=operator.not_)
    references: tuple[str, ...] = ()  # names of the secrets that the plan file points to
    missing: tuple[str, ...] = ()
    requested_by: str = ""
    # Of one that was gathered now: False where nobody could look, so that none found says nothing.
    workloads_read: bool = Field(default=True, exclude=True)


class PointEntry(Frozen):
    """A recovery point as the bucket shows it."""

    point: RecoveryPoint
    problem: str | None = None  # why it must not be believed
    pinned: str = ""  # why it is kept whatever the policy says


class Points(Protocol):
    """Recovery points of the site."""

    async def gather(self, point: str, *, requested_by: str = "") -> RecoveryPoint:
        """What a point of now would hold. Changes nothing; a part that does not answer is in `missing`."""

    async def record(self, point: str, *, requested_by: str = "") -> RecoveryPoint:
        """Gather, sign and store it, the list of images that must not expire, and a sealed copy of Secrets where the
        plan says so. A rerun returns what is there."""

    async def entries(self) -> Sequence[PointEntry]:
        """Newest first. One that fails its check is listed with `problem`, never hidden."""

    async def find(self, point: str) -> PointEntry | None:
        """One of `entries`, without reading the others; None when there is none."""

    async def newest(self) -> RecoveryPoint | None:
        """The newest that can be believed, by a listing and a few that are read, however many there are."""

    async def pin(self, point: str, *, reason: str) -> None:
        """Note, signed, that nothing may delete it; where the buckets have Object Lock the store holds it, its escrows
        and its sealed Secrets as well. An empty reason takes both off, but for what another point needs. Raises
        UserError where there is no such point."""

    async def holds(self, point: str) -> Sequence[Hold]:
        """How the buckets themselves keep it and its escrows. Raises UserError where there is no such point."""

    async def remove(self, point: str) -> None:
        """Delete it with its sealed Secrets, and the notes of pins that were taken off. Raises UserError, and deletes
        nothing, while it is pinned. One that is gone is no error."""

    async def images(self) -> Sequence[ImagePart]:
        """What runs now, each looked for in the registry of the recovery region. Raises UserError where the plan names
        none."""
