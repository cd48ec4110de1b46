"""The backups of a database, as the bucket shows them: manifests with their signature and their object checked."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from actions.backup.manifest import Fingerprint, Manifest, Provenance, SignedManifest, StoredObject
from actions.backup.pins import PIN, Pin, pin_of
from actions.backup.uploads import MANIFEST
from actions.backup.verification import SignedVerification, Verification, found_damaged
from actions.errors import DrError, UserError, VerificationError
from actions.ports import CatalogueEntry, ObjectFacts, ObjectStore
from actions.site import BackupPolicy

DUMP, VERIFIED = "dump.age", "verified-"
READERS = 16  # manifests read at the same time
log = logging.getLogger(__name__)

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Folder:
    """Where one backup is: `<prefix><database>/<id>/` in the bucket, `<directory>/<database>/<id>/` on disk."""

    def __init__(self, policy: BackupPolicy, backup: str) -> None:
        if not ID.fullmatch(backup):
            raise UserError(f"`{backup}` cannot name a backup: use letters, digits, `.`, `_` and `-`.")
        self.prefix = f"{database_prefix(policy)}{backup}/"
        self.dump, self.manifest = self.prefix + DUMP, self.prefix + MANIFEST
        place = local_place(policy)
        self._local = None if place is None else place / backup

    @property
    def local_dump(self) -> Path | None:
        return self._local / DUMP if self._local else None

    @property
    def local_manifest(self) -> Path | None:
        return self._local / MANIFEST if self._local else None


def database_prefix(policy: BackupPolicy) -> str:
    """The prefix of all backups of one database."""
    return f"{policy.prefix}{_part(policy.database)}/"


def local_place(policy: BackupPolicy) -> Path | None:
    """The directory of the local copies of one database."""
    return Path(policy.local_directory) / _part(policy.database) if policy.local_directory else None


def _part(name: str) -> str:
    # A database may be called `a/b` or `..`.
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A whole dump of the local copy. Its manifest is, byte for byte, that of the bucket."""

    signed: SignedManifest
    entry: CatalogueEntry


