"""The moment that a restore is made for, as people name it, and the target that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from actions.backup.physical import Change, Moment, RecoveryTarget
from actions.backup.tables import TableName
from actions.errors import UserError
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.finding import AROUND, moments_of, newest
from actions.steps.moments import moment_of
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
        return Aim(target=RecoveryTarget(time=at), at=at), ()
    target = RecoveryTarget(lsn=params.lsn, xid=params.xid, name=params.name, latest=params.latest)
    return Aim(target=target, lsn=params.lsn), ()


def _picked(found: Sequence[Moment], xid: int, change: Change, table: TableName) -> Moment:
    for moment in found:
        if moment.xid == xid:
            return moment
    known = ", ".join(str(moment.xid) for moment in found[:AROUND])
    raise UserError(f"Transaction {xid} is no {change.upper()} of `{table}` that is archived. There are: {known}.")
