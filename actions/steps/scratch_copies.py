"""Steps that copy a database out of a scratch instance beside production and prove the copy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Literal

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import CopyRequest, JobKind, Ports, Progress
from actions.site import DatabaseRef, Invariant
from actions.steps import byhand
from actions.steps.new_databases import FillDatabase, is_there
from actions.steps.phrases import counted

SHOWN = 5


class CopyDatabase(FillDatabase):
    """A new database with what the scratch instance holds."""

    kind: Literal["copy_database"] = "copy_database"
    source: DatabaseRef
    database: str

    @property
    def summary(self) -> str:
        return f"Copy `{self.source}` into new database `{self.into}`"

    def by_hand(self) -> tuple[str, ...]:
        source = byhand.conninfo(*self.source)
        return (
            shlex.join(["pg_dump", "-Fd", "-j", str(self.jobs), "-d", source, "-f", "copy"]),
            *self.filled_by_hand("copy"),
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.COPY

    def request(self) -> Mapping[str, Any]:
        asked = CopyRequest(source=self.source, database=self.database, into=self.into, mark=self.mark, jobs=self.jobs)
        return asked.model_dump(mode="json")


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
        if not await is_there(ports, self.into, self.mark):
            raise VerificationError(
                f"Database `{self.into}` is gone since it was copied. Production was not touched. "
                "Ask for a new plan, which copies it again."
            )