class Catalogue:
    """Reads the catalogue; never writes."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def entries(self, policy: BackupPolicy) -> Sequence[CatalogueEntry]:
        """All backups, newest first."""
        prefix = database_prefix(policy)
        folders: dict[str, dict[str, ObjectFacts]] = defaultdict(dict)
        for facts in await self._objects.list(policy.bucket, prefix):
            backup, _, name = facts.key.removeprefix(prefix).partition("/")
            folders[backup][name] = facts
        room = asyncio.Semaphore(READERS)

        async def one(backup: str, files: Mapping[str, ObjectFacts]) -> CatalogueEntry:
            async with room:
                return await self._entry(policy, backup, files)

        found = await asyncio.gather(*(one(name, files) for name, files in folders.items() if MANIFEST in files))
        return sorted(found, key=lambda entry: entry.manifest.snapshot_at, reverse=True)

    async def find(self, policy: BackupPolicy, backup: str) -> CatalogueEntry | None:
        """One backup, or None when it has no manifest."""
        folder = Folder(policy, backup)
        listed = await self._objects.list(policy.bucket, folder.prefix)
        files = {facts.key.removeprefix(folder.prefix): facts for facts in listed}
        return await self._entry(policy, backup, files) if MANIFEST in files else None

    async def signed(self, policy: BackupPolicy, backup: str) -> SignedManifest | None:
        """The manifest as stored, its signature checked; None when there is none."""
        folder = Folder(policy, backup)
        if await self._objects.head(policy.bucket, folder.manifest) is None:
            return None
        return checked(await self._objects.get(policy.bucket, folder.manifest), policy, backup)

    async def copies(self, policy: BackupPolicy) -> Sequence[Copy]:
        """The whole dumps of the local copy, newest first; what is not signed by a trusted key is left out."""
        found = await asyncio.to_thread(_copies, policy)
        return sorted(found, key=lambda copy: copy.entry.manifest.snapshot_at, reverse=True)

    async def trusted(self, policy: BackupPolicy, backup: str) -> Manifest:
        """The manifest to restore from: that of the bucket, or the local one while the bucket gives none out.

        Raises UserError when there is none, VerificationError when it must not be used.
        """
        folder = Folder(policy, backup)
        try:
            signed = await self.signed(policy, backup)
        except VerificationError:
            raise  # it was read, and is not ours
        except DrError:
            path = folder.local_manifest
            if path is None or not await asyncio.to_thread(path.exists):
                raise
            log.warning("local_manifest_used: %s", path)
            signed = checked(await asyncio.to_thread(path.read_bytes), policy, backup)
        if signed is None:
            raise UserError(f"There is no backup `{backup}` of `{policy.database}`. Choose one of the catalogue.")
        return signed.manifest

    async def _entry(self, policy: BackupPolicy, backup: str, files: Mapping[str, ObjectFacts]) -> CatalogueEntry:
        body = await self._objects.get(policy.bucket, files[MANIFEST].key)
        digest = hashlib.sha256(body).hexdigest()
        problem: str | None = None
        lost = False
        try:
            manifest = checked(body, policy, backup).manifest
            problem = _object_problem(manifest, files.get(DUMP))
            lost = problem is not None
        except VerificationError as error:
            problem = str(error)
            manifest = _shown(body, policy, backup, files[MANIFEST])
        pin = await self._pin(policy, backup, files)
        name, read = ("", None) if problem else await self._verification(policy, files, digest)
        if read is not None and read.problem:
            problem, read = found_damaged(read.problem, read.verified_at, files[name].key), None
        return CatalogueEntry(
            manifest=manifest,
            manifest_sha256=digest,
            verified_at=None if read is None else read.verified_at,
            problem=problem,
            lost=lost,
            pinned=pin.reason if pin is not None else "",
        )

    async def _pin(self, policy: BackupPolicy, backup: str, files: Mapping[str, ObjectFacts]) -> Pin | None:
        """The newest."""
        for name in sorted((name for name in files if name.startswith(PIN)), reverse=True):
            body = await self._objects.get(policy.bucket, files[name].key)
            if (found := pin_of(body, name, backup, policy.trusted_signers)) is not None:
                return found
        return None

    async def _verification(
        self, policy: BackupPolicy, files: Mapping[str, ObjectFacts], digest: str
    ) -> tuple[str, Verification | None]:
        """The newest record that holds, and the name of its file."""
        for name in sorted((name for name in files if name.startswith(VERIFIED)), reverse=True):
            try:
                record = SignedVerification.model_validate_json(await self._objects.get(policy.bucket, files[name].key))
            except ValidationError:
                continue
            if record.holds(policy.trusted_signers, manifest_sha256=digest):
                return name, record.verification
        return "", None


def _copies(policy: BackupPolicy) -> list[Copy]:
    place = local_place(policy)
    found = []
    for path in sorted(place.glob(f"*/{MANIFEST}")) if place is not None else []:
        dump, body = path.with_name(DUMP), path.read_bytes()
        try:
            signed = checked(body, policy, path.parent.name)
        except VerificationError as error:
            log.warning("local_copy_left_out: %s: %s", path, error)
            continue
        if dump.exists() and dump.stat().st_size == signed.manifest.stored.bytes:
            entry = CatalogueEntry(manifest=signed.manifest, manifest_sha256=hashlib.sha256(body).hexdigest())
            found.append(Copy(signed=signed, entry=entry))
    return found


def checked(body: bytes, policy: BackupPolicy, backup: str) -> SignedManifest:
    """Parse a manifest; raise VerificationError unless a trusted key signed it for this very backup."""
    try:
        signed = SignedManifest.model_validate_json(body)
    except ValidationError as error:
        raise VerificationError(
            f"The manifest of backup `{backup}` cannot be read: it was changed or cut off. Use another backup."
        ) from error
    manifest = signed.verified(policy.trusted_signers)
    if (manifest.id, manifest.database) != (backup, policy.database):
        raise VerificationError(
            f"The manifest of backup `{backup}` belongs to `{manifest.id}` of `{manifest.database}`: "
            "it was put there by somebody. Use another backup."
        )
    return signed


def _object_problem(manifest: Manifest, found: ObjectFacts | None) -> str | None:
    if found is None:
        return f"The object of backup `{manifest.id}` is missing in bucket `{manifest.stored.bucket}`. Use another."
    if found.bytes != manifest.stored.bytes:
        return (
            f"The object of backup `{manifest.id}` has {found.bytes} bytes, its manifest says {manifest.stored.bytes}. "
            "Use another backup."
        )
    return None


def _shown(body: bytes, policy: BackupPolicy, backup: str, facts: ObjectFacts) -> Manifest:
    """What an untrusted manifest says, so that it can be listed with its problem; empty when it says nothing."""
    try:
        said = SignedManifest.model_validate_json(body).manifest
        return said.model_copy(update={"id": backup, "database": policy.database})
    except ValidationError:
        return Manifest(
            id=backup,
            database=policy.database,
            server="",
            provenance=Provenance.ATTESTED,
            system_id="",
            server_version=0,
            lsn="0/0",
            snapshot_at=facts.modified_at,
            finished_at=facts.modified_at,
            duration_ms=0,
            stored=StoredObject(bucket=policy.bucket, key=facts.key, bytes=0, sha256=""),
            plain_bytes=0,
            plain_sha256="",
            compression="none",
            recipients=(),
            database_bytes=0,
            fingerprint=Fingerprint(rows={}, sequences={}, schema_hash="", invariants={}),
        )
