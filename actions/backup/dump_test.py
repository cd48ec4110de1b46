"""What a restore test of a dump asks for, and what came out of loading it into a scratch instance."""

from __future__ import annotations

from collections.abc import Mapping

from actions.site import Frozen


class DumpTest(Frozen):
    """A dump to be loaded completely into an empty server beside everything. `id` is chosen by the plan."""

    id: str  # of the scratch instance
    database: str  # of the plan file
    backup: str
    name: str  # the database's own in the scratch instance
    mark: str
    jobs: int
    amcheck: bool = False  # compare every index with its table, where the extension is there


class DumpLoaded(Frozen):
    """Measured by the job. What is in the database is for others to compare."""

    id: str
    database: str
    backup: str
    name: str
    checked_indexes: tuple[str, ...] = ()  # databases whose indexes were compared with their tables
    seconds: Mapping[str, float] = {}  # by `LoadPhase`
    bytes: int = 0  # fetched, as stored
    plain_bytes: int = 0  # of pg_dump's own output
    tools: Mapping[str, str] = {}  # what loaded it -> version
