"""What `pgbackrest verify` and `expire` print, read. Both end with code 0 whatever they found. Pure."""

from __future__ import annotations

import re

from actions.backup.pgbackrest_tools import Expired, Verified

_STATUS = re.compile(r"^\s*status: (\w+)", re.MULTILINE)
_BACKUP = re.compile(r"backup: ([0-9FDI_-]+), status: (.+?), total files checked: (\d+), total valid files: (\d+)")
_ARCHIVE = re.compile(r"archiveId: \S+, total WAL checked: (\d+), total valid WAL: (\d+)")
_BAD_FILE = re.compile(r"(?:invalid checksum|invalid size|invalid result|file missing)\W+([^\s':]+)")
_BAD_WAL = re.compile(r"/([0-9A-F]{24})-[0-9a-f]{40}")
_REMOVED = re.compile(r"remove expired backup ([0-9FDI_-]+)")
_REMOVED_WAL = re.compile(r"remove archive, start = ([0-9A-F]{24}), stop = ([0-9A-F]{24})")
SHOWN = 3


def verified(report: str, label: str) -> Verified:
    """What a report (`--output=text --verbose`, log level info) says of one backup, and of the WAL."""
    status = _STATUS.search(report)
    backups = {found[1]: found for found in _BACKUP.finditer(report)}
    files = _BAD_FILE.findall(report)
    wal = tuple(sorted({found[1] for file in files if (found := _BAD_WAL.search(file))}))
    unnamed_wal = any(found[1] != found[2] for found in _ARCHIVE.finditer(report)) and not wal
    if status is None:
        return Verified(problem="it gave no report", wal=wal)
    if label not in backups:
        return Verified(problem=f"it did not look at `{label}`", wal=wal)
    found = backups[label]
    if found[2] != "valid" or found[3] != found[4] or found[3] == "0":
        bad = int(found[3]) - int(found[4])
        # Of a backup that rests on others: theirs count as its own.
        named = [file for file in files if not _BAD_WAL.search(file)][:SHOWN]
        which = f", among them {', '.join(f'`{file}`' for file in named)}" if named else ""
        return Verified(problem=f"{bad} of {found[3]} files are not as they were stored ({found[2]}){which}", wal=wal)
    explained = bool(wal) or any(each[2] != "valid" for each in backups.values())
    if unnamed_wal or (status[1] != "ok" and not explained):
        return Verified(problem=f"its report ends with `status: {status[1]}` and does not say why", wal=wal)
    return Verified(wal=wal)


def expired(report: str) -> Expired:
    """What a report of `expire` (log level info) removes, or would remove."""
    return Expired(labels=tuple(_REMOVED.findall(report)), wal=tuple(_REMOVED_WAL.findall(report)))
