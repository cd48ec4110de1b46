"""Steps that copy a database out of a scratch instance beside production and prove the copy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Literal

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import CopyRequest, JobKind, JobPhase, JobState, Ports, Progress
from actions.site import DatabaseRef, Invariant
from actions.steps import byhand
from actions.steps.heavy import HeavyStep
from actions.steps.phrases import counted

SHOWN = 5


class CopyDatabase(HeavyStep):
    """A new database with what the scratch instance holds, made by this plan: its mark tells."""

    kind: Literal["copy_database"] = "copy_database"
    source: DatabaseRef
    database: str
    into: DatabaseRef
    owner: str
    mark: str
    jobs: int

    @property
    def summary(self) -> str:
        return f"Copy `{self.source}` into new database `{self.into}`"

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
        jobs = str(self.jobs)
        return (
            shlex.join(["pg_dump", "-Fd", "-j", jobs, "-d", byhand.conninfo(*self.source), "-f", "copy"]),
            byhand.psql(server, create),
            shlex.join(["pg_restore", "--exit-on-error", "--role", self.owner, "-j", jobs, "-d", target, "copy"]),
            shlex.join(["vacuumdb", "--analyze-only", "-d", target]),
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.COPY

    def request(self) -> Mapping[str, Any]:
        asked = CopyRequest(source=self.source, database=self.database, into=self.into, mark=self.mark, jobs=self.jobs)
        return asked.model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:
        facts = await ports.postgres.database(self.into)
        if facts is None:
            return Probe.TODO
        if facts.mark != self.mark:
            return Probe.UNKNOWN  # somebody else's database under our name
        # Without its job nothing tells whether it is whole; it is copied again, and compared in the next step.
        return Probe.DONE if job is not None and job.phase is JobPhase.SUCCEEDED else Probe.TODO

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


class CompareScratch(Step):
    """The copy equals the scratch instance: rows of every table, sequences, schema, invariants."""

    kind: Literal["compare_scratch"] = "compare_scratch"
    source: DatabaseRef
    into: DatabaseRef
    mark: str
    invariants: tuple[Invariant, ...]

    @property
    def summary(self) -> str:
        return f"Compare `{self.into}` with `{self.source}`"

    @property
    def before(self) -> str:
        return "a copy of which nothing is known"

    @property
    def after(self) -> str:
        what = counted(len(self.invariants), "invariant")
        return f"rows of every table, sequences, schema hash and {what} equal"

    def by_hand(self) -> tuple[str, ...]:
        return tuple(byhand.exact_rows(*ref) for ref in (self.source, self.into))

    async def probe(self, ports: Ports) -> Probe:  # noqa: ARG002 - a comparison leaves nothing behind
        return Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002
        wanted = await ports.postgres.fingerprint(self.source, self.invariants)
        found = await ports.postgres.fingerprint(self.into, self.invariants)
        differences = wanted.differences(found)
        if differences:
            shown = "; ".join(differences[:SHOWN])
            raise VerificationError(
                f"The copy is not what `{self.source}` holds: {shown}. Production was not touched; the copy is kept "
                f"as `{self.into}`. Look at both, then ask for a new plan."
            )

    async def verify(self, ports: Ports) -> None:
        facts = await ports.postgres.database(self.into)
        if facts is None or facts.mark != self.mark:
            raise VerificationError(
                f"Database `{self.into}` is gone since it was copied. Production was not touched. "
                "Ask for a new plan, which copies it again."
            )
