"""The repository of a cluster's manifests: its mirror, and how far the cluster has drifted from it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import AwareDatetime

from actions.site import Frozen, ManifestsPolicy

Json = dict[str, Any]


class Rewrite(Frozen):
    """A commit that was the head and is no ancestor of the next one. The mirror keeps it."""

    before: str
    after: str
    seen_at: AwareDatetime


class MirrorState(Frozen):
    """What the newest look at the repository found; signed, written over by the next one."""

    format: int = 1
    name: str
    mirror: str  # the plan's name for this look
    checked_at: AwareDatetime
    head: str  # newest commit that the branch was seen at
    gone: bool = False  # the branch is not in the repository any more; `head` is where it was last
    rewrites: tuple[Rewrite, ...] = ()  # newest first, the last twenty


class BundleManifest(Frozen):
    """The signed description of one bundle; written last."""

    format: int = 1
    name: str
    commit: str
    url: str
    branch: str
    made_at: AwareDatetime
    bucket: str
    key: str
    bytes: int  # of the encrypted object
    sha256: str  # of the encrypted object
    plain_sha256: str  # of the bundle itself
    recipients: tuple[str, ...]
    requested_by: str = ""


class BundleEntry(Frozen):
    """One bundle as the bucket shows it."""

    manifest: BundleManifest
    problem: str | None = None  # why it must not be relied on


class Tree(NamedTuple):
    """The objects of a folder at a commit; `not_understood` names every file that gave none."""

    objects: tuple[Json, ...]
    not_understood: tuple[str, ...]


class RepositoryFile(NamedTuple):
    """A file at a commit. `body` is None where there is nothing to read, and `problem` says why."""

    path: str
    body: bytes | None
    problem: str = ""


class Git(Protocol):
    """Bare mirrors on this machine, by name of the plan. They are a cache: the bundles are the copy."""

    async def fetch(self, policy: ManifestsPolicy) -> str | None:
        """Take over all branches and tags, and return the head of the plan's branch; None when the repository has no
        such branch. A commit that a branch pointed to is kept for ever, whatever the branch does. Raises UserError
        when the repository refuses, TemporaryError when it does not answer."""

    async def has(self, name: str, commit: str) -> bool:
        """Whether the mirror has this commit."""

    async def contains(self, name: str, commit: str, ancestor: str) -> bool:
        """Whether `ancestor` is `commit` or in its history; False for one that the mirror does not know."""

    async def refs(self, name: str) -> str:
        """SHA-256, hex, of all that the mirror keeps: every branch, tag and kept commit, and where it points."""

    async def bundle(self, policy: ManifestsPolicy, commit: str, into: Path) -> None:
        """Write a bundle of everything, and prove it by fetching all of it into an empty repository, where the branch
        (or a kept commit) must be `commit`. Raises VerificationError when that fails."""

    async def files(self, name: str, commit: str, path: str) -> Sequence[RepositoryFile]:
        """YAML and JSON files under a folder at a commit, by path, and what stands for something else (links)."""


class KindName(NamedTuple):
    """A kind as manifests name it."""

    api_version: str
    kind: str


class Live(Frozen):
    """What the API server has of some kinds. Values of Secrets are hashes already."""

    objects: tuple[Json, ...] = ()
    cluster_wide: tuple[KindName, ...] = ()  # kinds that have no namespace
    unserved: tuple[KindName, ...] = ()  # kinds the server does not know
    refused: tuple[tuple[KindName, str], ...] = ()  # kinds the bot may not list, and what was said


class LiveObjects(Protocol):
    """Reads whole objects; changes nothing."""

    async def read(self, cluster: str, kinds: Sequence[KindName], namespaces: Sequence[str]) -> Live:
        """Everything of these kinds in these namespaces (of the cluster, for kinds without). A kind that cannot be
        listed is told and does not hide the others. Raises TemporaryError when the cluster does not answer."""


class What(StrEnum):
    MISSING = "missing"
    CHANGED = "changed"
    EXTRA = "extra"


class DriftEntry(Frozen):
    """One difference. `wanted` and `found` are as people may see them: shortened, secrets hidden."""

    what: What
    object: str  # "Deployment production/api"
    path: str = ""
    wanted: str = ""
    found: str = ""


class Drift(Frozen):
    """A cluster beside the manifests of one commit."""

    name: str
    cluster: str
    commit: str
    basis: str  # why this commit, one sentence
    checked_at: AwareDatetime  # when the mirror was last brought up to date
    compared: int  # objects of the manifests
    entries: tuple[DriftEntry, ...] = ()
    notes: tuple[str, ...] = ()  # what was left out on purpose
    not_understood: tuple[str, ...] = ()  # what could not be compared
    controllers: tuple[str, ...] = ()  # what Argo CD and Flux say themselves


class Manifests(Protocol):
    """Mirrors of the manifests repositories of the site, by name."""

    async def state(self, name: str) -> MirrorState | None:
        """The newest look; None when there was none. Raises VerificationError for one that nobody trusted signed."""

    async def bundles(self, name: str) -> Sequence[BundleEntry]:
        """Newest first. One that fails its check is listed with `problem`, never hidden."""

    async def mirror(self, mirror: str, name: str, *, requested_by: str = "") -> MirrorState:
        """Bring the mirror up to date; what has changed since the last bundle, on any
        branch or tag, gets one: proven, encrypted, stored, read back, and
        then described by a signed manifest. Nothing that was mirrored is ever deleted."""

    async def drift(self, name: str) -> Drift:
        """The cluster beside the manifests at the commit that its controllers have applied, else at the head."""

    async def images(self, name: str) -> Sequence[str]:
        """The images that the manifests at the mirrored head name, sorted."""
