"""The base backups of a server, as the bucket shows them: every manifest with its signature and its objects checked.

<prefix>base/<server>/<id>/base.age       the tar stream of pg_basebackup, compressed and encrypted
<prefix>base/<server>/<id>/files.zst      the server's own list of all files; no data, so that a job that only writes
                                          backups can make the next incremental without a key that opens them
<prefix>base/<server>/<id>/manifest.json  signed, written last
<prefix>base/<server>/<id>/verified-*.json, proven-*.json, pin-*.json   signed, each written once
"""

from __future__ import annotations

import asyncio
import hashlib
import operator
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from actions.backup.catalogue import ID, READERS
from actions.backup.chain import with_chains
from actions.backup.manifest import StoredObject
from actions.backup.physical import BackupKind, PhysicalEntry, PhysicalManifest, Proof
from actions.backup.pins import PIN, Pin, pin_of
from actions.backup.signing import Signed
from actions.backup.uploads import MANIFEST
from actions.backup.verification import found_damaged
from actions.errors import UserError, VerificationError
from actions.ports import ObjectFacts, ObjectStore
from actions.site import Frozen, PhysicalPolicy

BASE, FILES = "base.age", "files.zst"
VERIFIED, PROVEN = "verified-", "proven-"

R = TypeVar("R", bound=Frozen)


class Written(NamedTuple):
    """An object as it was written at one moment."""

    key: str
    bytes: int
    at: datetime


class BaseVerification(Frozen):
    """The whole object was read, both hashes were right, and every file was what the server had listed; or, with a
    `problem`, they were not."""

    backup: str
    manifest_sha256: str
    verified_at: AwareDatetime
    problem: str = Field(default="", exclude_if=operator.not_)  # older records have none, and stay signed


class BaseFolder:
    """Where one base backup is."""

    def __init__(self, policy: PhysicalPolicy, backup: str) -> None:
        if not ID.fullmatch(backup):
            raise UserError(f"`{backup}` cannot name a backup: use letters, digits, `.`, `_` and `-`.")
        self.prefix = f"{server_prefix(policy)}{backup}/"
        self.base, self.files, self.manifest = (self.prefix + name for name in (BASE, FILES, MANIFEST))

    def record(self, kind: str, at: AwareDatetime) -> str:
        """The key of a document that is kept beside the backup."""
        return f"{self.prefix}{kind}{at:%Y%m%dT%H%M%S%fZ}.json"


def server_prefix(policy: PhysicalPolicy) -> str:
    """The prefix of all base backups of one server."""
    return f"{policy.prefix}base/{policy.server}/"


