"""The base backups of a server, as the bucket shows them: every manifest with its signature and its objects checked.

<prefix>base/<server>/<id>/base.age       the tar stream of pg_basebackup, compressed and encrypted
<prefix>base/<server>/<id>/files.zst      the server's own list of all files; no data, so that a job that only writes
                                          backups can make the next incremental without a key that opens them
<prefix>base/<server>/<id>/manifest.json  signed, written last
<prefix>base/<server>/<id>/verified-*.json, proven-*.json, pin-*.json   signed, each written once

Where the plan names two buckets both hold the same, byte for byte; `native_copies` says what one entry is made of.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import AwareDatetime, ValidationError

from actions.backup.catalogue import ID, READERS
from actions.backup.chain import with_chains
from actions.backup.manifest import StoredObject
from actions.backup.native_copies import BaseCopy, BaseVerification, Verified, Written, joined
from actions.backup.physical import BackupKind, PhysicalEntry, PhysicalManifest, Proof
from actions.backup.pins import PIN, Pin, pin_of
from actions.backup.signing import Signed
from actions.backup.uploads import MANIFEST
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.ports import ObjectFacts, ObjectStore
from actions.site import Frozen, PhysicalPolicy

BASE, FILES = "base.age", "files.zst"
VERIFIED, PROVEN = "verified-", "proven-"

R = TypeVar("R", bound=Frozen)


class BaseFolder:
    """Where one base backup is."""

    def __init__(self, policy: PhysicalPolicy, backup: str) -> None:
        if not ID.fullmatch(backup):
            raise UserError(f"`{backup}` cannot name a backup: use letters, digits, `.`, `_` and `-`.")
        self.prefix = f"{server_prefix(policy)}{backup}/"
        self.base, self.files, self.manifest = (self.prefix + name for name in (BASE, FILES, MANIFEST))

    def record(self, kind: str, at: AwareDatetime, about: str = "") -> str:
        """The key of a document that is kept beside the backup. `about`: the bucket, where it speaks of one of two."""
        return f"{self.prefix}{kind}{at:%Y%m%dT%H%M%S%fZ}{f'-{about}' if about else ''}.json"


def server_prefix(policy: PhysicalPolicy) -> str:
    """The prefix of all base backups of one server."""
    return f"{policy.prefix}base/{policy.server}/"


@dataclass(frozen=True)
class Catalogued:
    """What the buckets show. `silent`: those that could not be looked at, and why; one of them always could."""

    entries: list[PhysicalEntry]
    silent: Mapping[str, str] = field(default_factory=dict)

    def refuse_silence(self, server: str) -> None:
        """Raises TemporaryError while a bucket is silent: what is pinned or needed there is known to nobody."""
        for bucket, why in self.silent.items():
            raise TemporaryError(
                f"Bucket `{bucket}` cannot be looked at, so nothing of the base backups of `{server}` is deleted: "
                f"nobody knows what is pinned there. {why}"
            )


class NativeCatalogue:
    """Reads; never writes. A backup that several buckets hold is one entry."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._read: dict[Written, bytes] = {}  # what is written once needs reading once

    async def entries(self, policy: PhysicalPolicy) -> list[PhysicalEntry]:
        """All base backups, newest first; one whose parent cannot be used has a problem itself."""
        return (await self.read(policy)).entries

    async def read(self, policy: PhysicalPolicy) -> Catalogued:
        """The same, from the buckets that answer. Raises the first one's error when none does."""
        buckets = policy.base_buckets
        read = await asyncio.gather(*(self._bucket(policy, bucket) for bucket in buckets), return_exceptions=True)
        shelves: dict[str, Mapping[str, BaseCopy]] = {}
        silent: dict[str, str] = {}
        for bucket, found in zip(buckets, read, strict=True):
            if not isinstance(found, BaseException):
                shelves[bucket] = found
            elif isinstance(found, DrError) and len(buckets) > 1:
                silent[bucket] = str(found)
            else:
                raise found
        if not shelves:
            raise next(found for found in read if isinstance(found, BaseException))
        present = {written for shelf in shelves.values() for copy in shelf.values() for written in copy.written}
        self._read = {key: body for key, body in self._read.items() if key in present or key.bucket in silent}
        names = dict.fromkeys(name for shelf in shelves.values() for name in shelf)
        entries = [
            joined(policy, name, {bucket: shelf.get(name) for bucket, shelf in shelves.items()}) for name in names
        ]
        found_all = with_chains([entry for entry in entries if entry is not None])
        return Catalogued(sorted(found_all, key=lambda entry: entry.manifest.finished_at, reverse=True), silent)

    async def known(self, policy: PhysicalPolicy, backup: str) -> PhysicalEntry:
        """Raises UserError when there is no such base backup."""
        return named(await self.entries(policy), policy, backup)

    async def _bucket(self, policy: PhysicalPolicy, bucket: str) -> Mapping[str, BaseCopy]:
        """What one bucket shows, by backup; what is there without a manifest as well."""
        prefix = server_prefix(policy)
        folders: dict[str, dict[str, ObjectFacts]] = defaultdict(dict)
        for facts in await self._objects.list(bucket, prefix):
            backup, _, name = facts.key.removeprefix(prefix).partition("/")
            folders[backup][name] = facts
        room = asyncio.Semaphore(READERS)

        async def one(backup: str, files: Mapping[str, ObjectFacts]) -> BaseCopy:
            async with room:
                return await self._copy(policy, bucket, backup, files)

        found = await asyncio.gather(*(one(name, files) for name, files in folders.items()))
        return dict(zip(folders, found, strict=True))

    async def _copy(
        self, policy: PhysicalPolicy, bucket: str, backup: str, files: Mapping[str, ObjectFacts]
    ) -> BaseCopy:
        written = tuple(_written(bucket, facts) for facts in files.values())
        if MANIFEST not in files:
            # A pin may be here before the backup is.
            return BaseCopy(bucket, written=written, pin=await self._pin(policy, bucket, backup, files))
        body = await self._body(bucket, files[MANIFEST])
        digest = hashlib.sha256(body).hexdigest()
        try:
            manifest = checked(body, policy, backup)
        except VerificationError as error:
            shown = _shown(body, policy, backup, files[MANIFEST])
            return BaseCopy(bucket, digest, shown, refused=str(error), written=written)
        missing, odd = _object_problem(manifest, bucket, files)
        return BaseCopy(
            bucket,
            digest,
            manifest,
            missing=missing,
            odd=odd,
            verified=await self._verified(policy, bucket, files),
            proven=await self._proven(policy, bucket, files),
            pin=await self._pin(policy, bucket, backup, files),
            written=written,
        )

    async def _verified(
        self, policy: PhysicalPolicy, bucket: str, files: Mapping[str, ObjectFacts]
    ) -> tuple[Verified, ...]:
        """The newest record that a trusted key has signed, of each bucket that one speaks of."""
        found: dict[str, Verified] = {}
        async for name, record in self._records(policy, bucket, files, VERIFIED, BaseVerification):
            # Records from before there were copies speak of where they are.
            found.setdefault(record.bucket or bucket, Verified(files[name].key, record.bucket or bucket, record))
            if len(found) == len(policy.base_buckets):
                break
        return tuple(found.values())

    async def _proven(self, policy: PhysicalPolicy, bucket: str, files: Mapping[str, ObjectFacts]) -> Proof | None:
        """The newest."""
        async for _, proof in self._records(policy, bucket, files, PROVEN, Proof):
            return proof
        return None

    async def _records(
        self, policy: PhysicalPolicy, bucket: str, files: Mapping[str, ObjectFacts], kind: str, document: type[R]
    ) -> AsyncIterator[tuple[str, R]]:
        """The records of a kind that a trusted key has signed, newest first."""
        for name in sorted((name for name in files if name.startswith(kind)), reverse=True):
            body = await self._body(bucket, files[name])
            try:
                found = Signed[document].parse(body, policy.trusted_signers, what=f"`{name}`")  # type: ignore[valid-type]
            except VerificationError:
                continue
            yield name, found

    async def _pin(
        self, policy: PhysicalPolicy, bucket: str, backup: str, files: Mapping[str, ObjectFacts]
    ) -> Pin | None:
        """The newest."""
        for name in sorted((name for name in files if name.startswith(PIN)), reverse=True):
            body = await self._body(bucket, files[name])
            if (found := pin_of(body, name, backup, policy.trusted_signers)) is not None:
                return found
        return None

    async def _body(self, bucket: str, facts: ObjectFacts) -> bytes:
        written = _written(bucket, facts)
        if written not in self._read:
            self._read[written] = await self._objects.get(bucket, facts.key)
        return self._read[written]


