"""How the backups stand: what can be recovered, what would be lost now, and how that is known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import ClassVar

from actions.contract import Finding, Query, Report, Verdict
from actions.errors import DrError
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.alarms import Alarm, alarms
from actions.steps.backup_words import COLUMNS, base_rows, dump_rows, dump_words, window_words
from actions.steps.choice import loss, rpo_words, usable_entries
from actions.steps.health import Dumps, Health, health
from actions.steps.phrases import counted, span


class BackupsParams(Frozen):
    """One database of the plan file, or all."""

    database: str | None = None


class Backups(Query[BackupsParams]):
    """The recovery window of every server, and the newest copy of every kind."""

    name: ClassVar[str] = "status.backups"
    summary: ClassVar[str] = "Show what can be recovered, what would be lost now, and how the backups stand"
    params = BackupsParams

    async def read(self, params: BackupsParams, ports: Ports) -> Report:
        asked = None if params.database is None else [params.database]
        seen = await health(ports, databases=asked)
        lacking = await asyncio.gather(*(_lacks(ports, bases.server) for bases in seen.bases))
        covered = {name for bases in seen.bases for name in bases.databases}
        lines = [window_words(bases, seen.at) for bases in seen.bases]
        lines += [dump_words(dumps, seen.at) for dumps in seen.dumps if dumps.key not in covered]
        lines += [beside.told for beside in seen.beside if beside.told]
        rows = [row for dumps in seen.dumps for row in dump_rows(dumps, seen.at)]
        rows += [row for bases in seen.bases for row in base_rows(bases, seen.at)]
        return Report(
            title=f"Backups of {counted(len(seen.dumps), 'database')}",
            lines=tuple(lines),
            columns=COLUMNS,
            rows=tuple(rows),
            findings=(*(finding for found in lacking for finding in found), *_findings(seen, covered)),
        )


async def _lacks(ports: Ports, server: str) -> list[Finding]:
    """What keeps base backups of this server from being made as the plan wants; nothing while nobody can tell."""
    try:
        lacks = await ports.physical.lacks(server)
    except DrError:
        return []  # `/dr doctor` says so
    check = f"base backups of {server}"
    verdicts = {True: Verdict.STOP, False: Verdict.WARN}
    return [Finding(check=check, verdict=verdicts[lack.stops], detail=lack.what, hint=lack.next) for lack in lacks]


def _findings(seen: Health, covered: set[str]) -> Iterator[Finding]:
    """What is wrong, worst first: nothing to restore, then what is alarmed of, then copies that must not be used."""
    bare = [dumps for dumps in seen.dumps if not dumps.problem and not usable_entries(dumps.entries, before=None)]
    yield from (_nothing(dumps) for dumps in bare)
    yield from (_beyond(dumps, seen) for dumps in seen.dumps if dumps.key not in covered and _is_beyond(dumps, seen))
    told = {f"late-dump/{dumps.key}" for dumps in bare}
    for alarm in alarms(seen):
        if alarm.key not in told:
            yield Finding(check=_check(alarm), verdict=Verdict.WARN, detail=alarm.text, hint=alarm.hint)
    for dumps in seen.dumps:
        for entry in dumps.entries:
            if entry.problem is not None:
                yield _unusable(f"backups of {dumps.key}", entry.manifest.id, entry.problem)
    for bases in seen.bases:
        for base in bases.entries:
            if base.problem is not None:
                yield _unusable(f"base backups of {bases.server}", base.manifest.id, base.problem)


def _check(alarm: Alarm) -> str:
    """What kind of thing is wrong; behind a colon stands which one of several."""
    return alarm.key.partition("/")[0].partition(":")[0]


def _nothing(dumps: Dumps) -> Finding:
    return Finding(
        check=f"backups of {dumps.key}",
        verdict=Verdict.STOP,
        detail=f"Database `{dumps.key}` has no usable dump.",
        hint=f"Make one now: `/dr-backup run {dumps.key}`.",
    )


def _is_beyond(dumps: Dumps, seen: Health) -> bool:
    fit = usable_entries(dumps.entries, before=None)
    return bool(fit) and loss(fit[0], seen.at) > dumps.database.rpo


def _beyond(dumps: Dumps, seen: Health) -> Finding:
    """Where there is no WAL, the age of the newest dump is what would be lost."""
    lost = loss(usable_entries(dumps.entries, before=None)[0], seen.at)
    return Finding(
        check=f"backups of {dumps.key}",
        verdict=Verdict.WARN,
        detail=f"The newest usable backup of `{dumps.key}` is {span(lost)} old "
        f"({rpo_words(lost, dumps.database.rpo)}).",
        hint=f"Make a new dump: `/dr-backup run {dumps.key}`; archive the WAL to lose less.",
    )


def _unusable(check: str, backup: str, problem: str) -> Finding:
    return Finding(
        check=check,
        verdict=Verdict.WARN,
        detail=f"Backup `{backup}` must not be used: {problem}",
        hint="Make a new one.",
    )
