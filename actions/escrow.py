"""The keys that open SealedSecrets, and their escrow: without them a new cluster cannot decrypt what is in Git."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from pydantic import AwareDatetime

from actions.site import Frozen


class SealingKey(Frozen):
    """What may be said aloud of a key of the controller."""

    name: str  # of its Secret
    fingerprint: str  # SHA-256 of its certificate, hex
    made_at: AwareDatetime
    active: bool = True  # False: only old secrets need it


class Escrowed(Frozen):
    """What is said of every object in escrow, whatever it holds."""

    format: int = 1
    id: str
    cluster: str
    made_at: AwareDatetime
    recipients: tuple[str, ...]  # age public keys it is encrypted to
    bucket: str
    key: str  # of the encrypted object
    bytes: int
    sha256: str  # of the encrypted object
    requested_by: str = ""


class EscrowManifest(Escrowed):
    """The signed description of an escrow of keys; written last."""

    keys: tuple[SealingKey, ...]


class EscrowEntry(Frozen):
    """One escrow as the bucket shows it."""

    manifest: EscrowManifest
    problem: str | None = None  # why it must not be relied on
    trusted: bool = True  # False: its manifest is not signed by us, so nothing is known of it


class SealingKeys(Protocol):
    """The controller's keys in a cluster."""

    async def keys(self, cluster: str) -> Sequence[SealingKey]:
        """Newest first; nothing secret is in them. Raises UserError where the plan names no controller."""

    async def export(self, cluster: str) -> bytes:
        """Every key as one JSON `List` that `kubectl apply` takes. It is secret: only the engine that encrypts it may
        ask, and it never reaches a log, a message or a disk."""

    async def may_add(self, cluster: str) -> None:
        """Raise UserError where the bot has no right to `add`. Changes nothing."""

    async def add(self, cluster: str, exported: bytes, fingerprints: Collection[str]) -> None:
        """Create, out of an export, the keys with these fingerprints that the cluster lacks. What is there is neither
        changed nor deleted; where another Secret has the name, the key gets the beginning of its fingerprint behind it.
        Raises VerificationError, and creates nothing, when the export has not all of them."""


class Escrow(Protocol):
    """Escrows of a cluster's sealing keys."""

    async def current(self, cluster: str) -> Sequence[SealingKey]:
        """The keys the controller has now, newest first."""

    async def entries(self, cluster: str) -> Sequence[EscrowEntry]:
        """Newest first. One that fails its check is listed with `problem`, never hidden."""

    async def make(self, escrow: str, cluster: str, *, requested_by: str = "") -> EscrowEntry:
        """Encrypt all keys to the recipients of the plan, store them, read them back, then sign. A rerun returns what
        is there."""

    async def check(self, cluster: str, escrow: str, fingerprints: Collection[str]) -> None:
        """Raise UserError or VerificationError unless `give_back` could be done from here: the escrow is as it was
        signed, opens, and holds these keys; the cluster lets the bot create them. Changes nothing."""

    async def give_back(self, cluster: str, escrow: str, fingerprints: Collection[str]) -> None:
        """Bring these keys into the cluster, those that it lacks. The controller reads them when it starts."""

    async def remove(self, cluster: str, escrow: str) -> None:
        """Delete the keys, then the manifest. One that is gone is no error."""


def uncovered(current: Sequence[SealingKey], entries: Sequence[EscrowEntry]) -> tuple[SealingKey, ...]:
    """The keys that no escrow holds."""
    held = {key.fingerprint for entry in entries if entry.problem is None for key in entry.manifest.keys}
    return tuple(key for key in current if key.fingerprint not in held)