def named(entries: Sequence[PhysicalEntry], policy: PhysicalPolicy, backup: str) -> PhysicalEntry:
    """Raises UserError when there is no such base backup."""
    found = next((entry for entry in entries if entry.manifest.id == backup), None)
    if found is None:
        raise UserError(f"There is no base backup `{backup}` of `{policy.server}`. Choose one of the catalogue.")
    return found


def _written(bucket: str, facts: ObjectFacts) -> Written:
    return Written(bucket, facts.key, facts.bytes, facts.modified_at)


def checked(body: bytes, policy: PhysicalPolicy, backup: str) -> PhysicalManifest:
    """Raises VerificationError unless a trusted key signed it for this very backup."""
    what = f"The manifest of base backup `{backup}`"
    manifest = Signed[PhysicalManifest].parse(body, policy.trusted_signers, what=what)
    if (manifest.id, manifest.server) != (backup, policy.server):
        raise VerificationError(
            f"{what} belongs to `{manifest.id}` of `{manifest.server}`: it was put there by somebody. Use another."
        )
    return manifest


def _object_problem(manifest: PhysicalManifest, bucket: str, files: Mapping[str, ObjectFacts]) -> tuple[str, str]:
    """What is missing, and what is there but cannot be what was stored; a sentence each, empty where it is not so."""
    missing = odd = ""
    for name, wanted in ((BASE, manifest.stored), (FILES, manifest.files)):
        if wanted is None:
            continue
        found = files.get(name)
        if found is None:
            missing = missing or f"The object `{name}` of base backup `{manifest.id}` is missing in bucket `{bucket}`."
        elif found.bytes != wanted.bytes:
            odd = odd or (
                f"The object `{name}` of base backup `{manifest.id}` in bucket `{bucket}` has {found.bytes} bytes, its "
                f"manifest says {wanted.bytes}: it was cut off or replaced. Use another."
            )
    return missing, odd


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
