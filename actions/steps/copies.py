"""Steps that load a dump beside production and prove the copy."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import CatalogueEntry, JobKind, LoadRequest, Ports, Progress, ProgressReport
from actions.site import DatabaseRef, Invariant
from actions.steps import byhand
from actions.steps.dumps import fetched
from actions.steps.known_backups import to_restore
from actions.steps.new_databases import FillDatabase, is_there
from actions.steps.phrases import span

SHOWN_DIFFERENCES = 5


class LoadDump(FillDatabase):
    """A new database with the dump's content."""

    kind: Literal["load_dump"] = "load_dump"
    database: str
    backup: str
    bucket: str
    endpoint: str | None
    key: str
    sha256: str
    invariants: tuple[Invariant, ...]
    # Left out where it is not known: a plan that was signed before it was noted keeps its digest.
    database_bytes: int = Field(default=0, exclude_if=operator.not_)
    """How large the dumped database was; the next restore is estimated by it."""

    @property
    def summary(self) -> str:
        return f"Check signature and hashes of `{self.backup}` and load it into new database `{self.into}`"

    def by_hand(self) -> tuple[str, ...]:
        return (
            *fetched(self.bucket, self.endpoint, self.key, self.sha256),
            *self.filled_by_hand("backup.dump"),
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.LOAD

    def request(self) -> Mapping[str, Any]:
        asked = LoadRequest(backup=self.backup, database=self.database, into=self.into, mark=self.mark, jobs=self.jobs)
        return asked.model_dump(mode="json")

    async def without_job(self, ports: Ports) -> Probe:
        """The copy speaks for itself."""
        entry = await to_restore(ports, self.database, self.backup)
        found = await ports.postgres.fingerprint(self.into, self.invariants)
        return Probe.TODO if entry.manifest.fingerprint.differences(found) else Probe.DONE


class CompareCopy(Step):
    """The copy equals what the manifest says of the dump: rows of every table, sequences, schema, invariants."""

    kind: Literal["compare_copy"] = "compare_copy"
    database: str
    backup: str
    manifest_sha256: str
    into: DatabaseRef
    mark: str
    invariants: tuple[Invariant, ...]
    tables: int

    @property
    def summary(self) -> str:
        return f"Compare `{self.into}` with the manifest of `{self.backup}`"

    @property
    def before(self) -> str:
        return "a copy of which nothing is known"

    @property
    def after(self) -> str:
        return f"rows of {self.tables} table(s), sequences, schema hash and {len(self.invariants)} invariant(s) equal"

    def by_hand(self) -> tuple[str, ...]:
        server, name = self.into
        return (
            byhand.exact_rows(server, name),
            *(byhand.psql(server, invariant.sql, database=name) for invariant in self.invariants),
        )

    async def probe(self, ports: Ports) -> Probe:  # noqa: ARG002 - a comparison leaves nothing behind
        return Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        entry = await self._entry(ports)
        done, total = 0, sum(entry.manifest.fingerprint.rows.values())

        def counted(rows: int) -> None:
            nonlocal done
            done += rows
            progress(ProgressReport(done=done, total=total, unit="rows", phase="count"))

        # Measured by whoever compares, at the moment of comparing: what the load reported could be stale or edited.
        found = await ports.postgres.fingerprint(self.into, self.invariants, counted=counted)
        differences = entry.manifest.fingerprint.differences(found)
        if differences:
            shown = "; ".join(differences[:SHOWN_DIFFERENCES])
            more = len(differences) - SHOWN_DIFFERENCES
            kept = span(ports.site.database(self.database).quarantine)
            tail = f"; and {more} more" if more > 0 else ""
            raise VerificationError(
                f"The copy is not what `{self.backup}` promises: {shown}{tail}. Production was not touched; the copy "
                f"is kept as `{self.into}` for {kept}. Choose another backup."
            )

    async def _entry(self, ports: Ports) -> CatalogueEntry:
        entry = await to_restore(ports, self.database, self.backup)
        if entry.manifest_sha256 != self.manifest_sha256:
            raise VerificationError(
                f"The manifest of `{self.backup}` is not the one that was signed for. Ask for a new plan."
            )
        return entry

    async def verify(self, ports: Ports) -> None:
        if not await is_there(ports, self.into, self.mark):
            raise VerificationError(
                f"Database `{self.into}` is gone since it was loaded. Production was not touched. "
                "Ask for a new plan, which loads it again."
            )
