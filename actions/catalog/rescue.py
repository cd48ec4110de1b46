"""Rescue a table, or its missing rows, out of a scratch instance into production. Nothing else is touched."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from actions.backup.physical import ScratchFacts, ScratchState
from actions.backup.tables import RESCUED, Difference, ForeignKey, RescueMode, RescueRequest, TableFacts, TableName
from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.errors import UserError
from actions.ports import MeasuredLoad, Ports
from actions.site import Database, DatabaseRef, Frozen
from actions.steps.choice import estimate_words, load_rate
from actions.steps.facts import CLOSED, DatabaseIs, ServerIs, closed_for_good
from actions.steps.forecasts import rto_findings
from actions.steps.heavy import job_timeout
from actions.steps.moments import exact
from actions.steps.naming import beside, beside_job_name
from actions.steps.phrases import counted, names, size, span
from actions.steps.recovery import START
from actions.steps.rescue import RescueTable, SourceTableIs, left_out
from actions.steps.scratch_facts import ScratchIs, TableIs
from actions.steps.standing import database_of, standing


class RescueParams(Frozen):
    """What is rescued. Without `as` and `missing_rows` the table comes back under its own name."""

    scratch: str = Field(min_length=1)
    table: str = Field(min_length=1)
    missing_rows: bool = False
    as_name: str | None = Field(default=None, min_length=1, max_length=63)
    database: str | None = None  # where the server holds several of the plan file


class Rescue(Action[RescueParams]):
    """One table, or the rows it lacks, as a scratch instance has them."""

    name: ClassVar[str] = "restore.rescue"
    summary: ClassVar[str] = "Bring one table, or its missing rows, out of a scratch instance into production"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    recovers: ClassVar[bool] = True
    recovery: ClassVar[bool] = True
    params = RescueParams
    steps: ClassVar[tuple[type[Step], ...]] = (RescueTable,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (ScratchIs, SourceTableIs, ServerIs, DatabaseIs, TableIs)

    async def plan(self, params: RescueParams, ports: Ports, plan_id: str) -> Plan:
        facts = await standing(ports, params.scratch)
        key, database = database_of(ports, facts, params.database)
        table = TableName.parse(params.table)
        if await closed_for_good(ports, database.server):
            raise UserError(CLOSED.format(database.server))
        look = await _look(ports, facts, database, table)
        mode, into = _mode(params, look, table, plan_id)
        asked = RescueRequest(
            mode=mode,
            source=look.source,
            target=database.ref,
            table=table,
            into=into,
            keys=TableName(table.schema, beside(table.name, "rescued", plan_id)) if mode is RescueMode.ROWS else None,
            mark=f"{RESCUED}{plan_id}",
            owner=database.owner,
            incoming=await _lost_keys(ports, database.ref, look.there) if mode is RescueMode.TABLE else (),
        )
        home = await ports.postgres.server(database.server)
        production = await ports.postgres.database(database.ref)
        rows = look.difference.only_source if mode is RescueMode.ROWS and look.difference else look.there.rows
        made = asked.made
        last = await ports.runs.last_load(key)
        takes = _takes(look, last)
        words = f"{span(takes)} to bring and compare {size(look.there.bytes)}, {estimate_words(last)}"
        forecast = f"{words}, RTO {span(database.rto)}"
        return Plan(
            id=plan_id,
            action=self.name,
            summary=_summary(mode, table, into, key, rows, facts),
            risk=self.risk,
            target=key,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"scratch:{facts.id}", exclusive=False), Lock(key=f"database:{key}")),
            steps=(RescueTable(job=beside_job_name(plan_id, 1), asked=asked, rows=rows, timeout=job_timeout(takes)),),
            preconditions=(
                ScratchIs.of(facts),
                SourceTableIs(database=look.source, table=table, rows=look.there.rows),
                ServerIs.of(home, serves=True),
                DatabaseIs(target=database.ref, oid=None if production is None else production.oid),
                *(TableIs(database=database.ref, table=name, oid=oid) for name, oid in _signed(look, made, into)),
            ),
            made_at=ports.clock.now(),
            findings=(
                *_findings(look, facts, mode, asked),
                *rto_findings(takes, database.rto, forecast, instead=_quicker(mode, facts)),
            ),
            observations=(*_observations(look, facts), Observation(name="forecast", value=forecast)),
            estimate=takes,
            data_loss=_loss(mode, look),
        )


class _Look(Frozen):
    source: DatabaseRef
    there: TableFacts  # in the scratch instance
    here: TableFacts | None  # in production
    difference: Difference | None  # None: it is gone in production


async def _look(ports: Ports, facts: ScratchFacts, database: Database, table: TableName) -> _Look:
    source = DatabaseRef(facts.name, database.name)
    there = await ports.tables.facts(source, table)
    if there is None:
        raise UserError(
            f"`{source}` has no table `{table}` at its moment. Name another, or restore to an earlier moment."
        )
    if await ports.postgres.database(database.ref) is None:
        raise UserError(
            f"Database `{database.ref}` does not exist. `/dr-restore swap {facts.id}` gives it back as a whole."
        )
    here = await ports.tables.facts(database.ref, table)
    difference = None if here is None else await ports.tables.difference(source, table, database.ref, table)
    return _Look(source=source, there=there, here=here, difference=difference)


def _mode(params: RescueParams, look: _Look, table: TableName, plan_id: str) -> tuple[RescueMode, TableName]:
    """How, and under which name. Raises UserError where the way that was asked for does not exist."""
    if params.missing_rows and params.as_name is not None:
        raise UserError("Missing rows go into the table itself: give either `--missing-rows` or `--as`.")
    if params.missing_rows:
        _check_rows(look, table)
        return RescueMode.ROWS, table
    if params.as_name is not None:
        into = TableName.parse(params.as_name)
        return RescueMode.COPY, into if "." in params.as_name else TableName(table.schema, into.name)
    if look.here is None:
        return RescueMode.TABLE, table
    # It is there: what it holds now is nobody's to replace, so it comes beside it.
    return RescueMode.COPY, TableName(table.schema, beside(table.name, "rescued", plan_id))


def _check_rows(look: _Look, table: TableName) -> None:
    if look.here is None:
        raise UserError(f"Table `{table}` is gone in production. Leave `--missing-rows` out: it comes back whole.")
    lost = [column.name for column in look.there.columns if column not in look.here.columns]
    if not look.there.key or look.there.key != look.here.key:
        raise UserError(
            f"`{table}` has not the same primary key in both, so nobody can tell which rows are missing. Rescue it "
            "under another name with `--as`."
        )
    if lost or look.here.partitioned != look.there.partitioned:
        raise UserError(
            f"`{table}` was altered since ({names(lost) or 'partitions'}), so its rows do not fit. Rescue it under "
            "another name with `--as`."
        )
    if look.difference is not None and not look.difference.only_source:
        raise UserError(
            f"No row of `{table}` is missing in production; {look.difference.different} differ. "
            "Bring the whole table beside it with `--as NAME`."
        )


async def _lost_keys(ports: Ports, production: DatabaseRef, there: TableFacts) -> tuple[ForeignKey, ...]:
    """The foreign keys of other tables that went with it, of those tables that are still there."""
    return tuple([key for key in there.incoming if await ports.tables.facts(production, key.table) is not None])


def _signed(look: _Look, made: TableName, into: TableName) -> list[tuple[TableName, int | None]]:
    """The new table is not there yet; one that rows go into is the same."""
    found: list[tuple[TableName, int | None]] = [(made, None)]
    if into != made and look.here is not None:
        found.append((into, look.here.oid))
    return found


def _summary(mode: RescueMode, table: TableName, into: TableName, key: str, rows: int, facts: ScratchFacts) -> str:
    at = (
        ""
        if facts.restored is None or facts.restored.reached_at is None
        else f" as of {exact(facts.restored.reached_at)}"
    )
    match mode:
        case RescueMode.TABLE:
            return f"Bring `{table}` back into `{key}` with {counted(rows, 'row')}{at}"
        case RescueMode.COPY:
            return f"Bring `{table}` with {counted(rows, 'row')}{at} into `{key}` as `{into}`"
        case RescueMode.ROWS:
            return f"Insert {counted(rows, 'missing row')} of `{table}`{at} into `{key}`"


def _loss(mode: RescueMode, look: _Look) -> str:
    found = look.difference
    if mode is not RescueMode.ROWS or found is None:
        return "Nothing is lost or replaced: the table is new in production, everything else stays as it is."
    return (
        f"Nothing is lost or replaced: {counted(found.only_target, 'row')} in production alone and "
        f"{counted(found.different, 'row')} with another content stay as they are now."
    )


def _takes(look: _Look, last: MeasuredLoad | None) -> timedelta:
    """Written once, and both sides read to compare them: as much again, at the rate of a load."""
    return START + timedelta(seconds=2 * look.there.bytes // load_rate(last))


def _quicker(mode: RescueMode, facts: ScratchFacts) -> str:
    rows = "" if mode is RescueMode.ROWS else " Missing rows alone: add `--missing-rows`, where the table is there."
    return f"The table can be read in `{facts.name}` meanwhile.{rows}"


def _findings(look: _Look, facts: ScratchFacts, mode: RescueMode, asked: RescueRequest) -> list[Finding]:
    found = []
    if facts.problem:
        text = f"`{facts.name}` did not pass its check: {facts.problem}"
        hint = f"Bring back only what you have looked at; else `/dr-restore discard {facts.id}` and restore another."
        found.append(Finding(check="check", verdict=Verdict.WARN, detail=text, hint=hint))
    if mode is RescueMode.COPY and look.here is not None:
        text = f"`{asked.table}` is in production, so it comes as `{asked.into}` beside it."
        found.append(Finding(check="name", verdict=Verdict.OK, detail=text))
    missing = left_out(look.there, mode)
    if missing:
        found.append(Finding(check="left out", verdict=Verdict.WARN, detail=missing))
    if mode is RescueMode.ROWS:
        text = "Writes to the table wait while the rows are inserted; its triggers do not fire for them."
        found.append(Finding(check="writes", verdict=Verdict.WARN, detail=text))
    if asked.incoming:
        keys = names(f"{key.name} of {key.table}" for key in asked.incoming)
        text = f"{keys} comes back as well; rows that were written since and fit no row here make the rescue fail."
        found.append(Finding(check="foreign keys", verdict=Verdict.WARN, detail=text))
    return found


def _observations(look: _Look, facts: ScratchFacts) -> list[Observation]:
    lines = [("there", f"`{look.source}`, {counted(look.there.rows, 'row')}")]
    if look.here is None:
        lines.append(("production", "the table is gone"))
    else:
        lines.append(("production", counted(look.here.rows, "row")))
    if (found := look.difference) is not None:
        only = f"{found.only_source} rows only there, {found.only_target} only in production"
        lines.append(("difference", f"{only}, {found.different} different, {found.same} equal"))
    if facts.restored is not None:
        lines.append(("base", f"`{facts.restored.backup}`, at {facts.restored.reached_lsn}"))
    lines.append(("kept until", exact(facts.expires_at)))
    if facts.state is not ScratchState.PAUSED:
        lines.append(("state", facts.state))
    return [Observation(name=name, value=value) for name, value in lines]
