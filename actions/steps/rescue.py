"""Bringing one table, or the rows it lacks, out of a scratch instance into production; nothing else is touched."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Literal

from actions.backup.tables import ForeignKey, Rescued, RescueMode, RescueRequest, TableFacts, TableName
from actions.contract import Precondition, Probe
from actions.errors import VerificationError
from actions.ports import JobKind, JobState, Ports
from actions.site import DatabaseRef
from actions.steps import byhand
from actions.steps.heavy import HeavyStep
from actions.steps.phrases import counted, names


class RescueTable(HeavyStep):
    """The rows in production, in one transaction: all of them or none."""

    kind: Literal["rescue_table"] = "rescue_table"
    undo_on_failure: bool = True
    asked: RescueRequest
    rows: int  # as they were counted when this was planned

    @property
    def summary(self) -> str:
        asked, rows = self.asked, counted(self.rows, "row")
        match asked.mode:
            case RescueMode.TABLE:
                return (
                    f"Bring table `{asked.into}` with {rows} back into `{asked.target}`, out of `{asked.source.server}`"
                )
            case RescueMode.COPY:
                return f"Copy {rows} of `{asked.table}` out of `{asked.source.server}` into new table `{asked.into}`"
            case RescueMode.ROWS:
                return f"Insert {counted(self.rows, 'missing row')} of `{asked.table}` out of `{asked.source.server}`"

    @property
    def before(self) -> str:
        if self.asked.mode is RescueMode.ROWS:
            return f"`{self.asked.into}` lacks them; its other rows stay as they are"
        return f"no table `{self.asked.into}` in `{self.asked.target}`"

    @property
    def after(self) -> str:
        asked = self.asked
        match asked.mode:
            case RescueMode.TABLE:
                keys = f", and {counted(len(asked.incoming), 'foreign key')} of other tables" if asked.incoming else ""
                return (
                    "rows, indexes, constraints, sequences, owner, privileges and triggers as they were"
                    f"{keys}; compared row by row"
                )
            case RescueMode.COPY:
                return "columns, rows and primary key, for its owner alone; compared row by row"
            case RescueMode.ROWS:
                return f"none is missing, compared row by row; their keys are kept in `{asked.keys}`"

    def by_hand(self) -> tuple[str, ...]:
        asked = self.asked
        source = byhand.conninfo(*asked.source)
        pattern = ".".join(byhand.identifier(part) for part in asked.table)
        if asked.mode is RescueMode.TABLE:
            return (
                shlex.join(["pg_dump", "--table-and-children", pattern, "-d", source, "-f", "table.sql"]),
                shlex.join(
                    [
                        "psql",
                        "-X",
                        "-1",
                        "-v",
                        "ON_ERROR_STOP=1",
                        "-d",
                        byhand.conninfo(*asked.target),
                        "-f",
                        "table.sql",
                    ]
                ),
            )
        target = byhand.conninfo(*asked.target)
        into = ".".join(byhand.identifier(part) for part in asked.into)
        out = f"\\copy {pattern} TO 'table.copy'"
        made = f"CREATE TEMPORARY TABLE fetched (LIKE {into}); \\copy fetched FROM 'table.copy'"
        insert = f"INSERT INTO {into} SELECT * FROM fetched ON CONFLICT DO NOTHING"  # noqa: S608 - shown only
        return (
            shlex.join(["psql", "-X", "-d", source, "-c", out]),
            f"psql -X -1 -v ON_ERROR_STOP=1 -d {shlex.quote(target)}  # there: {made}",
            f"# and then, in the same session: {insert}",
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.RESCUE

    def request(self) -> Mapping[str, Any]:
        return self.asked.model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the tables tell all
        made = await ports.tables.facts(self.asked.target, self.asked.made)
        if made is None:
            return Probe.TODO
        if made.mark != self.asked.mark:
            return Probe.UNKNOWN
        # The table is committed before the foreign keys of others: a job that died between them is not done.
        return Probe.TODO if self._lacking(made) else Probe.DONE

    def _lacking(self, made: TableFacts) -> list[ForeignKey]:
        there = {(key.table, key.name) for key in made.incoming}
        return [key for key in self.asked.incoming if (key.table, key.name) not in there]

    async def verify(self, ports: Ports) -> None:
        """The rows were compared before they were committed. Writers are not stopped: what they have done since is
        theirs, and no reason to take anything back."""
        asked = self.asked
        made = await ports.tables.facts(asked.target, asked.made)
        if made is None or made.mark != asked.mark:
            raise VerificationError(
                f"Table `{asked.made}` of `{asked.target}` was not made by this plan. "
                "Rename it, or ask for another name with `--as`."
            )
        if lacking := self._lacking(made):
            keys = names(f"{key.name} of {key.table}" for key in lacking)
            raise VerificationError(
                f"`{asked.made}` of `{asked.target}` came back without {keys}. Add them by hand, or take it "
                "away and rescue it again."
            )

    async def outcome(self, ports: Ports) -> str:
        job = await ports.executor.find(self.job)
        done = None if job is None or job.result is None else Rescued.model_validate(job.result)
        if done is None or done.difference is None:
            return f"Compared with `{self.asked.source.server}` when it came, by an earlier attempt."
        found = done.difference
        more = f", {counted(found.only_target, 'row')} in production alone are kept" if found.only_target else ""
        changed = (
            f", {found.different} with another content in production are kept as they are" if found.different else ""
        )
        return f"{counted(found.same, 'row')} equal to `{self.asked.source.server}` when it came{more}{changed}."

    async def undo(self, ports: Ports) -> None:
        await ports.tables.withdraw(self.asked)

    def undo_by_hand(self) -> tuple[str, ...]:
        asked = self.asked
        server, name = asked.target
        into = ".".join(byhand.identifier(part) for part in asked.into)
        if asked.mode is not RescueMode.ROWS or asked.keys is None:
            others = f"SELECT xmin, count(*) FROM {into} GROUP BY 1"  # noqa: S608 - shown only
            return (
                f"{byhand.psql(server, others, database=name)}  # more than one line: others have written to it since",
                byhand.psql(server, f"DROP TABLE {into}", database=name),
            )
        keys = ".".join(byhand.identifier(part) for part in asked.keys)
        delete = f"DELETE FROM {into} USING {keys} kept WHERE {into}.xmin = kept.xmin"  # noqa: S608 - shown only
        return (byhand.psql(server, delete, f"DROP TABLE {keys}", database=name),)


class SourceTableIs(Precondition):
    """The scratch instance still shows the table with as many rows."""

    kind: Literal["source_table_is"] = "source_table_is"
    database: DatabaseRef
    table: TableName
    rows: int

    @property
    def summary(self) -> str:
        return f"`{self.table}` of `{self.database}` has {counted(self.rows, 'row')}"

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.tables.facts(self.database, self.table)
        if facts is None:
            return f"`{self.database}` has no table `{self.table}` any more."
        if facts.rows != self.rows:
            return f"`{self.table}` of `{self.database}` has {facts.rows} rows, signed was {self.rows}."
        return None


def left_out(there: TableFacts, mode: RescueMode) -> str:
    """What a rescue does not bring; empty when nothing is left out."""
    if mode is RescueMode.COPY:
        return "The copy has no indexes but its primary key, no defaults, triggers, foreign keys or privileges."
    if mode is RescueMode.TABLE and there.views:
        return f"{names(there.views)} read from it at that moment; a view that is gone is not brought back."
    return ""
