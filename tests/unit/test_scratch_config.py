"""A restored server takes nothing of production's configuration that leads back to production."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from actions.adapters.scratch_config import write_configuration
from actions.backup.physical import RecoveryTarget
from actions.backup.physical_tools import Replay

PRODUCTION = """
archive_mode = on
archive_command = 'cp %p /srv/archive/%f'
archive_library = 'basic_archive'
primary_conninfo = 'host=production'
primary_slot_name = 'one_of_production'
recovery_end_command = 'rm /srv/archive/*'
archive_cleanup_command = 'rm /srv/archive/*'
listen_addresses = '*'
"""


@pytest.mark.parametrize(
    "target", [RecoveryTarget(latest=True), RecoveryTarget(time=datetime(2026, 11, 23, tzinfo=UTC))]
)
@pytest.mark.parametrize("place", ["postgresql.conf", "postgresql.auto.conf"])
def test_it_neither_archives_nor_follows_production(tmp_path: Path, place: str, target: RecoveryTarget) -> None:
    """`postgresql.auto.conf` beats `postgresql.conf`; a copy by `pg_basebackup -R` has the way to its primary in it."""
    (tmp_path / place).write_text(PRODUCTION)
    replay = Replay(target=target, timeline_id=3, start_lsn="0/1", end_lsn="0/9", restore_command="cp a %p")
    write_configuration(tmp_path, control={}, socket=tmp_path, superuser="boss", account=None, order=replay, raised={})

    lines = [*(tmp_path / "postgresql.conf").read_text().splitlines()]
    lines += (tmp_path / "postgresql.auto.conf").read_text().splitlines()
    told = {name: value.strip("'") for name, _, value in (line.partition(" = ") for line in lines if line)}
    assert (told["archive_mode"], told["primary_conninfo"], told["primary_slot_name"]) == ("off", "", "")
    assert told["listen_addresses"] == "127.0.0.1"
    assert told["recovery_target_timeline"] == "3"  # `latest` would follow whatever somebody else has archived
    assert not {"archive_command", "archive_library", "recovery_end_command", "archive_cleanup_command"} & told.keys()
    assert (tmp_path / f"{place}.production").read_text() == PRODUCTION
