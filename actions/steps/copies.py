"""Steps that load a dump beside production and prove the copy."""

from __future__ import annotations

import operator
import shlex
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import CatalogueEntry, JobKind, JobPhase, JobState, LoadRequest, Ports, Progress, ProgressReport
from actions.site import DatabaseRef, Invariant
from actions.steps import byhand
from actions.steps.dumps import fetched
from actions.steps.heavy import HeavyStep
from actions.steps.known_backups import to_restore
from actions.steps.phrases import span

SHOWN_DIFFERENCES = 5


class LoadDump(HeavyStep):
    """A new database with the dump's content, made by this plan: its mark tells."""

    kind: Literal["load_dump"] = "load_dump"
    database: str
    backup: str
    into: DatabaseRef
    owner: str
    mark: str
    jobs: int
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

    @property
    def before(self) -> str:
        return f"no database `{self.into.name}` on `{self.into.server}`"

    @property
    def after(self) -> str:
        return f"database `{self.into.name}`, owned by `{self.owner}`; production is not touched"

    def by_hand(self) -> tuple[str, ...]:
        server, name = self.into
        owner = byhand.identifier(self.owner)
        create = f"CREATE DATABASE {byhand.identifier(name)} OWNER {owner} TEMPLATE template0"
        target = byhand.conninfo(server, name)
        restore = ["pg_restore", "--exit-on-error", "--role", self.owner, "-j", str(self.jobs), "-d", target]
        return (
            *fetched(self.bucket, self.endpoint, self.key, self.sha256),
            byhand.psql(server, create),
            shlex.join([*restore, "backup.dump"]),
            shlex.join(["vacuumdb", "--analyze-only", "-d", target]),
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.LOAD

    def request(self) -> Mapping[str, Any]:
        asked = LoadRequest(backup=self.backup, database=self.database, into=self.into, mark=self.mark, jobs=self.jobs)
        return asked.model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:
        facts = await ports.postgres.database(self.into)
        if facts is None:
            return Probe.TODO
        if facts.mark != self.mark:
            return Probe.UNKNOWN  # somebody else's database under our name
        if job is not None:
            return Probe.DONE if job.phase is JobPhase.SUCCEEDED else Probe.TODO
        # The executor no longer knows the job (its record expired): the copy speaks for itself.
        entry = await to_restore(ports, self.database, self.backup)
        found = await ports.postgres.fingerprint(self.into, self.invariants)
        return Probe.TODO if entry.manifest.fingerprint.differences(found) else Probe.DONE

    async def sweep(self, ports: Ports) -> None:
        facts = await ports.postgres.database(self.into)
        if facts is not None and facts.mark == self.mark:
            await ports.postgres.discard(self.into, mark=self.mark)

    async def verify(self, ports: Ports) -> None:
        facts = await ports.postgres.database(self.into)
        if facts is None or facts.mark != self.mark:
            raise VerificationError(
                f"Database `{self.into}` was not made by this plan. Production was not touched. "
                "Rename it out of the way, then ask for a new plan."
            )


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
        facts = await ports.postgres.database(self.into)
        if facts is None or facts.mark != self.mark:
            raise VerificationError(
                f"Database `{self.into}` is gone since it was loaded. Production was not touched. "
                "Ask for a new plan, which loads it again."
            )
