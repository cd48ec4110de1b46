"""The configuration of a scratch instance that is to become a primary: production's own, as far as it fits here.

The restore has put production's files aside (`scratch_config.KEPT`); what recovery needs is taken over from ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from actions.adapters.scratch_config import KEPT, MAP, write_private
from actions.backup.physical import Serving

ASIDE = ".scratch"  # the files of the instance while it shows a moment, for the way back
FILES = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_RECOVERY = re.compile(r"recovery_target(_.*)?|restore_command")
_BLOCK = 8192
_UNITS = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_LINE = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(?:=\s*|\s+)('(?:[^'\\]|''|\\.)*'|[^\s#']+)\s*(?:#.*)?")
_INCLUDE = re.compile(r"\s*(include(?:_dir|_if_exists)?)\s*=?\s*('(?:[^']|'')*'|[^\s#']+)\s*(?:#.*)?")
DEEPEST = 10  # as PostgreSQL
_PLAIN = re.compile(r"''|\\(.)")

# Ours, whatever production has: places, and what would reach into production or wait for its standbys.
_OURS = re.compile(
    r"data_directory|config_file|hba_file|ident_file|external_pid_file|listen_addresses|port|unix_socket_.*|bonjour.*"
    r"|archive_.*|restore_command|recovery_.*|primary_.*|promote_trigger_file|synchronous_standby_names"
    r"|synchronized_standby_slots|log_.*|logging_collector|event_source|syslog_.*|cluster_name|hot_standby|ssl.*"
)
_LIBRARIES = re.compile(r".*_preload_libraries|jit_provider|dynamic_library_path|extension_control_path")
_LIBRARY = "its libraries are not known to be here; add them by hand once it serves"

_SERVING = {
    "archive_mode": "off",  # production's archive is its own: this one is archived once people say where to
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",  # commits would wait for standbys that it does not have
    "hot_standby": "on",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "lc_messages": "C",  # its log is read
}
# Recovery needs the first three at least as high as the scratch configuration has them; a base backup of the new
# primary and its archiver need the others.
_AT_LEAST = {"max_wal_senders": 10, "max_replication_slots": 10, "max_worker_processes": 8}
_FLOORS = ("max_connections", "max_prepared_transactions", "max_locks_per_transaction", *_AT_LEAST)


def serving(data: Path, *, tls: Callable[[], bool]) -> Serving:
    """How it would run as a server that people use. `tls`: whether its programs can speak TLS. Blocking."""
    found, left = _production(data)
    settings: dict[str, str] = {}
    for name, value in found.items():
        if _LIBRARIES.fullmatch(name):
            if value:
                left[name] = _LIBRARY
        elif not _OURS.fullmatch(name):
            settings[name] = value
    _fit_memory(settings, left)
    settings |= _encryption(data, found, left, tls)
    return Serving(settings=settings, left=left, access=(data / ("pg_hba.conf" + KEPT)).exists())


def write_serving(data: Path, *, host: str, superuser: str, plan: Serving) -> list[Path]:
    """Put the files for it in the place of ours, which are kept; the paths that were written. Blocking."""
    for name in FILES:
        aside = data / (name + ASIDE)
        if not aside.exists():
            (data / name).rename(aside)
    scratch = parsed((data / ("postgresql.conf" + ASIDE)).read_text())
    settings = {**plan.settings, **_SERVING, **{name: scratch[name] for name in scratch if _RECOVERY.fullmatch(name)}}
    for name in _FLOORS:
        wanted = (settings.get(name, "0"), scratch.get(name, "0"), str(_AT_LEAST.get(name, 0)))
        settings[name] = str(max(int(value) for value in wanted))
    settings["wal_level"] = "logical" if settings.get("wal_level") == "logical" else "replica"
    settings["unix_socket_directories"] = scratch["unix_socket_directories"]
    settings["track_commit_timestamp"] = scratch.get("track_commit_timestamp", "off")
    settings["listen_addresses"] = "127.0.0.1" if host in LOOPBACK else "*"
    write_private(data / "postgresql.conf", text_of(settings))
    _write_access(data, host=host, superuser=superuser)
    return [data / name for name in (*FILES, *(name + ASIDE for name in FILES))]


def _write_access(data: Path, *, host: str, superuser: str) -> None:
    """Our way in first; then production's rules, or passwords from the networks of this machine."""
    quoted = '"' + superuser.replace('"', '""') + '"'
    hba, ident = data / ("pg_hba.conf" + KEPT), data / ("pg_ident.conf" + KEPT)
    rules = "host all all 127.0.0.1/32 scram-sha-256\n"
    if hba.exists():
        rules = hba.read_text()
    elif host not in LOOPBACK:
        rules += "host all all samenet scram-sha-256\n"
    write_private(data / "pg_hba.conf", f"local all {quoted} peer map={MAP}\n{rules}")
    ours = (data / ("pg_ident.conf" + ASIDE)).read_text()
    write_private(data / "pg_ident.conf", ours + (ident.read_text() if ident.exists() else ""))


