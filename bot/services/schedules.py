"""What the plan's own schedule asks for, and when. Pure: the plan, a moment and what was asked before; requests out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from actions.schedules import Schedule, every
from bot.plan_file import DatabaseBackup, DrPlan

EXPIRY = "03:40 UTC"
"""Old backups go once a day, after the new ones are made."""

CHECK_DUMP, CHECK_BASE = "sun 05:00 UTC", "sun 06:00 UTC"
"""The newest of each is read completely once a week, since what is never read may have rotted."""

WANTED = timedelta(hours=1)
"""How often a base backup is asked for while an alarm wants one."""

KEY = "%Y-%m-%dT%H:%MZ"


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


def recurring(plan: DrPlan, wanted: Iterable[str] = ()) -> Sequence[Recurring]:
    """The lines of the plan, in the order in which they are asked for; `wanted` are the servers that need a new base
    backup at once."""
    lines: list[Recurring] = []
    for backup in plan.backups.databases:
        lines += _of(plan, backup)
    lines.append(_line("expiry/all", "backup.expire", {}, Schedule(EXPIRY).until, quiet=True))
    lines += [*_files(plan), *_escrows(plan), *_manifests(plan), *_points(plan)]
    known = {line.params.get("server") for line in lines}
    lines += [
        Recurring(
            name=f"base-wanted/{server}",
            group=_bases(server),
            action="backup.base",
            params={"server": server, "kind": "full"},
            until=partial(every, WANTED),
            reason="an alarm says that a new base backup is needed",
            from_now=False,
        )
        for server in wanted
        if server in known
    ]
    return tuple(lines)


def _of(plan: DrPlan, backup: DatabaseBackup) -> list[Recurring]:
    database, server = backup.database, plan.database(backup.database).server
    lines = [
        _line(f"dump/{database}", "backup.dump", {"database": database}, Schedule(backup.dump.schedule).until),
        _line(f"check-dump/{database}", "backup.verify", {"database": database}, Schedule(CHECK_DUMP).until),
    ]
    if backup.base is None:
        return lines
    group = _bases(server)
    full, incremental = {"server": server, "kind": "full"}, {"server": server, "kind": "incremental"}
    lines.append(_line(f"full/{server}", "backup.base", full, Schedule(backup.base.schedule).until, group))
    if backup.incremental is not None:
        rhythm = partial(every, backup.incremental.every)
        lines.append(_line(f"incremental/{server}", "backup.base", incremental, rhythm, group, quiet=True))
    lines.append(_line(f"check-base/{server}", "backup.check_base", {"server": server}, Schedule(CHECK_BASE).until))
    return lines


def _files(plan: DrPlan) -> list[Recurring]:
    copied = [item.copy_to for item in plan.backups.files if item.copy_to is not None]
    return [
        _line(f"files/{copy.name}", "files.copy", {"name": copy.name}, Schedule(copy.schedule).until) for copy in copied
    ]


def _escrows(plan: DrPlan) -> list[Recurring]:
    escrow = plan.backups.escrow
    if escrow is None:
        return []
    return [
        _line(f"escrow/{cluster.name}", "secrets.escrow", {"cluster": cluster.name}, Schedule(escrow.schedule).until)
        for cluster in plan.clusters
        if cluster.sealed_secrets is not None
    ]


def _manifests(plan: DrPlan) -> list[Recurring]:
    return [
        _line(f"manifests/{item.name}", "manifests.mirror", {"name": item.name}, partial(every, item.every), quiet=True)
        for item in plan.backups.manifests
    ]


def _points(plan: DrPlan) -> list[Recurring]:
    found = plan.backups.recovery_points
    if found is None:
        return []
    return [_line("recovery-point", "point.record", {}, partial(every, found.every), quiet=True)]


def _line(
    name: str,
    action: str,
    params: Mapping[str, str],
    until: Callable[[datetime], datetime | None],
    group: tuple[str, ...] = (),
    *,
    quiet: bool = False,
) -> Recurring:
    return Recurring(name=name, group=group or (name,), action=action, params=params, until=until, quiet=quiet)


def _bases(server: str) -> tuple[str, ...]:
    """Base backups of a server are made one after the other, whatever asked for them."""
    return (f"full/{server}", f"incremental/{server}", f"base-wanted/{server}")
