"""The moment that a restore is made for, as people name it, and the target that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from actions.backup.physical import Change, Moment, Place, RecoveryTarget
from actions.backup.tables import TableName
from actions.contract import Finding, Verdict
from actions.errors import DrError, UserError
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.finding import AROUND, moments_of, newest, places_of
from actions.steps.moments import exact, moment_of
from actions.steps.naming import label
from actions.steps.recovery import Aim, aim_before


class MomentParams(Frozen):
    """The moment: exactly one of them, but `xid` also picks one of several transactions that harmed a table."""

    at: str | None = None  # as people write it; UTC unless it says otherwise
    lsn: str | None = None
    xid: int | None = Field(default=None, ge=3)  # 0, 1 and 2 are no transactions
    name: str | None = Field(default=None, min_length=1, max_length=63)  # of pg_create_restore_point
    before_drop: str | None = None  # the table
    before_delete: str | None = None
    before_truncate: str | None = None
    before_update: str | None = None
    latest: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        harms = [self.before_drop, self.before_delete, self.before_truncate, self.before_update]
        given = [self.at, self.lsn, self.name, *harms, self.latest or None]
        count = sum(value is not None for value in given)
        if count + (self.xid is not None and not any(harms)) != 1:
            raise ValueError(
                "give one moment: --at, --lsn, --xid, --name, --before-drop, --before-delete, --before-truncate, "
                "--before-update or --latest"
            )
        return self

    @property
    def harm(self) -> tuple[Change, str] | None:
        """What to look for, and the table."""
        harms = {
            Change.DROP: self.before_drop,
            Change.DELETE: self.before_delete,
            Change.TRUNCATE: self.before_truncate,
            Change.UPDATE: self.before_update,
        }
        return next(((change, table) for change, table in harms.items() if table is not None), None)


async def aim_of(params: MomentParams, ports: Ports, *, database: str, plan_id: str) -> tuple[Aim, Sequence[Moment]]:
    """The target, and the other moments that were found."""
    if params.harm is not None:
        change, text = params.harm
        table = TableName.parse(text)
        known = ports.site.database(database)
        found = await moments_of(ports, known, table, (change,), job=label("drbot", plan_id, "find"))
        chosen = newest(found, table, (change,))
        if params.xid is not None:
            chosen = _picked(found, params.xid, change, table)
        others = [moment for moment in found if moment != chosen][:AROUND]
        return aim_before(chosen, str(table)), others
    if params.at is not None:
        at = moment_of(params.at, ports.clock.now())
        aim = Aim(target=RecoveryTarget(time=at), at=at)
    else:
        target = RecoveryTarget(lsn=params.lsn, xid=params.xid, name=params.name, latest=params.latest)
        aim = Aim(target=target, lsn=params.lsn)
    if aim.target.latest:
        return aim, ()
    server = ports.site.database(database).server
    return await _located(ports, server, aim, job=label("drbot", plan_id, "find")), ()


async def _located(ports: Ports, server: str, aim: Aim, *, job: str) -> Aim:
    """With what was committed around it, as far as the archived WAL can be looked through now."""
    target = aim.target
    try:
        places = await places_of(ports, server, target, job=job)
    except DrError as error:
        return aim.model_copy(update={"unseen": str(error)})
    if not places:
        absent = f"The archived WAL that leads to now does not hold {target}."
        return aim.model_copy(update={"unseen": absent, "absent": True})
    if len(places) > 1:
        several = "; ".join(f"`--lsn {each.lsn}`{_after(each)}" for each in places[:AROUND])
        raise UserError(f"{len(places)} restore points are called `{target.name}`. Choose one: {several}.")
    place = places[0]
    known = {} if target.time is not None else {"at": place.before_at, "lsn": target.lsn or place.lsn}
    return aim.model_copy(update={"place": place, **known})


def _after(place: Place) -> str:
    return "" if place.before_at is None else f" (after the commit of {exact(place.before_at)})"


def _picked(found: Sequence[Moment], xid: int, change: Change, table: TableName) -> Moment:
    for moment in found:
        if moment.xid == xid:
            return moment
    known = ", ".join(str(moment.xid) for moment in found[:AROUND])
    raise UserError(f"Transaction {xid} is no {change.upper()} of `{table}` that is archived. There are: {known}.")


def unseen_findings(aim: Aim) -> list[Finding]:
    """That nobody knows what was committed around it, and where that is told."""
    if not aim.unseen:
        return []
    if aim.absent:
        return [
            Finding(
                check="committed around it",
                verdict=Verdict.WARN,
                detail=aim.unseen,
                hint="See that it is written right. Where it is not archived by then, the restore fails at its end.",
            )
        ]
    return [
        Finding(
            check="committed around it",
            verdict=Verdict.WARN,
            detail=f"The archived WAL could not be looked through for {aim.target}: {aim.unseen}",
            hint="The last commit that is in it, and what that loses, is told at the end of the run.",
        )
    ]