def take_back(data: Path) -> None:
    """The files of an instance that shows its moment, as they were. Blocking."""
    for name in FILES:
        aside = data / (name + ASIDE)
        if aside.exists():
            aside.replace(data / name)


def half_open(data: Path) -> bool:
    """Whether files of ours were put aside, for an opening that may have been broken off. Blocking."""
    return any((data / (name + ASIDE)).exists() for name in FILES)


def end_recovery(data: Path) -> Path | None:
    """Take the recovery target out of the settings of a promoted one: a standby made of it would stop there. None when
    there is nothing to take out. Blocking."""
    path = data / "postgresql.conf"
    settings = parsed(path.read_text())
    rest = {name: value for name, value in settings.items() if not _RECOVERY.fullmatch(name)}
    if rest == settings:
        return None
    write_private(path, text_of(rest))
    return path


def parsed(text: str) -> dict[str, str]:
    """The settings that a configuration file has itself, the last of each."""
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return {line[1].lower(): _value(line[2]) for line in found if line is not None}


def text_of(settings: Mapping[str, str]) -> str:
    """As a configuration file."""
    escaped = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
    return "".join(f"{name} = '{value}'\n" for name, value in escaped.items())


def size_of(value: str, unit: int = _BLOCK) -> int:
    """Bytes of a setting that is a size; `unit` is what a bare number counts. Raises ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+)\s*(B|kB|MB|GB|TB)?\s*", value)
    if found is None:
        raise ValueError(f"`{value}` is no size")
    return int(found[1]) * (_UNITS[found[2]] if found[2] else unit)


def _value(text: str) -> str:
    if not text.startswith("'"):
        return text
    return _PLAIN.sub(lambda found: found[1] or "'", text[1:-1])


def _production(data: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Production's settings, and what of them cannot be read here, with the reason."""
    found: dict[str, str] = {}
    left: dict[str, str] = {}
    for name in ("postgresql.conf", "postgresql.auto.conf"):
        path = data / (name + KEPT)
        if path.exists():
            settings, missing = _with_includes(path, data)
            found |= settings
            left |= dict.fromkeys(missing, "the file is not in the base backup")
        elif name == "postgresql.conf":
            left[name] = "it is not in the base backup, so the server's own defaults apply"
    return found, left


def _with_includes(path: Path, data: Path, depth: int = 0) -> tuple[dict[str, str], list[str]]:
    """The settings of a file and of what it includes, the last of each; the includes that are not here."""
    settings: dict[str, str] = {}
    missing: list[str] = []
    for line in path.read_text(errors="replace").splitlines():
        found = _INCLUDE.fullmatch(line)
        if found is None:
            settings |= parsed(line)
            continue
        target = data / _value(found[2])
        files = sorted(target.glob("*.conf")) if found[1] == "include_dir" and target.is_dir() else [target]
        if depth < DEEPEST and all(file.is_file() for file in files):
            for file in files:
                more, lacks = _with_includes(file, data, depth + 1)
                settings |= more
                missing += lacks
        elif found[1] != "include_if_exists":
            missing.append(line.strip())
    return settings, missing


def _fit_memory(settings: dict[str, str], left: dict[str, str]) -> None:
    """Never more shared memory than this machine has room for; huge pages only where they may fail."""
    limit = memory() // 4
    wanted = settings.get("shared_buffers", "")
    try:
        asked = size_of(wanted) if wanted else limit
    except ValueError:
        asked = limit + 1
    if asked > limit:
        left["shared_buffers"] = f"{wanted} is more than a quarter of this machine's memory"
    settings["shared_buffers"] = f"{max(min(asked, limit) >> 20, 16)}MB"
    if settings.get("huge_pages") == "on":
        settings["huge_pages"] = "try"


def _encryption(data: Path, found: Mapping[str, str], left: dict[str, str], tls: Callable[[], bool]) -> dict[str, str]:
    if found.get("ssl", "off").lower() not in ("on", "true", "yes", "1"):
        return {"ssl": "off"}
    names = {"ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": "", "ssl_crl_file": ""}
    files = {name: found.get(name, usual) for name, usual in names.items()}
    missing = [value for value in files.values() if value and not (data / value).exists()]
    if missing:
        left["ssl"] = f"`{missing[0]}` is not on this machine, so connections are not encrypted"
    elif not tls():
        left["ssl"] = "its programs cannot speak TLS, so connections are not encrypted"
    else:
        more = {name: value for name, value in found.items() if name.startswith("ssl_")}
        return {**more, **{name: value for name, value in files.items() if value}, "ssl": "on"}
    return {"ssl": "off"}


def memory() -> int:
    """Bytes that this machine, or the container, has."""
    total = int(psutil.virtual_memory().total)
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total
