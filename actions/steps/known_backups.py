"""The backups that can be restored: those of the bucket, or of the local copy while the bucket does not answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actions.contract import Finding, Verdict
from actions.errors import TemporaryError, VerificationError
from actions.ports import CatalogueEntry, Ports


@dataclass(frozen=True, kw_only=True)
class KnownBackups:
    """Newest first. `silence` is why only the local copy was looked at, empty when the bucket has answered."""

    entries: Sequence[CatalogueEntry]
    silence: str = ""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What signers should know of it."""
        if not self.silence:
            return ()
        return (
            Finding(
                check="bucket",
                verdict=Verdict.WARN,
                detail=f"{self.silence} Only the local copy was looked at; the bucket may hold a newer backup.",
                hint="If it can wait, ask again once the bucket answers.",
            ),
        )


async def known_backups(ports: Ports, database: str) -> KnownBackups:
    """Raises TemporaryError when the bucket does not answer and the local copy holds nothing."""
    try:
        return KnownBackups(entries=await ports.backups.catalogue(database))
    except TemporaryError as error:
        copies = await ports.backups.copies(database)
        if not copies:
            raise
        return KnownBackups(entries=copies, silence=str(error))


async def restorable(ports: Ports, database: str, backup: str) -> CatalogueEntry | None:
    """One backup, as above; None when there is none of this name."""
    try:
        return await ports.backups.find(database, backup)
    except TemporaryError:
        found = next((entry for entry in await ports.backups.copies(database) if entry.manifest.id == backup), None)
        if found is None:
            raise
        return found


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
