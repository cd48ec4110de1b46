"""The signed description of a dump: what it holds, how it was made, who can read it.

A manifest is written last, so an object without one is not a backup. It is signed (Ed25519) because whoever can
write the bucket also knows the age recipients and could store a well-formed dump of his own.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.backup.signing import holds, signed
from actions.errors import VerificationError
from actions.site import Frozen


class Provenance(StrEnum):
    """ATTESTED: made and measured by this product. ADOPTED: found, restored in scratch, then catalogued."""

    ATTESTED = "attested"
    ADOPTED = "adopted"


class Sequence(Frozen):
    """Last value and whether it was handed out, as PostgreSQL stores them."""

    last_value: int
    is_called: bool


class Fingerprint(Frozen):
    """What is compared between the dumped database and a restored copy."""

    rows: Mapping[str, int]  # "schema.table" -> exact count; leaves of partition trees, not their parents
    sequences: Mapping[str, Sequence]
    schema_hash: str  # SHA-256 over a normalised listing of the catalog, hex
    invariants: Mapping[str, str]  # name of the plan file -> the scalar as text
    extensions: Mapping[str, str] = {}  # name -> version; compared by name only

    def differences(self, restored: Fingerprint) -> tuple[str, ...]:
        """One sentence for each difference, empty when the copy equals the original."""
        found = [*_row_differences(self.rows, restored.rows)]
        for name, sequence in self.sequences.items():
            if restored.sequences.get(name) != sequence:
                found.append(f"sequence {name} is {restored.sequences.get(name)}, the dump has {sequence}")
        if self.schema_hash != restored.schema_hash:
            found.append(f"schema hash is {restored.schema_hash[:12]}, the dump has {self.schema_hash[:12]}")
        for name, value in self.invariants.items():
            if restored.invariants.get(name) != value:
                found.append(f"invariant {name} is {restored.invariants.get(name)!r}, the dump has {value!r}")
        return tuple(found)


def _row_differences(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    lines = [
        f"table {name} has {found.get(name, 'no')} rows, the dump has {count}"
        for name, count in sorted(expected.items())
        if found.get(name) != count
    ]
    lines += [f"table {name} is not in the dump" for name in sorted(found.keys() - expected.keys())]
    return lines


class Role(Frozen):
    """A role as it must exist for the restore; never a password."""

    name: str
    superuser: bool
    create_role: bool
    create_database: bool
    login: bool
    replication: bool
    bypass_rls: bool
    connection_limit: int
    settings: tuple[str, ...] = ()  # "name=value"
    member_of: tuple[str, ...] = ()


class Globals(Frozen):
    """What pg_dump leaves out: roles without passwords, the database's own ACL and settings."""

    roles: tuple[Role, ...] = ()
    database_owner: str = ""
    database_acl: tuple[str, ...] = ()  # aclitem text, as PostgreSQL prints it
    database_settings: tuple[str, ...] = ()  # "name=value"
    encoding: str = "UTF8"
    locale_provider: str = "c"
    collate: str = "C"
    ctype: str = "C"
    locale: str = ""  # of the providers builtin ("b") and ICU ("i")
    role_settings: Mapping[str, tuple[str, ...]] = {}  # role -> "name=value" that hold in this database alone


class StoredObject(Frozen):
    """Where the bytes are and what they hash to."""

    bucket: str
    key: str
    bytes: int
    sha256: str  # of the stored (encrypted) bytes, hex


class Manifest(Frozen):
    """Everything a restore needs to know before it opens the dump."""

    format: int = 1
    id: str  # "<database>-<UTC time>-<random>", also the folder in the bucket
    database: str
    server: str
    provenance: Provenance
    system_id: str
    server_version: int  # server_version_num
    lsn: str  # at the exported snapshot
    snapshot_at: datetime  # UTC, the moment the dump shows
    finished_at: datetime
    duration_ms: int
    stored: StoredObject
    plain_bytes: int
    plain_sha256: str  # of pg_dump's own output
    compression: str  # "zstd" or "none"
    recipients: tuple[str, ...]
    database_bytes: int
    # Entry of the archive -> where its data begins in the plain bytes, in their order; empty where nobody noted it.
    places: tuple[tuple[int, int], ...] = ()
    fingerprint: Fingerprint
    relfilenodes: Mapping[str, int] = {}  # "schema.table" -> relfilenode, for the target finder
    globals: Globals = Globals()
    tools: Mapping[str, str] = {}  # "pg_dump" -> "18.6", "drbot" -> "0.1.0"
    requested_by: str = ""

    def canonical(self) -> bytes:
        """RFC 8785 form, the bytes that are signed. Manifests are older than their places: none are left out."""
        return rfc8785.dumps(self.model_dump(mode="json", exclude=None if self.places else {"places"}))


class SignedManifest(Frozen):
    """A manifest with its signature, as stored."""

    manifest: Manifest
    signer: str  # base64 of the raw Ed25519 public key
    signature: str  # base64

    @classmethod
    def sign(cls, manifest: Manifest, key: Ed25519PrivateKey) -> SignedManifest:
        signer, signature = signed(manifest.canonical(), key)
        return cls(manifest=manifest, signer=signer, signature=signature)

    def verified(self, trusted_signers: tuple[str, ...]) -> Manifest:
        """Return the manifest; raise VerificationError when the signer is not trusted or the bytes were changed."""
        if self.signer not in trusted_signers:
            raise VerificationError(
                f"The manifest of backup `{self.manifest.id}` is signed by a key the plan file does not trust."
            )
        if not holds(self.manifest.canonical(), self.signer, self.signature):
            raise VerificationError(
                f"The manifest of backup `{self.manifest.id}` does not match its signature: it was changed or forged."
            )
        return self.manifest
