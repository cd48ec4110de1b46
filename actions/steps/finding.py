"""The search for what harmed a table, run as a job from a plan or a question: it reads much WAL and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from actions.backup.physical import (
    Change,
    FindRequest,
    Following,
    Moment,
    NamedPoint,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryTarget,
)
from actions.backup.tables import TableName
from actions.errors import DrError, PermanentError, TemporaryError, UserError, VerificationError
from actions.ports import JobKind, JobPhase, JobSpec, JobState, Ports, no_progress
from actions.site import Database
from actions.steps.moments import clock, exact
from actions.steps.phrases import counted, span

FIND_LIMIT = timedelta(minutes=10)
"""Longer than people wait; reading 10 GB of WAL takes a few minutes."""

LOOK_LIMIT = timedelta(minutes=1)
"""For what a plan says and does not need: some 5 GB of WAL."""

AROUND = 5


async def moments_of(
    ports: Ports,
    database: Database,
    table: TableName,
    changes: tuple[Change, ...],
    *,
    job: str,
    since: datetime | None = None,
) -> Sequence[Moment]:
    """Newest first. `job` is the name of the job, which is forgotten afterwards."""
    request = await _request(ports, database, table, changes, since)
    found = await _search(ports, request, job=job)
    return [Moment.model_validate(item) for item in found["moments"]]


async def point_ahead(ports: Ports, server: str, name: str, told: Following, *, job: str) -> NamedPoint:
    """The one restore point of this name that a standby has not replayed. Raises UserError when there is none, or more
    than one."""
    request = PointRequest(server=server, point=name, since=told.replayed_at)
    found = [NamedPoint.model_validate(item) for item in (await _search(ports, request, job=job))["points"]]
    ahead = [point for point in found if not told.past(point.target)]
    if len(ahead) == 1:
        return ahead[0]
    if not ahead:
        where = "was replayed already" if found else "is not in the WAL that it has to replay"
        raise UserError(
            f"Restore point `{name}` {where}. If it was made just now, the archive may not have it yet: ask again in a "
            "minute. For an older one restore from a base backup: `/dr-restore DATABASE --name` with it."
        )
    several = "; ".join(_place(point) for point in ahead[:AROUND])
    raise UserError(f"{len(ahead)} restore points are called `{name}`. Choose one: {several}.")


def _place(point: NamedPoint) -> str:
    at = "" if point.before_at is None else f" (after the commit of {exact(point.before_at)})"
    return f"`--lsn {point.lsn}`{at}"


async def places_of(ports: Ports, server: str, target: RecoveryTarget, *, job: str) -> Sequence[Place]:
    """Where a replay to the target stops, newest first. Looked for no longer than people wait for a plan that could
    be made without it."""
    request = PlaceRequest(server=server, target=target)
    found = await _search(ports, request, job=job, limit=LOOK_LIMIT)
    return [Place.model_validate(item) for item in found["places"]]


async def _search(
    ports: Ports, request: FindRequest | PointRequest | PlaceRequest, *, job: str, limit: timedelta = FIND_LIMIT
) -> Mapping[str, Any]:
    spec = JobSpec(name=job, kind=JobKind.FIND, request=request.model_dump(mode="json"), timeout=limit)
    await ports.executor.start(spec)
    state = await ports.executor.wait(job, no_progress)
    await ports.executor.forget(job)
    if state.phase is not JobPhase.SUCCEEDED or state.result is None:
        raise _failed(state)
    return state.result


async def _request(
    ports: Ports, database: Database, table: TableName, changes: tuple[Change, ...], since: datetime | None
) -> FindRequest:
    """With what the server knows of the table, where it still answers."""
    oid, there = None, None
    try:
        facts = await ports.postgres.database(database.ref)
        oid = None if facts is None else facts.oid
        there = None if facts is None else await ports.tables.facts(database.ref, table)
    except (TemporaryError, PermanentError):
        pass  # a server that is gone is one more reason to look at its WAL
    return FindRequest(
        server=database.server,
        database=database.name,
        table=str(table),
        changes=changes,
        since=since,
        database_oid=oid,
        relfilenode=None if there is None else there.relfilenode or None,
        table_oid=None if there is None else there.oid,
    )


def _failed(state: JobState) -> DrError:
    kinds: dict[str, type[DrError]] = {kind.__name__: kind for kind in (UserError, TemporaryError, VerificationError)}
    return kinds.get(state.error_kind, PermanentError)(state.error or "The search ended without a result. Ask again.")


def newest(moments: Sequence[Moment], table: TableName, changes: tuple[Change, ...]) -> Moment:
    """The last one: what is there now is its work. Raises UserError when there is none."""
    if moments:
        return moments[0]
    words = " or ".join(change.upper() for change in changes)
    raise UserError(
        f"The archived WAL holds no {words} of `{table}`. If it was just now, the archive may not have it yet: ask "
        "again in a minute, or name the moment with `--at`."
    )


def around(moment: Moment) -> str:
    """What was committed around it."""
    before = "nothing archived"
    if moment.before_at is not None:
        before = f"transaction {moment.before_xid} at {clock(moment.before_at)}"
    after = "nothing yet" if moment.after_at is None else f"the next commit at {clock(moment.after_at)}"
    rows = f" ({counted(moment.rows, 'row')})" if moment.rows else ""
    return (
        f"before it {before}; {moment.change.upper()}{rows} by transaction {moment.xid} at "
        f"{exact(moment.committed_at)}; after it {after}, {counted(moment.lost, 'transaction')} up to now"
    )


def around_place(place: Place) -> str:
    """What was committed around it."""
    before = "nothing archived"
    if place.before_at is not None:
        before = f"transaction {place.before_xid} at {exact(place.before_at)}"
    after = "nothing yet"
    if place.after_at is not None:
        after = f"transaction {place.after_xid} at {exact(place.after_at)}"
    return (
        f"the last one in it {before}; the first one after it {after}, {counted(place.lost, 'transaction')} up to now"
    )


def line(moment: Moment, now: datetime) -> str:
    """One of several, with the word to add to the command to get it."""
    rows = f", {counted(moment.rows, 'row')}" if moment.rows else ""
    loses = f"loses {span(now - moment.committed_at)} and {counted(moment.lost, 'transaction')}"
    return (
        f"just before the {moment.change.upper()} at {exact(moment.committed_at)}{rows}, {loses}: add `--xid "
        f"{moment.xid}`"
    )
