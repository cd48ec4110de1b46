"""What a promoted scratch instance takes over from production's configuration, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from actions.adapters.scratch_config import KEPT
from actions.adapters.serving_config import end_recovery, memory, parsed, serving, size_of, take_back, write_serving

PRODUCTION = """
# a comment
listen_addresses = '*'
port = 5432
work_mem = 8MB   # and another
max_connections 300
search_path = '"$user", public, it''s'
archive_command = 'cp %p /archive/%f'
synchronous_standby_names = 'standby1'
shared_preload_libraries = 'pg_stat_statements'
shared_buffers = 900TB
ssl = on
include_dir = 'conf.d'
include 'elsewhere.conf'
"""
OURS = (
    "listen_addresses = '127.0.0.1'\nmax_connections = '500'\nrecovery_target_xid = '7'\nrestore_command = 'cp a %p'\n"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "more.conf").write_text("maintenance_work_mem = 64MB\n")
    (tmp_path / f"postgresql.conf{KEPT}").write_text(PRODUCTION)
    (tmp_path / f"postgresql.auto.conf{KEPT}").write_text("work_mem = '9MB'\n")
    (tmp_path / f"pg_hba.conf{KEPT}").write_text("host all all 10.0.0.0/8 scram-sha-256\n")
    (tmp_path / "postgresql.conf").write_text(OURS + "unix_socket_directories = '/tmp/s'\n")
    (tmp_path / "pg_hba.conf").write_text("local all all peer\n")
    (tmp_path / "pg_ident.conf").write_text("drbot root postgres\n")
    return tmp_path


def test_what_fits_is_taken_over_and_what_is_left_is_told(data: Path) -> None:
    found = serving(data, tls=lambda: True)

    assert found.settings == {
        "work_mem": "9MB",
        "max_connections": "300",
        "search_path": '"$user", public, it\'s',
        "maintenance_work_mem": "64MB",
        "shared_buffers": f"{(memory() // 4) >> 20}MB",
        "ssl": "off",
    }
    assert found.access
    assert set(found.left) == {"shared_preload_libraries", "shared_buffers", "ssl", "include 'elsewhere.conf'"}
    assert "not encrypted" in found.left["ssl"]


def test_tls_is_kept_where_its_files_are(data: Path) -> None:
    for name in ("server.crt", "server.key"):
        (data / name).touch()

    kept = serving(data, tls=lambda: True).settings
    assert (kept["ssl"], kept["ssl_cert_file"], kept["ssl_key_file"]) == ("on", "server.crt", "server.key")
    assert "cannot speak TLS" in serving(data, tls=lambda: False).left["ssl"]


def test_a_backup_without_configuration_serves_with_defaults(data: Path) -> None:
    for kept in data.glob(f"*{KEPT}"):
        kept.unlink()

    found = serving(data, tls=lambda: True)

    assert set(found.settings) == {"shared_buffers", "ssl"}
    assert not found.access
    write_serving(data, host="dr.example", superuser="postgres", plan=found)
    assert "host all all samenet scram-sha-256" in (data / "pg_hba.conf").read_text()


def test_the_files_are_written_taken_back_and_freed_of_the_target(data: Path) -> None:
    before = {name: (data / name).read_text() for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")}
    write_serving(data, host="dr.example", superuser="boss", plan=serving(data, tls=lambda: True))

    written = parsed((data / "postgresql.conf").read_text())
    assert written["listen_addresses"] == "*"
    assert written["archive_mode"] == "off"
    assert written["synchronous_standby_names"] == ""
    assert written["max_connections"] == "500"  # recovery needs it as high as the primary had it
    assert written["max_wal_senders"] == "10"  # for the base backup that comes next
    assert (written["recovery_target_xid"], written["restore_command"]) == ("7", "cp a %p")
    hba = (data / "pg_hba.conf").read_text()
    assert hba.startswith('local all "boss" peer map=drbot\n')
    assert "10.0.0.0/8" in hba

    assert end_recovery(data) == data / "postgresql.conf"
    assert "recovery_target_xid" not in parsed((data / "postgresql.conf").read_text())
    assert end_recovery(data) is None
    take_back(data)
    take_back(data)
    assert {name: (data / name).read_text() for name in before} == before


@pytest.mark.parametrize(("text", "count"), [("128MB", 128 << 20), ("16384", 16384 * 8192), (" 2 GB ", 2 << 30)])
def test_sizes(text: str, count: int) -> None:
    assert size_of(text) == count
    with pytest.raises(ValueError, match="is no size"):
        size_of("a quarter")