class NativeCatalogue:
    """Reads; never writes."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._read: dict[Written, bytes] = {}  # what is written once needs reading once

    async def entries(self, policy: PhysicalPolicy) -> list[PhysicalEntry]:
        """All base backups, newest first; one whose parent cannot be used has a problem itself."""
        prefix = server_prefix(policy)
        folders: dict[str, dict[str, ObjectFacts]] = defaultdict(dict)
        for facts in await self._objects.list(policy.bucket, prefix):
            backup, _, name = facts.key.removeprefix(prefix).partition("/")
            folders[backup][name] = facts
        room = asyncio.Semaphore(READERS)

        async def one(backup: str, files: Mapping[str, ObjectFacts]) -> PhysicalEntry:
            async with room:
                return await self._entry(policy, backup, files)

        found = await asyncio.gather(*(one(name, files) for name, files in folders.items() if MANIFEST in files))
        present = {_written(facts) for files in folders.values() for facts in files.values()}
        self._read = {written: body for written, body in self._read.items() if written in present}
        return sorted(with_chains(found), key=lambda entry: entry.manifest.finished_at, reverse=True)

    async def known(self, policy: PhysicalPolicy, backup: str) -> PhysicalEntry:
        """Raises UserError when there is no such base backup."""
        found = next((entry for entry in await self.entries(policy) if entry.manifest.id == backup), None)
        if found is None:
            raise UserError(f"There is no base backup `{backup}` of `{policy.server}`. Choose one of the catalogue.")
        return found

    async def _entry(self, policy: PhysicalPolicy, backup: str, files: Mapping[str, ObjectFacts]) -> PhysicalEntry:
        body = await self._body(policy, files[MANIFEST])
        digest = hashlib.sha256(body).hexdigest()
        try:
            manifest = checked(body, policy, backup)
        except VerificationError as error:
            shown = _shown(body, policy, backup, files[MANIFEST])
            return PhysicalEntry(manifest=shown, manifest_sha256=digest, problem=str(error), trusted=False)
        verified = await self._newest(policy, files, VERIFIED, BaseVerification)
        problem = _object_problem(manifest, files)
        if verified is not None and verified.manifest_sha256 != digest:
            verified = None
        if verified is not None and verified.problem:
            key = BaseFolder(policy, backup).record(VERIFIED, verified.verified_at)
            problem, verified = problem or found_damaged(verified.problem, verified.verified_at, key), None
        proven = await self._newest(policy, files, PROVEN, Proof)
        pin = await self._pin(policy, backup, files)
        return PhysicalEntry(
            manifest=manifest,
            manifest_sha256=digest,
            verified_at=None if verified is None else verified.verified_at,
            proven_at=proven.proven_at if proven and proven.problem is None and proven.backup == backup else None,
            pinned=pin.reason if pin else "",
            problem=problem,
        )

    async def _newest(
        self, policy: PhysicalPolicy, files: Mapping[str, ObjectFacts], kind: str, document: type[R]
    ) -> R | None:
        """The newest record of a kind that a trusted key has signed."""
        for name in sorted((name for name in files if name.startswith(kind)), reverse=True):
            body = await self._body(policy, files[name])
            try:
                return Signed[document].parse(body, policy.trusted_signers, what=f"`{name}`")  # type: ignore[valid-type]
            except VerificationError:
                continue
        return None

    async def _pin(self, policy: PhysicalPolicy, backup: str, files: Mapping[str, ObjectFacts]) -> Pin | None:
        """The newest."""
        for name in sorted((name for name in files if name.startswith(PIN)), reverse=True):
            body = await self._body(policy, files[name])
            if (found := pin_of(body, name, backup, policy.trusted_signers)) is not None:
                return found
        return None

    async def _body(self, policy: PhysicalPolicy, facts: ObjectFacts) -> bytes:
        written = _written(facts)
        if written not in self._read:
            self._read[written] = await self._objects.get(policy.bucket, facts.key)
        return self._read[written]


def _written(facts: ObjectFacts) -> Written:
    return Written(facts.key, facts.bytes, facts.modified_at)


def checked(body: bytes, policy: PhysicalPolicy, backup: str) -> PhysicalManifest:
    """Raises VerificationError unless a trusted key signed it for this very backup."""
    what = f"The manifest of base backup `{backup}`"
    manifest = Signed[PhysicalManifest].parse(body, policy.trusted_signers, what=what)
    if (manifest.id, manifest.server) != (backup, policy.server):
        raise VerificationError(
            f"{what} belongs to `{manifest.id}` of `{manifest.server}`: it was put there by somebody. Use another."
        )
    return manifest


def _object_problem(manifest: PhysicalManifest, files: Mapping[str, ObjectFacts]) -> str | None:
    for name, wanted in ((BASE, manifest.stored), (FILES, manifest.files)):
        if wanted is None:
            continue
        found = files.get(name)
        if found is None:
            return f"The object `{name}` of base backup `{manifest.id}` is missing in bucket `{wanted.bucket}`."
        if found.bytes != wanted.bytes:
            return (
                f"The object `{name}` of base backup `{manifest.id}` has {found.bytes} bytes, its manifest says "
                f"{wanted.bytes}: it was cut off or replaced. Use another."
            )
    return None


def _shown(body: bytes, policy: PhysicalPolicy, backup: str, facts: ObjectFacts) -> PhysicalManifest:
    """What an untrusted manifest says, so that it can be listed with its problem; nothing when it says nothing."""
    try:
        said = Signed[PhysicalManifest].model_validate_json(body).document
        return said.model_copy(update={"id": backup, "server": policy.server})
    except ValidationError:
        return PhysicalManifest(
            id=backup,
            server=policy.server,
            kind=BackupKind.FULL,
            system_id="",
            server_version=0,
            timeline_id=0,
            start_lsn="0/0",
            stop_lsn="0/0",
            started_at=facts.modified_at,
            finished_at=facts.modified_at,
            stored=StoredObject(bucket=policy.bucket, key=facts.key, bytes=0, sha256=""),
            plain_bytes=0,
            plain_sha256="",
        )
