"""Files in buckets: their copies and their versions."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        ("files", "status"),
        "status.files",
        CommandKind.QUERY,
        "List the copies of files, with what their comparison found",
        "dr files status minio-data",
        params.OptionalFiles,
        ("name",),
        usage="[NAME]",
    ),
    Entry(
        ("files", "copy"),
        "files.copy",
        CommandKind.PLAN,
        "Copy files into their other region now, and compare both",
        'dr files copy minio-data --reason "before the upgrade"',
        params.Files,
        ("name",),
        usage="NAME [--reason TEXT]",
    ),
    Entry(
        ("files", "restore"),
        "files.restore",
        CommandKind.PLAN,
        "Bring back what is missing out of a copy; with `--replace` also what changed",
        'dr files restore minio-data photos/ --reason "bucket lost" --target superprismora-files',
        params.RestoreFiles,
        ("name", "prefix"),
        aliases={"from": "copy_id"},
        usage='NAME [PREFIX] [--from COPY] [--into BUCKET] [--replace] --reason "WHY" --target BUCKET',
        flags=("replace",),
    ),
    Entry(
        ("files", "undelete"),
        "files.undelete",
        CommandKind.PLAN,
        "Bring deleted files back as of a moment, out of the versions of their bucket",
        'dr files undelete minio-data 10:25 photos/ --reason "deleted by a script" --target superprismora-files',
        params.UndeleteFiles,
        ("name", "at", "prefix"),
        usage='NAME MOMENT [PREFIX] [--replace] --reason "WHY" --target BUCKET',
        flags=("replace",),
    ),
)
