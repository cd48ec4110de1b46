"""What steps have in common that fill a new database beside production: its mark tells which plan made it."""

from __future__ import annotations

import shlex

from actions.contract import Probe
from actions.errors import VerificationError
from actions.ports import JobPhase, JobState, Ports
from actions.site import DatabaseRef
from actions.steps import byhand
from actions.steps.heavy import HeavyStep


class FillDatabase(HeavyStep):
    """A job that makes a database and fills it."""

    into: DatabaseRef
    owner: str
    mark: str
    jobs: int

    @property
    def before(self) -> str:
        return f"no database `{self.into.name}` on `{self.into.server}`"

    @property
    def after(self) -> str:
        return f"database `{self.into.name}`, owned by `{self.owner}`; production is not touched"

    def filled_by_hand(self, archive: str) -> tuple[str, ...]:
        """The commands that make it out of an archive that was fetched already."""
        server, name = self.into
        create = f"CREATE DATABASE {byhand.identifier(name)} OWNER {byhand.identifier(self.owner)} TEMPLATE template0"
        target = byhand.conninfo(server, name)
        restore = ["pg_restore", "--exit-on-error", "--role", self.owner, "-j", str(self.jobs), "-d", target]
        return (
            byhand.psql(server, create),
            shlex.join([*restore, archive]),
            shlex.join(["vacuumdb", "--analyze-only", "-d", target]),
        )

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:
        facts = await ports.postgres.database(self.into)
        if facts is None:
            return Probe.TODO
        if facts.mark != self.mark:
            return Probe.UNKNOWN  # somebody else's database under our name
        if job is None:
            return await self.without_job(ports)
        return Probe.DONE if job.phase is JobPhase.SUCCEEDED else Probe.TODO

    async def without_job(self, ports: Ports) -> Probe:  # noqa: ARG002 - the signature of those that look
        """Whether it is whole, where the executor no longer knows the job (its record expired). Nothing tells, by
        default: it is filled again, and compared in the next step."""
        return Probe.TODO

    async def sweep(self, ports: Ports) -> None:
        if await is_there(ports, self.into, self.mark):
            await ports.postgres.discard(self.into, mark=self.mark)

    async def verify(self, ports: Ports) -> None:
        if not await is_there(ports, self.into, self.mark):
            raise VerificationError(
                f"Database `{self.into}` was not made by this plan. Production was not touched. "
                "Rename it out of the way, then ask for a new plan."
            )


async def is_there(ports: Ports, database: DatabaseRef, mark: str) -> bool:
    """And made by the plan with this mark."""
    facts = await ports.postgres.database(database)
    return facts is not None and facts.mark == mark
