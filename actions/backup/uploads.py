"""What uploads leave that broke off: parts of an object, and objects without the manifest that makes them a backup."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from actions.ports import ObjectFacts, ObjectStore
from actions.site import Frozen

MANIFEST = "manifest.json"  # of dumps and base backups alike; written last
ABANDONED = timedelta(days=1)
"""Much longer than a job may take: an upload that old is nobody's any more."""


class Stray(Frozen):
    """Objects of one backup that has no manifest."""

    backup: str
    bucket: str
    folder: str  # prefix of their keys, with a slash at its end
    bytes: int
    newest_at: datetime


async def sweep_uploads(objects: ObjectStore, bucket: str, *, own: str, everything: str) -> None:
    """Abort half uploads: earlier ones of this backup, under the prefix `own`, and under `everything` old ones of
    backups that nobody has tried again."""
    await objects.sweep_uploads(bucket, own, older_than=timedelta(0))
    await objects.sweep_uploads(bucket, everything, older_than=ABANDONED)


async def strays(objects: ObjectStore, bucket: str, prefix: str, *, now: datetime) -> Sequence[Stray]:
    """Those whose upload nobody can be at any more, by one listing of the folders under `prefix`."""
    folders: dict[str, dict[str, ObjectFacts]] = defaultdict(dict)
    for facts in await objects.list(bucket, prefix):
        backup, _, name = facts.key.removeprefix(prefix).partition("/")
        folders[backup][name] = facts
    found = [
        Stray(
            backup=backup,
            bucket=bucket,
            folder=f"{prefix}{backup}/",
            bytes=sum(facts.bytes for facts in files.values()),
            newest_at=max(facts.modified_at for facts in files.values()),
        )
        for backup, files in sorted(folders.items())
        if MANIFEST not in files
    ]
    return [stray for stray in found if now - stray.newest_at > ABANDONED]
