"""What the plan's own schedule asks for, and when. Pure: the plan, a moment and what was asked before; requests out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from actions.schedules import Schedule, every
from bot.plan_file import DatabaseBackup, DrPlan

EXPIRY = "03:40 UTC"
"""Old backups go once a day, after the new ones are made."""

EXPIRE_POINTS, EXPIRE_ESCROWS = "03:50 UTC", "04:20 UTC"
"""Recovery points go first: an escrow stays while one needs it."""

CHECK_DUMP, CHECK_BASE = "sun 05:00 UTC", "sun 06:00 UTC"
"""The newest of each is read completely once a week, since what is never read may have rotted."""

WANTED = timedelta(hours=1)
"""How often a base backup is asked for while an alarm wants one."""

KEY = "%Y-%m-%dT%H:%MZ"

AGAIN_AFTER = timedelta(hours=1)
"""How long after it failed something is asked for once more, where its rhythm is not a short one."""

AGAIN_AT_LEAST = timedelta(minutes=5)
INCREMENTAL_AGAIN = timedelta(hours=4)
"""An incremental that comes more often is not asked for again: nothing is lost by it, and the next one is near."""


@dataclass(frozen=True)
class Again:
    """What failed is asked for once more, as long after it failed as `after` says."""

    after: timedelta
    what: str  # "dump of `superprismora`"
    by_hand: str  # the command for people
    target: str = ""  # of its plans; empty: any
    same: Mapping[str, str] = field(default_factory=dict)  # parameters that what stands in for it must have
    tells: bool = True  # in the on-call channel, also where its plans are quiet; else an alarm does
    refused: bool = True  # whether a request that could not be planned has failed; else there was nothing to do


@dataclass(frozen=True)
class Recurring:
    """One line of the schedule. Of those with the same `group` only one may be open at a time."""

    name: str  # "dump/superprismora"; its keys in the inbox are `schedule/<name>/<instant>`
    group: tuple[str, ...]  # names that must not be open
    action: str
    params: Mapping[str, str]
    until: Callable[[datetime], datetime | None]  # its last instant not later than a moment
    reason: str = "scheduled by the plan"
    quiet: bool = False
    """Whether no channel is told of its plans: what goes wrong with it is an alarm."""
    from_now: bool = True
    """Whether it begins with its next instant where nothing was ever asked for; else with the last one."""
    again: Again | None = None

    def key(self, instant: datetime) -> str:
        return f"{self.prefix}{instant.strftime(KEY)}"

    @property
    def prefix(self) -> str:
        return f"schedule/{self.name}/"


@dataclass(frozen=True)
class Past:
    """What the database knows of one line: the newest instant that was taken, and whether something of its group is
    open."""

    newest: datetime | None = None
    open: bool = False


@dataclass(frozen=True)
class Due:
    """What is to be asked for now. `asks` is False where only the beginning is noted."""

    line: Recurring
    instant: datetime
    asks: bool = True


def due(line: Recurring, past: Past, now: datetime) -> Due | None:
    """The newest instant that was not taken yet, however many were missed; None when there is none, or while the one
    before it is still open."""
    instant = line.until(now)
    if instant is None or (past.newest is not None and instant <= past.newest):
        return None
    if past.newest is None and line.from_now:
        return Due(line, instant, asks=False)
    return None if past.open else Due(line, instant)


def again_after(rhythm: timedelta) -> timedelta | None:
    """An hour, or a quarter of the rhythm where that is less; None where the next instant is as near."""
    after = min(AGAIN_AFTER, rhythm / 4)
    return after if after >= AGAIN_AT_LEAST else None


def second_at(line: Recurring, instant: datetime, failed_at: datetime) -> datetime | None:
    """When what failed is asked for once more; None where its next instant is not later than that."""
    if line.again is None:
        return None
    at = failed_at + line.again.after
    following = line.until(at)
    return at if following is None or following <= instant else None


def recurring(plan: DrPlan, wanted: Iterable[str] = ()) -> Sequence[Recurring]:
    """The lines of the plan, in the order in which they are asked for; `wanted` are the servers that need a new base
    backup at once."""
    lines: list[Recurring] = []
    for backup in plan.backups.databases:
        lines += _of(plan, backup)
    lines += [_expiry(name) for name in _expired(plan)]
    lines += [*_files(plan), *_escrows(plan), *_manifests(plan), *_points(plan)]
    known = {line.params.get("server") for line in lines}
    lines += [
        Recurring(
            name=f"base-wanted/{server}",
            group=_bases(server),
            action="backup.base",
            params={"server": server, "kind": "full", "alarmed": "true"},
            until=partial(every, WANTED),
            reason="an alarm says that a new base backup is needed",
            from_now=False,
        )
        for server in wanted
        if server in known
    ]
    return tuple(lines)


def _expired(plan: DrPlan) -> Sequence[str]:
    """Whose backups expire, each by itself, so that what one store refuses keeps nothing of the others: servers with
    base backups, which stand for the dumps of their databases too, and databases with dumps alone."""
    servers = {item.database: plan.database(item.database).server for item in plan.backups.databases}
    based = {servers[item.database] for item in plan.backups.databases if item.base is not None}
    return list(dict.fromkeys(server if server in based else name for name, server in servers.items()))


def _expiry(name: str) -> Recurring:
    again = Again(AGAIN_AFTER, f"deletion of old backups of `{name}`", f"/dr-backup expire {name}", name, refused=False)
    params = {"server": name}
    return _line(f"expire/{name}", "backup.expire", params, Schedule(EXPIRY).until, quiet=True, again=again)


def _of(plan: DrPlan, backup: DatabaseBackup) -> list[Recurring]:
    database, server = backup.database, plan.database(backup.database).server
    dumped = Again(AGAIN_AFTER, f"dump of `{database}`", f"/dr-backup run {database}", database)
    lines = [
        _line(
            f"dump/{database}",
            "backup.dump",
            {"database": database},
            Schedule(backup.dump.schedule).until,
            again=dumped,
        ),
        _line(f"check-dump/{database}", "backup.verify", {"database": database}, Schedule(CHECK_DUMP).until),
    ]
    if backup.base is None:
        return lines
    group = _bases(server)
    full, incremental = {"server": server, "kind": "full"}, {"server": server, "kind": "incremental"}
    based = Again(
        AGAIN_AFTER, f"full base backup of `{server}`", f"/dr-backup base {server} full", server, {"kind": "full"}
    )
    until = Schedule(backup.base.schedule).until
    lines.append(_line(f"full/{server}", "backup.base", full, until, group, again=based))
    if backup.incremental is not None:
        lines.append(_incremental(server, incremental, backup.incremental.every, group))
    lines.append(_line(f"check-base/{server}", "backup.check_base", {"server": server}, Schedule(CHECK_BASE).until))
    return lines


def _incremental(server: str, params: Mapping[str, str], rhythm: timedelta, group: tuple[str, ...]) -> Recurring:
    again = None
    if rhythm >= INCREMENTAL_AGAIN:
        by_hand = f"/dr-backup base {server} incremental"
        again = Again(AGAIN_AFTER, f"incremental base backup of `{server}`", by_hand, server, tells=False)
    until = partial(every, rhythm)
    return _line(f"incremental/{server}", "backup.base", params, until, group, quiet=True, again=again)


def _files(plan: DrPlan) -> list[Recurring]:
    copied = [item.copy_to for item in plan.backups.files if item.copy_to is not None]
    return [
        _line(
            f"files/{copy.name}",
            "files.copy",
            {"name": copy.name},
            Schedule(copy.schedule).until,
            again=Again(AGAIN_AFTER, f"copy of files `{copy.name}`", f"/dr files copy {copy.name}", copy.name),
        )
        for copy in copied
    ]


def _escrows(plan: DrPlan) -> list[Recurring]:
    escrow = plan.backups.escrow
    if escrow is None:
        return []
    expired = Again(AGAIN_AFTER, "deletion of old escrows", "/dr secrets expire", "escrow", refused=False)
    lines = [
        _line(
            f"escrow/{name}",
            "secrets.escrow",
            {"cluster": name},
            Schedule(escrow.schedule).until,
            again=Again(AGAIN_AFTER, f"escrow of cluster `{name}`", f"/dr secrets escrow {name}", name),
        )
        for name in [cluster.name for cluster in plan.clusters if cluster.sealed_secrets is not None]
    ]
    until = Schedule(EXPIRE_ESCROWS).until
    if not lines and not escrow.secrets:
        return []
    return [*lines, _line("expiry/escrow", "secrets.expire", {}, until, quiet=True, again=expired)]


def _manifests(plan: DrPlan) -> list[Recurring]:
    return [
        _line(f"manifests/{item.name}", "manifests.mirror", {"name": item.name}, partial(every, item.every), quiet=True)
        for item in plan.backups.manifests
    ]


def _points(plan: DrPlan) -> list[Recurring]:
    found = plan.backups.recovery_points
    if found is None:
        return []
    after = again_after(found.every)
    again = None if after is None else Again(after, "recovery point", "/dr point record", tells=False)
    old = Again(AGAIN_AFTER, "deletion of old recovery points", "/dr point expire", "recovery-points", refused=False)
    until = Schedule(EXPIRE_POINTS).until
    return [
        _line("recovery-point", "point.record", {}, partial(every, found.every), quiet=True, again=again),
        _line("expiry/points", "point.expire", {}, until, quiet=True, again=old),
    ]


def _line(
    name: str,
    action: str,
    params: Mapping[str, str],
    until: Callable[[datetime], datetime | None],
    group: tuple[str, ...] = (),
    *,
    quiet: bool = False,
    again: Again | None = None,
) -> Recurring:
    return Recurring(
        name=name, group=group or (name,), action=action, params=params, until=until, quiet=quiet, again=again
    )


def _bases(server: str) -> tuple[str, ...]:
    """Base backups of a server are made one after the other, whatever asked for them."""
    return (f"full/{server}", f"incremental/{server}", f"base-wanted/{server}")
