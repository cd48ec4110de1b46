"""The configuration of a scratch instance: ours alone, since production's may name files, libraries and certificates
that this machine does not have, or would archive into production's archive."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from actions.adapters.programs import Account
from actions.backup.physical import RecoveryTarget
from actions.backup.physical_tools import Replay

MAP = "drbot"
REPLACED = ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf")
KEPT = ".production"  # production's own files, for whoever promotes it

# Recovery needs them at least as high as the primary had them; pg_control remembers.
_FLOORS = {
    "max_connections": 50,
    "max_worker_processes": 8,
    "max_wal_senders": 0,
    "max_prepared_transactions": 0,
    "max_locks_per_transaction": 64,
}
_IN_CONTROL = {"max_prepared_transactions": "max_prepared_xacts", "max_locks_per_transaction": "max_locks_per_xact"}

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "archive_mode": "off",  # a restored server that archives breaks the timeline of production
    "primary_conninfo": "",
    "primary_slot_name": "",
    "shared_preload_libraries": "",
    "ssl": "off",
    "hot_standby": "on",
    "wal_level": "replica",
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "recovery_init_sync_method": "syncfs",
    "wal_retrieve_retry_interval": "500ms",
    "max_standby_archive_delay": "-1",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    "lc_messages": "C",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


# A dump is loaded as fast as into a server that people use: no setting spares what production would have to write.
_EMPTY = {
    **{name: value for name, value in _SETTINGS.items() if name != "hot_standby"},
    "max_wal_size": "1GB",
    "max_connections": "50",
    "max_wal_senders": "0",
    "unix_socket_permissions": "0700",
}


def write_configuration(
    data: Path,
    *,
    control: Mapping[str, str],
    socket: Path,
    superuser: str,
    account: Account | None,
    order: Replay,
    raised: Mapping[str, str],
) -> None:
    """Put our files in the place of production's, and the order to recover. Blocking."""
    for name in REPLACED:
        path, kept = data / name, data / (name + KEPT)
        if path.exists() and not kept.exists():
            path.rename(kept)
    settings = {**_SETTINGS, **_floors(control), **raised, **_recovery(order), "unix_socket_directories": str(socket)}
    write_private(data / "postgresql.conf", "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items()))
    write_private(
        data / "pg_hba.conf",
        f"local all {_name(superuser)} peer map={MAP}\nhost all all 127.0.0.1/32 scram-sha-256\n",
    )
    write_private(data / "pg_ident.conf", _people(superuser, account))
    write_private(data / "postgresql.auto.conf", "")
    for signal in ("recovery.signal", "standby.signal"):
        (data / signal).unlink(missing_ok=True)
    # A recovery without a target would end with a promotion; a standby waits at the end of the WAL.
    write_private(
        data / ("standby.signal" if order.target.latest or order.follows is not None else "recovery.signal"), ""
    )


def write_empty_configuration(data: Path, *, socket: Path, superuser: str, account: Account | None) -> None:
    """Of a server that `initdb` has just made: nobody but us reaches it, and whoever loads logs in with a password.
    Blocking."""
    settings = {**_EMPTY, "unix_socket_directories": str(socket)}
    write_private(data / "postgresql.conf", "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items()))
    us = f"local all {_name(superuser)} peer map={MAP}\n"
    write_private(data / "pg_hba.conf", f"{us}local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n")
    write_private(data / "pg_ident.conf", _people(superuser, account))


def _people(superuser: str, account: Account | None) -> str:
    people = {getpass.getuser(), *((account.name, "root") if account is not None else ())}
    return "".join(f"{MAP} {_name(who)} {_name(superuser)}\n" for who in sorted(people))


def _recovery(order: Replay) -> dict[str, str]:
    if order.follows is not None:
        # It goes on through a failover of production: the newest timeline that it is part of.
        delay = f"{order.follows // timedelta(milliseconds=1)}ms"
        return {
            "restore_command": order.restore_command,
            "recovery_target_timeline": "latest",
            "recovery_min_apply_delay": delay,
            "wal_retrieve_retry_interval": "2s",
        }
    settings = {
        "restore_command": order.restore_command,
        "recovery_target_timeline": str(order.timeline_id),
        **_target(order.target),
    }
    if not order.target.latest:
        settings |= {
            "recovery_target_inclusive": "on" if order.target.inclusive else "off",
            "recovery_target_action": "pause",
        }
    return settings


def _target(target: RecoveryTarget) -> dict[str, str]:
    if target.time is not None:
        return {"recovery_target_time": target.time.isoformat()}
    if target.lsn is not None:
        return {"recovery_target_lsn": target.lsn}
    if target.xid is not None:
        return {"recovery_target_xid": str(target.xid)}
    if target.name is not None:
        return {"recovery_target_name": target.name}
    return {}


def _floors(control: Mapping[str, str]) -> dict[str, str]:
    found = {name: control.get(f"{_IN_CONTROL.get(name, name)} setting", "0") for name in _FLOORS}
    floors = {name: max(floor, int(found[name])) for name, floor in _FLOORS.items()}
    commits = {"track_commit_timestamp": control.get("track_commit_timestamp setting", "off")}
    return {**{name: str(value) for name, value in floors.items()}, **commits}


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def write_private(path: Path, text: str) -> None:
    """A file that only its owner reads. Blocking."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
