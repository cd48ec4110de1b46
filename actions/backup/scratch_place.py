"""Where a scratch instance lies on disk: one folder, which tells by itself what it is and when it may go.

<directory>/<id>/claim.json     written first: whose it is, its mark, when it expires (a folder without one is junk)
<directory>/<id>/instance.json  written last, by the restore: what was reached and measured
<directory>/<id>/data/          PGDATA
<directory>/<id>/wal/           archived segments, fetched; `restore_command` copies from here
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import AwareDatetime

from actions.backup.physical import ScratchRestored
from actions.site import Frozen

T = TypeVar("T", bound=Frozen)


class Claim(Frozen):
    """Made before the first byte is fetched, so that whatever a crash leaves can be told and removed."""

    id: str
    server: str
    mark: str
    made_at: AwareDatetime
    expires_at: AwareDatetime
    wanted_bytes: int  # what it was expected to take


class ScratchPlace:
    """The folder of one instance. Blocking."""

    def __init__(self, directory: Path, scratch: str) -> None:
        self.folder = directory / scratch

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def wal(self) -> Path:
        return self.folder / "wal"

    def claim(self) -> Claim | None:
        """None where there is no such instance."""
        return _read(self.folder / "claim.json", Claim)

    def restored(self) -> ScratchRestored | None:
        """None while the restore has not ended well."""
        return _read(self.folder / "instance.json", ScratchRestored)

    def write_claim(self, claim: Claim) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(self.folder / "claim.json", claim)

    def write_restored(self, restored: ScratchRestored) -> None:
        _write(self.folder / "instance.json", restored)

    @classmethod
    def all(cls, directory: Path) -> list[ScratchPlace]:
        """Every folder there is, by name."""
        if not directory.exists():
            return []
        return [cls(directory, path.name) for path in sorted(directory.iterdir()) if path.is_dir()]

    @staticmethod
    def expired(claim: Claim, now: datetime) -> bool:
        return claim.expires_at <= now


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None


def _write(path: Path, value: Frozen) -> None:
    fresh = path.with_name(path.name + ".part")
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(value.model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
