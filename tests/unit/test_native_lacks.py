"""What the native engine lacks on a server, what to do about it, and who is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from actions.backup.native_lacks import of_backups, of_incrementals, of_streaming
from actions.backup.physical import Lack
from actions.backup.physical_tools import SourceServer
from actions.catalog.backup_status import Backups, BackupsParams
from actions.contract import Verdict
from actions.errors import TemporaryError
from bot.doctor import Doctor
from tests.fakes.world import START, a_world

GOOD = SourceServer(
    now=START,
    server_version=180006,
    system_id="7",
    timeline_id=1,
    segment_bytes=1 << 24,
    checksums=True,
    summarizes=True,
    summarized_lsn="0/3000000",
    summaries_kept=timedelta(days=10),
    wal_level="replica",
    wal_senders=10,
    replication_slots=10,
    login="drbot",
    may_stream=True,
    superuser="postgres",
    tablespaces=(),
    bytes=1,
    databases={},
)


@pytest.mark.parametrize(
    ("changes", "said", "then", "stops"),
    [
        ({}, None, "", True),
        ({"server_version": 160004}, "is PostgreSQL 16; the native engine needs 17", "`engine: pgbackrest`", True),
        ({"tablespaces": ("fast",)}, "has tablespaces of its own (`fast`)", "`engine: pgbackrest`", True),
        ({"wal_level": "minimal", "wal_senders": 0}, "`wal_level = minimal`", "max_wal_senders = 10", True),
        ({"wal_senders": 0}, "streams to nobody", "max_wal_senders = 10", True),
        ({"wal_senders": 1}, "streams to 1 at a time", "max_wal_senders = 10", True),
        ({"replication_slots": 0}, "no room for the archiver's slot", "max_replication_slots = 10", True),
        ({"may_stream": False}, "login `drbot` of server `main` may not stream", "ALTER ROLE drbot REPLICATION", True),
        ({"summarizes": False}, "does not summarise its WAL", "summarize_wal = on", True),
        ({"summaries_kept": timedelta(hours=2)}, "forgets its WAL summaries", "wal_summary_keep_time", False),
        ({"summaries_kept": timedelta(0)}, None, "", True),  # for ever
        ({"wal_level": "logical"}, None, "", True),
    ],
)
def test_each_thing_is_told_once_with_what_to_do(
    changes: dict[str, object], said: str | None, then: str, stops: bool
) -> None:
    facts = GOOD.model_copy(update=changes)
    program = f"{facts.server_version // 10000}.1"
    found = [*of_backups("main", facts, program), *of_streaming("main", facts), *of_incrementals("main", facts)]
    if said is None:
        assert not found
        return
    [lack] = found
    assert said in lack.what
    assert then in lack.next
    assert lack.stops == stops


def test_programs_of_another_version_are_told_and_none_are_not_judged() -> None:
    [lack] = of_backups("main", GOOD, "17.2")
    assert lack.what == "`pg_basebackup` 17.2 does not fit server `main` (PostgreSQL 18)."
    assert not list(of_backups("main", GOOD, None))


LACKS = [Lack(what="It streams to nobody.", next="Let it."), Lack(what="It forgets.", next="Remember.", stops=False)]


async def test_the_status_of_backups_shows_it() -> None:
    world = a_world(physical=True)
    world.physical.lacking = {"primary": LACKS}
    shown = {
        finding.detail: (finding.check, finding.verdict, finding.hint)
        for finding in (await Backups().read(BackupsParams(database="shop"), world)).findings
    }
    assert shown["It streams to nobody."] == ("base backups of primary", Verdict.STOP, "Let it.")
    assert shown["It forgets."] == ("base backups of primary", Verdict.WARN, "Remember.")

    world.physical.lacking = {"primary": TemporaryError("Server `primary` does not answer.")}
    report = await Backups().read(BackupsParams(), world)
    assert report.rows  # backups are looked at most on the day on which the server is gone


async def test_the_doctor_shows_it_and_a_silent_server_hides_no_other() -> None:
    world = a_world(physical=True)
    nothing: Any = None
    world.site.physical["other"] = world.site.physical["primary"]  # type: ignore[index]
    world.physical.lacking = {"other": TemporaryError("Server `other` does not answer."), "primary": LACKS}
    found = await Doctor(nothing, nothing, nothing, world)._engines()
    assert [(finding.check, finding.verdict) for finding in found] == [
        ("native of other", Verdict.WARN),
        ("native of primary", Verdict.STOP),
        ("native of primary", Verdict.WARN),
    ]
    assert "nobody can tell what it lacks: Server `other` does not answer." in found[0].detail
