"""The backups that can be restored: those of the bucket, or of the local copy where that gives none out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actions.contract import Finding, Verdict
from actions.errors import DrError, VerificationError
from actions.ports import CatalogueEntry, Ports


@dataclass(frozen=True, kw_only=True)
class KnownBackups:
    """Newest first. `silence` is why only the local copy was looked at, empty when the bucket has answered; `copied`
    are those whose object it has lost, so that the local copy is read."""

    entries: Sequence[CatalogueEntry]
    silence: str = ""
    copied: Sequence[str] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What signers should know of it."""
        lost = tuple(
            Finding(
                check="bucket",
                verdict=Verdict.WARN,
                detail=f"The bucket has lost the object of `{backup}`, or a part of it: the local copy is read.",
                hint="Look who deletes in the bucket, and make a new dump: this one is on one machine alone.",
            )
            for backup in self.copied
        )
        if not self.silence:
            return lost
        return (
            Finding(
                check="bucket",
                verdict=Verdict.WARN,
                detail=f"{self.silence} Only the local copy was looked at; the bucket may hold a newer backup.",
                hint="If it can wait, ask again once the bucket answers.",
            ),
        )


async def known_backups(ports: Ports, database: str) -> KnownBackups:
    """Raises the bucket's own error when it gives nothing out and the local copy holds nothing."""
    try:
        stored = await ports.backups.catalogue(database)
    except DrError as error:  # silent, refusing, or with an answer that nobody knows: it gives none out
        copies = await ports.backups.copies(database)
        if not copies:
            raise
        return KnownBackups(entries=copies, silence=str(error))
    if not any(entry.lost for entry in stored):
        return KnownBackups(entries=stored)
    copies = await ports.backups.copies(database)
    entries = [_whole(entry, copies) for entry in stored]
    copied = [now.manifest.id for now, before in zip(entries, stored, strict=True) if now is not before]
    return KnownBackups(entries=entries, copied=copied)


async def restorable(ports: Ports, database: str, backup: str) -> CatalogueEntry | None:
    """One backup, as above; None when there is none of this name."""
    try:
        stored = await ports.backups.find(database, backup)
    except DrError:
        found = next((entry for entry in await ports.backups.copies(database) if entry.manifest.id == backup), None)
        if found is None:
            raise
        return found
    if stored is None or not stored.lost:
        return stored
    return _whole(stored, await ports.backups.copies(database))


def _whole(entry: CatalogueEntry, copies: Sequence[CatalogueEntry]) -> CatalogueEntry:
    """The local copy of an entry whose object is lost, where there is one by the very same manifest."""
    if not entry.lost:
        return entry
    found = (copy for copy in copies if copy.manifest_sha256 == entry.manifest_sha256)
    return next((copy.model_copy(update={"pinned": entry.pinned}) for copy in found), entry)


async def to_restore(ports: Ports, database: str, backup: str) -> CatalogueEntry:
    """The same; VerificationError when it is not there or must not be used."""
    return checked(await restorable(ports, database, backup), database, backup)


def checked(entry: CatalogueEntry | None, database: str, backup: str) -> CatalogueEntry:
    """The entry, unless it is missing or must not be used: then VerificationError."""
    if entry is None:
        raise VerificationError(f"Backup `{backup}` of `{database}` is not in the catalogue. Make a new dump.")
    if entry.problem is not None:
        raise VerificationError(f"Backup `{backup}` of `{database}` must not be used: {entry.problem}")
    return entry
