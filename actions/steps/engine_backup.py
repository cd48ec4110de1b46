"""A base backup in a format of its engine's own, for the commands that bring it back without the bot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from actions.backup.physical import PhysicalEntry, RecoveryTarget
from actions.engine import Stored
from actions.engines import engine_of, engine_of_step
from actions.site import Frozen, Site


class EngineBackup(Frozen):
    """One backup as its engine calls it; what it rests on, the engine finds."""

    engine: str
    label: str
    backup: str
    bucket: str
    endpoint: str | None
    key: str
    sha256: str
    superuser: str

    @classmethod
    def of(cls, site: Site, server: str, entries: Sequence[PhysicalEntry], base: PhysicalEntry) -> Self | None:
        """None where it is in the format of `StoredChain`."""
        engine = engine_of(site.physical_of(server))
        found = engine.stored(site, server, entries, base)
        if found.chain is not None:
            return None
        return cls(
            engine=engine.name,
            label=found.label,
            backup=found.backup,
            bucket=found.bucket,
            endpoint=found.endpoint,
            key=found.key,
            sha256=found.sha256,
            superuser=found.superuser,
        )

    def commands(self, target: RecoveryTarget) -> tuple[str, ...]:
        """Ready to paste, in this order, each once the one before it has ended well."""
        stored = Stored(
            backup=self.backup,
            label=self.label,
            bucket=self.bucket,
            endpoint=self.endpoint,
            key=self.key,
            sha256=self.sha256,
            superuser=self.superuser,
        )
        return engine_of_step(self.engine, self.label).restore_by_hand(stored, target)
