"""A store that goes away while segments come out of a pgBackRest archive."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from actions.backup.patience import AwayError
from actions.backup.pgbackrest_tools import ArchivePlace, PgBackRest
from actions.backup.pgbackrest_wal import PgBackRestWal
from actions.backup.segments import Segment
from tests.unit.test_pgbackrest_newest import PLACE, Program, archive


class Leaving(Program):
    """Brings nothing ahead, and gives nothing out the first two times."""

    async def fetch_ahead(self, place: ArchivePlace, names: Sequence[str], into: Path) -> None:
        assert place == PLACE

    async def fetch(self, place: ArchivePlace, name: str, into: Path) -> bool:
        if len(self.fetched) < 2:
            self.fetched.append(name)
            raise AwayError(f"pgBackRest could not give out `{name}`: the object store does not answer.")
        return await super().fetch(place, name, into)


@pytest.mark.corruption
async def test_a_segment_waits_for_a_store_that_went_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actions.backup.patience.FIRST_PAUSE", 0.01)
    program, (_, wal) = Leaving(), archive(1, 1)
    patient = PgBackRestWal(cast("PgBackRest", program), PLACE, wal.listing, patience=timedelta(minutes=1))
    [segment] = [Segment.parse(name) for name in wal.listing.segments]
    await patient.fetch_segments([segment], tmp_path, lambda _: None)
    assert program.fetched == 3 * [str(segment)]
    hasty = PgBackRestWal(cast("PgBackRest", Leaving()), PLACE, wal.listing)
    with pytest.raises(AwayError):
        await hasty.fetch_segments([Segment(1, 2)], tmp_path, lambda _: None)
